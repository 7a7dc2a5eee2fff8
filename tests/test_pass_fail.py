"Pass/fail labels only, and photographs that all look alike: splits that do not collapse, a run without masks"
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sads_jax.core.params import SplitSpec
from sads_jax.data import splits as S
from sads_jax.data.records import ImageRecord, InspectionData
from sads_jax.data.synthetic import _casting
from sads_jax.data.twins import Thumbnails, near_duplicates


def alike(n, twins, seed=0):
    "Thumbnails of castings of one drawing under a lamp that moves; the last `twins` show the first ones again"
    rng = np.random.default_rng(seed)
    height = _casting(rng, (72, 72)).height
    gy, gx = np.gradient(ndimage.gaussian_filter(height, 1.))
    out = []
    for _ in range(n - twins):
        angle, grain = rng.uniform(0, 2*np.pi), ndimage.gaussian_filter(rng.normal(size=(72, 72)), 1.5)
        lit = 110 + 60*(gy*np.sin(angle) + gx*np.cos(angle)) + 8*height + 70*grain
        y, x = rng.integers(2, 7, 2)
        out.append(lit[y:y + 64, x:x + 64] + rng.normal(size=(64, 64)))
    for k in range(twins):
        moved = np.roll(out[k], rng.integers(-3, 4, 2), (0, 1))
        out.append(.9*moved + rng.normal(size=(64, 64)))
    grey = np.clip(out, 0, 255).round().astype(np.uint8)
    return Thumbnails(grey, grey.mean((1, 2)).astype(np.float32), grey.std((1, 2)).astype(np.float32))

def records(n):
    return InspectionData(Path('x'), ('dent',), tuple(ImageRecord(i, f'{i}.png', 64, 64, f'p{i}', None, None,
        i % 4 == 0, ('dent',) if i % 4 == 0 else ()) for i in range(n)))

@pytest.fixture(scope='module')
def line():
    n, twins = 240, 24
    thumbnails = alike(n, twins)
    return records(n), thumbnails, {(i, n - twins + i) for i in range(twins)}

def test_a_line_of_one_drawing_keeps_its_shares_and_its_twins(line, monkeypatch):
    data, thumbnails, planted = line
    twins = near_duplicates(data, .8, thumbnails=thumbnails)
    assert len(planted & {t[:2] for t in twins}) >= .9*len(planted)
    kept, _ = S.hold_together(data, twins)
    split = S.split_parts(data, SplitSpec(), 0, kept)
    for name, ids in split.items(): assert abs(len(ids)/len(data.images) - getattr(SplitSpec(), name)) <= .02
    assert S.share_notes(split, data, SplitSpec(), kept) == []
    side = {i: k for k, v in split.items() for i in v}
    assert np.mean([side[a] == side[b] for a, b in planted]) >= .9
    monkeypatch.setattr('sads_jax.data.twins._FEWEST', 10**9) # no background: as it was judged before
    assert len(near_duplicates(data, .8, thumbnails=thumbnails)) > 5*len(twins)

def test_an_exact_copy_is_a_twin_on_any_line(line):
    data, thumbnails, _ = line
    grey = thumbnails.grey.copy()
    grey[-1] = grey[150]
    assert (150, 239, 1.) in near_duplicates(data, .8, thumbnails=thumbnails._replace(grey=grey))

def test_a_group_that_cannot_be_divided_is_explained():
    data = records(400)
    sure = [(i, i + 1, .99) for i in range(299)]
    kept, cut = S.hold_together(data, sure)
    assert not cut
    split = S.split_parts(data, SplitSpec(), 0, kept)
    (note,) = S.share_notes(split, data, SplitSpec(), kept)
    assert '300 photographs of 300 parts' in note and 'asked for' in note

def test_weakest_pairs_are_cut_first_and_listed():
    data = records(100)
    weak = [(i, i + 1, round(.94 - i/1000, 4)) for i in range(99)]
    kept, cut = S.hold_together(data, weak)
    assert kept[0] == weak[0] and (0, 1, .94) not in cut and cut
    split = S.split_parts(data, SplitSpec(), 0, kept)
    audit = S.audit_leaks(split, data, kept, cut=cut)
    assert audit['cut_twins'] == len(cut) and not audit['leaking_twins']

# ---------------------------------------------------------------- a run without a mask

RUN = ['image.buckets=[[64, 64]]', 'split.near_duplicate=1', 'anomaly.kind=none', 'detector.width=16',
    'detector.trainer.steps=60', 'detector.trainer.views=2', 'detector.trainer.unfreeze_steps=0',
    'detector.trainer.learning_rate=0.004', 'detector.trainer.warmup=5', 'detector.trainer.ema=0.9',
    'evaluate.gallery=4', 'evaluate.golden=2']

def good_and_defective(root, n=40):
    "A folder of good and one of defective photographs: noise, and in the defective ones a bright line"
    rng = np.random.default_rng(0)
    for kind in ('good', 'defective'):
        (root/kind).mkdir(parents=True)
        for i in range(n):
            image = rng.normal(rng.uniform(90, 150), 8, (64, 64))
            y, x = rng.integers(12, 52), rng.integers(8, 36)
            if kind == 'defective': image[y:y + 2, x:x + 20] += 70
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root/kind/f'{kind}{i:02d}.png')

@pytest.mark.slow
def test_a_folder_of_good_and_one_of_defective_is_a_whole_run(tmp_path):
    good_and_defective(tmp_path/'photos')
    given = [*RUN, 'data.kind=folder', f'data.root={tmp_path/"photos"}', 'data.good=[good]']
    command = [sys.executable, '-m', 'sads_jax.cli.main', 'run', '--workdir', str(tmp_path/'run')]
    done = subprocess.run([*command, *(x for a in given for x in ('-S', a))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'no image of this split' in json.loads((tmp_path/'run/models/segmenter/absent.json').read_text())['why']
    found = json.loads((tmp_path/'run/reports/metrics.json').read_text())
    assert found['images']['auroc'] >= .9
    assert found['pixels']['ap'] is None and found['detection']['map50'] is None # nobody drew where
    reports = [json.loads(line) for line in (tmp_path/'run/reports/predictions.jsonl').read_text().splitlines()]
    boxed = [r['report']['defects'] for r in reports if r['defective'] and r['report']['defects']]
    assert boxed and all(d[0]['box'][2] > d[0]['box'][0] for d in boxed)
