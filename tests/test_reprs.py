"What a notebook shows of reports, evaluations, data sets, splits and parameters: whole HTML, escaped, true counts"
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sads_jax.core.drawing import photograph_svg, report_html
from sads_jax.core.params import Params, SplitSpec, field_rows
from sads_jax.core.types import RLE, Defect, InspectionReport, Reason
from sads_jax.data.records import ImageRecord, InspectionData, annotate_mask, contact_sheet, varied
from sads_jax.data.splits import Split, split_parts
from sads_jax.evaluation.evaluate import Evaluation

NASTY = '<script>alert(1)</script>'


class Balanced(HTMLParser):
    "Every tag that opens closes"
    def __init__(self, text):
        super().__init__()
        self.stack = []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs): self.stack += [] if tag in ('br', 'meta', 'input') else [tag]
    def handle_endtag(self, tag): assert self.stack.pop() == tag


def whole(text):
    "HTML that is closed, fetches nothing and runs nothing"
    Balanced(text)
    for bad in ('<script', 'http:', 'https:', 'url(', '@import', 'src='): assert bad not in text
    return text


@pytest.fixture
def square():
    "A report of one square defect, and the photograph"
    photo, mask = np.full((60, 80, 3), 200, np.uint8), np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    photo[mask] = 50
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    defect = Defect(box=(20, 10, 50, 30), label='pit', label_score=1, score=.9, area_px=600, length_px=36.,
                    mask=RLE(size=code['size'], counts=code['counts'].decode()))
    reason = Reason(rule='any', verdict='FAIL', text=f'FAIL: pit 600 px² {NASTY}')
    report = InspectionReport(verdict='FAIL', reasons=[reason], defects=[defect], image_score=.91, image_sha256='0'*64,
                              image_size=(80, 60), model_version='m1', rules_version='r1', part_id='<A7>')
    return report, photo


def test_a_report_with_its_picture(square):
    report, photo = square
    page = whole(report_html(report, photo))
    for said in ('FAIL', '0.910', '600 px²', '&lt;script&gt;', '&lt;A7&gt;', 'm1'): assert said in page
    outline = re.search(r'<path class="halo" d="([^"]+)"', page)[1]
    xs, ys = ([int(v) for v in re.findall(p, outline)] for p in (r'M(\d+) ', r'M\d+ (\d+)'))
    assert (min(xs), max(xs), min(ys), max(ys)) == (20, 50, 10, 30)
    assert 'M20 10H50V30H20Z' in page and '>pit 0.90<' in page  # the box, and its name


def test_a_report_without_its_picture_is_what_ipython_shows(square):
    report, photo = square
    page = whole(report._repr_html_())
    assert page == report_html(report) and '<image' not in page and 'FAIL' in page
    assert '<image' in report_html(report, photo)
    assert 'no rule objects' in report.model_copy(update=dict(reasons=[], defects=[]))._repr_html_()


def test_the_same_photograph_gives_the_same_bytes_and_no_more_pixels_than_asked():
    photo = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    svg = photograph_svg(photo, side=100)
    assert svg == photograph_svg(photo, side=100) and 'viewBox="0 0 100 60"' in svg


def data_in(folder, n=12):
    "Every third part is defective; one has a box only; two photographs a part"
    records = []
    for i in range(n):
        bad = i//2 % 3 == 0
        mask = np.zeros((30, 40), bool)
        mask[5:12, 8:20] = bad
        Image.fromarray(np.full((30, 40, 3), 150, np.uint8)).save(folder/f'{i}.png')
        marks = annotate_mask(mask, 'pit') if bad else ()
        if i == 0: marks = tuple(replace(a, segmentation=None) for a in marks)
        records.append(ImageRecord(i, f'{i}.png', 40, 30, f'<p{i//2}>', defective=bad, classes=('pit',) if bad else (),
            annotations=marks))
    return InspectionData(folder, ('pit',), tuple(records))


def test_a_contact_sheet(tmp_path):
    data = data_in(tmp_path)
    page = whole(data._repr_html_())
    assert '12 photographs of 6 parts: 4 defective, 8 good, 0 unlabelled' in page
    assert page.count('<figure>') == 12 and page.count('class="truth"') == 4 and '&lt;p0&gt;' in page
    assert page.count('<figure>') == contact_sheet(data, most=50).count('<figure>')
    few = varied(data.images, 4)
    assert len(few) == 4 and sum(r.defective for r in few) == 2  # some of each kind
    (tmp_path/'3.png').unlink()
    assert 'no such file' in contact_sheet(data)
    assert '0 photographs' in whole(InspectionData(tmp_path, (), ())._repr_html_())


def test_a_split_counts_parts_and_classes(tmp_path):
    data = data_in(tmp_path, 24)
    split = split_parts(data, SplitSpec(), 0)
    assert split == {k: tuple(v) for k, v in split.items()} and isinstance(split, dict)
    rows = dict(re.findall(r'<tr><td>(\w+)</td>(.*?)</tr>', whole(split._repr_html_()), re.S))
    for name, ids in split.items():
        seen = [r for r in data.images if r.id in ids]
        numbers = re.findall(r'<td>(\d*)</td>', rows[name])
        want = [len(seen), len({r.part_id for r in seen}), sum(not r.defective for r in seen),
            sum(bool(r.defective) for r in seen)]
        assert [int(v or 0) for v in numbers] == want
    assert re.findall(r'<td>(\w+)</td><td>(\d+)</td>', whole(Split({'train': (1, 2)})._repr_html_())) == [('train',
        '2')]


def test_parameters_mark_what_somebody_changed():
    assert not [r for r in field_rows(Params()) if r['changed']]
    mine = Params.model_validate(dict(seed=7, data=dict(kind='folder', root='<photos>'),
        detector=dict(trainer=dict(kind='cnn', width=8))))
    changed = {r['path']: (r['value'], r['default']) for r in field_rows(mine) if r['changed']}
    assert changed.pop('data.root')[1] is None  # required: it has no default
    assert changed == {'seed': (7, 0), 'data.kind': ('folder', 'synthetic'), 'detector.trainer.kind': ('cnn',
        'finetune'), 'detector.trainer.width': (8, 16)}
    page = whole(mine._repr_html_())
    assert page.count('<tr class="changed">') == 5 and '&lt;photos&gt;' in page
    assert page.count('<details open>') == 3  # general, data, detector


def test_an_evaluation_shows_its_figures_and_the_cost_of_each_threshold(tmp_path):
    from test_explorer import evaluation
    made = evaluation(tmp_path)
    metrics = dict(data=dict(images=31, parts=16, defective=8, good=22, unlabelled=1, unreadable=0),
        baseline=dict(auroc=None, fitted_on=''), classes={})
    shown = Evaluation(made.data, made.categories, made.rows, (), metrics, made.context | dict(threshold=.4))
    page = whole(shown._repr_html_())
    assert '31 of 16 parts: 8 defective, 22 good, 1 unlabelled' in page and 'escape' in page and 'threshold' in page
    assert page.count('stroke-linejoin') == 2  # two curves
