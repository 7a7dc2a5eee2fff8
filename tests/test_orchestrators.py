"Stages, their keys and what they write; the networks are stood in for, everything around them is real."
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dark_cascade as dark
import numpy as np
import pytest
import yaml

import sads_jax.orchestrators.training as T
from sads_jax.core.errors import BundleError, DataError, ParamsError, SADSError
from sads_jax.core.files import MARKER, whole_folder
from sads_jax.core.params import CocoSpec, SyntheticSpec, load_params
from sads_jax.core.settings import Settings, load_settings
from sads_jax.orchestrators.base import Busy, Progress, code_hash, code_revision
from sads_jax.registry.bundle import bundle_version, read_bundle, verify_bundle

ROOT = Path(__file__).parent.parent
QUIET = Settings(tracking='disabled', progress='none')
LABELS = dark.LABELS

# ---------------------------------------------------------------- the files at the top say the same as the code

def test_dvc_yaml_is_the_table_of_stages():
    said = {}
    for name, s in yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages'].items():
        for item, value in s.get('foreach', {None: None}).items():
            d = json.loads(json.dumps(s.get('do', s)).replace('${key}', item or '').replace('${item}', value or ''))
            only = lambda xs: {next(iter(x)) if isinstance(x, dict) else x for x in xs}
            said[f'{name}@{item}' if item else name] = (d['cmd'], only(d.get('deps', [])), set(d.get('params', [])), only([*d.get('outs', []), *d.get('metrics', [])]))
    want = {}
    for s in T.STAGES.values():
        name, _, task = s.name.partition('@')
        want[s.name] = (f'sads stage {name}' + (f' --task {task}' if task else ''), {*s.deps, *(f'sads_jax/{c}' for c in s.code)}, set(s.params), set(s.outs))
    assert said == want

def test_stages_name_what_exists():
    outs = {o: s.name for s in T.STAGES.values() for o in s.outs}
    for s in T.STAGES.values():
        assert all((ROOT/'sads_jax'/c).exists() for c in s.code), s
        assert {outs[d] for d in s.deps} == set(s.needs), s

def test_plots_read_what_stages_write():
    text = (ROOT/'dvc.yaml').read_text()
    plots = yaml.safe_load(text)['plots']
    files = [f for p in plots for v in p.values() for f in v['y']]
    assert all(any(f.startswith(o) for s in T.STAGES.values() for o in s.outs) for f in files) and len(files) >= 8

def test_the_committed_files_are_valid_and_complete(monkeypatch):
    for k in [k for k in os.environ if k.startswith('SADS_')]: monkeypatch.delenv(k)
    assert load_settings(ROOT/'settings.ini') == Settings()
    keys = lambda t: {k: keys(v) if isinstance(v, dict) else None for k, v in t.items()}
    given, default = (keys(x) for x in (yaml.safe_load((ROOT/'params.yaml').read_text()), load_params(ROOT/'params.yaml').model_dump(mode='json')))
    assert given == default  # DVC compares the file, so every section must be in it

# ---------------------------------------------------------------- keys: what makes a stage stale

def stale(*assignments, **data):
    a, b = (T.CVTrainingOrchestrator(p, QUIET, 'nowhere') for p in (dark.params(), dark.params(*assignments, **data)))
    return [n for n in T.STAGES if a.key(n) != b.key(n)]

ALL = list(T.STAGES)

@pytest.mark.parametrize('assignments, first', [
    (['decision.review_margin=0.4'], 'calibrate'), (['decision.threshold.kind=fixed'], 'calibrate'), (['evaluate.golden=2'], 'calibrate'),
    (['decision.review_overkill=0.1'], 'calibrate'), (['anomaly.shrinkage=0.2'], 'anomaly'), (['anomaly.kind=none'], 'anomaly'), (['evaluate.gallery=2'], 'evaluate'), (['split.seed_offset=1'], 'split'), (['data.n_parts=15'], 'ingest'), (['seed=1'], 'ingest'),
    (['image.buckets=[[96, 96]]'], 'train@detector')])
def test_a_change_reruns_what_follows_and_no_more(assignments, first):
    assert stale(*assignments) == ALL[ALL.index(first):]

def test_one_task_leaves_those_alone_that_do_not_start_from_it():
    assert stale('classifier.trainer.views=9') == ['train@classifier', 'calibrate', 'evaluate', 'register']
    assert stale('segmenter.trainer.steps=9') == ['train@segmenter', 'train@classifier', 'calibrate', 'evaluate', 'register']
    assert stale('detector.trainer.steps=9') == ALL[ALL.index('train@detector'):]

def test_changed_photographs_are_noticed(tmp_path):
    (tmp_path/'a.png').write_bytes(b'1')
    p = dark.params().model_copy(update={'data': CocoSpec(root=tmp_path)})
    o = T.CVTrainingOrchestrator(p, QUIET, 'nowhere')
    before = o.key('ingest')
    (tmp_path/'a.png').write_bytes(b'22')
    assert o.key('ingest') != before

# ---------------------------------------------------------------- a whole run

def fake_train(name, data, split, params, out, *, start_from=None, checkpoints=None, progress=None):
    "Leaves a checkpoint, may be killed, then writes a 'model'"
    log.append((name, checkpoints.name, checkpoints.exists()))
    checkpoints.mkdir(parents=True, exist_ok=True)
    if name in killed: killed.remove(name); raise KeyboardInterrupt
    progress(name, 1, 1, {'loss': .5})
    with whole_folder(out) as new:
        (new/'history.csv').write_text('step,loss,score\n1,0.5,0.5\n')
        (new/'model.safetensors').write_bytes(b'weights')
        (new/'model.json').write_text(json.dumps({'classes': list(data.categories)}))

def fake_anomaly(data, split, params, detector, out, **_):
    with whole_folder(out) as new: (new/'model.json').write_text('{}')

@pytest.fixture(scope='module')
def ingested(tmp_path_factory):
    "A working folder after ingest and split"
    work = tmp_path_factory.mktemp('ingested')/'work'
    T.CVTrainingOrchestrator(dark.params(), QUIET, work).run(until='split')
    return work

@pytest.fixture
def line(tmp_path, monkeypatch, ingested):
    "Makes orchestrators whose three models are the dark cascade"
    global log, killed
    log, killed = [], set()
    trainers = type(sys)('sads_jax.training.trainers')
    trainers.train_task = fake_train
    monkeypatch.setitem(sys.modules, 'sads_jax.training.trainers', trainers)
    good = type(sys)('sads_jax.training.anomaly')
    good.train_anomaly = fake_anomaly
    monkeypatch.setitem(sys.modules, 'sads_jax.training.anomaly', good)
    def load(folder): return {t: (None, {}, json.loads((Path(folder)/t/'model.json').read_text())) for t in T.TASKS}
    monkeypatch.setattr(T, 'load_models', load)
    monkeypatch.setattr(T, 'build_cascade', lambda models, params, categories: dark.cascade(categories))
    monkeypatch.setattr(T, 'joint_weights', lambda models: dark.WEIGHTS)
    monkeypatch.setattr(T.CVTrainingOrchestrator, '_box_classifier', lambda self: None)
    monkeypatch.setattr(T, 'code_hash', functools.cache(T.code_hash))
    shutil.copytree(ingested, tmp_path/'work')  # times of change are kept, so the stamps hold
    quiet = QUIET.model_copy(update={'cache_dir': tmp_path/'cache'})
    def make(*assignments, workdir=tmp_path/'work', **kw): return T.CVTrainingOrchestrator(dark.params(*assignments), quiet, workdir, **kw)
    return make

def test_from_nothing_to_a_champion_and_on(line, tmp_path):
    told = []
    o = line(progress=lambda *what: told.append(what))
    assert o.run(force=True) == ALL
    assert {t[0] for t in told} >= {'ingest', 'detector', 'calibrate', 'evaluate'}
    version = verify_bundle(o.bundle)
    info, said = read_bundle(o.bundle), json.loads((tmp_path/'work/reports/registered.json').read_text())
    assert said == {'model': 'sads', 'version': 1, 'bundle': version, 'alias': 'champion'}
    assert info.labels == LABELS and info.data['kind'] == 'synthetic' and sum(info.data['splits'].values()) == 48
    assert info.decision.chosen['kind'] == 'f1' and info.decision.threshold == info.decision.chosen['threshold']
    assert len((o.bundle/'golden/expected.jsonl').read_text().splitlines()) == 3
    entry = o.registry.entry('champion')
    assert entry.tags['data_fingerprint'] == info.data['fingerprint'] and entry.tags['params_hash'] and entry.tags['bundle_version'] == version
    assert any(k.startswith('images/') for k in entry.metrics)
    assert (o.registry.get()/'metrics.json').exists() and not (o.bundle/'metrics.json').exists()
    reports = {p.name for p in (tmp_path/'work/reports').iterdir()}
    assert reports == {'metrics.json', 'report.html', 'explorer.html', 'plots', 'predictions.jsonl', 'parity.json', 'registered.json', MARKER}
    assert dict(o.figures())['images'].startswith(str(info.data['splits']['test']))
    assert str(tmp_path) not in (tmp_path/'work/reports/predictions.jsonl').read_text() + (o.bundle/'params.yaml').read_text()
    assert o.run() == []
    # only what depends on it
    again = line('decision.threshold.kind=fixed', 'decision.threshold.score=0.7')
    assert again.run() == ['calibrate', 'evaluate', 'register']
    assert read_bundle(again.bundle).decision.threshold == .7 and bundle_version(again.bundle) != version
    assert [(e.version, e.aliases) for e in again.registry.list()] == [(1, ()), (2, ('champion',))]
    # back again: the same bundle, so the same version
    back = line()
    back.run()
    assert bundle_version(back.bundle) == version and back.registry.entry().version == 1
    # somebody touches an output
    (back.path('data', 'split', 'audit.json')).write_text('{}')
    assert back.run(until='split') == ['split']
    # the same elsewhere is the same
    other = line(workdir=tmp_path/'deep'/'elsewhere')
    other.run(until='calibrate')
    assert bundle_version(other.bundle) == version
    # judging it on data with a class it does not know
    from sads_jax.data.records import InspectionData, read_coco, write_coco
    data = read_coco(back.path('data', 'dataset'))
    from dataclasses import replace
    strange = lambda r: replace(r, classes=('rust',) if r.defective else (), annotations=tuple(replace(a, category='rust') for a in r.annotations))
    shutil.copytree(data.root/'images', tmp_path/'new'/'images')
    write_coco(InspectionData(tmp_path/'new', ('rust',), tuple(strange(r) for r in data.images[:7])), tmp_path/'new')
    broken = tmp_path/'new'/data.images[6].file_name
    broken.write_bytes(broken.read_bytes()[:200])
    found = line(workdir=tmp_path/'judge').evaluate_bundle(back.bundle, CocoSpec(root=tmp_path/'new'), tmp_path/'judge'/'reports')
    assert found.metrics['data']['images'] == 6 and found.metrics['data']['defective'] == sum(r.defective for r in data.images[:6])
    assert any('rust' in n for n in found.context['notes'])
    assert any('photographs that could not be used: 1' in n and data.images[6].file_name in n for n in found.context['notes'])
    assert str(tmp_path) not in (tmp_path/'judge/reports/report.html').read_text()
    assert 'rust' in (tmp_path/'judge/reports/report.html').read_text() and verify_bundle(back.bundle) == version

def test_a_bundle_that_decides_otherwise_is_not_registered(line, monkeypatch):
    o = line('export.artefacts=[int8,onnx]')
    o.run(until='evaluate')
    right = dark.cascade()
    def swapped(models, params, categories):  # what is trained is not what was exported
        return lambda p, images: right(p, 255 - images)
    monkeypatch.setattr(T, 'build_cascade', swapped)
    with pytest.raises(SADSError, match=r'the float32 form is not the model that was trained.*Nothing was registered'): o.register()
    assert not o.path('reports', 'registered.json').exists() and o.registry.list() == [] and json.loads(o.path('reports', 'parity.json').read_text())['float32']['faults'] > 0
    monkeypatch.setattr(T, 'build_cascade', lambda models, params, categories: right)
    entry = o.register()
    told = json.loads(o.path('reports', 'parity.json').read_text())
    assert entry.version == 1 and {k: v['faults'] for k, v in told.items()} == {'float32': 0, 'int8': 0, 'onnx': 0}
    assert all(told[k]['verdicts_equal'] == told[k]['photographs'] > 3 for k in ('int8', 'onnx'))

def test_a_killed_training_is_continued_unless_something_changed(line):
    assert line().run(until='split') == []
    killed.add('detector')
    with pytest.raises(KeyboardInterrupt): line().train('detector')
    assert not line().stamps.fits(T.STAGES['train@detector'], line().key('train@detector'), line().workdir)
    line('decision.review_margin=0.3').train('detector')  # does not matter to a detector
    (_, first, resumed0), (_, second, resumed1) = log
    assert first == second and (resumed0, resumed1) == (False, True)
    assert list(line().path('.sads', 'checkpoints').iterdir()) == []  # finished: nothing to continue
    killed.add('detector')
    with pytest.raises(KeyboardInterrupt): line().train('detector')
    line('detector.trainer.learning_rate=0.1').train('detector')
    assert log[-1][1] != first and not log[-1][2]

def test_a_model_starts_from_the_one_that_is_there(line):
    o = line()
    with pytest.raises(DataError, match='train --task segmenter'): o.train('classifier')
    o.train('detector')
    def begun():
        killed.add('segmenter')
        with pytest.raises(KeyboardInterrupt): o.train('segmenter')
    begun()
    o.train('segmenter')
    assert [t[2] for t in log if t[0] == 'segmenter'] == [False, True]  # the second went on
    begun()
    o.path('models', 'detector', 'model.safetensors').write_bytes(b'other weights')
    o.train('segmenter')
    assert [t[2] for t in log if t[0] == 'segmenter'][2:] == [False, False]  # another start: nothing to go on with

def test_stages_say_what_they_miss(line, tmp_path):
    for name, says in [('split', 'ingest'), ('train', 'ingest'), ('calibrate', 'ingest'), ('register', 'bundle')]:
        with pytest.raises(SADSError, match=says): line(workdir=tmp_path/'empty').stage(name)
    with pytest.raises(SADSError, match="no task 'painter'"): line().train('painter')
    with pytest.raises(SADSError, match="no stage 'deploy'.*ingest, split"): line().stage('deploy')
    with pytest.raises(SADSError, match="no stage 'deploy'"): line().run(until='deploy')
    with pytest.raises(DataError, match='evaluate'): line().figures()
    with pytest.raises(BundleError): line().evaluate_bundle('nowhere', SyntheticSpec(), 'x')

def test_an_impossible_rule_stops_before_the_training(line):
    o = line('decision.rules=[{name: big, label: scrtch}]')
    with pytest.raises(ParamsError, match='scrtch'): o.train('detector')
    assert log == []

def test_classes_of_another_data_set_are_refused(line):
    o = line()
    o.run(until='train')
    (o.path('models', 'classifier', 'model.json')).write_text('{"classes": ["rust"]}')
    with pytest.raises(DataError, match='other defect classes'): o.calibrate()

def test_two_runs_do_not_mix(line):
    with Busy(line().workdir):
        with pytest.raises(SADSError, match='another run is at work here'): line().ingest()
    line().ingest()

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
    assert code_hash(['ops']) != code_hash(['data']) and len(code_hash(['ops'])) == 16
    assert code_revision() is None or len(code_revision()) >= 12

def test_the_job_script_is_sads_run():
    done = subprocess.run([sys.executable, ROOT/'scripts'/'run_training_job.py', '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '--until' in done.stdout, done.stderr

# ---------------------------------------------------------------- what DVC makes of dvc.yaml

STUB = '''#!{python}
import sys, pathlib
outs = {{'ingest': ['data/dataset/a'], 'split': ['data/split/a'], 'anomaly': ['models/anomaly/a'], 'calibrate': ['bundle/a'], 'register': ['reports/registered.json', 'reports/parity.json'],
    'evaluate': ['reports/plots/a', 'reports/predictions.jsonl', 'reports/report.html', 'reports/explorer.html', 'reports/metrics.json']}}
name = sys.argv[2]
with open({log!r}, 'a') as f: f.write(' '.join(sys.argv[2:]) + '\\n')
import hashlib
text = '{{"x": "' + hashlib.md5(pathlib.Path('params.yaml').read_bytes()).hexdigest() + '"}}' if name not in ('ingest', 'split', 'train') else '1'
for o in outs.get(name) or [f'models/{{sys.argv[4]}}/a']:
    p = pathlib.Path(o); p.parent.mkdir(parents=True, exist_ok=True); p.write_text(text)
'''

def test_dvc_reruns_from_calibrate_when_a_decision_changes(tmp_path):
    pytest.importorskip('dvc')
    log, work = tmp_path/'log', tmp_path/'clone'
    (tmp_path/'bin').mkdir()
    stub = tmp_path/'bin'/'sads'
    stub.write_text(STUB.format(python=sys.executable, log=str(log)))
    stub.chmod(0o755)
    work.mkdir()
    for f in ('dvc.yaml', 'params.yaml', '.dvcignore'): shutil.copy(ROOT/f, work/f)
    (work/'.dvc').mkdir()
    shutil.copy(ROOT/'.dvc'/'config', work/'.dvc'/'config')
    shutil.copytree(ROOT/'sads_jax', work/'sads_jax', ignore=shutil.ignore_patterns('__pycache__'))
    env = os.environ | {'PATH': f"{tmp_path/'bin'}{os.pathsep}{os.environ['PATH']}", 'DVC_NO_ANALYTICS': '1', 'DVC_SITE_CACHE_DIR': str(tmp_path/'site')}
    subprocess.run(['git', 'init', '-q', str(work)], check=True)
    def repro():
        log.write_text('')
        done = subprocess.run([sys.executable, '-m', 'dvc', 'repro', '-q'], cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()
    first = repro()
    assert first[:2] == ['ingest', 'split'] and sorted(first[2:6]) == ['anomaly', *(f'train --task {t}' for t in sorted(T.TASKS))] and first[6:] == ['calibrate', 'evaluate', 'register']
    assert first.index('train --task detector') < first.index('anomaly')
    cache = work/'sads_jax'/'ops'/'__pycache__'
    cache.mkdir()
    (cache/'nms.pyc').write_bytes(b'1')  # no reason to train again
    text = (work/'params.yaml').read_text()
    (work/'params.yaml').write_text(text.replace('review_margin: 0.2', 'review_margin: 0.4'))
    assert repro() == ['calibrate', 'evaluate', 'register']
    assert repro() == []


def test_one_look_serves_both_only_where_they_begin_alike():
    "The same crop and the same frozen backbone; anything else, and each looks for itself"
    from sads_jax.orchestrators.training import shared_backbone
    facts = {'crop': 96, 'context': 1.5, 'least': 32, 'build': {'backbone': 'lite0'}}
    weights = lambda v: {'backbone/stem': np.full(3, v, np.float32), 'head/x': np.float32([v])}
    look = lambda mine, other, a=facts, b=facts: shared_backbone({'classifier': (None, mine, a), 'segmenter': (None, other, b)})
    assert callable(look(weights(1), weights(1) | {'head/x': np.float32([2])}))
    assert look(weights(1), weights(2)) is None
    assert look(weights(1), weights(1) | {'backbone/stem': np.full(2, 1, np.float32)}) is None  # another share kept
    assert look(weights(1), weights(1), facts, facts | {'crop': 128}) is None
    assert look(weights(1), weights(1), *[facts | {'build': {'backbone': 'plain'}}]*2) is None
