"""A bundle says what it is and is checked: altered, swapped, poisoned, foreign or hostile files are refused by name,
and nothing crashes"""
import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import corrupt_bundle
import dark_cascade as dark
import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from sads_jax.core.errors import BundleError, GoldenError, SADSError
from sads_jax.core.settings import Settings
from sads_jax.domains.surface.lint import lint_rules
from sads_jax.domains.surface.rules import rules_version
from sads_jax.inference.export import export_program, save_weights
from sads_jax.inference.parity import compact_weights
from sads_jax.registry import bundle as B
from sads_jax.registry.golden import check_golden, prove_bundle
from sads_jax.registry.signing import admit_bundle, sign_bundle

PROGRAM = f'programs/{dark.SIDE}x{dark.SIDE}.jaxexport'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return corrupt_bundle.make(tmp_path_factory.mktemp('failsafe')/'bundle')

@pytest.fixture
def folder(made, tmp_path): return Path(shutil.copytree(made, tmp_path/'bundle'))

@pytest.fixture(scope='module')
def settings(made): return Settings(cache_dir=made.parent/'cache')

def rewrite(path, **change):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | change))

def bound(folder): corrupt_bundle.reseal(folder, 'bound')

# ---------------------------------------------------------------- what a file may say

def test_the_old_format_is_refused_with_the_way_out(folder):
    path = folder/'manifest.json'
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(
        BundleError, match='bundle format 1; this release reads 2. Write it again with `sads stage calibrate`'
    ):
        B.load_pipeline(folder)

def other_rules(tree):
    tree['spec']['rules'] = []
    return tree

def ignoring_all(tree):
    tree['spec']['zones'] = [{'kind': 'whole', 'name': 'all', 'ignore': True}]
    return tree

ALTERED = [
    ('decision.json', lambda t: t | {'threshold': float('nan')}, 'decision.json: altered: NaN is no number'),
    ('decision.json', lambda t: t | {'threshold': 2}, 'decision.json: threshold: .* less than or equal to 1'),
    ('decision.json', lambda t: t | {'threshold': 'low'}, 'decision.json: threshold'),
    ('decision.json', lambda t: t | {'anomaly_limit': -1}, 'decision.json: anomaly_limit'),
    ('decision.json', lambda t: t | {'anomaly_limit': float('inf')}, 'Infinity is no number'),
    ('decision.json', lambda t: t | {'probabilities': [[0, 1], [0.5]]}, 'decision.json: .*as many scores as shares'),
    ('decision.json', lambda t: {}, 'decision.json: threshold: this field is required'),
    ('decision.json', lambda t: [], 'decision.json'),
    ('decision.json', other_rules, r'decision.json: its spec is not the section decision of params.yaml: rules differ'),
    ('decision.json', ignoring_all,
        r'decision.json: its spec is not the section decision of params.yaml: zones differ'),
    ('decision.json', lambda t: t | {'rules_version': '0' * 12},
        'decision.json: rules_version is 000000000000, but these rules are'),
    ('labels.json', lambda t: [], 'labels.json: must be a list'),
    ('labels.json', lambda t: t[:1], r'label_scores is \[.*2\], where l is 1 \(1 labels\)'),
    ('labels.json', lambda t: [t[0], t[0]], "labels.json: the class 'crack' is given twice"),
    ('labels.json', lambda t: ['', 'pit'], 'labels.json'),
    ('labels.json', lambda t: {'crack': 0}, 'labels.json'),
    ('preprocess.json', lambda t: t | {'buckets': [[96, 96]]},
        'preprocess.json: its buckets .* are not those of params.yaml'),
    ('preprocess.json', lambda t: t | {'pad': 0}, 'preprocess.json: pad'),
    ('preprocess.json', lambda t: t | {'batch_sizes': [0]}, 'preprocess.json: batch_sizes'),
    ('preprocess.json', lambda t: t | {'batch_sizes': [10**9]}, 'preprocess.json: batch_sizes'),
    ('data.json', lambda t: [], 'data.json: altered: the top level must be an object'),
]

@pytest.mark.parametrize('name, change, says', ALTERED)
def test_an_altered_file_is_refused_by_file_and_field(folder, settings, name, change, says):
    path = folder/name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    B.seal_bundle(folder)
    with pytest.raises(BundleError, match='answered.json: the golden answers were given by other files'):
        B.load_pipeline(folder)
    bound(folder)
    with pytest.raises(BundleError, match=says): B.load_pipeline(folder, settings=settings)

@pytest.mark.parametrize('text, says', [('{"threshold": 0.5, "threshold": 0.9}', "the key 'threshold' is given twice"),
    ('['*5000, 'nested deeper'), ('{"threshold": 1e999}', 'no number that a computer can hold'),
    ('', 'Expecting value')])
def test_json_that_means_two_things_or_none(folder, text, says):
    (folder/'decision.json').write_text(text)
    bound(folder)
    with pytest.raises(BundleError, match=f'decision.json: altered: .*{says}'): B.load_pipeline(folder)

@pytest.mark.parametrize(
    'text, says',
    [('a: &x [*x]', 'refers to itself'), ('seed: 1\nseed: 2', 'given twice'), ('- 1', 'a mapping'),
        ('a: [', 'not valid YAML'), ('seed: x', 'seed: '),
        ('decision: {mm_per_px: .inf}', 'decision.mm_per_px: Input should be a finite number')],
)
def test_params_of_a_bundle_are_read_strictly(folder, text, says):
    (folder/'params.yaml').write_text(text)
    bound(folder)
    with pytest.raises(BundleError, match=f'params.yaml: .*{says}'): B.load_pipeline(folder)

def test_rules_that_let_everything_pass_stop_calibration():
    spec = dark.params('decision.zones=[{kind: whole, name: all, ignore: true}]').decision
    assert [f.text for f in lint_rules(spec, dark.LABELS) if f.level == 'error'] == [
        'nothing is left to inspect: all of the photograph lies in all, where defects are ignored'
    ]
    halves = (
        'decision.zones=['
        + ', '.join(
            f'{{kind: polygon, name: z{i}, ignore: true, points: [[{x}, 0], [{x + 0.5}, 0], [{x + 0.5}, 1], [{x}, 1]]}}'
            for i, x in enumerate((0, 0.5))
        )
        + ']'
    )
    assert 'nothing is left to inspect' in lint_rules(dark.params(halves).decision, dark.LABELS)[0].text
    assert [f.level for f in lint_rules(dark.params('decision.rules=[]').decision, dark.LABELS)][0] == 'error'
    one = lint_rules(dark.params('decision.rules=[{name: cracks, label: crack}]').decision, dark.LABELS)
    assert [(f.level, f.text) for f in one] == [('warning', 'no rule looks at pit: it passes whatever its size')]

# ---------------------------------------------------------------- what lies where

def test_no_path_in_a_bundle_leads_out_of_it(folder, tmp_path):
    from PIL import Image
    Image.new('L', (8, 8), 255).save(tmp_path/'mask.png')
    for name in ('decision.json', 'params.yaml'):
        path, kept = folder/name, (folder/name).read_text()
        zone = {'kind': 'mask', 'name': 'mine', 'path': str(tmp_path/'mask.png')}
        if name == 'decision.json': rewrite(path, spec=json.loads(kept)['spec'] | {'zones': [zone]})
        else: path.write_text(kept.replace('zones: []', f'zones: [{json.dumps(zone)}]'))
        bound(folder)
        with pytest.raises(BundleError, match=f"{name}: zone 'mine' names a file"): B.load_pipeline(folder)
        path.write_text(kept)
    for image in ('../bad.png', '/etc/passwd', r'images\..\x.png', 'images//000.png'):
        shutil.copytree(folder, tmp_path/'b', dirs_exist_ok=True)
        path = tmp_path/'b'/'golden'/'expected.jsonl'
        first, *rest = path.read_text().splitlines()
        path.write_text('\n'.join([json.dumps(json.loads(first) | {'image': image}), *rest]) + '\n')
        bound(tmp_path/'b')
        with pytest.raises(BundleError, match='is no file of a bundle'): B.load_pipeline(tmp_path/'b')

@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda f: (f / 'x.json').symlink_to('/etc/hostname'), 'x.json: not a regular file'),
        (lambda f: os.mkfifo(f / 'golden' / 'pipe'), 'pipe: not a regular file'),
        (lambda f: (f / 'golden' / 'images' / 'deep').mkdir(), 'deep: a folder that no bundle has'),
        (lambda f: os.truncate(f / 'labels.json', 2**33), 'labels.json: too large'),
        (lambda f: os.truncate(f / 'manifest.json', 2**33), 'manifest.json: too large'),
        (
            lambda f: (shutil.move(f / 'weights.safetensors', f.parent / 'w'),
                (f / 'weights.safetensors').symlink_to(f.parent / 'w')),
            'weights.safetensors: not a regular file',
        ),
    ],
)
def test_only_regular_files_of_bounded_size(folder, spoil, says):
    spoil(folder)
    with pytest.raises(BundleError, match=says): B.verify_bundle(folder)

# ---------------------------------------------------------------- programs and weights

def with_program(folder, fn, weights=dark.WEIGHTS, bucket=(dark.SIDE, dark.SIDE)):
    (folder/PROGRAM).write_bytes(export_program(fn, weights, bucket, platforms=('cpu',)))
    bound(folder)
    return folder

def hostile(name):
    "The cascade, whose image score is handed to a custom call first; exported with that check switched off"
    def fn(params, images):
        found = dark.cascade()(params, images)
        return found._replace(
            image_scores=jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(found.image_scores.shape, np.float32))(
                found.image_scores, index=np.uint64(0)
            )
        )
    return fn

def test_a_custom_call_is_refused_by_name(folder, settings, monkeypatch):
    from jax import export
    name, real = 'xla_ffi_python_cpu_callback', export.export
    monkeypatch.setattr(
        export, 'export', lambda f, **kw: real(f, **kw, disabled_checks=[export.DisabledSafetyCheck.custom_call(name)])
    )
    with_program(folder, hostile(name))
    with pytest.raises(BundleError, match=f'exported without the checks.*{name}'):
        B.load_pipeline(folder, settings=settings)
    monkeypatch.setattr('jax._src.export._export._CUSTOM_CALL_TARGETS_GUARANTEED_STABLE', {name, 'shape_assertion'})
    monkeypatch.setattr(export, 'export', real)
    with_program(folder, hostile(name))  # nothing in the file says that a check was off
    with pytest.raises(BundleError, match=f"it calls '{name}', and may call shape_assertion only"):
        B.load_pipeline(folder, settings=settings)

def test_program_weights_and_labels_must_be_of_one_model(folder, settings):
    kept = (folder/PROGRAM).read_bytes()
    for fn, weights, bucket, says in (
        (dark.cascade(), dark.WEIGHTS | {'classifier/none': np.zeros(3, np.float32)}, (dark.SIDE, dark.SIDE),
            'classifier/none are float32 .2., but the program takes float32 .3.'),
        (dark.cascade(), dark.WEIGHTS | {'more': np.zeros(3, np.float32)}, (dark.SIDE, dark.SIDE),
            'the weights lack more'),
        (dark.cascade(), {k: v for k, v in dark.WEIGHTS.items() if k != 'classifier/none'}, (dark.SIDE, dark.SIDE),
            'the program knows no weights classifier/none'),
        (dark.cascade(), dark.WEIGHTS, (96, 96), r'takes photographs uint8 \[b, 96, 96, 3\], not'),
        (dark.cascade(('a', 'b', 'c')), dark.WEIGHTS, (dark.SIDE, dark.SIDE), 'label_scores is .*3.*, where l is 2'),
        (lambda p, x: x.mean((1, 2, 3)), dark.WEIGHTS, (dark.SIDE, dark.SIDE), 'gives other findings: 1 outputs'),
    ):
        with_program(folder, fn, weights, bucket)
        with pytest.raises(BundleError, match=says) as e: B.load_pipeline(folder, settings=settings)
        assert PROGRAM in str(e.value)
    (folder/PROGRAM).write_bytes(kept)
    bound(folder)
    assert prove_bundle(folder, settings) == 3

@pytest.fixture(scope='module')
def forms(tmp_path_factory):
    pytest.importorskip('onnxruntime')
    from sads_jax.inference.onnx import export_onnx
    folder = tmp_path_factory.mktemp('forms')/'bundle'
    dark.bundle(folder, dark.params('evaluate.golden=0', 'export.artefacts=[bf16, int8, onnx]'),
        graphs={(dark.SIDE, dark.SIDE): export_onnx(dark.cascade(), dark.WEIGHTS, (dark.SIDE, dark.SIDE))})
    for kind in ('bf16', 'int8'):
        save_weights(
            folder / f'weights.{kind}.safetensors', compact_weights(dark.WEIGHTS, kind, least=1)
        )  # they are too small to be compacted otherwise
    B.seal_bundle(folder)
    return folder

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('kind', ['float32', 'bf16', 'int8', 'onnx'])
def test_a_number_that_is_none_in_any_array_of_any_form_is_refused_by_name(forms, tmp_path, kind, bad):
    from safetensors.numpy import load_file
    name = 'weights.safetensors' if kind in ('float32', 'onnx') else f'weights.{kind}.safetensors'
    whole = load_file(forms/name)
    assert len(whole) == (4 if kind == 'int8' else 3)
    for array in whole:
        poisoned = {k: np.array(v) for k, v in whole.items()}
        if array.endswith('#bf16'): poisoned[array].flat[-1] = (np.array([bad], np.float32).view(np.uint32) >> 16)[0]
        elif poisoned[array].dtype == np.int8: continue  # no such number in int8; its scale has one
        else: poisoned[array].flat[-1] = bad
        folder = Path(shutil.copytree(forms, tmp_path/'b', dirs_exist_ok=True))
        save_weights(folder/name, poisoned)
        B.seal_bundle(folder)
        with pytest.raises(BundleError, match=f"{name}: .* of {array.partition('#')[0]} are not finite"):
            B.load_pipeline(folder, artefact=kind)

def test_an_onnx_graph_is_vetted(forms, tmp_path):
    onnx = pytest.importorskip('onnx')
    name = f'{dark.SIDE}x{dark.SIDE}.onnx'
    assert B.load_pipeline(forms, artefact='onnx').process_request(dark.photo(tmp_path/'bad.png')).verdict == 'FAIL'
    def spoilt(change):
        folder = Path(shutil.copytree(forms, tmp_path/'b', dirs_exist_ok=True))
        model = onnx.ModelProto.FromString((forms/name).read_bytes())
        change(model)
        (folder/name).write_bytes(model.SerializeToString())
        B.seal_bundle(folder)
        with pytest.raises(BundleError, match=name) as e: B.load_pipeline(folder, artefact='onnx')
        return str(e.value)
    outside = lambda m: next(t for t in m.graph.initializer if t.data_location)
    inside = lambda m: next(
        t for t in m.graph.initializer if t.data_type == 1 and not t.data_location and len(t.raw_data) > 8
    )
    def location(m): outside(m).external_data[0].value = '../../etc/passwd'
    def offset(m): next(e for e in outside(m).external_data if e.key == 'offset').value = '0'
    def poison(m): inside(m).raw_data = np.float32(np.nan).tobytes() + inside(m).raw_data[4:]
    def operator(m): m.graph.node[0].op_type = 'StringNormalizer'
    def domain(m): m.graph.node[0].domain = 'com.example'
    def output(m): m.graph.output.pop()
    assert 'not in weights.safetensors beside it' in spoilt(location)
    assert 'is sought elsewhere' in spoilt(offset)
    assert 'not finite' in spoilt(poison)
    assert 'it uses the operator StringNormalizer' in spoilt(operator)
    assert 'it uses com.example' in spoilt(domain)
    assert 'gives other findings' in spoilt(output)

# ---------------------------------------------------------------- golden answers

def expecting(folder, **change):
    "The golden set, told to expect something else of its first photograph"
    path = folder/'golden'/'expected.jsonl'
    first, *rest = path.read_text().splitlines()
    tree = json.loads(first)
    tree['report'] |= change.pop('report', {})
    path.write_text('\n'.join([json.dumps(tree | change, sort_keys=True), *rest]) + '\n')
    B.seal_bundle(folder)
    return folder

REASON = {'rule': 'any defect', 'verdict': 'PASS', 'text': 'PASS'}

@pytest.mark.parametrize('change, says', [
    ({'report': {'verdict': 'PASS'}}, 'golden/images/000.png: decision: FAIL, not PASS'),
    ({'report': {'reasons': [REASON | {'rule': 'cracks'}]}}, 'decision: FAIL by any defect, not by cracks'),
    ({'report': {'image_score': .7}}, 'detector: .* more than 0.002'),
    ({'report': {'rules_version': '0'*12}}, 'rules_version is'), ({'canvas': '0'*64}, 'preprocessing: another canvas')])
def test_another_answer_is_a_refusal(folder, settings, change, says):
    expecting(folder, **change)
    with pytest.raises(
        GoldenError, match=f'judges 1 of 3 golden photographs otherwise than when it was made: .*{says}'
    ):
        prove_bundle(folder, settings)

def test_figures_may_move_a_little(folder, settings):
    score = json.loads((folder/'golden'/'expected.jsonl').read_text().splitlines()[0])['report']['image_score']
    expecting(folder, report={'image_score': score - .001})
    pipeline = B.load_pipeline(folder, settings=settings)
    assert check_golden(folder, pipeline) == []
    expecting(folder, report={'image_score': score - .1})
    assert check_golden(folder, pipeline, 'int8') == [] and 'detector' in check_golden(folder, pipeline)[0]

def test_without_its_golden_set_a_bundle_is_not_proven(folder, settings):
    shutil.rmtree(folder/'golden')
    B.seal_bundle(folder)
    with pytest.raises(GoldenError, match='has no golden set, and params.yaml asks for 3'):
        prove_bundle(folder, settings)

@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda g: shutil.copy(g / 'images' / '000.png', g / 'images' / '001.png'),
            '001.png: altered: not the photograph that was judged'),
        (lambda g: (g / 'images' / '001.png').unlink(), 'other photographs than those'),
        (lambda g: shutil.copy(g / 'images' / '000.png', g / 'images' / '009.png'), 'other photographs than those'),
        (lambda g: (g / 'answered.json').unlink(), 'answered.json: missing'),
        (lambda g: (g / 'expected.jsonl').unlink(), 'expected.jsonl: missing'),
        (lambda g: (g / 'expected.jsonl').write_text('{}\n'), 'expected.jsonl, line 1: altered'),
    ],
)
def test_the_golden_set_itself_is_checked_without_judging(folder, spoil, says):
    spoil(folder/'golden')
    B.seal_bundle(folder)
    with pytest.raises(BundleError, match=says): B.verify_bundle(folder)

def test_a_worker_that_judges_otherwise_is_never_ready(folder, settings):
    from sads_jax.serving.service import SADSInferenceService, check_answers, load_bundle
    worker = lambda: SADSInferenceService(partial(load_bundle, folder, settings), settings=settings, warm=False,
        check=partial(check_answers, folder, 'float32'))
    worker().setup('cpu')
    expecting(folder, report={'verdict': 'PASS'})
    with pytest.raises(GoldenError, match='decision: FAIL, not PASS'): worker().setup('cpu')

def test_the_server_says_the_difference_and_ends(folder, tmp_path):
    expecting(folder, report={'verdict': 'PASS'})
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    (tmp_path/'settings.ini').write_text(f'[sads]\nmax_batch_size = 1\ncache_dir = {tmp_path}/cache\n')
    done = subprocess.run(
        [sys.executable, '-m', 'sads_jax.cli.main', 'serve', '--bundle', str(folder), '--port', str(port), '--settings',
            str(tmp_path / 'settings.ini')],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 1 and 'ready' not in done.stdout + done.stderr
    assert (
        'judges 1 of 3 golden photographs otherwise than when it was made: golden/images/000.png: decision: FAIL, not '
        'PASS'
        in done.stderr
    )
    assert 'Traceback' not in done.stderr

def test_doctor_and_promote_judge_the_golden_set(folder, tmp_path):
    from sads_jax.cli.main import app
    from sads_jax.registry.registries import MLflowRegistry
    registry = MLflowRegistry(f'sqlite:///{tmp_path}/r.db', tmp_path/'registry')
    (tmp_path / 'settings.ini').write_text(
        f'[sads]\nregistry_uri = sqlite:///{tmp_path}/r.db\nregistry_artifacts = {tmp_path}/registry\ncache_dir = '
        f'{tmp_path}/cache\n'
    )
    run = lambda *a: CliRunner().invoke(app, [*a, '--settings', str(tmp_path/'settings.ini')])
    good = run('doctor', '--bundle', str(folder))
    assert good.exit_code == 0 and 'all 3 golden photographs are judged as before (float32)' in good.output
    first = registry.register(folder, alias='champion')
    expecting(folder, report={'verdict': 'PASS'})
    bad = run('doctor', '--bundle', str(folder))
    assert bad.exit_code == 1 and isinstance(bad.exception, GoldenError)
    second = registry.register(folder)
    got = run('models', 'promote', str(second.version))
    assert (
        got.exit_code == 1
        and isinstance(got.exception, GoldenError)
        and registry.entry('champion').version == first.version
    )
    got = run('models', 'promote', '1', '--alias', 'proven')
    assert got.exit_code == 0 and '3 golden photographs are judged as before' in got.output

# ---------------------------------------------------------------- whose it is

def keys(folder, name):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key = Ed25519PrivateKey.generate()
    (folder/f'{name}.pem').write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    (folder / f'{name}.pub').write_bytes(
        key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    )

def test_a_signature_or_a_version_can_be_required(folder, tmp_path):
    from sads_jax.cli.main import app
    keys(tmp_path, 'plant'), keys(tmp_path, 'stranger')
    version = B.bundle_version(folder)
    (tmp_path / 'settings.ini').write_text(
        f'[sads]\nrequire_signature = {tmp_path}/plant.pub\ncache_dir = {tmp_path}/cache\n'
    )
    run = lambda *a: CliRunner().invoke(app, [*a, '--bundle', str(folder), '--settings', str(tmp_path/'settings.ini')])
    photo = str(dark.photo(tmp_path/'part.png'))
    for args in (('predict', photo), ('models', 'verify'), ('serve',), ('doctor',)):
        got = run(*args)
        assert got.exit_code == 1 and 'is not signed, and a signature with key' in str(got.exception), args
    assert 'signed with key' in run('models', 'sign', '--key', str(tmp_path/'plant.pem')).output
    assert B.bundle_version(folder) == version
    assert run('models', 'verify').output == f'{folder}: whole, signed, version {version}\n'
    assert '1 FAIL' in run('predict', photo, '--expect', version).output
    for args in (('predict', photo), ('models', 'verify'), ('serve',)):
        assert f'is version {version}, and 0123456789abcdef is expected' in str(
            run(*args, '--expect', '0123456789abcdef').exception
        )
    sign_bundle(folder, tmp_path/'stranger.pem')
    assert 'is required' in str(run('models', 'verify').exception)

def test_a_signature_is_for_these_files_only(folder, tmp_path):
    keys(tmp_path, 'plant')
    strict = Settings(require_signature=tmp_path/'plant.pub')
    sign_bundle(folder, tmp_path/'plant.pem')
    assert admit_bundle(folder, strict) == B.attach_metrics(folder, {'images': {'auroc': .5}})  # metrics may change
    assert admit_bundle(folder, strict)
    signature = json.loads((folder/'signature.json').read_text())
    for change in (
        {'signature': signature['signature'][:-8]}, {'signature': 7}, {'algorithm': 'none'}, {'key': '0' * 16},
        {'signature': 'é'}
    ):
        rewrite(folder/'signature.json', **signature | change)
        B.seal_bundle(folder)
        with pytest.raises(BundleError): admit_bundle(folder, strict)
    rewrite(folder/'signature.json', **signature)
    rewrite(folder/'data.json', fingerprint='e'*64)
    bound(folder)
    with pytest.raises(BundleError, match='is not for these files'): admit_bundle(folder, strict)
    with pytest.raises(SADSError, match='cannot be read as a private key'): sign_bundle(folder, tmp_path/'plant.pub')

# ---------------------------------------------------------------- at random

def test_random_damage_is_refused_or_changes_nothing(made, tmp_path):
    "`python tests/corrupt_bundle.py 10000` is the long form"
    found = corrupt_bundle.run(shutil.copytree(made, tmp_path/'bundle'), 250)
    assert sum(found.values()) == 250
    assert {said for _, _, said in found} <= {'refused', 'refused, judged otherwise', 'identical'}, (
        corrupt_bundle.table(found)
    )
    assert sum(n for (sealed, _, said), n in found.items() if said != 'identical') > 200

def test_the_rules_version_follows_from_the_rules(made):
    info = B.read_bundle(made)
    assert (
        info.decision.rules_version == rules_version(info.params.decision)
        and info.decision.spec == info.params.decision
    )
