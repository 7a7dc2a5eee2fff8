"Stages, their keys and what they write; the networks are stood in for, everything around them is real."
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dark_cascade as dark
import fake_line
import numpy as np
import pytest
import yaml

from sads_jax.cli.main import main
from sads_jax.core.errors import BundleError, DataError, ParamsError, SADSError
from sads_jax.core.files import MARKER, whole_folder
from sads_jax.core.params import CocoSpec, SyntheticSpec, load_params
from sads_jax.core.progress import Progress
from sads_jax.core.settings import Settings, load_settings
from sads_jax.data.records import InspectionData, read_coco, write_coco
from sads_jax.domains.base import Cascade
from sads_jax.domains.surface.assembly import shared_backbone
from sads_jax.orchestrators import stages
from sads_jax.orchestrators.base import Places, code_revision, package_hashes, settle
from sads_jax.orchestrators.project import make_runnable, reproduce, stage_graph
from sads_jax.orchestrators.training import NAMES, CVTrainingOrchestrator
from sads_jax.registry.bundle import bundle_version, read_bundle, verify_bundle
from sads_jax.registry.registries import MLflowRegistry

ROOT = Path(__file__).parent.parent
QUIET = Settings(tracking='disabled', progress='none')
LABELS = dark.LABELS
GRAPH = stage_graph()

# ---------------------------------------------------------------- the graph is in dvc.yaml, and nowhere else

def outs(s): return [next(iter(o)) for o in s.get('outs', []) + s.get('metrics', [])]

def test_every_stage_of_the_graph_is_one_that_can_be_called():
    called = [s['cmd'].removeprefix('sads stage ') for s in GRAPH.values()]
    assert called == ['code', 'ingest', 'split', *(f'train --task {t}' for t in stages.TASKS), *NAMES[3:]]

def test_stages_read_what_others_write():
    written = {o for s in GRAPH.values() for o in outs(s)}
    assert all(d in written for s in GRAPH.values() for d in s.get('deps', []))
    assert set(outs(GRAPH['code'])) == {f'code/{p}.txt' for p in package_hashes()}
    at = Places(Path())
    filled = {at.dataset, at.split, at.bundle, *(at.models/t for t in (*stages.TASKS, 'anomaly'))}
    assert {str(p) for p in filled} == {o for o in written if not o.startswith(('code/', 'reports/'))}

def test_plots_read_what_stages_write():
    text = (ROOT/'dvc.yaml').read_text()
    plots = yaml.safe_load(text)['plots']
    files = [f for p in plots for v in p.values() for f in v['y']]
    assert all(any(f.startswith(o) for s in GRAPH.values() for o in outs(s)) for f in files) and len(files) >= 8

def test_the_committed_files_are_valid_and_complete(monkeypatch):
    for k in [k for k in os.environ if k.startswith('SADS_')]: monkeypatch.delenv(k)
    assert load_settings(ROOT/'settings.ini') == Settings()
    keys = lambda t: {k: keys(v) if isinstance(v, dict) else None for k, v in t.items()}
    given, default = (
        keys(x)
        for x in (yaml.safe_load((ROOT / 'params.yaml').read_text()),
            load_params(ROOT / 'params.yaml').model_dump(mode='json'))
    )
    assert given == default  # DVC compares the file, so every section must be in it

# ---------------------------------------------------------------- what makes a stage stale

def stale(*keys):
    "Stages that depend on these keys of params.yaml, directly or through others"
    touched = lambda s: any(k == p or k.startswith(p + '.') for k in keys for p in s.get('params', []))
    out = []
    for name, s in GRAPH.items():
        if touched(s) or any(d in outs(GRAPH[n]) for n in out for d in s.get('deps', [])): out.append(name)
    return out

ALL = [n for n in GRAPH if n != 'code']

@pytest.mark.parametrize(
    'key, first',
    [('decision.review_margin', 'calibrate'), ('decision.threshold.kind', 'calibrate'),
        ('evaluate.golden', 'calibrate'), ('domain.kind', 'calibrate'), ('anomaly.shrinkage', 'anomaly'),
        ('evaluate.gallery', 'evaluate'), ('split.seed_offset', 'split'), ('data.n_parts', 'ingest'),
        ('seed', 'ingest'), ('image.buckets', 'train-detector'), ('detector.trainer.steps', 'train-detector')],
)
def test_a_change_reruns_what_follows_and_no_more(key, first):
    assert stale(key) == ALL[ALL.index(first):]

def test_one_task_leaves_those_alone_that_do_not_start_from_it():
    assert stale('classifier.trainer.views') == ['train-classifier', 'calibrate', 'evaluate', 'register']
    assert stale('segmenter.trainer.steps') == ['train-segmenter', 'train-classifier', 'calibrate', 'evaluate',
        'register']

# ---------------------------------------------------------------- a whole run

class Trainers:
    "Stand-ins that leave a checkpoint, may be killed, then write a 'model'"
    def __init__(self): self.log, self.killed = [], set()

    def task(self, name, data, split, params, out, *, start_from=None, checkpoints=None, progress=None):
        self.log.append((name, checkpoints.name, checkpoints.exists()))
        checkpoints.mkdir(parents=True, exist_ok=True)
        if name in self.killed:
            self.killed.remove(name)
            raise KeyboardInterrupt
        progress(name, 1, 1, {'loss': .5})
        with whole_folder(out) as new:
            (new/'history.csv').write_text('step,loss,score\n1,0.5,0.5\n')
            (new/'model.safetensors').write_bytes(b'weights')
            (new/'model.json').write_text(json.dumps({'classes': list(data.categories)}))

    def anomaly(self, data, split, params, detector, out, **_):
        with whole_folder(out) as new: (new/'model.json').write_text('{}')

@pytest.fixture(scope='module')
def ingested(tmp_path_factory):
    "A working folder after ingest and split"
    work = tmp_path_factory.mktemp('ingested')/'work'
    fake_line.line(dark.params(), QUIET, work).run(until='split')
    return work

@pytest.fixture
def trainers(): return Trainers()

@pytest.fixture
def line(tmp_path, ingested, trainers):
    "Makes orchestrators whose three models are the dark cascade"
    shutil.copytree(ingested, tmp_path/'work')
    quiet = QUIET.model_copy(update={'cache_dir': tmp_path/'cache'})
    def make(*assignments, workdir=tmp_path/'work', **more):
        given = {'train_task': trainers.task, 'train_anomaly': trainers.anomaly} | more
        return fake_line.line(dark.params(*assignments), quiet, workdir, **given)
    return make

def registry_of(work):
    s = settle(QUIET, work)
    return MLflowRegistry(s.registry_uri, s.registry_artifacts, s.model_name)

def finish(o):
    "The stages after the split"
    for name in NAMES[2:]: o.stage(name)

def test_from_nothing_to_a_champion_and_on(line, tmp_path):
    told = []
    o = line(progress=lambda *what: told.append(what))
    assert o.run() == list(NAMES)
    assert {t[0] for t in told} >= {'ingest', 'detector', 'calibrate', 'evaluate'}
    version, registry = verify_bundle(o.at.bundle), registry_of(tmp_path/'work')
    info, said = read_bundle(o.at.bundle), json.loads((tmp_path/'work/reports/registered.json').read_text())
    assert said == {'model': 'sads', 'version': 1, 'bundle': version, 'alias': 'champion'}
    assert info.labels == LABELS and info.data['kind'] == 'synthetic' and sum(info.data['splits'].values()) == 48
    assert info.decision.chosen['kind'] == 'f1' and info.decision.threshold == info.decision.chosen['threshold']
    assert len((o.at.bundle/'golden/expected.jsonl').read_text().splitlines()) == 3
    entry = registry.entry('champion')
    assert (
        entry.tags['data_fingerprint'] == info.data['fingerprint']
        and entry.tags['params_hash']
        and entry.tags['bundle_version'] == version
    )
    assert any(k.startswith('images/') for k in entry.metrics)
    assert (registry.get()/'metrics.json').exists() and not (o.at.bundle/'metrics.json').exists()
    reports = {p.name for p in (tmp_path/'work/reports').iterdir()}
    assert reports == {'metrics.json', 'report.html', 'explorer.html', 'plots', 'predictions.jsonl', 'parity.json',
        'registered.json', MARKER}
    assert dict(stages.figures(o.at.reports))['images'].startswith(str(info.data['splits']['test']))
    assert (
        str(tmp_path)
        not in (tmp_path / 'work/reports/predictions.jsonl').read_text() + (o.at.bundle / 'params.yaml').read_text()
    )
    # another decision is another bundle; the old one again is the old version
    again = line('decision.threshold.kind=fixed', 'decision.threshold.score=0.7')
    for name in NAMES[4:]: again.stage(name)
    assert read_bundle(again.at.bundle).decision.threshold == .7 and bundle_version(again.at.bundle) != version
    assert [(e.version, e.aliases) for e in registry.list()] == [(1, ()), (2, ('champion',))]
    back = line()
    for name in NAMES[4:]: back.stage(name)
    assert bundle_version(back.at.bundle) == version and registry.entry().version == 1
    # the same elsewhere is the same
    other = line(workdir=tmp_path/'deep'/'elsewhere')
    other.run(until='calibrate')
    assert bundle_version(other.at.bundle) == version
    judge_other_data(back.at, tmp_path)
    assert verify_bundle(back.at.bundle) == version

def judge_other_data(at, tmp_path):
    "Judging a bundle on data with a class it does not know, and a broken photograph"
    data = read_coco(at.dataset)
    strange = lambda r: replace(r, classes=('rust',) if r.defective else (),
        annotations=tuple(replace(a, category='rust') for a in r.annotations))
    shutil.copytree(data.root/'images', tmp_path/'new'/'images')
    write_coco(InspectionData(tmp_path/'new', ('rust',), tuple(strange(r) for r in data.images[:7])), tmp_path/'new')
    broken = tmp_path/'new'/data.images[6].file_name
    broken.write_bytes(broken.read_bytes()[:200])
    found = evaluate_other(at.bundle, CocoSpec(root=tmp_path/'new'), tmp_path/'judge')
    assert found.metrics['data']['images'] == 6 and found.metrics['data']['defective'] == sum(
        r.defective for r in data.images[:6]
    )
    assert any('rust' in n for n in found.context['notes'])
    assert any(
        'photographs that could not be used: 1' in n and data.images[6].file_name in n for n in found.context['notes']
    )
    assert str(tmp_path) not in (tmp_path/'judge/reports/report.html').read_text()
    assert 'rust' in (tmp_path/'judge/reports/report.html').read_text()

def evaluate_other(bundle, spec, work):
    return stages.evaluate_bundle(bundle, spec, work / 'reports', params=dark.params(), settings=settle(QUIET, work),
        at=Places(work), progress=Progress('none'))

class Swapped(fake_line.DarkDomain):
    "What is trained is not what was exported"
    def build(self, models, params, labels):
        right = dark.cascade(labels)
        return Cascade(lambda p, images: right(p, 255 - images), dark.WEIGHTS, False)

@pytest.mark.slow
def test_a_bundle_that_decides_otherwise_is_not_registered(line, tmp_path):
    o = line('export.artefacts=[int8,onnx]')
    o.run(until='evaluate')
    parity = lambda: json.loads((o.at.reports/'parity.json').read_text())
    with pytest.raises(SADSError, match=r'the float32 form is not the model that was trained.*Nothing was registered'):
        line('export.artefacts=[int8,onnx]', domain=Swapped()).register()
    assert (
        not (o.at.reports / 'registered.json').exists()
        and registry_of(tmp_path / 'work').list() == []
        and parity()['float32']['faults'] > 0
    )
    entry, told = o.register(), parity()
    assert entry.version == 1 and {k: v['faults'] for k, v in told.items()} == {'float32': 0, 'int8': 0, 'onnx': 0}
    assert all(told[k]['verdicts_equal'] == told[k]['photographs'] > 3 for k in ('int8', 'onnx'))

def test_a_killed_training_is_continued_unless_something_changed(line, trainers):
    trainers.killed.add('detector')
    with pytest.raises(KeyboardInterrupt): line().train('detector')
    line('decision.review_margin=0.3').train('detector')  # does not matter to a detector
    (_, first, resumed0), (_, second, resumed1) = trainers.log
    assert first == second and (resumed0, resumed1) == (False, True)
    assert list((line().at.scratch/'checkpoints').iterdir()) == []  # finished: nothing to continue
    trainers.killed.add('detector')
    with pytest.raises(KeyboardInterrupt): line().train('detector')
    line('detector.trainer.learning_rate=0.1').train('detector')
    assert trainers.log[-1][1] != first and not trainers.log[-1][2]

def test_a_model_starts_from_the_one_that_is_there(line, trainers):
    o = line()
    with pytest.raises(DataError, match='train --task segmenter'): o.train('classifier')
    o.train('detector')
    def begun():
        trainers.killed.add('segmenter')
        with pytest.raises(KeyboardInterrupt): o.train('segmenter')
    begun()
    o.train('segmenter')
    assert [t[2] for t in trainers.log if t[0] == 'segmenter'] == [False, True]  # the second went on
    begun()
    (o.at.models/'detector'/'model.safetensors').write_bytes(b'other weights')
    o.train('segmenter')
    assert [t[2] for t in trainers.log if t[0] == 'segmenter'][2:] == [
        False,
        False,
    ]  # another start: nothing to go on with

def test_stages_say_what_they_miss(line, tmp_path):
    for name, says in [('split', 'ingest'), ('train', 'ingest'), ('calibrate', 'ingest'), ('register', 'bundle')]:
        with pytest.raises(SADSError, match=says): line(workdir=tmp_path/'empty').stage(name)
    with pytest.raises(SADSError, match="no task 'painter'"): line().stage('train', 'painter')
    with pytest.raises(SADSError, match="no stage 'deploy'.*ingest, split"): line().stage('deploy')
    with pytest.raises(SADSError, match="no stage 'deploy'"): line().run(until='deploy')
    with pytest.raises(DataError, match='evaluate'): stages.figures(line().at.reports)
    with pytest.raises(BundleError): evaluate_other('nowhere', SyntheticSpec(), tmp_path/'x')

def test_an_impossible_rule_stops_before_the_training(line, trainers):
    with pytest.raises(ParamsError, match='scrtch'):
        line('decision.rules=[{name: big, label: scrtch}]').train('detector')
    assert trainers.log == []

def test_classes_of_another_data_set_are_refused(line):
    o = line()
    o.stage('train')
    o.anomaly()
    (o.at.models/'classifier'/'model.json').write_text('{"classes": ["rust"]}')
    with pytest.raises(DataError, match='other defect classes'): o.calibrate()

def test_stages_are_what_one_gives(tmp_path):
    ran = []
    stage = lambda name: lambda *task: ran.append((name, *task))
    CVTrainingOrchestrator(Places(tmp_path), **{n: stage(n) for n in NAMES}, tasks=('one',)).run()
    assert ran == [(n,) if n != 'train' else (n, 'one') for n in NAMES]

# ---------------------------------------------------------------- small things

def test_progress_lines():
    text, now = io.StringIO(), iter(range(0, 10**4, 3))
    p = Progress('auto', text, clock=lambda: next(now))
    for i in range(1, 9): p('x', i, 8, {'loss': 1/i} if i % 2 else {})
    assert text.getvalue().splitlines() == ['x: 5/8, loss 0.2, 7 s left', 'x: 8/8, loss 0.1429, 21 s']

def test_progress_bar():
    text = io.StringIO()
    with Progress('bar', text) as p:
        assert list(p.track('abc', 'letters')) == ['a', 'b', 'c']
        p('x', 3, 3, {'loss': .25, 'images_per_s': 11})
    assert 'letters' in text.getvalue() and 'loss 0.25, 11 images/s' in text.getvalue()

def test_code_is_named():
    assert set(package_hashes(['ops', 'data'])) == {'ops', 'data'} and len(set(package_hashes().values())) == len(
        package_hashes()
    )
    assert code_revision() is None or len(code_revision()) >= 12

def test_the_job_script_is_sads_run():
    done = subprocess.run(
        [sys.executable, ROOT / 'scripts' / 'run_training_job.py', '--help'], capture_output=True, text=True
    )
    assert done.returncode == 0 and '--until' in done.stdout, done.stderr

# ---------------------------------------------------------------- what DVC makes of dvc.yaml

STUB = '''#!{python}
import hashlib, pathlib, sys
outs = {{'ingest': ['data/dataset/a'], 'split': ['data/split/a'], 'anomaly': ['models/anomaly/a'], 'calibrate': ['bundle/a'], 'register': ['reports/registered.json', 'reports/parity.json'],
    'evaluate': ['reports/plots/a', 'reports/predictions.jsonl', 'reports/report.html', 'reports/explorer.html', 'reports/metrics.json'],
    'code': {code}}}
name = sys.argv[2]
if name != 'code':
    with open({log!r}, 'a') as f: f.write(' '.join(sys.argv[2:]) + '\\n')
version = pathlib.Path({versions!r})
text = '{{"x": "' + hashlib.md5(pathlib.Path('params.yaml').read_bytes()).hexdigest() + '"}}' if name not in ('code', 'ingest', 'split', 'train') else '1'
for o in outs.get(name) or [f'models/{{sys.argv[4]}}/a']:
    p = pathlib.Path(o); p.parent.mkdir(parents=True, exist_ok=True)
    p.write_text((version/p.name).read_text() if name == 'code' and (version/p.name).exists() else text)
'''  # noqa: E501

@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """A project whose `sads` only writes down what it is asked for; gives (its folder, what one `dvc repro` ran, where
    to change a package)"""
    pytest.importorskip('dvc')
    log, versions, work, bin_dir = tmp_path/'log', tmp_path/'versions', tmp_path/'project', tmp_path/'bin'
    for d in (versions, work, bin_dir): d.mkdir()
    (bin_dir / 'sads').write_text(
        STUB.format(python=sys.executable, log=str(log), versions=str(versions), code=outs(GRAPH['code']))
    )
    (bin_dir/'sads').chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(bin_dir/'python'))  # `reproduce` looks for `sads` beside it
    monkeypatch.setenv('DVC_SITE_CACHE_DIR', str(tmp_path/'site'))
    monkeypatch.setenv('PATH', os.environ['PATH'])
    shutil.copy(ROOT/'params.yaml', work)
    make_runnable(work, None)
    def ran(*targets, **more):
        log.write_text('')
        reproduce(work, targets, **more)
        return log.read_text().splitlines()
    return work, ran, versions

def test_dvc_reruns_what_a_change_reaches(stubbed):
    work, ran, versions = stubbed
    first = ran()
    assert first[:2] == ['ingest', 'split'] and sorted(first[2:6]) == ['anomaly',
        *(f'train --task {t}' for t in sorted(stages.TASKS))]
    assert first[6:] == ['calibrate', 'evaluate', 'register'] and first.index('train --task detector') < first.index(
        'anomaly'
    )
    assert ran() == []
    text = (work/'params.yaml').read_text()
    (work/'params.yaml').write_text(text.replace('review_margin: 0.2', 'review_margin: 0.4'))
    assert ran() == ['calibrate', 'evaluate', 'register']
    (versions/'serving.txt').write_text('a comment changed')
    assert ran() == []
    (versions/'models.txt').write_text('a comment changed')
    again = ran()
    assert {'train --task detector', 'train --task segmenter', 'train --task classifier', 'anomaly',
        'calibrate'} <= set(again)
    assert not {'ingest', 'split'} & set(again)

def test_sads_run_stops_where_it_is_told_and_forces(stubbed):
    work, ran, _ = stubbed
    assert ran('split') == ['ingest', 'split']
    assert ran('train-classifier') == [f'train --task {t}' for t in stages.TASKS]
    assert ran('split', force=True) == ['ingest', 'split']

def test_two_runs_do_not_mix(stubbed):
    from dvc.repo import Repo
    work, ran, _ = stubbed
    with Repo(str(work)) as repo, repo.lock:
        with pytest.raises(SADSError, match='another run is at work here'): ran()

def test_sads_run_makes_any_folder_a_project_and_leaves_the_environment_alone(tmp_path, monkeypatch):
    "The real command, the real DVC, from a folder without settings.ini"
    pytest.importorskip('dvc')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DVC_SITE_CACHE_DIR', str(tmp_path/'site'))
    before = dict(os.environ)
    Path('p.yaml').write_text('data: {kind: synthetic, n_parts: 12, exposures: 1, size: 64}\n')
    with pytest.raises(SystemExit) as done: main(['run', '--params', 'p.yaml', '--workdir', 'w', '--until', 'split'])
    assert done.value.code == 0
    assert Path('w/data/split/split.json').exists() and dict(os.environ) == before
    with pytest.raises(SystemExit) as done: main(['run', '--params', 'p.yaml'])
    assert done.value.code == 1  # here, params.yaml says what is run

def test_a_stage_that_fails_is_named(stubbed):
    work, ran, _ = stubbed
    shutil.rmtree(work/'data', ignore_errors=True)
    (work/'data').write_text('in the way')
    with pytest.raises(SADSError, match="a stage failed: failed to reproduce 'ingest'"): ran()

def test_one_look_serves_both_only_where_they_begin_alike():
    "The same crop and the same frozen backbone; anything else, and each looks for itself"
    facts = {'crop': 96, 'context': 1.5, 'least': 32, 'build': {'backbone': 'lite0'}}
    weights = lambda v: {'backbone/stem': np.full(3, v, np.float32), 'head/x': np.float32([v])}
    look = lambda mine, other, a=facts, b=facts: shared_backbone(
        {'classifier': (None, mine, a), 'segmenter': (None, other, b)}
    )
    assert callable(look(weights(1), weights(1) | {'head/x': np.float32([2])}))
    assert look(weights(1), weights(2)) is None
    assert look(weights(1), weights(1) | {'backbone/stem': np.full(2, 1, np.float32)}) is None  # another share kept
    assert look(weights(1), weights(1), facts, facts | {'crop': 128}) is None
    assert look(weights(1), weights(1), *[facts | {'build': {'backbone': 'plain'}}]*2) is None
