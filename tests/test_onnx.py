"""The ONNX form: primitives against JAX, the cascade in both of its kinds, the gate, and a process in which JAX cannot
be imported"""

import functools
import json
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from PIL import Image
from test_parity_gate import LABELS, SIDE, WEIGHTS, cascade, crushed

from sads_jax.core.errors import BundleError, SADSError
from sads_jax.core.params import TileSpec, parse_params
from sads_jax.core.types import BOX_FLOOR, IMAGE_FLOOR
from sads_jax.data.images import read_image
from sads_jax.domains.surface.assembly import build_cascade, joint_weights
from sads_jax.domains.surface.rules import rules_version
from sads_jax.inference.export import export_program, save_weights
from sads_jax.inference.onnx import OnnxPredictor, export_onnx, link_weights
from sads_jax.inference.onnx_graph import load_session
from sads_jax.inference.onnx_rules import translate
from sads_jax.inference.parity import EXACT, compare_forms
from sads_jax.inference.predictor import CVPredictor
from sads_jax.inference.vetting import load_weights
from sads_jax.models.backbone import pure, to_flat
from sads_jax.models.store import MODELS
from sads_jax.registry.bundle import load_pipeline, verify_bundle, write_bundle, write_golden
from sads_jax.serving.service import warm_up

rng = np.random.default_rng(0)


class Both:
    "A function of arrays of fixed shapes, once in JAX and once in onnxruntime"
    def __init__(self, fn, *like):
        self.names = [f'x{i}' for i in range(len(like))]
        model = translate(lambda d: fn(*[d[k] for k in self.names]), dict(zip(self.names, map(np.asarray, like))))
        self.jax, self.session = jax.jit(fn), load_session(model.SerializeToString())

    def compare(self, *args):
        "Every output has the same bits, but for the sign of 0"
        for want, got in zip(
            map(np.asarray, jax.tree.leaves(self.jax(*args))), self.session.run(None, dict(zip(self.names, args))),
            strict=True
        ):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            np.testing.assert_array_equal(got, want)

# -- Primitives

ODD = st.lists(st.sampled_from([0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-30, 3e38, -3e38, np.inf, -np.inf, np.nan]),
    min_size=6, max_size=6)

@functools.cache
def elementwise():
    return Both(
        lambda a, b: (jnp.maximum(a, b), jnp.minimum(a, b), a < b, a <= b, a > b, a >= b, a == b, a != b, a + b, a - b,
            jnp.round(a), jnp.isfinite(a), jnp.sign(a), jnp.abs(a), -a, jnp.floor(a), jnp.nan_to_num(a),
            jnp.clip(a, -1, 2), jnp.where(a < b, a, b), a.max(), a.min(), (a > 0).any(), (a > 0).all()),
        *np.zeros((2, 6), np.float32),
    )

@given(ODD, ODD)
@settings(max_examples=100, deadline=None)
def test_strange_numbers_are_as_in_jax(a, b): elementwise().compare(np.float32(a), np.float32(b))

@functools.cache
def addressing():
    def fn(x, i, o, u):
        return (lax.top_k(x[:, 0], 7), jnp.argsort(x[:, 1], stable=True), jnp.sort(x, 0), x.at[i].get(mode='clip'),
            x.at[i].get(mode='fill'), x.at[:, i].get(mode='fill', fill_value=5.0), x.at[o].set(u, mode='drop'),
            x.at[i].add(u, mode='drop'), x.at[i].min(u), x.at[i].max(u), lax.dynamic_slice(x, (i[0], i[1]), (4, 2)),
            lax.dynamic_update_slice(x, u, (i[0], i[1])), jax.ops.segment_min(x[:9, 0], i % 5, 6), i // 7, i % 7,
            jnp.cumsum(i), jnp.cumsum(x > 1, 0))
    return Both(
        fn, np.zeros((30, 3), np.float32), np.zeros(9, np.int32), np.zeros(9, np.int32), np.zeros((9, 3), np.float32)
    )

@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_ties_and_places_outside_are_as_in_jax(seed):
    rng = np.random.default_rng(seed)
    once = rng.permutation(60)[:9]  # half of them outside; writing twice to one place has no defined result
    addressing().compare(rng.integers(0, 4, (30, 3)).astype(np.float32), rng.integers(-40, 40, 9).astype(np.int32),
        once.astype(np.int32), rng.integers(-9, 9, (9, 3)).astype(np.float32))

def test_what_has_no_rule_is_named():
    for fn, args, what in (
        (lambda x: jnp.linalg.cholesky(x), [np.eye(3, dtype=np.float32)],
            r'there is no rule \(primitive cholesky of float32\[3,3\]\).*Take onnx out of export.artefacts'),
        (lambda a, b: a // b, [np.int32([1]), np.int32([2])], 'an integer divided by one that is not known'),
        (lambda x: lax.scan(lambda s, y: (s + y, s), 0.0, x)[1], [np.ones(3, np.float32)], 'a scan that reads'),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 1),)), [np.ones(3, np.float32)], 'padding between numbers'),
        (lambda x: lax.round(x), [np.ones(3, np.float32)], 'not half to even'),
        (lambda x: jax.lax.conv_transpose(x, jnp.ones((3, 1, 1)), (2,), 'SAME'), [np.ones((1, 4, 1), np.float32)],
            'transposed'),
    ):
        with pytest.raises(SADSError, match=what): Both(fn, *args)

# -- Cascades

def networks(proposes, flips):
    "A cascade of small networks that nothing was learnt by, and its weights"
    params = parse_params(
        {'image': {'buckets': [[64, 64]]},
            'detector': {'boxes': 'network' if proposes else 'regions', 'flips': flips, 'score_floor': 0.01}}
    )
    builds = {'detector': dict(backbone='plain', backbone_width=8, width=8, boxes=proposes),
        'classifier': dict(n_classes=2, backbone='plain', backbone_width=8),
        'segmenter': dict(backbone='plain', backbone_width=8, width=8), 'anomaly': dict(channels=(32, 32))}
    models, rng = {}, np.random.default_rng(1)
    for task, build in builds.items():
        module = MODELS[task](**build, rngs=nnx.Rngs(1))
        shaken = {k: np.asarray(v) + rng.normal(size=v.shape).astype(np.float32)*.1 for k, v in to_flat(module).items()}
        for k in shaken:  # heads as a training would leave them: loud, and not silent by default
            if k.endswith(('/out/kernel', '/score/kernel')): shaken[k] = 10*shaken[k]
            elif task == 'detector' and k.endswith(('/out/bias', '/score/bias')): shaken[k] = 0*shaken[k]
        models[task] = (pure(module, lambda m, x: m.outputs(x)) if task == 'detector' else pure(module), shaken,
            {'build': build, 'crop': 32, 'context': 1.5, 'least': 8.0, 'share': 0.5})
    return build_cascade(models, params, ('a', 'b')), joint_weights(models)

@pytest.mark.slow
@pytest.mark.parametrize('proposes, flips', [(False, 1), (True, 4)])
def test_the_whole_cascade_says_the_same(tmp_path, proposes, flips):
    fn, weights = networks(proposes, flips)
    save_weights(tmp_path/'weights.safetensors', weights)
    (tmp_path / '64x64.onnx').write_bytes(
        link_weights(
            export_onnx(fn, weights, (64, 64), inputs=(IMAGE_FLOOR, BOX_FLOOR)), tmp_path / 'weights.safetensors'
        )
    )
    run, seen, rng = jax.jit(fn), 0, np.random.default_rng(2)
    for photo in (rng.integers(0, 256, (64, 64, 3)), np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1)))):
        for floor in (0., .9):
            floors, canvas = dict.fromkeys((IMAGE_FLOOR, BOX_FLOOR), np.float32(floor)), photo.astype(np.uint8)
            (got, _), = OnnxPredictor({(64, 64): tmp_path/'64x64.onnx'}, [(64, 64)], dict, floors).predict([canvas])
            want = {
                k: np.asarray(v)[0] for k, v in run(weights | floors, canvas[None])._asdict().items() if v is not None
            }
            assert list(got) == list(want) and {k: v.dtype for k, v in got.items()} == {
                k: v.dtype for k, v in want.items()
            }
            for k, v in got.items():
                np.testing.assert_allclose(v, want[k], rtol=1e-4, atol=2e-3 if 'boxes' in k else 2e-4, err_msg=k)
            seen += int(want['valid'].sum())
    assert seen > 2  # boxes were there to be compared

# -- The gate

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('onnx')
    params = parse_params({'image': {'buckets': [[SIDE, SIDE]]}, 'export': {'artefacts': ['onnx']}})
    write(root/'bundle', params, export_onnx(cascade(), WEIGHTS, (SIDE, SIDE)))
    (root/'photos').mkdir()
    for i in range(200):
        x = rng.integers(190, 250, (60 + i % 24, 80, 3)).astype(np.uint8)
        if i % 3: x[10:30, 40 - i % 7:60] = (10 + i % 24, 60, 250 - i)
        Image.fromarray(x).save(root/'photos'/f'{i:03d}.png')
    write_golden(root/'bundle', load_pipeline(root/'bundle'), sorted((root/'photos').iterdir())[:3])
    python = replace(load_pipeline(root/'bundle'), predictor=CVPredictor(cascade(), WEIGHTS, [(SIDE, SIDE)], (1,)))
    return root, params, python, [(p.name, read_image(p)) for p in sorted((root/'photos').iterdir())]

def write(folder, params, graph):
    write_bundle(folder, weights=WEIGHTS,
        programs={(SIDE, SIDE): export_program(cascade(), WEIGHTS, (SIDE, SIDE), platforms=('cpu',))},
        graphs=graph and {(SIDE, SIDE): graph}, labels=LABELS, threshold=0.5,
        rules_version=rules_version(params.decision), params=params,
        data={'kind': 'test', 'fingerprint': 'f' * 64, 'splits': {}}, code={'package': '0'}, batch_sizes=(1, 4))

def test_two_hundred_photographs_get_equal_verdicts(made):
    root, _, python, photos = made
    p, = compare_forms(python, {'onnx': load_pipeline(root/'bundle', artefact='onnx')}, photos)
    p.require()
    assert p.verdicts == p.images == 200 and p.limits == EXACT and p.worst['map'] < 1e-5
    assert {python.inspect([x])[0].report.verdict for _, x in photos} > {'PASS'}

def test_reports_are_equal_field_by_field(made):
    root, _, python, photos = made
    a, b = (load_pipeline(root/'bundle', artefact=k, every_box=False) for k in ('float32', 'onnx'))
    for name, _ in photos[:12]:
        want, got = (
            json.loads(p.process_request(root / 'photos' / name).model_dump_json(exclude={'timings_ms'}))
            for p in (a, b)
        )
        close(want, got)

def close(a, b):
    "The same, but for the last digit of a float"
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a: close(a[k], b[k])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b): close(x, y)
    elif isinstance(a, float): assert a == pytest.approx(b, abs=2e-4)
    else: assert a == b

def test_tiles_and_the_server_take_the_form_too(made, tmp_path):
    _, params, *_ = made
    tiled = params.model_copy(update={'image': params.image.model_copy(update={'tile': TileSpec(overlap=24)})})
    write(tmp_path/'tiled', tiled, export_onnx(cascade(), WEIGHTS, (SIDE, SIDE)))
    large = np.full((130, 150, 3), 230, np.uint8)
    large[20:50, 30:60], large[90:96, 100:140] = (20, 60, 250), (40, 50, 60)
    a, b = (load_pipeline(tmp_path/'tiled', artefact=k) for k in ('float32', 'onnx'))
    assert warm_up(b, 8) == 1 and b.predictor.compiles == 1
    want, got = (p.inspect([large])[0].report for p in (a, b))
    assert len(want.defects) > 1
    close(*(json.loads(r.model_dump_json(exclude={'timings_ms'})) for r in (want, got)))

def faulty(root, kind):
    "An OnnxPredictor with a fault that people really ship"
    folder = root/kind
    folder.mkdir(exist_ok=True)
    weights = crushed() if kind == 'quantisation' else WEIGHTS
    save_weights(folder/'weights.safetensors', weights)
    (folder / 'g.onnx').write_bytes(
        link_weights(export_onnx(cascade(swap=kind == 'swap'), weights, (SIDE, SIDE)), folder / 'weights.safetensors')
    )
    made = load_pipeline(root/'bundle', artefact='onnx').predictor
    made._graphs = [folder/'g.onnx']
    if kind == 'preprocessing':
        place = made.place
        def resampled(images):
            "Enlarged and shrunk again before the letterbox"
            return place(
                [
                    np.asarray(
                        Image.fromarray(x)
                        .resize((x.shape[1] * 2, x.shape[0] * 2))
                        .resize((x.shape[1], x.shape[0]), Image.Resampling.NEAREST)
                    )
                    for x in images
                ]
            )
        made.place = resampled
    return made

@pytest.mark.parametrize(
    'kind, stage', [('preprocessing', 'preprocessing'), ('swap', 'detector'), ('quantisation', 'detector')]
)
def test_injected_faults_are_blocked_and_named(made, kind, stage):
    root, _, python, photos = made
    p, = compare_forms(python, {'onnx': replace(python, predictor=faulty(root, kind))}, photos[:12])
    assert p.faults and p.faults[0][1] == stage
    with pytest.raises(
        BundleError,
        match=r'\.png: \w+: the onnx form is not the model that was trained.*photographs differ.*Nothing was '
            r'registered. Take onnx out of export.artefacts',
    ):
        p.require()

def test_a_bundle_without_its_graph_or_with_a_changed_one_is_refused(made, tmp_path):
    root, params, *_ = made
    with pytest.raises(BundleError, match=r'no ONNX graph for bucket \(64, 64\)'): write(tmp_path/'none', params, None)
    graph = export_onnx(cascade(), WEIGHTS, (SIDE, SIDE))
    write(tmp_path/'b', params, graph)
    path = tmp_path/'b'/f'{SIDE}x{SIDE}.onnx'
    assert len(load_weights(tmp_path / 'b' / 'weights.safetensors')) == len(WEIGHTS) and path.stat().st_size < 2 * len(
        graph
    )  # weights are stored once
    assert verify_bundle(tmp_path/'b')
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    with pytest.raises(BundleError, match='altered.*onnx|onnx: altered'): load_pipeline(tmp_path/'b', artefact='onnx')
    write(tmp_path/'c', parse_params({'image': {'buckets': [[SIDE, SIDE]]}}), None)
    with pytest.raises(BundleError, match='holds no onnx form'): load_pipeline(tmp_path/'c', artefact='onnx')

# -- Without JAX, and without the extra

RUN = '''
import sys
for name in {without!r}: sys.modules[name] = None
from sads_jax.cli.main import main
sys.argv = ['sads', *{argv!r}]
main()
'''

def sads(without, *argv):
    return subprocess.run([sys.executable, '-c', RUN.format(without=without, argv=[str(a) for a in argv])],
        capture_output=True, text=True, timeout=300)

def test_photographs_are_judged_in_a_process_without_jax(made, tmp_path):
    root, _, _, photos = made
    out = {}
    for kind, without in (('onnx', ['jax', 'jaxlib', 'flax']), ('float32', ['onnx', 'onnxruntime'])):
        done = sads(without, 'predict', root / 'photos' / '000.png', root / 'photos' / '001.png', '--bundle',
            root / 'bundle', '--artefact', kind, '--out', tmp_path / f'{kind}.jsonl', '--quiet')
        assert done.returncode == 0, done.stderr
        out[kind] = [
            json.loads(line)['report']['verdict'] for line in (tmp_path / f'{kind}.jsonl').read_text().splitlines()
        ]
    assert out['onnx'] == out['float32'] and len(set(out['onnx'])) == 2

def test_without_the_extra_the_remedy_is_said(made):
    root = made[0]
    done = sads(['onnxruntime'], 'predict', root/'photos'/'000.png', '--bundle', root/'bundle', '--artefact', 'onnx')
    assert (
        done.returncode
        and 'needs the package onnxruntime' in done.stderr
        and 'sads_jax[onnx]' in done.stderr
        and 'Traceback' not in done.stderr
    )

def test_the_table_counts_what_a_station_needs(made, tmp_path):
    from typer.testing import CliRunner

    from sads_jax.cli.main import app
    from sads_jax.cli.parity import _size
    root = made[0]
    (tmp_path/'settings.ini').write_text(f'[sads]\ncache_dir = {tmp_path}/cache\n')
    run = CliRunner().invoke(app, ['parity', str(root/'bundle'), '--settings', str(tmp_path/'settings.ini')])
    assert run.exit_code == 0, (run.output, run.exception)
    assert 'onnx' in run.output and '3 of 3' in run.output
    assert _size(root / 'bundle', 'onnx') == pytest.approx(
        (
            (root / 'bundle' / 'weights.safetensors').stat().st_size
            + (root / 'bundle' / f'{SIDE}x{SIDE}.onnx').stat().st_size
        )
        / 1e6
    )
