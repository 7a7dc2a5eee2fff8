"What a rollout decides, against independent truth: simulated canaries, exact sums, killed controllers"
import math

import numpy as np
import pytest
from scipy.stats import binom

from sads_jax.core.rollout_specs import CountsMetric, JudgeSpec, PairsMetric
from sads_jax.deployment.sequential import (
    ArmCounts,
    PairCounts,
    judge,
    paired_evidence,
    ratio_evidence,
    split_evidence,
)

ALPHA = .05
LIMIT = math.log(1/ALPHA)


# ---------------------------------------------------------------- evidence

def ratio_table(most, share, **kw):
    "Evidence by events of the candidate and of the champion"
    k1, k0 = np.mgrid[:most, :most]
    return ratio_evidence(k1[..., None], k0[..., None], np.array([share]), **kw)

def paired_table(most):
    b, c = np.mgrid[:most, :most]
    return paired_evidence(b + c, b, c)

def sides(rng, runs, events, p):
    "Running counts of events on the candidate's side and on the other"
    mine = np.cumsum(rng.random((runs, events)) < p, 1)
    return mine, np.arange(1, events + 1) - mine

def chance(share, ratio): return share*ratio/(share*ratio + 1 - share)

@pytest.mark.parametrize('above', [True, False])
@pytest.mark.parametrize('share,limit', [(.05, 1.), (.5, 1.), (.25, 1.5)])
def test_the_mean_of_an_e_value_is_at_most_one_on_the_near_side(share, limit, above):
    n = 60
    k = np.arange(n + 1)
    e = np.exp(ratio_evidence(k[:, None], n - k[:, None], np.array([share]), limit, above))
    for nearer in (1., 1.2, 2.):
        truth = limit/nearer if above else limit*nearer
        mean = (binom.pmf(k, n, chance(share, truth))*e).sum()
        assert mean <= 1 + 1e-9 and (nearer > 1 or abs(mean - 1) < 1e-9)

def test_a_share_that_changes_between_steps_keeps_the_mean_at_one():
    shares, n = np.array([.05, .25, .5]), 12
    k = np.arange(n + 1)
    grid = np.stack(np.meshgrid(k, k, k, indexing='ij'), -1).reshape(-1, 3)
    weight = np.prod(binom.pmf(grid, n, chance(shares, 1.)), -1)
    assert abs((weight*np.exp(ratio_evidence(grid, n - grid, shares))).sum() - 1) < 1e-9
    pooled = (weight*np.exp(ratio_evidence(grid.sum(-1)[:, None], 3*n - grid.sum(-1)[:, None], np.array([.05])))).sum()
    assert pooled > 10  # one share for all steps would be no test at all

@pytest.mark.parametrize('margin,above', [(0., True), (.02, True), (.02, False)])
def test_the_mean_of_a_paired_e_value_is_at_most_one(margin, above):
    rng = np.random.default_rng(2)
    for off in (0., .01):
        b, c = .05 + margin - (off if above else -off), .05
        d = rng.multinomial(40, (b, c, 1 - b - c), 100_000)
        assert np.exp(paired_evidence(np.full(len(d), 40), d[:, 0], d[:, 1], margin, above)).mean() < 1.04

def test_an_uneven_split_is_found_and_an_even_one_seldom():
    rng = np.random.default_rng(3)
    def ever(p):
        n1, n0 = sides(rng, 300, 3000, p)
        return (split_evidence(n1[..., None], n0[..., None], np.array([.05])) > math.log(100)).any(1).mean()
    assert ever(.05) <= .01 + .006 and ever(.09) > .99

def false_rollbacks(runs, events, seed, share):
    rng = np.random.default_rng(seed)
    split = ratio_table(events + 1, share)[sides(rng, runs, events, share)]
    mirrored = paired_table(events + 1)[sides(rng, runs, events, .5)]
    return [(v >= LIMIT).any(1).mean() for v in (split, mirrored)]

def test_equal_models_are_seldom_rolled_back_though_looked_at_after_every_part():
    "Between events the evidence against the candidate does not change, so a look at each event is a look at each part"
    assert all(f <= ALPHA + .02 for f in false_rollbacks(400, 400, 7, .25))

@pytest.mark.slow
@pytest.mark.parametrize('share', [.05, .25, .5])
def test_equal_models_over_many_runs(share):
    found = false_rollbacks(4000, 1000, 8, share)
    assert all(f <= ALPHA for f in found), found

@pytest.mark.parametrize('share,most', [(.5, 260), (.25, 300)])
def test_a_doubled_rate_is_found(share, most):
    "At least as good as no test at all is not enough: the median in events is near what the divergence allows"
    k = ratio_table(700, share)[sides(np.random.default_rng(4), 300, 699, chance(share, 2.))] >= LIMIT
    assert k.any(1).mean() > .98 and np.median(k.argmax(1)) < most
    p, q = chance(share, 2.), share
    divergence = p*math.log(p/q) + (1 - p)*math.log((1 - p)/(1 - q))
    assert np.median(k.argmax(1)) > .5*LIMIT/divergence


# ---------------------------------------------------------------- decisions

SPEC = JudgeSpec(metrics=[PairsMetric(name='escape', margin=.01), CountsMetric(name='overkill', margin=1.5)])

def seen(pairs=(4000, 4, 4), counts=(9000, 300, 300), share=.5):
    n, b, c = pairs
    parts, k1, k0 = counts
    return {'escape': PairCounts(pairs=n, candidate_only=b, champion_only=c),
        'overkill': (ArmCounts(share=share, candidate_parts=parts, candidate_events=k1,
            champion_parts=round(parts*(1 - share)/share), champion_events=k0),)}

@pytest.mark.parametrize('what,action', [
    (seen(), 'promote'),
    (seen(pairs=(4000, 25, 4)), 'rollback'),
    (seen(counts=(9000, 480, 300)), 'rollback'),
    (seen(pairs=(400, 0, 0)), 'wait'),
    (seen(pairs=(199, 100, 0)), 'wait'),
    (seen(counts=(199, 199, 0)), 'wait'),
    (seen(pairs=(0, 0, 0), counts=(0, 0, 0)), 'wait'),
    ({}, 'wait'),
    ({'escape': PairCounts(pairs=9000)}, 'wait'),
], ids=lambda v: v if isinstance(v, str) else '')
def test_decisions(what, action): assert judge(SPEC, what).action == action

def test_nothing_is_decided_on_a_wrong_split():
    wrong = seen(counts=(9000, 480, 300)) | {'overkill': (ArmCounts(share=.05, candidate_parts=9000,
        candidate_events=480, champion_parts=91000, champion_events=300),)}
    d = judge(SPEC, wrong)
    assert d.action == 'hold' and 'overkill' in d.reason

def test_nothing_is_ever_decided_below_the_minimum():
    rng = np.random.default_rng(5)
    for _ in range(100):
        n, m = rng.integers(0, 200), rng.integers(0, 5000)
        few, many = int(n), int(m)
        for pairs, counts in (((few, rng.integers(0, few + 1), 0), (many, rng.integers(0, many + 1), 0)),
                ((many, rng.integers(0, many + 1), 0), (few, rng.integers(0, few + 1), 0))):
            assert judge(SPEC, seen(tuple(map(int, pairs)), tuple(map(int, counts)))).action in ('wait', 'hold')

def test_the_budget_is_shared_among_metrics():
    one = JudgeSpec(metrics=[PairsMetric(name='m0')])
    ten = JudgeSpec(metrics=[PairsMetric(name=f'm{i}') for i in range(10)])
    limit = lambda spec: judge(spec, {m.name: PairCounts(pairs=1) for m in spec.metrics}).evidence[0].worse_limit
    assert limit(one) == pytest.approx(math.log(20)) and limit(ten) == pytest.approx(math.log(200))

@pytest.mark.parametrize('b,c', [(3, 3), (30, 10), (6, 0)])
def test_about_n_more_is_where_the_decision_falls(b, c):
    "Counts that go on at the same rate decide at the number announced"
    spec = JudgeSpec(metrics=[PairsMetric(name='escape', margin=.02, minimum=1)])
    now = judge(spec, {'escape': PairCounts(pairs=300, candidate_only=b, champion_only=c)})
    if now.action != 'wait': assert now.more is None; return
    at = lambda f: judge(spec, {'escape': PairCounts(pairs=round(300*f), candidate_only=round(b*f),
        champion_only=round(c*f))}).action
    factor = 1 + now.more/300
    assert at(factor*1.15) != 'wait' and at(1 + (factor - 1)*.8) == 'wait'

def test_counts_announce_when_they_decide():
    spec = JudgeSpec(metrics=[CountsMetric(name='overkill', minimum=1)])
    step = lambda f: {'overkill': (ArmCounts(share=.5, candidate_parts=round(1000*f), candidate_events=round(40*f),
        champion_parts=round(1000*f), champion_events=round(40*f)),)}
    factor = 1 + judge(spec, step(1)).more/2000
    assert judge(spec, step(factor*1.1)).action == 'promote' and judge(spec, step(factor*.85)).action == 'wait'
