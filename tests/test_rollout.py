"What a rollout decides, against independent truth: simulated canaries, exact sums, killed controllers"
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from sads_jax.core.rollout_specs import (
    BlueGreenRollout,
    CanaryRollout,
    CountsMetric,
    JudgeSpec,
    PairsMetric,
    ShadowRollout,
    StandardRollout,
    StepSpec,
)
from sads_jax.deployment.rollout import ArmTotals, RolloutController, load_state, seen_since
from sads_jax.deployment.sequential import (
    ArmCounts,
    PairCounts,
    judge,
    paired_evidence,
    ratio_evidence,
    split_evidence,
)
from sads_jax.deployment.traffic import DeploymentError, Traffic

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

def test_a_metric_decides_nothing_on_a_wrong_split():
    wrong = seen(counts=(9000, 480, 300)) | {'overkill': (ArmCounts(share=.05, candidate_parts=9000,
        candidate_events=480, champion_parts=91000, champion_events=300),)}
    d = judge(SPEC, wrong)
    assert d.action == 'hold' and 'overkill' in d.reason
    d = judge(SPEC, wrong | {'escape': PairCounts(pairs=4000, candidate_only=25, champion_only=4)})
    assert d.action == 'rollback' and d.reason.endswith('worse: escape')  # pairs do not depend on the split

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


# ---------------------------------------------------------------- steps and states

class Proxy:
    "Notes what it is told"
    def __init__(self): self.told = [Traffic()]
    def read(self): return self.told[-1]
    def write(self, traffic): self.told.append(traffic)

class Steady:
    "A hundred parts a second; the candidate alone errs on some, the champion alone on 0.1 %"
    def __init__(self, added=0.): self.added = added
    def parts(self, start, end): return round(100*(end - start))
    def arms(self, metric, start, end):
        n = round(50*(end - start))
        return ArmTotals(candidate_parts=n, candidate_events=round(n*(.02 + self.added)), champion_parts=n,
            champion_events=round(n*.02))
    def pairs(self, metric, start, end):
        n = round(100*(end - start))
        return PairCounts(pairs=n, candidate_only=round(n*(.001 + self.added)), champion_only=round(n*.001))

JUDGE = JudgeSpec(metrics=[PairsMetric(name='escape')])
STEPS = tuple(StepSpec(candidate=c, mirror=20, parts=500, bake_s=120) for c in (5, 25, 50))

class Run:
    "A controller with a clock that is turned by hand"
    def __init__(self, folder, spec, source=None, clock='12:00', begin=True):
        self.t, self.hour, self.proxy, self.champions = 0., clock, Proxy(), ['v41']
        self.c = RolloutController(folder/'state.json', self.proxy, source or Steady(), self.champions.append,
            now=lambda: self.t, clock=lambda t: self.hour)
        if begin: self.c.begin('v42', spec)

    def ticks(self, n):
        for _ in range(n):
            self.t += 60
            state = self.c.tick()
        return state

    @property
    def shares(self):
        told = [t.candidate for t in self.proxy.told]
        return [a for a, b in zip(told, [None, *told]) if a != b]

@pytest.mark.parametrize('spec,shares,phase', [
    (CanaryRollout(judge=JUDGE, steps=STEPS), [0, 5, 25, 50, 100], 'promoted'),
    (BlueGreenRollout(judge=JUDGE), [0, 100], 'promoted'),
    (ShadowRollout(judge=JUDGE), [0], 'observed'),
    (StandardRollout(), [0, 100], 'promoted'),
], ids=lambda v: getattr(v, 'kind', ''))
def test_strategies_end_as_they_should(tmp_path, spec, shares, phase):
    run = Run(tmp_path, spec)
    assert run.ticks(60).phase == phase and run.shares == shares
    assert run.champions == (['v41', 'v42'] if phase == 'promoted' else ['v41'])
    last = run.proxy.told[-1]
    assert last.mirror == 0 and run.ticks(3).phase == phase and run.proxy.told[-1] == last

def test_mirrors_are_on_in_the_steps_that_ask_for_them(tmp_path):
    run = Run(tmp_path, BlueGreenRollout(judge=JUDGE))
    run.ticks(1)
    assert run.proxy.told[-1] == Traffic(candidate=0, mirror=100, sticky=True)

@pytest.mark.parametrize('spec', [CanaryRollout(judge=JUDGE, steps=STEPS), BlueGreenRollout(judge=JUDGE),
    ShadowRollout(judge=JUDGE)], ids=lambda s: s.kind)
def test_a_worse_candidate_is_rolled_back(tmp_path, spec):
    run = Run(tmp_path, spec, Steady(added=.02))
    state = run.ticks(20)
    assert state.phase == 'rolled_back' and 'worse: escape' in state.reason
    assert run.proxy.told[-1].candidate == 0 and max(run.shares) <= 5 and run.champions == ['v41']

def test_a_step_waits_for_its_parts_its_time_and_its_proof(tmp_path):
    class Slow(Steady):
        def parts(self, start, end): return round(2*(end - start))
    run = Run(tmp_path, CanaryRollout(judge=JUDGE, steps=STEPS), Slow())
    assert run.ticks(3).reason == '240 of 500 parts of this step'
    assert run.ticks(4).step == 1
    few = JudgeSpec(metrics=[PairsMetric(name='escape', margin=.0001)])
    proof = (StepSpec(candidate=5, mirror=20, proof=True),)
    run = Run(tmp_path/'proof', CanaryRollout(judge=few, steps=proof))
    state = run.ticks(30)
    assert state.phase == 'observing' and 'not enough parts yet' in state.reason

def test_nothing_is_raised_in_a_freeze_window_but_rolled_back(tmp_path):
    spec = CanaryRollout(judge=JUDGE, steps=STEPS, freeze=[{'start': '21:45', 'end': '06:15'}])
    run = Run(tmp_path, spec)
    run.ticks(2)
    run.hour = '22:00'
    assert run.ticks(20).reason == 'frozen from 21:45 to 06:15' and run.shares == [0, 5]
    run.c.source = Steady(added=.02)
    assert run.ticks(2).phase == 'rolled_back'
    with pytest.raises(DeploymentError, match='nothing is raised from 21:45'): run.c.begin('v43', spec)

def test_a_person_is_asked_and_may_halt_promote_and_abort(tmp_path):
    spec = CanaryRollout(judge=JUDGE, steps=(STEPS[0].model_copy(update={'pause': True}), STEPS[1]))
    run = Run(tmp_path, spec)
    assert run.ticks(9).phase == 'paused' and run.shares == [0, 5]
    with pytest.raises(DeploymentError, match='the rollout of v42 is paused'): run.c.begin('v43', spec)
    run.c.ask('agree', 'Ada')
    assert run.ticks(2).step == 1
    run.c.ask('halt', 'Ada')
    assert run.ticks(20).reason == 'halted by a person' and run.shares == [0, 5, 25]
    run.c.ask('go_on', 'Ada')
    run.c.ask('abort', 'Ada')
    assert run.ticks(1).phase == 'rolled_back' and run.shares[-1] == 0
    with pytest.raises(DeploymentError, match='is rolled_back'): run.c.ask('promote', 'Ada')
    run = Run(tmp_path/'b', spec)
    run.c.ask('promote', 'Ada')
    assert run.ticks(1).phase == 'promoted' and run.champions[-1] == 'v42'

def test_metrics_that_no_step_counts_are_refused_before_anything_waits_for_them():
    counts = JudgeSpec(metrics=[CountsMetric(name='overkill')])
    for make in (lambda: BlueGreenRollout(judge=counts), lambda: ShadowRollout(judge=counts),
            lambda: CanaryRollout(judge=JUDGE, steps=[StepSpec(candidate=5)])):
        with pytest.raises(ValueError, match='no step counts'): make()
    CanaryRollout(judge=JudgeSpec(metrics=[*JUDGE.metrics, *counts.metrics]))

def test_a_paused_candidate_that_turns_bad_is_rolled_back(tmp_path):
    run = Run(tmp_path, CanaryRollout(judge=JUDGE, steps=(STEPS[0].model_copy(update={'pause': True}),)))
    assert run.ticks(9).phase == 'paused'
    run.c.source = Steady(added=.03)
    assert run.ticks(2).phase == 'rolled_back'

def test_traffic_that_somebody_changed_is_put_back(tmp_path):
    run = Run(tmp_path, CanaryRollout(judge=JUDGE, steps=STEPS))
    run.ticks(2)
    run.proxy.write(Traffic(candidate=90))
    run.ticks(1)
    assert run.proxy.read().candidate == 5

def test_shares_of_all_steps_reach_the_judge(tmp_path):
    "Each step is judged with its own share, and closed when the next begins"
    run = Run(tmp_path, CanaryRollout(steps=STEPS))
    run.ticks(5)
    spans = load_state(tmp_path/'state.json').spans
    assert [s.candidate for s in spans] == [5, 25] and spans[0].end <= spans[1].start and spans[1].end is None
    seen = seen_since(CountsMetric(name='overkill'), Steady(), spans, run.t)
    assert [s.share for s in seen] == [.05, .25]


# ---------------------------------------------------------------- killed at each operation on files in turn

DIES = '''
import json, os, signal, sys
from pathlib import Path
from sads_jax.core.files import sweep, write_whole
from sads_jax.deployment.rollout import ENDED, RolloutController, load_state
from sads_jax.deployment.traffic import Traffic
from test_rollout import JUDGE, STEPS, Steady, CanaryRollout

class Proxy:
    def __init__(self, at): self.at = at
    def read(self): return Traffic.model_validate_json((self.at/'traffic.json').read_text())
    def write(self, traffic):
        write_whole(self.at/'traffic.json', traffic.model_dump_json())
        with (self.at/'told').open('a') as f: f.write(f'{traffic.candidate} ')

def drive(at, t, added):
    t = [t]
    c = RolloutController(at/'state.json', Proxy(at), Steady(added), lambda v: write_whole(at/'champion', v),
        now=lambda: t[0], clock=lambda t: '12:00')
    if not (at/'state.json').exists(): c.begin('v42', CanaryRollout(judge=JUDGE, steps=STEPS))
    while load_state(at/'state.json').phase not in ENDED:
        t[0] += 60
        c.tick()

os.fsync = lambda fd: None  # a kill loses nothing that the system already has; most of the time goes there
home, phases = Path(sys.argv[1]), set()
for added in (0., .02):
    n = 0
    while True:
        at = home/f'{added}-{n}'
        at.mkdir()
        write_whole(at/'champion', 'v41')
        write_whole(at/'traffic.json', Traffic().model_dump_json())
        pid = os.fork()
        if not pid:
            left = [n]
            def die(event, args):
                if event in ('os.rename', 'os.remove') or event == 'open' and str(args[0]).startswith(str(at)):
                    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
            sys.addaudithook(die)
            drive(at, 0., added)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert Proxy(at).read().weights  # somebody gets the parts, whenever it was
        if code == -signal.SIGKILL and (at/'state.json').exists(): phases.add(load_state(at/'state.json').phase)
        sweep(at)
        drive(at, 4000., added)
        told = [int(v) for v in (at/'told').read_text().split()]
        steps = [a for a, b in zip(told, [None, *told]) if a != b]
        end = load_state(at/'state.json').phase, (at/'champion').read_text(), Proxy(at).read().candidate
        if added: assert end == ('rolled_back', 'v41', 0) and steps in ([5, 0], [5, 25, 0]), (n, end, steps)
        else: assert end == ('promoted', 'v42', 100) and steps == [5, 25, 50, 100], (n, end, steps)
        n += 1
        if code == 0: break
        assert code == -signal.SIGKILL, code
    print(n, end=' ')
print(*sorted(phases))
'''

def test_a_controller_killed_anywhere_goes_on_where_it_was(tmp_path):
    said = subprocess.run([sys.executable, '-c', DIES, str(tmp_path)], capture_output=True, text=True, timeout=120,
        env=os.environ | {'PYTHONPATH': os.pathsep.join([*sys.path, str(Path(__file__).parent)])})
    assert said.returncode == 0, said.stderr[-2000:]
    fine, bad, *phases = said.stdout.split()
    assert int(fine) > 60 and int(bad) > 20
    assert set(phases) >= {'shifting', 'observing', 'promoting', 'rolling_back', 'promoted'}, phases
