"""Metrics beyond the headline against independent truth: numpy, scikit-learn, scipy, statsmodels, counts by hand"""
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import expit, logit
from scipy.stats import fisher_exact
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from test_evaluation import Oracle
from test_evaluation import data as eight_parts  # noqa: F401, a fixture

from sads_jax.core.errors import DataError, UnknownKind
from sads_jax.data.records import ImageRecord, annotate_mask
from sads_jax.evaluation import compare, evaluate, intervals, localisation, metrics, pod, report, slices, suspects

few = settings(max_examples=40, deadline=None)
scored = st.lists(st.tuples(st.booleans(), st.sampled_from([i/8 for i in range(9)])), min_size=1,
    max_size=40) # many ties


# ---------------------------------------------------------------- one threshold or none

@few
@given(scored)
def test_f1_max_pg_and_pb_equal_sklearns_curves(rows):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if not y.any() or y.all():
        assert metrics.passed_good(y, s) is None and metrics.caught_bad(y, s) is None
        return
    p, r, _ = sk.precision_recall_curve(y, s)
    assert metrics.f1_max(y, s)[0] == pytest.approx(np.max(2*p*r/np.maximum(p + r, 1e-12)), abs=1e-6)
    assert metrics.f1_max(y, s)[0] == pytest.approx(max(sk.f1_score(y, s >= t) for t in s), abs=1e-6)
    for n in (.05, .2, .5):
        cuts = [-np.inf, *s, np.inf]
        passed = max((s[~y] < t).mean() for t in cuts if (s[y] < t).mean() <= n)
        caught = max((s[y] >= t).mean() for t in cuts if (s[~y] >= t).mean() <= n)
        assert metrics.passed_good(y, s, n) == pytest.approx(passed, abs=1e-6)
        assert metrics.caught_bad(y, s, n) == pytest.approx(caught, abs=1e-6)


# ---------------------------------------------------------------- AUPRO and AUPIMO against plain numpy

def plain_aupro(maps, masks, limit=.3):
    "Bergmann's definition, threshold by threshold, region by region"
    regions = []
    for s, m in zip(maps, masks):
        labels, n = ndimage.label(m, np.ones((3, 3)))
        regions += [s[labels == k] for k in range(1, n + 1)]
    clean = np.concatenate([s[~m] for s, m in zip(maps, masks)])
    x, y = [0.], [0.]
    for t in np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]:
        x.append((clean >= t).mean())
        y.append(np.mean([(r >= t).mean() for r in regions]))
    x, y = np.array(x), np.array(y)
    area = 0.
    for i in range(1, len(x)): # trapezia, the last one cut at the limit
        if x[i - 1] >= limit: break
        right = min(x[i], limit)
        height = y[i] if x[i] == right else y[i - 1] + (y[i] - y[i - 1])*(right - x[i - 1])/(x[i] - x[i - 1])
        area += (right - x[i - 1])*(y[i - 1] + height)/2
    return area/limit

def plain_aupimo(maps, masks, low, high):
    "Bertoldo's definition without interpolation: the tolerated rate's lowest threshold, piece by piece of log(rate)"
    good = [s for s, m in zip(maps, masks) if not m.any()]
    levels = np.unique(np.concatenate([s.ravel() for s in maps]))
    rate = lambda t: np.mean([(s >= t).mean() for s in good])
    rates = np.array([rate(t) for t in levels])
    edges = np.unique(np.clip([low, high, *rates], low, high))
    out = []
    for s, m in zip(maps, masks):
        if not m.any(): continue
        total = 0.
        for a, b in zip(edges[:-1], edges[1:]): # no rate lies inside (a, b): one threshold serves it all
            allowed = levels[rates <= np.sqrt(a*b)]
            if len(allowed): total += np.log(b/a)*(s[m] >= allowed.min()).mean()
        out.append(total/np.log(high/low))
    return np.array(out)

def scene(seed, n=8, side=40, levels=64):
    "Maps with scores on a grid of `levels`, two defects on every other image"
    rng, maps, masks = np.random.default_rng(seed), [], []
    for i in range(n):
        m = np.zeros((side, side), np.uint8)
        if i % 2:
            y, x = rng.integers(0, side - 12, 2)
            m[y:y + rng.integers(2, 11), x:x + rng.integers(2, 11)] = 1
            m[-3:, -4:] = 2
        s = np.clip(rng.normal(.35, .12, m.shape) + rng.uniform(0, .5)*(m > 0), 0, 1 - 1/levels)
        maps.append(np.floor(s*levels)/levels)
        masks.append(m)
    return maps, masks

def fed(metric, maps, masks):
    for s, m in zip(maps, masks):
        metric.update(metrics.Judged(SimpleNamespace(defective=bool(m.any())), None, None, None, m, s))
    return metric

@pytest.mark.parametrize('seed', range(4))
def test_aupro_and_aupimo_equal_plain_numpy(seed):
    maps, masks = scene(seed)
    bounds = (1e-3, 1e-1)
    m = fed(localisation.LocalisationMetric(categories=('pit', 'stain'), bounds=bounds), maps, masks)
    r = m.result()
    assert r['aupro'] == pytest.approx(plain_aupro(maps, [k > 0 for k in masks]), abs=1e-6)
    np.testing.assert_allclose(m.aupimo(), plain_aupimo(maps, [k > 0 for k in masks], *bounds), atol=1e-6)
    assert r['aupimo'] == pytest.approx(m.aupimo().mean())
    np.testing.assert_allclose(plain_aupro(maps, [k > 0 for k in masks], 1.),
        fed(localisation.LocalisationMetric(categories=('a', 'b'), limit=1.), maps, masks).result()['aupro'], atol=1e-6)

def test_bins_cost_less_than_a_thousandth_where_scores_are_continuous():
    maps, masks = scene(9, levels=2**30)
    r = fed(localisation.LocalisationMetric(categories=('a', 'b')), maps, masks).result()
    assert r['aupro'] == pytest.approx(plain_aupro(maps, [k > 0 for k in masks]), abs=1e-3)

def test_a_perfect_map_scores_one_and_a_constant_map_chance():
    _, masks = scene(0)
    perfect = fed(localisation.LocalisationMetric(categories=('a', 'b'), bounds=(1e-3, 1e-1)),
        [(m > 0)*.9 for m in masks], masks)
    assert perfect.result()['aupro'] == pytest.approx(1) and perfect.aupimo().min() == 1
    flat = fed(localisation.LocalisationMetric(categories=('a', 'b'), bounds=(1e-3, 1e-1)), [m*0. for m in masks],
        masks)
    assert flat.result()['aupro'] == pytest.approx(.15) and flat.result()['aupimo_zero'] == 1 # the diagonal


# ---------------------------------------------------------------- bootstrap by part

@few
@given(scored, st.integers(0, 99))
def test_a_replicate_is_sklearns_figure_with_parts_as_weights(rows, seed):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    part = np.arange(len(y))//3
    draws = intervals.part_draws(part[-1] + 1, 4, seed)
    pos, neg = intervals.score_counts(part, y, s)
    for figure, ours in ((sk.roc_auc_score, intervals.counted_auroc), (sk.average_precision_score,
        intervals.counted_ap)):
        for d, got in zip(draws, intervals.replicated(ours, draws, pos, neg, room=3)):
            w = d[part]
            if y[w > 0].any() and not y[w > 0].all():
                assert got == pytest.approx(figure(y, s, sample_weight=w), abs=1e-6)

def test_the_interval_covers():
    "The true AUROC of two normal scores, in 200 data sets: about 95 % of the intervals hold it"
    from scipy.stats import norm
    true, hit, rng = norm.cdf(1/np.sqrt(2)), 0, np.random.default_rng(0)
    for _ in range(200):
        y = np.arange(120) % 2 == 0
        s = rng.normal(y*1., 1)
        low, high = intervals.percentile_interval(intervals.replicated(intervals.counted_auroc,
            intervals.part_draws(120, 300, rng.integers(2**31)), *intervals.score_counts(np.arange(120), y, s)))
        hit += low <= true <= high
    assert 180 <= hit <= 199


# ---------------------------------------------------------------- probability of detection

@pytest.fixture(scope='module')
def targets():
    rng = np.random.default_rng(5)
    size = np.exp(rng.uniform(np.log(2), np.log(60), 120))
    return size, rng.random(120) < expit(-5 + 2.2*np.log(size)), rng.integers(1, 4, 120).astype(float)

@pytest.mark.parametrize('weighed', [False, True])
def test_pod_fit_equals_statsmodels(targets, weighed):
    size, hit, w = targets
    w = w if weighed else np.ones(len(w))
    ref = sm.GLM(hit.astype(float), sm.add_constant(np.log(size)), sm.families.Binomial(),
        freq_weights=w).fit(tol=1e-12)
    fit = pod.fit_pod(size, hit, w)
    np.testing.assert_allclose(fit[:2], ref.params, atol=1e-6)
    np.testing.assert_allclose(fit.covariance, ref.cov_params(), atol=1e-6)
    assert fit.log_likelihood == pytest.approx(ref.llf, abs=1e-6)

def test_pod_bound_equals_a_search_of_the_likelihood_by_statsmodels(targets):
    "A curve through (a, 90 %) is a logistic regression without intercept, with an offset"
    size, hit, w = targets
    fit = pod.fit_pod(size, hit, w)
    def drop(a):
        x = np.log(size) - np.log(a)
        return 2*(fit.log_likelihood - sm.GLM(hit.astype(float), x, sm.families.Binomial(), freq_weights=w,
            offset=np.full(len(x), logit(.9))).fit(tol=1e-12).llf)
    a90, bound = pod.pod_size(fit), pod.pod_bound(fit, size, hit, w)
    assert a90 < bound and drop(a90) == pytest.approx(0, abs=1e-6)
    assert drop(bound) == pytest.approx(1.6448536**2, abs=1e-4)

def test_pod_says_why_there_is_no_curve():
    m = pod.PodMetric(categories=())
    m.photographs = {'p': 1}
    for rows, words in (([(5., True, 'p'), (6., True, 'p')], '2 of 2 defects were found'),
        ([(5., False, 'p'), (6., True, 'p')], 'divided cleanly'),
            ([(a, h, 'p') for a, h in zip(range(2, 22), [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0])],
            'not found more often')):
        m.rows = rows
        r = m.result()
        assert words in r['text'] and r['a90'] is None and r['curve'] == []


# ---------------------------------------------------------------- slices, suspects, comparison

@few
@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_worse_than_is_fishers_test(a, b, c, d):
    assert slices.worse_than(a, a + b, c, c + d) == pytest.approx(fisher_exact([[a, b], [c, d]], 'greater').pvalue,
        abs=1e-6)
    assert compare.mcnemar(a, b) == pytest.approx(mcnemar([[d, a], [b, c]], exact=True).pvalue, abs=1e-6)
    p = [(a + 1)/100, (b + 1)/50, (c + 1)/100, (d + 1)/200]
    np.testing.assert_allclose(slices.holm(p), multipletests(p, method='holm')[1], atol=1e-6)

def test_suspects_by_the_definition():
    "Above the average score of a class for those labelled so, and labelled otherwise; the larger score wins"
    rng = np.random.default_rng(1)
    p, labels = rng.dirichlet([1, 1, 1], 200), rng.integers(0, 3, 200)
    bar = [p[labels == k, k].mean() for k in range(3)]
    want = {}
    for i, (row, label) in enumerate(zip(p, labels)):
        sure = [k for k in range(3) if row[k] >= bar[k]]
        if sure and (best := max(sure, key=lambda k: row[k])) != label: want[i] = best
    who, predicted = suspects.confident_disagreement(p, labels)
    assert dict(zip(who.tolist(), predicted.tolist())) == want
    margin = [p[i, k] - p[i, labels[i]] for i, k in zip(who, predicted)]
    assert margin == sorted(margin, reverse=True)

def write_report(folder, verdicts, scores=None, name=lambda i: f'{i}.png', part=lambda i: f'p{i}',
    bad=lambda i: i % 2 == 0):
    folder.mkdir(exist_ok=True)
    (folder/'predictions.jsonl').write_text(
        '\n'.join(json.dumps(dict(file_name=name(i), part_id=part(i), defective=bad(i),
        report=dict(verdict=v, image_score=.5 if scores is None else scores[i], image_sha256=str(i),
        model_version=folder.name))) for i, v in enumerate(verdicts)))
    return folder

def test_compare_by_hand(tmp_path):
    "Photographs 0, 1, 2 | 3, 4, 5 | ... are parts; the first photograph of part 0, 2, … shows the defect"
    part, bad = lambda i: f'p{i//3}', lambda i: i//3 % 2 == 0 and i % 3 == 0
    a = write_report(tmp_path/'a', ['FAIL', 'PASS', 'PASS', 'PASS', 'PASS', 'REVIEW', 'PASS', 'FAIL', 'FAIL', 'PASS',
        'PASS', 'PASS'], part=part, bad=bad)
    b = write_report(tmp_path/'b', ['REVIEW', 'PASS', 'PASS', 'PASS', 'PASS', 'PASS', 'FAIL', 'PASS', 'PASS', 'FAIL',
        'PASS', 'PASS'], part=part, bad=bad)
    c = compare.compare_reports(a, b, 50)
    assert {k: (v['both'], v['only_a'], v['only_b'], v['neither']) for k, v in c.verdicts.items()} == dict(all=(1, 1, 2,
        0), defective=(1, 0, 1, 0), good=(0, 1, 1, 0))
    assert {x['part_id']: x['better'] for x in c.changed} == {'p1': 'b', 'p2': 'b', 'p3': 'a'}
    assert (c.images, c.parts, c.models) == (12, 4, ('a', 'b'))

def test_compare_refuses_what_cannot_be_compared(tmp_path):
    a = write_report(tmp_path/'a', ['PASS', 'FAIL'])
    for b, words in ((write_report(tmp_path/'b', ['PASS'], name=lambda i: 'x.png'), 'no photograph was judged by both'),
        (write_report(tmp_path/'c', ['PASS', 'FAIL'], bad=lambda i: True), 'disagree'),
            (tmp_path/'none', 'no such file')):
        with pytest.raises(DataError, match=words): compare.compare_reports(a, b)
    (tmp_path/'c'/'predictions.jsonl').write_text('{broken')
    with pytest.raises(DataError, match='line 1 is not JSON'): compare.compare_reports(a, tmp_path/'c')


# ---------------------------------------------------------------- metrics of third parties

def test_a_metric_of_a_third_party_is_found_by_its_entry_point_and_reaches_the_report(
    eight_parts, tmp_path, monkeypatch, # noqa: F811
):
    (tmp_path/'brightest.py').write_text(
        'class Brightest:\n    def __init__(self, *, categories): self.best = 0.\n    def update(self, row): self.best '
        '= max(self.best, row.report.image_score)\n    def result(self): return {"score": self.best}\n')
    info = tmp_path/'brightest-1.dist-info'
    info.mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: brightest\nVersion: 1\n')
    (info/'entry_points.txt').write_text('[sads_jax.metric]\nbrightest = brightest:Brightest\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    data = eight_parts
    found = evaluate.EvaluationOrchestrator(Oracle(data), (*evaluate.METRICS, 'brightest')).run(data)
    try:
        assert found.metrics['brightest']['score'] == max(r.report.image_score for r in found.rows)
        assert 'brightest score' in report.write_report(found, tmp_path/'out').read_text()
    finally: metrics.MetricFactory.pop('brightest'); sys.modules.pop('brightest', None)
    with pytest.raises(UnknownKind, match="no kind 'darkest'"):
        evaluate.EvaluationOrchestrator(Oracle(data), ('darkest',)).run(data)


# ---------------------------------------------------------------- slices, counted by hand

def test_slices_by_hand():
    "Six defective parts of growing size in two lots and exposures, three good ones; what is 'other' is added up"
    m = slices.SlicesMetric(categories=('pit',), most=3)
    def shot(part, bad, passed, lot, exposure, side=0):
        mask = np.zeros((40, 40), bool)
        mask[:side, :side] = True
        record = ImageRecord(len(m.rows), 'x.png', 40, 40, part, lot, exposure, bad, ('pit',) if bad else (),
            annotate_mask(mask, 'pit') if bad else ())
        m.update(metrics.Judged(record, SimpleNamespace(verdict='PASS' if passed else 'FAIL'),
            metrics.make_boxes([a.box for a in record.annotations]), None))
    for i in range(6):
        for e in ('e1', 'e2'): shot(f'bad{i}', True, i == 0 and e == 'e2', f'lot{i % 4}', e, 3*(i + 1))
    for i in range(3): shot(f'good{i}', False, i > 0, 'lot0', 'e1')
    table = {(s['by'], s['slice']): (s['images'], s['parts'], s['escape']['count'], s['escape']['of'],
        s['overkill']['count'], s['overkill']['of']) for s in m.result()['table']}
    assert table[('exposure', 'e1')] == (9, 9, 0, 6, 1, 3) and table[('exposure', 'e2')] == (6, 6, 1, 6, 0, 0)
    assert table[('lot', 'lot0')] == (7, 5, 1, 2, 1, 3) and table[('lot', 'lot1')] == (4, 2, 0, 2, 0,
        0) and table[('lot', '2 others')] == (4, 2, 0, 2, 0, 0)
    sizes = {k[1]: v for k, v in table.items() if k[0] == 'size'}
    # sides of 3 to 18 px, diagonals of 4.24 to 25.46; a third of the way along the twelve: 8.49 + 2/3 of 4.24
    assert list(sizes) == ['up to 11.3 px', '11.3 to 18.4 px', 'over 18.4 px'] and [v[:4]
        for v in sizes.values()] == [(4, 2, 1, 2), (4, 2, 0, 2), (4, 2, 0, 2)]
    assert not any(k[0] == 'class' for k in table) # one class is no slice
