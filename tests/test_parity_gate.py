"Forms of a model: small weights, and three injected faults that must not be registered"

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sads_jax.core.errors import BundleError
from sads_jax.core.params import parse_params
from sads_jax.core.types import Detections
from sads_jax.data.images import Placement, read_image
from sads_jax.domains.surface.orchestrator import SADSInferenceOrchestrator
from sads_jax.domains.surface.rules import rules_version
from sads_jax.inference.export import export_program
from sads_jax.inference.parity import EXACT, Parity, compact_weights, compare_forms, stage_outputs, widen
from sads_jax.inference.predictor import CVPredictor
from sads_jax.inference.vetting import load_weights
from sads_jax.registry.bundle import load_pipeline, write_bundle, write_golden

SIDE, LABELS = 64, ('red', 'blue')
rng = np.random.default_rng(0)
KERNEL = np.float32(
    [[0.55, 0.1], [0.25, 0.3], [0.2, 0.6]]
)  # two ways to weigh the colours: their mean finds, their ratio names
WEIGHTS = {
    'detector/kernel': KERNEL,
    'detector/bias': np.float32([0.02]),
    'classifier/kernel': rng.normal(size=(3, 2)).astype(np.float32),
    'segmenter/large': rng.normal(size=(300, 64)).astype(np.float32),
}  # the last is large enough to be compacted, and moves the outline by a hair

def cascade(swap=False):
    def grey(p, x): return (x[..., ::-1] if swap else x)@p['detector/kernel'][:, 0]
    def detect(p, images):
        dark = jnp.clip(1 - 1.5*grey(p, images) + p['detector/bias'][0], 0, 1)
        hit = dark[0] > .5
        edge = lambda on: (on.argmax(), on.shape[0] - on[::-1].argmax())
        (x1, x2), (y1, y2) = edge(hit.any(0)), edge(hit.any(1))
        h, w = dark.shape[1:]
        return Detections(
            jnp.array([[[x1, y1, x2, y2]]], jnp.float32), dark.max((1, 2))[:, None], hit.any()[None, None]
        ), dark.reshape(1, h // 4, 4, w // 4, 4).mean((2, 4))
    def classify(p, crops, boxes, canvas):
        return jnp.stack(
            [1 - 1 / (1 + jnp.exp(-(crops.mean((1, 2)) @ p['classifier/kernel'])[:, 0])),
                1 / (1 + jnp.exp(-(crops.mean((1, 2)) @ p['classifier/kernel'])[:, 0]))],
            -1,
        )
    def segment(p, crops): return jnp.clip(1 - 1.5*grey(p, crops) + 1e-4*p['segmenter/large'].mean(), 0, 1)
    return SADSInferenceOrchestrator(detect, classify, segment, LABELS, classifier_crop=32, classifier_context=1.5,
        segmenter_crop=32, segmenter_context=1.5)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('forms')
    params = parse_params({'image': {'buckets': [[SIDE, SIDE]]}, 'export': {'artefacts': ['bf16', 'int8']}})
    program = export_program(cascade(), WEIGHTS, (SIDE, SIDE), platforms=('cpu',))
    write_bundle(root / 'bundle', weights=WEIGHTS, programs={(SIDE, SIDE): program}, labels=LABELS, threshold=0.5,
        rules_version=rules_version(params.decision), params=params,
        data={'kind': 'test', 'fingerprint': 'f' * 64, 'splits': {}}, code={'package': '0'}, batch_sizes=(1, 4))
    (root/'photos').mkdir()
    for i in range(24):
        x = rng.integers(190, 250, (60 + i, 80, 3)).astype(np.uint8)
        if i % 3: x[10:30, 40:60] = (10 + i, 60, 250 - 3*i)
        Image.fromarray(x).save(root/'photos'/f'{i:02d}.png')
    write_golden(root/'bundle', load_pipeline(root/'bundle'), sorted((root/'photos').iterdir())[:3])
    photos = [(p.name, read_image(p)) for p in sorted((root/'photos').iterdir())]
    from dataclasses import replace
    python = replace(load_pipeline(root/'bundle'), predictor=CVPredictor(cascade(), WEIGHTS, [(SIDE, SIDE)], (1,)))
    return root, python, photos

def test_what_the_bundle_holds_decides_like_python(made):
    root, python, photos = made
    forms = {k: load_pipeline(root/'bundle', artefact=k) for k in ('float32', 'bf16', 'int8')}
    for p in compare_forms(python, forms, photos):
        p.require()
        assert (
            p.verdicts == p.images == len(photos) and not p.faults and all(p.worst[k] <= p.limits[k] for k in p.worst)
        )
    kept = load_weights(root/'bundle'/'weights.int8.safetensors')
    assert kept['segmenter/large'].dtype == np.int8 and kept['detector/bias'].dtype == np.float32
    with pytest.raises(BundleError, match='holds no int8 form.*float32'): load_pipeline(plain(root), artefact='int8')

def plain(root):
    params = parse_params({'image': {'buckets': [[SIDE, SIDE]]}})
    write_bundle(root / 'plain', weights=WEIGHTS, programs={(SIDE, SIDE): b'-'}, labels=LABELS, threshold=0.5,
        rules_version=rules_version(params.decision), params=params,
        data={'kind': 'test', 'fingerprint': 'f', 'splits': {}}, code={})
    return root/'plain'

class Stretched(CVPredictor):
    "Changed preprocessing: the canvas is filled without regard to proportions"
    def place(self, images):
        stretch = lambda x: np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return [(stretch(x), Placement(0, 1., 0, 0, SIDE, SIDE, *x.shape[:2])) for x in images]

def crushed():
    "Weights with one scale for everything, set by an outlier that is not there: few levels are left"
    top = np.abs(KERNEL).max()*400
    return WEIGHTS | {'detector/kernel': (np.rint(KERNEL/top*127)*top/127).astype(np.float32)}

def faulty(python, kind):
    from dataclasses import replace
    predictor = {'preprocessing': lambda: Stretched(cascade(), WEIGHTS, [(SIDE, SIDE)], (1,)),
        'swap': lambda: CVPredictor(cascade(swap=True), WEIGHTS, [(SIDE, SIDE)], (1,)),
        'quantisation': lambda: CVPredictor(cascade(), crushed(), [(SIDE, SIDE)], (1,))}[kind]()
    return replace(python, predictor=predictor)

@pytest.mark.parametrize(
    'kind, stage', [('preprocessing', 'preprocessing'), ('swap', 'detector'), ('quantisation', 'detector')]
)
def test_injected_faults_are_blocked_and_named(made, kind, stage):
    _, python, photos = made
    p, = compare_forms(python, {'int8': faulty(python, kind)}, photos)
    assert p.faults and p.faults[0][1] == stage
    with pytest.raises(BundleError, match='the int8 form is not the model that was trained.*photographs differ') as e:
        p.require()
    assert '.png: ' in str(e.value) and 'Nothing was registered' in str(e.value)
    print(e.value)

def test_a_flipped_verdict_comes_before_any_drift(made):
    _, python, photos = made
    a = stage_outputs(python, photos[1][1])
    flip = dict(a, report=replace_verdict(a['report']), map=a['map'] + 1)
    p = Parity('bf16', EXACT)
    p.add('drifts.png', a, dict(a, map=a['map'] + .01))
    p.add('flips.png', a, dict(a, report=replace_verdict(a['report'])))
    p.add('both.png', a, flip)
    assert (
        [f[:2] for f in p.faults] == [('drifts.png', 'detector'), ('flips.png', 'decision'), ('both.png', 'detector')]
        and p.verdicts == 1
        and [f[0] for f in p.flips] == ['flips.png', 'both.png']
    )
    with pytest.raises(BundleError, match='flips.png: decision.*PASS, not FAIL'): p.require()

def replace_verdict(report):
    from sads_jax.core.types import Verdict
    return report.model_copy(update={'verdict': Verdict.PASS})

def test_small_weights_are_as_close_as_their_bits():
    import ml_dtypes
    w = {'a/kernel': (rng.normal(size=(3, 3, 4, 8)) * np.geomspace(1e-3, 1e3, 8)).astype(np.float32),
        'a/bias': np.zeros(8, np.float32), 'n': np.int32([3])}
    b = widen(compact_weights(w, 'bf16', least=1))
    np.testing.assert_array_equal(b['a/kernel'], w['a/kernel'].astype(ml_dtypes.bfloat16).astype(np.float32))
    i = widen(compact_weights(w, 'int8', least=1))
    assert (
        np.abs(i['a/kernel'] - w['a/kernel']).max((0, 1, 2)) <= np.abs(w['a/kernel']).max((0, 1, 2)) / 254 * 1.0001
    ).all() and i['n'].dtype == np.int32
    dead = widen(compact_weights({'k': np.zeros((2, 2), np.float32)}, 'int8', least=1))['k']
    assert not dead.any()

def test_the_command_prints_the_table_and_exits(made, tmp_path):
    from sads_jax.cli.main import app
    root, *_ = made
    (tmp_path/'settings.ini').write_text(f'[sads]\ncache_dir = {tmp_path}/cache\n')
    run = lambda *a: CliRunner().invoke(
        app, ['parity', str(root / 'bundle'), '--settings', str(tmp_path / 'settings.ini'), *a]
    )
    ok = run('--images', str(root/'photos'))
    assert ok.exit_code == 0, (ok.output, ok.exception)
    assert '24 photographs; the reference is the float32 form' in ok.output
    none = run('--images', str(tmp_path/'nothing'))
    assert none.exit_code != 0 and 'no photographs' in str(none.exception)
