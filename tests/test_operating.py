"Promises on escapes: against their definition, a closed form and simulation"
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sads_jax.core.errors import DataError
from sads_jax.core.params import CostThreshold, GuaranteeThreshold
from sads_jax.evaluation import operating, probability

few = settings(max_examples=60, deadline=None)
photos = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 20).map(lambda i: i / 20)), min_size=4, max_size=60
)

def part_scores(rows, views):
    "The definition, spelled out"
    out = {}
    for p in {r[0] for r in rows}:
        mine = [(d, s) for q, d, s in rows if q == p]
        bad = [s for d, s in mine if d]
        out[p] = (bool(bad),
            (min(bad) if views == 'each' else max(s for _, s in mine)) if bad else max(s for _, s in mine))
    return out

@few
@given(photos, st.sampled_from([.1, .2, .34, .5, .9]), st.sampled_from(['each', 'all']))
def test_promise_by_its_definition(rows, alpha, views):
    parts = part_scores(rows, views)
    bad, good = [s for d, s in parts.values() if d], [s for d, s in parts.values() if not d]
    n, spec = len(bad), GuaranteeThreshold(max_escape={'critical': alpha}, views=views)
    args = [r[2] for r in rows], [r[1] for r in rows], [r[0] for r in rows]
    if alpha < 1/(n + 1) - 1e-12:
        with pytest.raises(DataError, match='labelled defective parts'): operating.choose_threshold(spec, *args)
        return
    t, why = operating.choose_threshold(spec, *args)
    below = lambda u: sum(s < u for s in bad)
    assert (below(t) + 1)/(n + 1) <= alpha + 1e-9 or below(t) == n
    for u in [
        r[2] + e for r in rows for e in (0, 1e-6)
    ]:  # no higher threshold that makes a difference keeps the promise and stops fewer
        if u > t and (below(u) + 1) / (n + 1) <= alpha + 1e-9:
            assert sum(s >= u for s in good) == sum(s >= t for s in good)
    assert why['promises'][0]['escape']['count'] == below(t) == why['parts']['escape']['count']
    assert why['promises'][0]['overkill']['count'] == sum(s >= t for s in good)

def test_realised_escape_has_the_mean_of_order_statistics():
    """Of continuous scores the k+1 lowest of n is undercut with the mean probability (k+1)/(n+1); middle of the gap:
    k+1/2"""
    rng, got = np.random.default_rng(1), []
    for _ in range(1500):
        s = rng.uniform(size=39)  # scores are their own quantiles: P(new < t) = t
        got.append(operating.choose_threshold(GuaranteeThreshold(max_escape={'critical': .1}), s, [True]*39)[0])
    assert operating.escapes_allowed(39, .1) == 3
    assert np.mean(got) == pytest.approx(3.5/40, abs=4*np.std(got)/math.sqrt(1500)) and np.mean(got) <= .1

def test_each_severity_has_its_promise_and_the_lowest_threshold_keeps_all():
    rng = np.random.default_rng(2)
    s = np.concatenate([rng.uniform(.3, 1, 20), rng.uniform(.1, 1, 20), rng.uniform(0, .5, 30)])
    y, v = [True]*40 + [False]*30, ['critical']*20 + ['minor']*20 + ['']*30
    t, why = operating.choose_threshold(
        GuaranteeThreshold(max_escape={'critical': 0.05, 'minor': 0.3}), s, y, list(range(70)), v
    )
    each = {p['severity']: p for p in why['promises']}
    assert (
        t == min(p['threshold'] for p in each.values())
        and each['critical']['allowed'] == 0
        and each['minor']['allowed'] == 5
    )
    assert (s[:20] < each['critical']['threshold']).sum() == 0 and (s[20:40] < each['minor']['threshold']).sum() == 5
    with pytest.raises(DataError, match=r'0 labelled defective parts \(major\).*19 in all'):
        operating.choose_threshold(GuaranteeThreshold(max_escape={'major': 0.05}), s, y, list(range(70)), v)

def test_cost_by_trying_everything():
    rng = np.random.default_rng(3)
    s, y, p = rng.uniform(size=60).round(2), rng.uniform(size=60) < .4, list(np.repeat(range(30), 2))
    parts = part_scores(list(zip(p, y, s)), 'each')
    bad, good = [x for d, x in parts.values() if d], [x for d, x in parts.values() if not d]
    cost = lambda t: 30*.1*np.mean([x < t for x in bad]) + 2*.9*np.mean([x >= t for x in good])
    t, _ = operating.choose_threshold(CostThreshold(escape=30, overkill=2, defective=.1), s, y, p)
    assert cost(t) == pytest.approx(min(cost(u) for u in np.linspace(-.01, 1.01, 400)))

@few
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=50), st.sampled_from(['platt', 'isotonic']))  # noqa: E501
@example([(.25, False), (.375, True)], 'platt')  # so steep that it rounds to 1
def test_probabilities_rise_and_stay_inside(rows, kind):
    s, y = zip(*rows)
    curve = probability.fit_probability(kind, s, y)
    if len(set(y)) < 2: assert curve is None; return
    at, p = map(np.array, curve)
    assert (np.diff(at) >= 0).all() and (np.diff(p) >= 0).all() and 0 < p.min() and p.max() < 1

def test_metric_of_probabilities_equals_sklearn():
    from types import SimpleNamespace as N

    from sklearn.metrics import brier_score_loss
    rng = np.random.default_rng(4)
    p, y = rng.uniform(size=200), rng.uniform(size=200) < .3
    m = probability.ProbabilityMetric(categories=())
    for a, b in zip(p, y): m.update(N(record=N(defective=bool(b)), report=N(defect_probability=float(a))))
    got = m.result()
    assert got['brier'] == pytest.approx(brier_score_loss(y, p), abs=1e-9) and got['images'] == 200
    assert got['brier_of_share'] == pytest.approx(brier_score_loss(y, np.full(200, y.mean())), abs=1e-9)

def test_operate_refuses_what_it_cannot_do(tmp_path):
    from sads_jax.cli.main import app
    from sads_jax.core.params import Params
    from sads_jax.domains.surface.rules import rules_version
    from sads_jax.registry.bundle import seal_bundle, write_bundle
    run = lambda *a: CliRunner().invoke(app, ['operate', '--bundle', str(tmp_path/'b'), *a])
    write_bundle(tmp_path / 'b', weights={'detector/a': np.zeros(2, np.float32)}, programs={(192, 192): b'-'},
        labels=['pit'], threshold=0.5, rules_version=rules_version(Params().decision), params=Params(),
        data={'kind': 'folder', 'fingerprint': 'f', 'splits': {}}, code={})
    old = run('--max-escape', '.1')
    assert old.exit_code != 0 and 'calibration.csv: no such file' in str(old.exception)
    operating.write_calibration(tmp_path / 'b' / 'calibration.csv',
        [operating.CalibrationRow(f'{i}', f'{i}', i < 12, (), i / 30) for i in range(30)])
    seal_bundle(tmp_path/'b')
    for args, said in [
        (['--max-escape', '0.05'], '12 labelled defective parts (critical) certify an escape rate of 7.7% at best'),
        (['--max-escape', 'critical=often'], 'no rate'), (['--max-escape', 'fatal=.1'], 'fatal'),
        (['--max-escape', '1.5'], 'less than 1'), (['--write', str(tmp_path / 'c')], 'no choice to write'),
        (['--max-escape', '.1', '--cost-escape', '3'], 'two wishes')
    ]:
        got = run(*args)
        assert got.exit_code != 0 and said in str(got.exception) + got.output, (args, got.exception)
    done = run('--max-escape', '0.1', '--write', str(tmp_path/'c'))
    assert done.exit_code == 0, done.exception
    new = json.loads((tmp_path/'c'/'decision.json').read_text())
    assert (
        new['spec']['threshold'] == {'kind': 'guarantee', 'max_escape': {'critical': 0.1}, 'views': 'each'}
        and new['threshold'] == new['chosen']['promises'][0]['threshold']
    )
