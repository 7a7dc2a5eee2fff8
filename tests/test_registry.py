"Bundles, trackers and the registry, with a real exported program that holds no network."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dark_cascade as dark
import numpy as np
import pytest

from sads_jax.core.errors import BundleError, RegistryError, SADSError
from sads_jax.core.params import MagneticTileSpec
from sads_jax.core.settings import Settings
from sads_jax.registry import bundle as B
from sads_jax.registry.golden import check_golden
from sads_jax.registry.registries import MLflowRegistry
from sads_jax.registry.trackers import NullTracker, TrackerFactory, flat_metrics, log_history


def python(code, *args, **env):
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, check=True, env=os.environ | env
    )

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A finished bundle with golden set and metrics"
    root = tmp_path_factory.mktemp('made')
    folder = root/'bundle'
    dark.bundle(folder)
    pipeline = B.load_pipeline(folder, settings=Settings())
    B.write_golden(folder, pipeline, [dark.photo(root/'bad.png'), dark.photo(root/'good.png', dark=False)])
    B.attach_metrics(folder, {'images': {'auroc': .9}})
    return folder

@pytest.fixture
def folder(made, tmp_path): return Path(shutil.copytree(made, tmp_path/'bundle'))

# ---------------------------------------------------------------- the bundle

def test_it_holds_all_that_a_bundle_should(made):
    have = {p.relative_to(made).as_posix() for p in made.rglob('*') if p.is_file()}
    assert have == {'manifest.json', 'weights.safetensors', f'programs/{dark.SIDE}x{dark.SIDE}.jaxexport',
        'labels.json', 'preprocess.json', 'decision.json', 'golden/expected.jsonl', 'golden/answered.json',
        'golden/images/000.png', 'golden/images/001.png', 'data.json', 'params.yaml', 'code.json', 'card.md',
        'metrics.json'}

def test_a_flipped_bit_in_any_file_is_refused(folder):
    rng = np.random.default_rng(0)
    version = B.verify_bundle(folder)
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        whole = path.read_bytes()
        for _ in range(60 if path.name == 'manifest.json' else 3):
            byte, bit = rng.integers(len(whole)), rng.integers(8)
            broken = bytearray(whole)
            broken[byte] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(BundleError) as e: B.verify_bundle(folder)
            assert e.value.remedy
            if path.name != 'manifest.json': assert e.value.where == str(path)
        path.write_bytes(whole)
    assert B.verify_bundle(folder) == version

def test_load_refuses_what_verify_refuses(folder):
    with open(folder/'decision.json', 'a') as f: f.write(' ')
    with pytest.raises(BundleError, match='decision.json'): B.load_pipeline(folder)

@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda f: (f / 'weights.safetensors').unlink(), 'weights.safetensors: missing'),
        (lambda f: (f / 'golden' / 'notes.txt').write_text(''), 'notes.txt: not in the manifest'),
        (lambda f: (f / 'manifest.json').unlink(), 'no manifest.json'),
        (lambda f: (f / 'labels.json').write_text(''), 'labels.json: altered: 0 bytes'),
        (
            lambda f: (f / 'manifest.json').write_text(
                (f / 'manifest.json').read_text().replace('"format": 2', '"format": 1')
            ),
            'bundle format 1; this release reads 2. Write it again with `sads stage calibrate`',
        ),
        (lambda f: (f / 'manifest.json').write_text('[]'), 'altered'),
        (lambda f: shutil.rmtree(f), 'no such bundle folder'),
    ],
)
def test_what_is_wrong_is_named(folder, spoil, says):
    spoil(folder)
    with pytest.raises(BundleError, match=says): B.verify_bundle(folder)

def test_the_version_is_of_the_content(tmp_path):
    a = dark.bundle(tmp_path/'a')
    (tmp_path/'deep'/'down').mkdir(parents=True)
    b = dark.bundle(tmp_path/'deep'/'down'/'b')
    for p in (tmp_path/'a').rglob('*'): os.utime(p, (0, 0))
    assert a == b == B.verify_bundle(tmp_path/'a') and len(a) == 16
    assert dark.bundle(tmp_path/'c', threshold=.6) != a
    assert dark.bundle(tmp_path/'d', labels=('pit', 'crack')) != a

def test_paths_and_report_settings_do_not_reach_it():
    here, there = (
        dark.params().model_copy(update={'data': MagneticTileSpec(root=r)}) for r in ('/mnt/a/tiles', '/home/b/tiles')
    )
    assert B.params_hash(here) == B.params_hash(there)
    assert '/mnt' not in str(B.portable_params(here))
    assert B.params_hash(dark.params()) == B.params_hash(dark.params('evaluate.gallery=17'))
    assert B.params_hash(dark.params()) != B.params_hash(dark.params('evaluate.golden=7'))

def test_it_judges_and_its_golden_answers_hold(made, tmp_path):
    pipeline = B.load_pipeline(made, settings=Settings(station_id='line-3'))
    report = pipeline.process_request(dark.photo(tmp_path/'x.png'))
    assert report.verdict == 'FAIL' and report.station_id == 'line-3' and report.model_version == B.bundle_version(made)
    assert report.defects[0].label == 'crack'
    assert check_golden(made, pipeline) == []
    lines = (made/'golden'/'expected.jsonl').read_text().splitlines()
    assert [json.loads(x)['report']['verdict'] for x in lines] == ['FAIL', 'PASS']
    assert 'timings_ms' not in lines[0] and 'model_version' not in lines[0]

def test_golden_answers_that_no_longer_hold(folder):
    path = folder/'golden'/'expected.jsonl'
    path.write_text(path.read_text().replace('"PASS"', '"FAIL"'))
    B.seal_bundle(folder)
    said = check_golden(folder, B.load_pipeline(folder))
    assert len(said) == 1 and 'decision: PASS, not FAIL' in said[0]

def test_a_new_threshold_is_a_new_version_without_stale_answers(folder):
    before = B.bundle_version(folder)
    after = B.set_threshold(folder, .97, {'text': 'by hand'})
    assert after != before and not (folder/'golden').exists() and not (folder/'metrics.json').exists()
    assert B.load_pipeline(folder).postprocessor.threshold == .97
    assert 'by hand' in B.read_card(folder)

def test_metrics_are_beside_the_version(folder):
    assert B.attach_metrics(folder, {'images': {'auroc': .1}}) == B.bundle_version(folder)
    assert B.read_bundle(folder).metrics == {'images': {'auroc': .1}}

def test_a_bucket_needs_its_program(tmp_path):
    with pytest.raises(BundleError, match=r'no program for bucket \(64, 64\)'):
        B.write_bundle(tmp_path / 'x', weights={}, programs={}, labels=['a'], threshold=0.5, rules_version='',
            params=dark.params(), data={}, code={})

def test_loading_imports_no_training_library(made):
    code = (
        'import sys; from sads_jax.registry.bundle import load_pipeline; from pathlib import Path; f = '
        'Path(sys.argv[1])\n'
        'load_pipeline(f).process_request(f/"golden"/"images"/"000.png")\n'
        'print(sorted({m.partition(".")[0] for m in sys.modules} & {"flax", "optax", "orbax", "sklearn", "matplotlib", '
        '"dvc", "mlflow", "wandb"}))'
    )
    assert python(code, made).stdout.strip() == '[]'

def test_verifying_needs_no_jax(made):
    code = 'import sys; from sads_jax.registry.bundle import verify_bundle, read_card; verify_bundle(sys.argv[1]); read_card(sys.argv[1]); print("jax" in sys.modules)'  # noqa: E501
    assert python(code, made).stdout.strip() == 'False'

# ---------------------------------------------------------------- the registry

@pytest.fixture
def registry(tmp_path): return MLflowRegistry(f'sqlite:///{tmp_path}/home/registry.db', tmp_path/'home'/'registry')

def test_no_champion(registry, tmp_path):
    with pytest.raises(RegistryError, match='no champion: the registry holds no version.*Register one with'):
        registry.get()
    assert registry.list() == [] and not (tmp_path/'home').exists()

def test_the_life_of_a_model(registry, folder, tmp_path):
    first = registry.register(folder, {'data_fingerprint': 'c0ffee'}, alias='champion',
        metrics={'images': {'auroc': 0.9, 'note': 'x', 'none': None, 'odd': float('nan')}})
    assert (first.version, first.aliases, first.tags['data_fingerprint'], first.metrics) == (1, ('champion',), 'c0ffee',
        {'images/auroc': 0.9})
    assert first.bundle_version == B.bundle_version(folder)
    assert registry.register(folder, alias='champion').version == 1 and len(registry.list()) == 1
    B.set_threshold(folder, .4, {})
    second = registry.register(folder)
    assert (second.version, second.aliases) == (2, ())
    assert registry.entry('champion').version == 1
    assert registry.set_alias('champion', 2).aliases == ('champion',)
    assert registry.get() == registry.artifacts/second.bundle_version
    assert registry.entry(1) == registry.entry(first.bundle_version) == registry.entry(first.bundle_version[:6])
    assert registry.verify('champion').version == 2
    with pytest.raises(RegistryError, match="no challenger: no version or alias.*It has 1"): registry.get('challenger')
    with pytest.raises(RegistryError): registry.set_alias('champion', 7)
    # another process, and a moved folder
    (tmp_path/'home').rename(tmp_path/'moved')
    other = MLflowRegistry(f'sqlite:///{tmp_path}/moved/registry.db', tmp_path/'moved'/'registry')
    assert [e.version for e in other.list()] == [1, 2] and other.verify(1).bundle_version == first.bundle_version

def test_damage_in_the_store_is_found(registry, folder):
    e = registry.register(folder, alias='champion')
    stored = registry.get()
    with open(stored/'card.md', 'a') as f: f.write('!')
    with pytest.raises(BundleError, match='card.md: altered'): registry.verify()
    with pytest.raises(BundleError, match='card.md: altered'): registry.register(folder)
    shutil.rmtree(stored)
    with pytest.raises(RegistryError, match='its bundle is gone'): registry.get()
    assert registry.register(folder).version == e.version  # puts it back
    B.set_threshold(registry.get(), .1, {})
    with pytest.raises(RegistryError, match='replaced the folder'): registry.get()

def test_a_broken_bundle_is_not_registered(registry, folder, tmp_path):
    (folder/'labels.json').unlink()
    with pytest.raises(BundleError): registry.register(folder)
    assert not (tmp_path/'home').exists()

def test_half_a_copy_never_shows(registry, folder, monkeypatch):
    def die(*_): raise KeyboardInterrupt
    monkeypatch.setattr('sads_jax.registry.registries.attach_metrics', die)
    with pytest.raises(KeyboardInterrupt): registry.register(folder, metrics={'a': 1})
    assert registry.list() == [] and list(registry.artifacts.iterdir()) == []

def test_the_first_use_is_quiet(made, tmp_path):
    code = (
        'import sys; from sads_jax.registry.registries import MLflowRegistry; r = '
        'MLflowRegistry(f"sqlite:///{sys.argv[2]}/r.db", sys.argv[2])\n'
        'print(r.register(sys.argv[1], alias="champion").version)'
    )
    done = python(code, made, tmp_path, HOME=str(tmp_path))
    assert (done.stdout, done.stderr) == ('1\n', '')

def test_with_a_server_bundles_are_uploaded_and_fetched(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from sads_jax.registry.trackers import mlflow_client
    near, far = (MLflowRegistry('http://mlflow.invalid', tmp_path/place) for place in ('a', 'b'))
    near._made = far._made = mlflow_client(f'sqlite:///{tmp_path}/server.db')  # stands for the server's HTTP client
    e = near.register(folder, alias='champion')
    got = far.get('champion')
    assert got == tmp_path/'b'/e.bundle_version and B.verify_bundle(got) == e.bundle_version

# ---------------------------------------------------------------- trackers

def test_disabled_is_nothing(tmp_path):
    run = TrackerFactory({'kind': 'disabled'}, project='p', folder=tmp_path/'w', name='n')
    assert isinstance(run, NullTracker) and not (tmp_path/'w').exists()

def test_wandb_offline_stays_in_its_folder(tmp_path):
    home, work = tmp_path/'home', tmp_path/'work'
    home.mkdir(), work.mkdir()
    (work/'history.csv').write_text('step,loss,score\n1,0.5,\n2,0.25,0.75\n')
    code = (
        'import sys; from pathlib import Path; from sads_jax.registry.trackers import TrackerFactory, log_history\n'
        'with TrackerFactory({"kind": "offline"}, project="p", folder=".sads/wandb", name="train@detector", '
        'config={"seed": 0}, group="g") as run:\n'
        '    log_history(run, "history.csv"); run.summary({"images": {"auroc": .9}}); run.artifact("history.csv"); '
        'print(run.folder)'
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith('WANDB')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=work,
        env=env | {'HOME': str(home)}, stdin=subprocess.DEVNULL, check=True)
    assert done.stderr == ''
    assert [p for p in home.rglob('*') if p.is_file()] == []
    assert {p.name for p in work.iterdir()} == {'history.csv', '.sads'}
    run, = (work/'.sads').rglob('*.wandb')
    assert b'loss' in run.read_bytes()

def test_a_tracker_that_fails_stops_nothing(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setattr(wandb, 'init', lambda **_: (_ for _ in ()).throw(wandb.Error('no')))
    run = TrackerFactory({'kind': 'offline'}, project='p', folder=tmp_path, name='n')
    run.log({'a': 1.}, 1), run.summary({}), run.finish()
    assert 'not tracked' in caplog.text

def test_history_and_flat_metrics(tmp_path):
    (tmp_path/'h.csv').write_text('step,loss,score,text\n100,0.5,,x\n200,0.4,0.9,y\n')
    rows = []
    run = NullTracker()
    run.log = lambda metrics, step=None: rows.append((step, metrics))
    assert log_history(run, tmp_path/'h.csv') == 2 and log_history(run, tmp_path/'none.csv') == 0
    assert rows == [(100, {'loss': .5}), (200, {'loss': .4, 'score': .9})]
    assert flat_metrics({'a': {'b': {'c': 1}}, 'd': True, 'e': [1]}) == {'a/b/c': 1.}

def test_an_unknown_tracker_is_named():
    with pytest.raises(SADSError, match="no kind 'carrier pigeon'"): TrackerFactory({'kind': 'carrier pigeon'})
