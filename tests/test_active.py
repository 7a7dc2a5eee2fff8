"What to label next: covers, seeks defects, asks for no part twice."
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sads_jax.core.errors import DataError
from sads_jax.core.params import SyntheticSpec
from sads_jax.data.active import Mix, choose_next, farthest_first, unlike_good
from sads_jax.data.agreement import adjudication, agreement
from sads_jax.data.annotators import ManualAnnotatorFactory
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.records import Annotation, ImageRecord, write_coco


def cover(x, rows):
    "Largest distance of a row to the nearest of `rows`"
    return np.sqrt(((x[:, None] - x[rows][None])**2).sum(-1)).min(1).max()

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_cover_is_at_most_twice_the_best(seed, n):
    "Gonzalez 1985, against every choice there is"
    from itertools import combinations
    x = np.random.default_rng(seed).normal(size=(9, 2))
    labelled = np.arange(9) == 0
    rows, _ = farthest_first(x, n, labelled)
    best = min(cover(x, [0, *c]) for c in combinations(range(1, 9), n))
    assert cover(x, [0, *rows]) <= 2*best + 1e-9
    assert len({0, *rows}) == n + 1

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30))
def test_a_budget_is_kept_and_nothing_is_asked_for_twice(seed, budget, n_parts):
    rng = np.random.default_rng(seed)
    parts = [str(v) for v in rng.integers(0, n_parts, 30)]
    labelled = rng.random(30) < 0.3
    if labelled.all(): return
    picks = choose_next(rng.normal(size=(30, 3)), rng.random(30), labelled, parts, budget, seed=seed)
    rows = [p.row for p in picks]
    assert len(rows) == len(set(rows)) == min(budget, int((~labelled).sum()))
    assert not labelled[rows].any()
    open_parts = {p for p, known in zip(parts, labelled) if not known}
    first = [parts[r] for r in rows[:len(open_parts)]]
    assert len(first) == len(set(first))  # no part twice while others are left

def test_defects_are_sought_by_score():
    score = np.arange(20.)
    picks = choose_next(np.zeros((20, 1)), score, np.zeros(20, bool), list(map(str, range(20))), 4, Mix(1, 0, 0))
    assert [p.row for p in picks] == [19, 18, 17, 16] and {p.question for p in picks} == {'defect'}

def test_the_random_share_is_drawn_evenly():
    count = np.zeros(10)
    for seed in range(2000):
        (p,) = choose_next(np.eye(10), np.zeros(10), np.zeros(10, bool), list('abcdefghij'), 1, Mix(0, 0, 1), seed)
        count[p.row] += 1
    assert count.min() > 130 and count.max() < 280  # 200 each, six deviations of 13.4 either way

@pytest.mark.parametrize('budget, mix, what', [(0, Mix(), 'budget of 0'), (5, Mix(1, 1, 0), 'sum 1'),
    (5, Mix(1.5, -0.5, 0), 'positive')])
def test_what_cannot_be_meant_is_refused(budget, mix, what):
    with pytest.raises(DataError, match=what):
        choose_next(np.eye(3), np.zeros(3), np.zeros(3, bool), ['a', 'b', 'c'], budget, mix)

def test_unlike_good_finds_what_is_far_from_good():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (60, 5)), rng.normal(6, 1, (5, 5))])
    far = unlike_good(x, np.arange(40))
    assert far[60:].min() > far[:60].max()
    assert np.isfinite(unlike_good(x, np.array([], int))).all()


# -- Two annotators

def record(name, classes=(), boxes=()):
    marks = tuple(Annotation(classes[0], b, None, b[2]*b[3]) for b in boxes)
    return ImageRecord(1, f'images/{name}.png', 64, 64, name, None, None, bool(classes), tuple(classes), marks)

def test_kappa_is_that_of_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa, to_table
    rng = np.random.default_rng(3)
    kinds = [(), ('pit',), ('crack',)]
    a = rng.integers(0, 3, 80)
    b = np.where(rng.random(80) < 0.7, a, rng.integers(0, 3, 80))
    first, second = ([record(str(i), kinds[k]) for i, k in enumerate(v)] for v in (a, b))
    table, _ = to_table(np.stack([a, b], 1), 3)
    assert agreement(first, second).kappa == pytest.approx(cohens_kappa(table).kappa)

def test_what_one_alone_judged_is_no_disagreement():
    a = [record('1'), record('2', ('pit',), [(1, 1, 9, 9)])]
    assert agreement(a, [a[1], record('3', ('pit',))]).disputed() == []

def test_the_disputed_go_out_with_what_both_drew(tmp_path):
    data = ingest(ConnectorFactory(SyntheticSpec(n_parts=12, exposures=1, size=64), seed=0), tmp_path/'data')
    bad = [r for r in data.images if r.defective][:3]
    second = [replace(bad[0], defective=False, classes=(), annotations=()), *bad[1:]]
    queue = adjudication(data, bad, second, ('ann', 'bob'))
    assert [r.file_name for r in queue.images] == [bad[0].file_name]
    ManualAnnotatorFactory({'kind': 'label_studio'}).send(queue, tmp_path/'out')
    (task,) = json.loads((tmp_path/'out'/'tasks.json').read_text())
    assert task['annotations'] == [] and [p['model_version'] for p in task['predictions']] == ['ann']


# -- The command

def test_the_list_names_reasons_and_counts_no_program_as_a_person(tmp_path, monkeypatch, capsys):
    from sads_jax.cli.main import main
    from sads_jax.data.records import Automatic
    from sads_jax.training import features
    data = ingest(ConnectorFactory(SyntheticSpec(n_parts=10, exposures=1, size=64), seed=0), tmp_path/'data'/'dataset')
    images = tuple(r if i < 4 else replace(r, automatic=Automatic('m', 0.9), annotations=tuple(
        replace(a, automatic=Automatic('m', 0.9)) for a in r.annotations)) for i, r in enumerate(data.images))
    write_coco(replace(data, images=images), tmp_path/'data'/'dataset')
    def described(photos, **kw):  # grey levels stand in for the network, which takes a minute to compile
        for x in photos: yield features.Features(np.array([x.mean(), x.std()]), None, None, None)
    monkeypatch.setattr(features, 'features_of', described)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: main(['data', 'next', '--budget', '50', '--out', 'tasks'])
    assert e.value.code == 0
    rows = json.loads((tmp_path/'next.json').read_text())
    assert {r['file'] for r in rows} == {r.file_name for r in images[4:]}  # all that no person has judged
    assert all(r['reason'] for r in rows)
    assert len(json.loads((tmp_path/'tasks'/'tasks.json').read_text())) == len(rows)
