"The program `sads`: what it prints, what it writes, how it ends."
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from fake_pipeline import FakePipeline  # noqa: E402

from sads_jax.cli.doctor import extras_state
from sads_jax.cli.main import main
from sads_jax.cli.notes import param_rows
from sads_jax.cli.predict import find_photographs  # noqa: E402
from sads_jax.core.params import Params, Spec, load_params  # noqa: E402
from sads_jax.core.types import InspectionReport  # noqa: E402


def run(*args, capsys):
    "Exit status, stdout, stderr of the program, in this process"
    with pytest.raises(SystemExit) as e: main([str(a) for a in args])
    out, err = capsys.readouterr()
    return e.value.code, out, err

@pytest.fixture
def bundle(monkeypatch, tmp_path):
    "Whatever is loaded is a fake pipeline"
    import sads_jax.registry.bundle
    monkeypatch.setattr(sads_jax.registry.bundle, 'load_pipeline', lambda folder, **kw: FakePipeline())
    monkeypatch.setattr('sads_jax.registry.signing.admit_bundle', lambda folder, settings: 'fake')
    monkeypatch.chdir(tmp_path)
    return 'fake_bundle'

def save(path, value=200, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_help_imports_nothing_heavy_and_names_every_command():
    code = 'import sys; from sads_jax.cli.main import main\ntry: main(["--help"])\nexcept SystemExit: pass\nprint(*sorted({m.partition(".")[0] for m in sys.modules}), file=sys.stderr)'  # noqa: E501
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert not {'jax', 'numpy', 'pydantic', 'PIL', 'litserve', 'flax'} & set(r.stderr.split())
    for c in (
        'ingest', 'split', 'train', 'evaluate', 'run', 'predict', 'serve', 'models', 'operate', 'rules', 'scale',
        'parity', 'compare', 'doctor', 'params', 'stage', 'keys'
    ):
        assert f'\n  {c} ' in r.stdout, c
    assert '...' not in r.stdout.partition('Commands:')[2], 'cut off'

@pytest.mark.parametrize(
    'command',
    ['ingest', 'split', 'train', 'evaluate', 'run', 'predict', 'serve', 'doctor', 'params', 'stage', 'models list',
        'models show', 'models verify', 'models promote', 'operate', 'scale', 'parity', 'rules check', 'rules test',
        'rules replay', 'compare',
        'qualify golden', 'qualify repeatability', 'qualify agreement', 'qualify station', 'data annotate out',
        'data annotate in', 'data annotate agree', 'data annotate propose', 'data next', 'data pack', 'data unpack',
        'data diff', 'data card'],
)
def test_every_help_has_an_example(command, capsys):
    code, out, _ = run(*command.split(), '--help', capsys=capsys)
    assert code == 0 and f'  sads {command}' in out.partition('Examples:')[2]

def test_one_bad_image_among_a_hundred(bundle, tmp_path, capsys):
    for i in range(100): save(tmp_path/'day'/f'{i:03d}.png', 10 if i % 10 == 3 else 200)
    (tmp_path/'day'/'041.png').write_bytes(b'this is text')
    code, out, err = run(
        'predict', 'day', '--bundle', bundle, '--out', 'verdicts/v.jsonl', '--overlays', 'looks', capsys=capsys
    )
    assert code == 1
    assert '99 judged: 89 PASS, 0 REVIEW, 10 FAIL; 1 error\n' in out
    assert err.count('\n') == 1 and err.startswith('error: day/041.png: not an image')
    rows = [json.loads(line) for line in (tmp_path/'verdicts'/'v.jsonl').read_text().splitlines()]
    assert [r['file'] for r in rows] == [f'day/{i:03d}.png' for i in range(100)]
    assert [r['file'] for r in rows if 'error' in r] == ['day/041.png'] and set(rows[41]['error']) == {'error', 'where',
        'remedy'}
    reports = [InspectionReport.model_validate(r['report']) for r in rows if 'report' in r]
    assert len(reports) == 99 and reports[0].image_size == (48, 40)
    assert len(list((tmp_path/'looks').glob('*.png'))) == 99
    with Image.open(tmp_path/'looks'/'003.png.png') as im: assert im.size[0] >= 320 and im.mode == 'RGB'

def test_all_good_is_0_and_jsonl_goes_to_stdout(bundle, tmp_path, capsys):
    a, b = save(tmp_path/'a.png'), save(tmp_path/'b.png', 5)
    code, out, err = run('predict', a, b, '--bundle', bundle, '--out', '-', capsys=capsys)
    assert code == 0
    assert [json.loads(line)['report']['verdict'] for line in out.splitlines()] == ['PASS', 'FAIL']
    assert '2 judged: 1 PASS, 0 REVIEW, 1 FAIL' in err

def test_a_named_file_that_is_absent_is_an_error_and_the_rest_is_judged(bundle, tmp_path, capsys):
    save(tmp_path/'a.png')
    code, out, err = run('predict', 'a.png', 'absent.png', '--bundle', bundle, capsys=capsys)
    assert code == 1 and '1 judged' in out and err == 'error: absent.png: no such file. Check the path\n'

def test_a_folder_without_photographs(bundle, tmp_path, capsys):
    (tmp_path/'empty').mkdir()
    code, out, err = run('predict', 'empty', '--bundle', bundle, capsys=capsys)
    assert (code, out) == (1, '') and err.startswith('error: empty: no photographs here')

def tiff(dtype, mode, value):
    b = io.BytesIO()
    Image.fromarray(np.full((32, 32), value, dtype), mode).save(b, 'TIFF')
    return b.getvalue()

def png_header(w, h):
    import struct
    import zlib
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b''))
        + chunk(b'IEND', b'')
    )

def jpeg():
    b = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(b, 'JPEG')
    return b.getvalue()

@pytest.mark.parametrize(
    'name, content, said',
    [('empty.png', b'', 'empty file'), ('text.jpg', b'hello', 'not an image'), ('cut.jpg', jpeg()[:700], 'truncated'),
        ('huge.png', png_header(30_000, 30_000), '900 megapixels'),
        ('tiny.png', png_header(1, 1), '1 x 1 px is too small'), ('nan.tif', tiff(np.float32, 'F', np.nan), 'NaN')],
)
def test_bad_images_are_named_with_cause_and_remedy(bundle, tmp_path, capsys, name, content, said):
    (tmp_path/name).write_bytes(content)
    code, _, err = run('predict', name, '--bundle', bundle, capsys=capsys)
    assert (
        code == 1
        and err.count('\n') == 1
        and err.startswith(f'error: {name}: ')
        and said in err
        and err.rstrip().count('. ') >= 1
    ), err

def test_overlays_of_equal_names_do_not_meet(bundle, tmp_path, capsys):
    save(tmp_path/'x'/'a.png'), save(tmp_path/'y'/'a.png'), save(tmp_path/'y'/'a.tif')
    run('predict', 'x', 'y', '--bundle', bundle, '--overlays', 'looks', capsys=capsys)
    assert sorted(p.relative_to(tmp_path / 'looks').as_posix() for p in (tmp_path / 'looks').rglob('*.png')) == [
        'x/a.png.png', 'y/a.png.png', 'y/a.tif.png']

def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in ('d/b.png', 'd/e/a.png', 'd/[1].png'): save(tmp_path/n)
    assert [p.as_posix() for p in find_photographs(['d/**/*.png', 'd/b.png'])] == ['d/[1].png', 'd/b.png', 'd/e/a.png']
    assert [p.as_posix() for p in find_photographs(['d/[1].png'])] == ['d/[1].png']

@pytest.mark.parametrize(
    'args',
    [['predict'], ['nonsense'], ['predict', 'x', '--bundle', 'b', '--model', 'm'], ['train', '--task', 'painter'],
        ['stage', 'sing'], ['run', '--until', 'noon'], ['serve', '--port', 'x']],
)
def test_wrong_usage_is_2(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path/'x.png')
    assert run(*args, capsys=capsys)[0] == 2

@pytest.mark.parametrize(
    'yaml, args, said',
    [('seed: [', [], 'not valid YAML'),
        ('seed: 0\ndetector:\n  widht: 3\n', [], 'detector.widht (line 3): no such field'),
        ('data:\n  kind: photo\n', [], "unknown kind 'photo'"),
        ('seed: 0\n', ['-S', 'seed'], "'seed' is not an assignment"),
        ('seed: 0\n', ['-S', 'split.test=2'], 'split.test')],
)
def test_wrong_params_are_one_line(tmp_path, monkeypatch, capsys, yaml, args, said):
    monkeypatch.chdir(tmp_path)
    Path('params.yaml').write_text(yaml)
    code, out, err = run('split', *args, capsys=capsys)
    assert (code, out) == (1, '') and err.startswith('error: ') and said in err and err.count('\n') == 1, err

def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    r = subprocess.run([sys.executable, '-m', 'sads_jax.cli.main', 'split'], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, env=os.environ | {'SADS_DEBUG': '1', 'PYTHONPATH': str(HERE.parent)})
    assert r.returncode == 1 and 'Traceback' in r.stderr and 'params.yaml' in r.stderr

def test_champion_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args in (['serve'], ['predict', str(save(tmp_path/'a.png'))], ['models', 'show']):
        code, _, err = run(*args, capsys=capsys)
        assert code == 1 and 'no champion' in err and '--bundle' in err and err.count('\n') == 1, err

def test_bundle_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('params.yaml').write_text('data:\n  kind: synthetic\n')
    for args in (['serve'], ['predict', str(save(tmp_path/'a.png'))], ['models', 'verify'], ['evaluate']):
        code, _, err = run(*args, '--bundle', 'nowhere', capsys=capsys)
        assert code == 1 and err.startswith('error: nowhere: no such bundle folder') and err.count('\n') == 1, err

def test_port_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        code, _, err = run('serve', '--bundle', 'nowhere', '--port', s.getsockname()[1], capsys=capsys)
        assert (
            code == 1
            and err
            == f'error: 127.0.0.1:{s.getsockname()[1]}: cannot listen: Address already in use. Stop the other server, '
            'or choose another port with --port\n'
        )

def test_params_yaml_round_trips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run('params', '--yaml', '-S', 'data.n_parts=7', '-S', 'detector.trainer.kind=cnn', capsys=capsys)
    (tmp_path/'params.yaml').write_text(out)
    p = load_params('params.yaml')
    assert code == 0 and p.data.n_parts == 7 and p.detector.trainer.kind == 'cnn'

def test_params_lists_every_field_with_its_default(capsys):
    rows = {r[0]: r for r in param_rows(Params)}
    def leaves(node, prefix=''):
        for k in type(node).model_fields:
            v = getattr(node, k)
            if isinstance(v, Spec): yield from leaves(v, f'{prefix}{k}.')
            elif k != 'kind': yield prefix + k
    assert set(leaves(Params())) <= set(rows)
    assert not [r[0] for r in param_rows(Params) if not r[3]]  # each says what it means
    code, out, _ = run('params', 'decision', capsys=capsys)
    assert code == 0 and 'side of one pixel of the original photograph [mm]' in out.replace('\n', ' ')
    assert run('params', 'wishes', capsys=capsys)[0] == 1

def test_the_schema_for_editors_says_the_same_as_the_table():
    schema, said = Params.model_json_schema(), {r[0]: r[3] for r in param_rows(Params)}
    fields = schema['$defs']['DecisionSpec']['properties']
    assert fields['mm_per_px']['description'] == said['decision.mm_per_px']
    assert schema['$defs']['RuleSpec']['properties']['max_count']['description'] == said['decision.rules[].max_count']
    silent = [
        f'{name}.{k}'
        for name, d in schema['$defs'].items()
        for k, f in d.get('properties', {}).items()
        if k not in ('kind', 'trainer') and 'description' not in f and '$ref' not in f and 'discriminator' not in f
    ]
    assert silent in ([], ['RLE.counts'])

def test_workdir_gets_resolved_params_and_its_own_registry(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('params.yaml').write_text('seed: 3\ndata:\n  kind: synthetic\n')
    code, _, err = run('split', '--workdir', 'w', '-S', 'data.n_parts=5', capsys=capsys)
    assert code == 1 and 'Traceback' not in err  # there is no data yet
    p = load_params(tmp_path/'w'/'params.yaml')
    assert (p.seed, p.data.n_parts) == (3, 5) and sorted(os.listdir(tmp_path)) == ['params.yaml', 'w']

def test_launcher_sets_the_environment_once():
    code = 'import os; print(*(os.environ.get(k, "-") for k in ("NPROC", "MALLOC_TRIM_THRESHOLD_", "JAX_PLATFORMS", "SADS_LAUNCHED")))'  # noqa: E501
    script = f'import sys; from sads_jax.cli import main as m\nm.app = lambda **kw: exec({code!r}, {{}})\nm.main()'
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MALLOC_', 'SADS_', 'NPROC', 'JAX_'))}
    go = lambda *args, **extra: subprocess.run(
        [sys.executable, '-c', script, *args], env=env | extra, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert go('doctor') == ['2', str(2**34), '-', '1']
    assert go('doctor', NPROC='3', JAX_PLATFORMS='cpu') == ['3', str(2**34), 'cpu', '1']
    assert go('params') == ['-', '-', '-', '-']

def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run('doctor', capsys=capsys)
    assert code == 0
    for word in (
        'python', 'jax', 'cores', 'NPROC', 'malloc', 'devices', 'champion', 'no champion', 'disk', 'extra [serve]'
    ):
        assert word in out, word
    assert not list(tmp_path.iterdir()), 'looking must not write'

def test_extras_are_told_from_what_is_installed():
    assert set(extras_state()) >= {'serve', 'train', 'track'} and isinstance(extras_state()['serve'], list)

# -- a real bundle, without networks, in a real registry

@pytest.fixture(scope='module')
def registered(tmp_path_factory):
    "Working folder with two registered versions, and the bundle of the first"
    import shutil

    import dark_cascade

    from sads_jax.core.settings import Settings
    from sads_jax.orchestrators.base import settle
    from sads_jax.registry.bundle import set_threshold
    from sads_jax.registry.registries import MLflowRegistry
    w = tmp_path_factory.mktemp('registered')
    s = settle(Settings(), w)
    registry = MLflowRegistry(s.registry_uri, s.registry_artifacts, s.model_name)
    dark_cascade.bundle(w/'bundle')
    registry.register(w/'bundle', {'data_fingerprint': 'f'*64}, metrics={'images': {'auroc': .9}})
    shutil.copytree(w/'bundle', w/'other')
    set_threshold(w/'other', .9, {'kind': 'fixed', 'threshold': .9, 'text': 'by hand'})
    registry.register(w/'other')
    return w

def test_models_and_predict_with_the_champion(registered, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import dark_cascade
    dark_cascade.photo(tmp_path/'dark.png')
    at = ['--workdir', registered]
    code, out, _ = run('models', 'list', *at, capsys=capsys)
    assert code == 0 and 'AUROC 0.900' in out and 'champion' not in out
    assert run('predict', 'dark.png', *at, capsys=capsys)[0] == 1  # no champion yet
    assert run('models', 'promote', '1', *at, capsys=capsys)[1].startswith('champion is now version 1 (')
    code, out, _ = run('models', 'show', *at, capsys=capsys)
    assert code == 0 and 'sads version 1 (champion)' in out and '# Surface inspection model for crack, pit' in out
    from sads_jax.registry.bundle import bundle_version
    first, second = bundle_version(registered/'bundle'), bundle_version(registered/'other')
    for model, version in ((None, first), ('sads@champion', first), ('sads@2', second), ('@1', first)):
        code, out, _ = run(
            'predict', 'dark.png', *at, '--quiet', '--out', '-', *(['--model', model] if model else []), capsys=capsys
        )
        report = json.loads(out)['report']
        assert (code, report['model_version'], report['verdict']) == (0, version, 'FAIL'), model
    code, _, err = run('models', 'promote', '7', *at, capsys=capsys)
    assert code == 1 and 'no 7' in err and err.count('\n') == 1

def test_an_altered_bundle_is_refused_by_all(registered, tmp_path, monkeypatch, capsys):
    import shutil
    monkeypatch.chdir(tmp_path)
    shutil.copytree(registered/'bundle', 'b')
    with open('b/weights.safetensors', 'r+b') as f:
        f.seek(-1, 2)
        last = f.read(1)
        f.seek(-1, 2)
        f.write(bytes([last[0] ^ 1]))
    Path('params.yaml').write_text('data:\n  kind: synthetic\n')
    for args in (['models', 'verify'], ['serve'], ['evaluate'], ['predict', str(save(tmp_path/'a.png'))]):
        code, _, err = run(*args, '--bundle', 'b', capsys=capsys)
        assert code == 1 and err.startswith('error: b/weights.safetensors: altered') and err.count('\n') == 1, (args,
            err)
