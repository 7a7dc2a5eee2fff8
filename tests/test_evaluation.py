"""Evaluation against independent truth: scikit-learn, scipy, pycocotools' own files, and counts by hand"""
import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import binom, binomtest, mannwhitneyu
from sklearn import metrics as sk

from sads_jax.core.drawing import outline_path
from sads_jax.core.errors import DataError, ImageError, UnknownKind
from sads_jax.core.params import EscapeThreshold, F1Threshold, FixedThreshold, OverkillThreshold, ThresholdSpec
from sads_jax.core.types import RLE, Defect, Findings, InspectionReport, Verdict
from sads_jax.data.images import letterbox
from sads_jax.data.records import Annotation, ImageRecord, InspectionData, annotate_mask, class_map
from sads_jax.evaluation import evaluate, gallery, metrics, operating, report

few = settings(max_examples=60, deadline=None)
scored = st.lists(st.tuples(st.booleans(), st.sampled_from([i/8 for i in range(9)])), min_size=1,
    max_size=40) # many ties


# ---------------------------------------------------------------- whole images

@few
@given(scored)
def test_image_figures_equal_sklearn(rows):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if y.any() and not y.all():
        assert metrics.auroc(y, s) == pytest.approx(sk.roc_auc_score(y, s))
        assert metrics.auroc(y, s) == pytest.approx(mannwhitneyu(s[y], s[~y]).statistic/y.sum()/(~y).sum())
        fpr, tpr, t = metrics.roc_points(y, s)
        fpr2, tpr2, t2 = sk.roc_curve(y, s, drop_intermediate=False)
        np.testing.assert_allclose([fpr, tpr], [fpr2, tpr2])
        np.testing.assert_array_equal(t, t2)
    else:
        assert metrics.auroc(y, s) is None and not len(metrics.roc_points(y, s)[0])
    if y.any():
        assert metrics.average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s))
        p, r, t = metrics.pr_points(y, s)
        p2, r2, t2 = sk.precision_recall_curve(y, s)
        np.testing.assert_allclose(p, p2[:-1][::-1])
        np.testing.assert_allclose(r, r2[:-1][::-1])
        np.testing.assert_array_equal(t, t2[::-1])
    else:
        assert metrics.average_precision(y, s) is None


@few
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, .25, .5, 1]), st.integers(80, 130), st.integers(80, 130)),
    min_size=1, max_size=25))
def test_size_matched_auroc_by_its_definition(rows):
    y, s, sizes = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2:] for r in rows])
    wins, pairs = 0., 0
    for i in np.flatnonzero(y):
        for j in np.flatnonzero(~y):
            if all(abs(int(a) - int(b)) < .1*max(a, b) for a, b in zip(sizes[i], sizes[j])):
                pairs += 1
                wins += 1. if s[i] > s[j] else .5 if s[i] == s[j] else 0.
    got, n = metrics.size_matched_auroc(y, s, sizes)
    assert n == pairs and (got is None if not pairs else got == pytest.approx(wins/pairs))


def test_baseline_learns_only_what_is_simple():
    rng = np.random.default_rng(0)
    y = np.tile([False, True], 60)
    noise = rng.normal(size=(120, 4))
    leak = noise + np.outer(y, [3, 0, 0, 0])
    assert metrics.trivial_baseline(leak[:80], y[:80], leak[80:], y[80:]) > .95
    assert .25 < metrics.trivial_baseline(noise[:80], y[:80], noise[80:], y[80:]) < .75
    assert metrics.trivial_baseline(leak[:80], y[:80]*0, leak[80:], y[80:]) is None
    assert metrics.trivial_baseline(leak[:0], y[:0], leak, y) is None
    # parts that are each recognisable but say nothing of others: a split by image would score 1
    parts = np.repeat(np.arange(24), 5)
    kind = np.tile([False, True], 12)[parts]
    own = rng.normal(size=(24, 4))[parts]
    assert metrics.grouped_baseline(own, kind, parts) < .75
    assert metrics.grouped_baseline(leak, y, np.arange(120)) > .95


# ---------------------------------------------------------------- boxes

def _random_boxes(rng, n):
    a = rng.uniform(0, 80, (n, 2))
    return np.concatenate([a, a + rng.uniform(4, 40, (n, 2))], 1)


def _scene(seed, images=12, classes=3):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        n = rng.integers(0, 4)
        t = _random_boxes(rng, n)
        labels = rng.integers(0, classes, n)
        keep = rng.random(n) < .8
        near, extra = t[keep] + rng.normal(0, 2.5, (keep.sum(), 4)), _random_boxes(rng, rng.integers(0, 3))
        named = np.where(rng.random(keep.sum()) < .8, labels[keep], rng.integers(0, classes, keep.sum()))
        boxes = np.concatenate([near, extra])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        k = len(boxes)
        truth.append(metrics.make_boxes(t, labels))
        found.append(metrics.make_boxes(boxes, np.concatenate([named, rng.integers(0, classes, len(extra))]),
            rng.uniform(.05, 1, k), rng.uniform(.3, 1, k)))
    return truth, found


def _coco_by_files(folder, truth, found, classes, aware):
    "The long way round: JSON files, loadRes and COCO's own summary"
    box = lambda b: [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]
    anns, res = [], []
    for i, (t, f) in enumerate(zip(truth, found)):
        for b, l in zip(t.boxes, t.labels):
            anns.append(dict(id=len(anns) + 1, image_id=i + 1, category_id=int(l) + 1 if aware else 1, bbox=box(b),
                area=float((b[2] - b[0])*(b[3] - b[1])), iscrowd=0))
        for b, l, s, p in zip(*[f.boxes, f.labels, f.scores, f.label_scores]):
            res.append(dict(image_id=i + 1, category_id=int(l) + 1 if aware else 1, bbox=box(b),
                score=float(s*p if aware else s)))
    gt = folder/'gt.json'
    gt.write_text(json.dumps(dict(images=[dict(id=i + 1) for i in range(len(truth))], annotations=anns,
        categories=[dict(id=c + 1, name=str(c)) for c in range(classes if aware else 1)])))
    (folder/'dt.json').write_text(json.dumps(res))
    coco = COCO(str(gt))
    e = COCOeval(coco, coco.loadRes(str(folder/'dt.json')), 'bbox')
    e.evaluate()
    e.accumulate()
    e.summarize()
    return e.stats


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('aware', [False, True])
def test_map_equals_coco_by_files(tmp_path, capsys, seed, aware):
    truth, found = _scene(seed)
    got = metrics.detection_map(truth, found, 3, class_aware=aware)
    assert capsys.readouterr().out == '' # silent
    stats = _coco_by_files(tmp_path, truth, found, 3, aware)
    assert (got['map50_95'], got['map50']) == pytest.approx((stats[0], stats[1]))
    assert np.mean([a for a in got['ap50'] if a is not None]) == pytest.approx(got['map50'])


def test_map_by_hand():
    t = [metrics.make_boxes([[0, 0, 10, 10]], [1])]
    hit = [metrics.make_boxes([[0, 0, 10, 10]], [1], [.4])]
    assert metrics.detection_map(t, hit, 2, class_aware=True)['ap50'] == [None, pytest.approx(1)]
    wrong = [metrics.make_boxes([[0, 0, 10, 10]], [0], [.4])]
    assert metrics.detection_map(t, wrong, 2, class_aware=True)['map50'] == 0
    assert metrics.detection_map(t, wrong, 2, class_aware=False)['map50'] == pytest.approx(1)
    # a false alarm on a good image, scored above the hit, halves the precision at every recall
    alarm = [*hit, metrics.make_boxes([[0, 0, 10, 10]], [1], [.9])]
    assert metrics.detection_map([*t, metrics.make_boxes()], alarm, 2, class_aware=False)['map50'] == pytest.approx(.5)
    # IoU .81: counts at .5 ... .8, seven of ten thresholds
    loose = [metrics.make_boxes([[0, 0, 9, 9]], [1], [.4])]
    assert metrics.detection_map(t, loose, 2, class_aware=False)['map50_95'] == pytest.approx(.7)
    none = metrics.detection_map([metrics.make_boxes()], [metrics.make_boxes()], 2, class_aware=True)
    assert none['map50'] is None and none['ap50'] == [None, None]
    assert metrics.detection_map([], [], 2, class_aware=False)['map50'] is None
    with pytest.raises(ValueError, match='1 images of truth, 0 of detections'):
        metrics.detection_map(t, [], 2, class_aware=False)
    with pytest.raises(ValueError, match='lengths differ'): metrics.make_boxes([[0, 0, 1, 1]], [1, 2])


@few
@given(st.integers(0, 10_000))
def test_matching_is_one_to_one_and_overlaps(seed):
    truth, found = (x[0] for x in _scene(seed, images=1))
    m = metrics.match_boxes(truth.boxes, found.boxes, found.scores)
    used = m[m >= 0]
    assert len(set(used)) == len(used)
    for i, k in enumerate(m):
        if k >= 0:
            a, b = truth.boxes[i], found.boxes[k]
            side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            inter = np.prod(np.maximum(side, 0))
            assert inter/(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter) >= .5 - 1e-9


@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_names_equal_sklearn(pairs):
    y, p = np.array(pairs).T
    r = metrics.classification_report(y, p, 4)
    assert r['accuracy'] == pytest.approx(sk.accuracy_score(y, p))
    assert r['macro_f1'] == pytest.approx(sk.f1_score(y, p, average='macro'))
    np.testing.assert_array_equal(r['confusion'], sk.confusion_matrix(y, p, labels=range(4)))


def test_no_names_no_figures():
    r = metrics.classification_report([], [], 2)
    assert r['accuracy'] is None and r['macro_f1'] is None and r['n'] == 0


# ---------------------------------------------------------------- pixels

@few
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_masks_equal_sklearn(seed, classes):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, classes + 1, (2, 9, 7)).astype(np.uint8)
    iou, dice = metrics.mask_scores(metrics.mask_counts(a, b, classes))
    for c in range(classes + 1):
        x, y = ((a == c, b == c) if c else (a > 0, b > 0))
        if (x | y).any():
            assert iou[c] == pytest.approx(sk.jaccard_score(x.ravel(), y.ravel()))
            assert dice[c] == pytest.approx(sk.f1_score(x.ravel(), y.ravel()))
        else: assert iou[c] is None and dice[c] is None


@pytest.mark.parametrize('seed', range(3))
def test_pixel_ap_equals_sklearn(seed):
    rng = np.random.default_rng(seed)
    y = [(rng.random((60, 70)) < .05).astype(np.uint8)*rng.integers(1, 3) for _ in range(4)]
    s = [np.clip(rng.beta(1, 30, m.shape) + .05*(m > 0), 0, 1).astype(np.float32)
        for m in y] # low scores, like a real map's
    h = sum(metrics.pixel_histogram(a, b, 2) for a, b in zip(s, y))
    Y, S = np.concatenate([m.ravel() for m in y]), np.concatenate([m.ravel() for m in s])
    assert metrics.histogram_ap(h[1:].sum(0), h[0]) == pytest.approx(sk.average_precision_score(Y > 0, S), abs=1e-4)
    for c in (1, 2):
        if (Y == c).any():
            keep = (Y == 0)|(Y == c)
            assert metrics.histogram_ap(h[c], h[0]) == pytest.approx(sk.average_precision_score(Y[keep] == c, S[keep]),
                abs=1e-4)


def test_pixel_histogram_survives_the_ends():
    h = metrics.pixel_histogram(np.array([[0, 1, 2, -1, np.nan]], np.float32), np.zeros((1, 5), np.uint8), 1, 4)
    np.testing.assert_array_equal(h, [[3, 0, 0, 2], [0]*4])
    with pytest.raises(ValueError, match='sizes differ'):
        metrics.pixel_histogram(np.zeros((2, 2)), np.zeros((2, 3), np.uint8), 1)


def _defect(mask, label, score=.9):
    y, x = np.nonzero(mask)
    code = rle.encode(np.asfortranarray(mask))
    return Defect(box=tuple(map(float, (x.min(), y.min(), x.max() + 1, y.max() + 1))), label=label, label_score=.8,
        score=score, area_px=float(mask.sum()),
        length_px=1., mask=RLE(size=mask.shape, counts=code['counts'].decode()))


def _report(verdict='FAIL', score=.9, size=(64, 48), defects=()):
    return InspectionReport(verdict=verdict, reasons=[], defects=list(defects), image_score=score, image_sha256='0'*64,
        image_size=size, model_version='m', rules_version='r',
        timings_ms={'all': np.random.random()})


def test_overlapping_reports_show_the_surer_one():
    a, b = np.zeros((2, 48, 64), bool)
    a[:10], b[5:15] = True, True
    m = metrics.reported_map(_report(defects=[_defect(a, 'x', .9), _defect(b, 'y', .5)]), ('x', 'y'))
    np.testing.assert_array_equal(m[:, 0], [1]*10 + [2]*5 + [0]*33)


# ---------------------------------------------------------------- operating point

@few
@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([.8, .95, .99]))
def test_interval_equals_scipy(k, n, conf):
    k = min(k, n)
    low, high = operating.clopper_pearson(k, n, conf)
    ci = binomtest(k, n).proportion_ci(conf, method='exact')
    assert (low, high) == pytest.approx((ci.low, ci.high), abs=1e-9)
    # and by its definition: at either end, what was seen is just as unlikely as allowed
    if k: assert binom.sf(k - 1, n, low) == pytest.approx((1 - conf)/2, rel=1e-6)
    if k < n: assert binom.cdf(k, n, high) == pytest.approx((1 - conf)/2, rel=1e-6)


def test_interval_of_nothing():
    assert operating.clopper_pearson(0, 0) == (0., 1.)
    assert operating.rate(0, 0) == dict(count=0, of=0, rate=None, low=None, high=None)
    assert operating.rate_text(operating.rate(2, 31), 'defective parts', 'passed').startswith(
        '2 of 31 defective parts passed (6.5%')
    for k, n, c in [(-1, 3, .95), (4, 3, .95), (1, 3, 1.)]:
        with pytest.raises(ValueError): operating.clopper_pearson(k, n, c)


@few
@given(scored, st.sampled_from([0., .1, .3, 1.]))
def test_thresholds_do_what_they_say(rows, limit):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    escaped, overkilled = (lambda t: int((s[y] < t).sum())), (lambda t: int((s[~y] >= t).sum()))
    grid = np.unique(np.concatenate([s, np.nextafter(s, 2), [0]])) # every threshold that differs from the others
    if y.any():
        t, why = operating.choose_threshold(EscapeThreshold(max_escape=limit), s, y)
        assert escaped(t) <= limit*y.sum() + 1e-9 and why['escape']['count'] == escaped(t) and why['overkill'][
            'count'] == overkilled(t)
        assert overkilled(t) == min(overkilled(g) for g in grid if escaped(g) <= limit*y.sum()
            + 1e-9) # no allowed one stops fewer
        t, why = operating.choose_threshold(F1Threshold(), s, y)
        assert why['f1'] == pytest.approx(sk.f1_score(y, s >= t, zero_division=0))
        assert why['f1'] == pytest.approx(max(sk.f1_score(y, s >= g, zero_division=0) for g in grid))
    if not y.all():
        t, why = operating.choose_threshold(OverkillThreshold(max_overkill=limit), s, y)
        assert overkilled(t) <= limit*(~y).sum() + 1e-9
        assert escaped(t) == min(escaped(g) for g in grid if overkilled(g) <= limit*(~y).sum() + 1e-9)
    t, e, o = operating.operating_curve(s, y)
    assert [escaped(v) for v in t] == list(e) and [overkilled(v) for v in t] == list(o) and (np.diff(t) > 0).all()


def test_threshold_kinds_cover_the_schema_and_refuse_what_cannot_be():
    kinds = {m.model_fields['kind'].default for m in ThresholdSpec.__args__[0].__args__}
    assert kinds == {'fixed', 'f1', 'escape', 'overkill', 'guarantee', 'cost'}
    s, y = [.2, .8], [False, True]
    assert operating.choose_threshold(FixedThreshold(score=.7), s, y)[0] == .7
    for spec, labels, part in [(EscapeThreshold(), [False, False], 'needs defective images'),
        (F1Threshold(), [False, False], 'needs defective images'), (OverkillThreshold(), [True, True],
        'needs good images')]:
        with pytest.raises(DataError, match=part): operating.choose_threshold(spec, s, labels)
    with pytest.raises(DataError, match='not a number'): operating.choose_threshold(F1Threshold(), [np.nan, .1], y)


@few
@given(st.lists(st.tuples(st.sampled_from(list(Verdict)), st.sampled_from([True, False, None]),
    st.sampled_from('abcd')), max_size=25))
def test_rates_by_their_words(rows):
    r = operating.escape_overkill(*(zip(*rows) if rows else ([], [], [])))
    bad, good = [x for x in rows if x[1] is True], [x for x in rows if x[1] is False]
    assert (r['image']['escape']['count'], r['image']['escape']['of']) == (sum(x[0] == 'PASS' for x in bad), len(bad))
    assert (r['image']['overkill']['count'], r['image']['overkill']['of']) == (sum(x[0] in ('FAIL', 'REVIEW')
        for x in good), len(good))
    assert r['image']['false_fail']['count'] == sum(x[0] == 'FAIL' for x in good)
    bad_parts = {x[2] for x in bad}
    good_parts = {x[2] for x in good} - bad_parts
    assert (r['part']['escape']['count'], r['part']['escape']['of']) == (len({x[2] for x in bad if x[0] == 'PASS'}),
        len(bad_parts))
    assert (r['part']['overkill']['count'],
        r['part']['overkill']['of']) == (len({x[2] for x in good if x[0] != 'PASS'} & good_parts), len(good_parts))
    caught = {x[2] for x in (*bad, *good) if x[0] != 'PASS'}
    assert r['part_all_views']['escape']['count'] == len(bad_parts - caught) <= r['part']['escape']['count']
    for level in r.values():
        for v in level.values(): assert (v['rate'] is None) == (v['of'] == 0)


# ---------------------------------------------------------------- the orchestrator

CATS = ('crack', 'pit')


@pytest.fixture
def data(tmp_path):
    "8 parts of 2 photographs: 4 good, 2 with a pit, 1 with a crack of which only the label is known, 1 with a box only"
    rng, records = np.random.default_rng(0), []
    for i in range(16):
        part = i//2
        kind = [None, None, None, None, 'pit', 'pit', 'crack', 'crack'][part]
        image = rng.integers(120, 200, (48, 64, 3), np.uint8)
        mask = np.zeros((48, 64), bool)
        anns = ()
        if kind:
            mask[10 + part:22 + part, 20:30] = True
            image[mask] //= 3
            if part in (4, 5): anns = annotate_mask(mask, kind)
            if part == 7: anns = (Annotation(kind, (20., 17., 10., 12.), None, 120.),)
        Image.fromarray(image).save(tmp_path/f'{i:02}.png')
        records.append(ImageRecord(i, f'{i:02}.png', 64, 48, f'part{part}', defective=kind is not None, classes=(kind,)
            if kind else (), annotations=anns))
    return InspectionData(tmp_path, CATS, tuple(records))


class Oracle:
    "Answers from the records; `spoil` changes single answers"
    model_version, rules_version, threshold = 'oracle', 'none', .5

    def __init__(self, data, categories=CATS, spoil=None):
        self.data, self.categories, self.spoil, self.batches = data, categories, spoil or {}, []

    def inspect(self, srcs):
        self.batches.append(len(srcs))
        known = {self.data.path(r): r for r in self.data.images}
        return [self.one(known[s]) for s in srcs]

    def one(self, r):
        if isinstance(self.spoil.get(r.id), Exception): return self.spoil[r.id], None, None, None
        truth = np.zeros((r.height, r.width), bool)
        for a in r.annotations:
            x1, y1, x2, y2 = map(int, a.box)
            truth[y1:y2, x1:x2] = True
        if r.weak: truth[16:28, 20:30] = True
        verdict = self.spoil.get(r.id, 'FAIL' if r.defective else 'PASS')
        boxes, probs, defects = np.zeros((0, 4), np.float32), np.zeros((0, len(self.categories)), np.float32), []
        if truth.any() and verdict != 'PASS':
            d = _defect(truth, r.classes[0])
            name = self.categories.index(d.label)
            boxes, probs, defects = np.float32([d.box]), np.float32(np.eye(len(self.categories))[[name]]*.9), [d]
        score = .9 if truth.any() else .1
        rep = _report(verdict, score, (r.width, r.height), defects)
        _, place = letterbox(np.zeros((r.height, r.width, 3), np.uint8), ((96, 96),))
        canvas, valid = np.zeros((4, 4),
            np.float32), np.arange(4) < len(boxes) # padded to K, as the program's findings are
        canvas[valid] = boxes*place.scale + np.array([place.left, place.top]*2)
        names = np.zeros((4, len(self.categories)), np.float32)
        names[valid] = probs
        return rep, Findings(canvas, valid*np.float32(.9), valid, names, canvas, np.zeros((4, 4, 4)),
            np.zeros((24, 24)), np.float32(score), finite=True), place, truth.astype(np.float32)


def test_a_perfect_pipeline_gets_perfect_figures(data):
    m = evaluate.EvaluationOrchestrator(Oracle(data)).run(data).metrics
    assert m['images']['auroc'] == m['images']['ap'] == m['images']['size_matched_auroc'] == 1
    assert m['images']['size_matched_pairs'] == 64
    for k in ('map50', 'map50_95', 'cascade_map50', 'cascade_map50_95', 'recall50'):
        assert m['detection'][k] == pytest.approx(1), k
    assert m['crops']['accuracy'] == m['crops']['macro_f1'] == 1 and m['crops']['true_box_accuracy'] is None
    assert m['masks']['iou'] == m['masks']['dice'] == 1 and m['pixels']['ap'] == pytest.approx(1)
    assert m['rates']['image']['escape']['count'] == 0 and m['rates']['image']['escape']['of'] == 8
    assert m['rates']['part']['escape']['of'] == 4
    # weak and box-only truth counts only as far as it reaches
    assert m['detection']['images'] == 14 and m['detection']['boxes'] == 6 and m['masks']['images'] == 12 and m['data'][
        'weak'] == 2
    assert m['classes']['crack']['images'] == 4 and m['classes']['crack']['defects'] == 2 and m['classes']['crack'][
        'iou'] is None and m['classes']['crack']['pixel_ap'] is None


def test_batches_do_not_matter_and_errors_stay_alone(data, tmp_path):
    spoil = {3: ImageError('the file is empty', where='03.png'), 9: 'PASS', 12: 'REVIEW', 0: 'REVIEW', 2: 'FAIL'}
    texts = []
    for n in (1, 4, 32):
        p = Oracle(data, spoil=spoil)
        e = evaluate.EvaluationOrchestrator(p, batch_size=n).run(data, context={'threshold': .5})
        assert max(p.batches) == min(n, 16)
        evaluate.write_evaluation(e, tmp_path/str(n))
        report.write_report(e, tmp_path/str(n))
        texts.append({f.relative_to(tmp_path/str(n)): f.read_bytes() for f in sorted((tmp_path/str(n)).rglob('*'))
            if f.is_file()})
    assert texts[0] == texts[1] == texts[2] # bytes, timings and all
    m = json.loads(texts[0][next(k for k in texts[0] if k.name == 'metrics.json')])
    assert m['data']['unreadable'] == 1 and m['data']['good'] == 7 and e.errors[0] == ('03.png',
        '03.png: the file is empty')
    r = m['rates']
    assert (r['image']['escape']['count'], r['image']['escape']['of']) == (1, 8)
    assert (r['image']['overkill']['count'], r['image']['false_fail']['count'], r['image']['overkill']['of']) == (2, 1,
        7)
    assert (r['part']['escape']['count'], r['part_all_views']['escape']['count'], r['part']['escape']['of']) == (1, 0,
        4)
    assert (r['part']['overkill']['count'], r['part']['overkill']['of']) == (2, 4)
    lines = [json.loads(x) for x in texts[0][next(k for k in texts[0] if k.name == 'predictions.jsonl')].splitlines()]
    assert len(lines) == 15 and all(InspectionReport.model_validate(x['report']) for x in lines)


def test_only_good_or_only_defective(data, tmp_path):
    o = evaluate.EvaluationOrchestrator(Oracle(data))
    m = o.run(data, range(8)).metrics # good ones
    assert m['rates']['image']['escape']['rate'] is None and m['rates']['image']['overkill']['rate'] == 0 and m[
        'images']['auroc'] is None
    assert m['detection']['map50'] is None and m['masks']['iou'] is None and m['pixels']['ap'] is None and m['crops'][
        'accuracy'] is None
    e = o.run(data, range(8, 16))
    assert e.metrics['rates']['image']['overkill']['rate'] is None and e.metrics['baseline']['auroc'] is None
    for x in (e, o.run(data, range(8))):
        evaluate.write_evaluation(x, tmp_path/'r')
        page = report.write_report(x, tmp_path/'r').read_text()
        assert 'to judge' in page and 'nan' not in page.lower().replace('inan', '')
    assert json.loads((tmp_path/'r/metrics.json').read_text())['rates']['image']['escape']['rate'] is None


def test_unlabelled_images_count_for_nothing(data):
    silent = replace(data, images=tuple(replace(r, defective=None, classes=(), annotations=()) if r.id % 2 else r
        for r in data.images))
    m = evaluate.EvaluationOrchestrator(Oracle(silent)).run(silent).metrics
    assert m['data']['unlabelled'] == 8 and m['rates']['image']['escape']['of'] == 4 and m['rates']['image'][
        'overkill']['of'] == 4
    assert m['detection']['images'] == 7


def test_classes_the_pipeline_never_learned(data):
    "The other way round too: the class order of the pipeline is its own"
    p = Oracle(data, categories=('scratch', 'pit', 'crack'))
    e = evaluate.EvaluationOrchestrator(p).run(data)
    assert e.categories == ('crack', 'pit', 'scratch') and e.metrics['crops']['accuracy'] == 1 and e.metrics[
        'detection']['cascade_map50'] == pytest.approx(1)
    more = replace(data, categories=('crack', 'dent', 'pit'))
    assert evaluate.EvaluationOrchestrator(Oracle(data)).run(more).metrics['crops']['accuracy'] == 1


def test_true_boxes_are_named_when_asked(data):
    seen = []

    def classify(image, boxes):
        seen.append((image.shape, boxes.copy()))
        return np.tile([.2, .8], (len(boxes), 1)) # always 'pit'
    m = evaluate.EvaluationOrchestrator(Oracle(data), classify_boxes=classify).run(data).metrics
    assert m['crops']['true_box_accuracy'] == pytest.approx(4/6) and len(seen) == 6 and seen[0][0] == (48, 64, 3)
    np.testing.assert_array_equal(seen[0][1], [[20, 14, 30, 26]])


def test_detections_below_the_operating_point_are_not_reports(data):
    "The detector saw it and the report kept silent: good for AP, and missed all the same"
    oracle = Oracle(data)

    def inspect(srcs):
        return [(a.model_copy(update=dict(defects=[], verdict=Verdict.PASS)), *rest) for a,
            *rest in oracle.inspect(srcs)]
    quiet = SimpleNamespace(model_version='m', rules_version='r', categories=CATS, threshold=.5, inspect=inspect)
    e = evaluate.EvaluationOrchestrator(quiet).run(data)
    assert e.metrics['detection']['map50'] == pytest.approx(1) and e.metrics['crops']['accuracy'] == 1
    assert e.metrics['crops']['found'] == 0 and e.metrics['masks']['iou'] == 0 and e.metrics['rates']['image'][
        'escape']['rate'] == 1
    assert set(evaluate.curve_tables(e)['confusion'][1]) == {('pit', 'missed'), ('crack', 'missed')}


def test_no_machine_path_is_written(data, tmp_path):
    where = str(data.path(data.images[3]))
    e = evaluate.EvaluationOrchestrator(Oracle(data, spoil={3: ImageError('the file is empty', where=where)})).run(data)
    assert e.errors == (('03.png', '03.png: the file is empty'),)
    evaluate.write_evaluation(e, tmp_path/'r')
    report.write_report(e, tmp_path/'r')
    assert not any(str(tmp_path).encode() in f.read_bytes() for f in (tmp_path/'r').rglob('*') if f.is_file())


def test_size_on_disk_against_record(data):
    odd = replace(data, images=tuple(replace(r, width=63) if r.id == 8 else r for r in data.images))
    real = Oracle(data)
    fake = SimpleNamespace(model_version='m', rules_version='r', categories=CATS, threshold=.5,
        inspect=real.inspect)
    e = evaluate.EvaluationOrchestrator(fake).run(odd)
    assert len(e.rows) == 16 and e.metrics['masks'][
        'images'] == 11 and '64 x 48 px, its record says 63 x 48' in e.errors[0][1]


def test_seen_parts_and_baseline_are_told(data):
    o = evaluate.EvaluationOrchestrator(Oracle(data))
    e = o.run(data, range(1, 16, 2), train_ids=range(0, 16, 2))
    assert e.metrics['data']['parts_seen_in_training'] == 8 and e.metrics['baseline'][
        'fitted_on'] == 'the training split'
    assert any(head == 'Parts on both sides' for head, _, _ in report.cautions(e))
    e = o.run(data, [0, 1, 8, 9, 12, 13], train_ids=[2, 3, 10, 11, 14])
    assert e.metrics['data']['parts_seen_in_training'] == 0
    heads = {head: fine for head, _, fine in report.cautions(e)}
    assert heads['No part was seen in training'] and 'Some defects have no outline' in heads
    with pytest.raises(DataError, match='image 77'): o.run(data, [0], train_ids=[77])


def test_a_metric_from_elsewhere(data):
    factory = metrics.Factory('metric')
    factory.update(metrics.MetricFactory)

    @factory.register('count')
    class Count:
        def __init__(self, *, categories): self.n = 0
        def update(self, row): self.n += 1
        def result(self): return {'n': self.n}
    m = evaluate.EvaluationOrchestrator(Oracle(data), metrics=('count',), factory=factory).run(data).metrics
    assert m['count'] == {'n': 16} and 'count' not in metrics.MetricFactory
    with pytest.raises(UnknownKind,
        match='It knows crops, detection, images, intervals, localisation, masks, pixels, pod, probability, rates, '
        'slices, suspects'):
        evaluate.EvaluationOrchestrator(Oracle(data), metrics=('mAP',)).run(data)


# ---------------------------------------------------------------- what is written

def test_tables_for_dvc(data, tmp_path):
    e = evaluate.EvaluationOrchestrator(Oracle(data, spoil={8: 'PASS'})).run(data)
    evaluate.write_evaluation(e, tmp_path/'r')
    tables = {f.stem: list(csv.DictReader(f.open())) for f in (tmp_path/'r/plots').glob('*.csv')}
    assert set(tables) == {'roc', 'pr', 'operating', 'reliability', 'confusion', 'classes', 'slices', 'suspects', 'pod',
        'scores'}
    assert set(tables['operating'][0]) == {'threshold', 'escape', 'overkill', 'escaped', 'overkilled'}
    assert [tables['operating'][i]['escape'] for i in (0, -1)] == ['0.0', '1.0']
    assert {(r['actual'], r['predicted']) for r in tables['confusion']} == {('pit', 'missed'), ('pit', 'pit'),
        ('crack', 'crack')}
    assert [r['class'] for r in tables['classes']] == list(CATS) and tables['classes'][0]['iou'] == ''
    assert len(tables['scores']) == 16

    def numbers(x):
        if isinstance(x, dict):
            for v in x.values(): yield from numbers(v)
        else: yield x
    flat = list(numbers(json.loads((tmp_path/'r/metrics.json').read_text())))
    assert all(v is None or isinstance(v, (int, float, str)) for v in flat) # what `dvc metrics` reads


def test_summary_reads_like_a_sentence(data):
    s = dict(evaluate.summary(evaluate.EvaluationOrchestrator(Oracle(data, spoil={8: 'PASS'})).run(data).metrics))
    assert s['escape by part'].startswith(
        '1 of 4 defective parts passed (25.0%; the true rate lies between 0.6% and 80.6%)'
    )
    assert s['image AUROC'] == '1.000 (1.000 on 64 pairs of equal size)'


@few
@given(st.integers(0, 10_000))
def test_outline_is_the_boundary(seed):
    "Filling between the vertical edges of each row gives the mask back"
    import re
    mask = np.random.default_rng(seed).random((9, 11)) < .5
    edges = np.zeros((9, 12), int)
    for x, y1, y2 in re.findall(r'M(\d+) (\d+)V(\d+)', outline_path(mask)): edges[int(y1):int(y2), int(x)] += 1
    np.testing.assert_array_equal(np.cumsum(edges, 1)[:, :-1] % 2 == 1, mask)
    turned = outline_path(mask.T)
    swap = {f'M{b} {a}V{c}' for a, b, c in re.findall(r'M(\d+) (\d+)H(\d+)', turned)}
    assert {f'M{a} {b}V{c}' for a, b, c in re.findall(r'M(\d+) (\d+)V(\d+)', outline_path(mask))} == swap


def test_the_page_stands_alone_and_escapes_names(data, tmp_path):
    nasty = replace(data, images=tuple(replace(r, part_id='<script>alert(1)</script>') if r.id in (8, 9) else r
        for r in data.images))
    e = evaluate.EvaluationOrchestrator(Oracle(nasty, spoil={8: 'PASS', 0: 'FAIL'})).run(nasty,
        context=dict(threshold=dict(threshold=.5, text='Because.'), fingerprint='ab'*32,
        shortcuts={'width': .8, 'mean': .6, 'all': None}, notes=['<b>bold</b>']))
    page = report.write_report(e, tmp_path/'r', gallery=6).read_text()
    assert '<script' not in page and '&lt;script&gt;' in page and '&lt;b&gt;bold' in page
    page = page.replace('https://sads-jax.github.io/sads_jax/glossary.html', '')  # a link, followed if a person wants
    for bad in ('http:', 'https:', 'url(', '@import', 'src='): assert bad not in page
    assert page.count('<figure class="card shot">') == 6
    for said in ('1 of 4 defective parts passed', 'The width of the photograph alone', 'ab' * 32, 'Because.'):
        assert said in page
    from html.parser import HTMLParser

    class Check(HTMLParser):
        void, stack = {'meta', 'input', 'br'}, []
        def handle_starttag(self, tag, attrs): self.stack += [] if tag in self.void else [tag]
        def handle_endtag(self, tag): assert self.stack.pop() == tag
    c = Check()
    c.feed(page)
    assert not c.stack # every tag is closed


def test_gallery_survives_a_lost_file(data, tmp_path):
    e = evaluate.EvaluationOrchestrator(Oracle(data)).run(data)
    data.path(data.images[8]).unlink()
    assert 'no such file' in report.write_report(e, tmp_path/'r').read_text().lower()


def test_overlay_of_large_and_tiny_images():
    for h, w in [(1000, 1700), (16, 16), (1200, 20)]:
        mask = np.zeros((h, w), bool)
        mask[h//3:h//2, w//3:w//2] = True
        r = ImageRecord(0, 'a.png', w, h, 'p', defective=True, classes=('pit',), annotations=annotate_mask(mask, 'pit'))
        row = metrics.Judged(r, _report(size=(w, h), defects=[_defect(mask, 'pit')]), None, metrics.make_boxes())
        svg = gallery.overlay_svg(np.zeros((h, w, 3), np.uint8), row, CATS)
        assert svg.count('class="halo"') == 2 and max(map(int,
            svg.split('viewBox="0 0 ')[1].split('"')[0].split())) <= 420
    assert class_map(r, CATS).max() == 2

def test_where_nobody_drew_a_defect_masks_have_no_score():
    "A reported mask on a good photograph is no Dice of 0: without a true pixel there is nothing to meet"
    m = metrics.MetricFactory({'kind': 'masks'}, categories=('pit',))
    m.counts += [[0, 7, 0], [0, 7, 0]]
    assert m.result()['dice'] is None and m.result()['mean_iou'] is None
    m.counts += [[3, 0, 1], [3, 0, 1]]
    assert m.result()['iou'] == 3/11
