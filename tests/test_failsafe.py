"""Nothing passes that was not really inspected: findings that are none, networks that are broken, photographs that show
no part"""
from dataclasses import replace

import fake_cascade as F
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sads_jax.core.params import DecisionSpec, RuleSpec, SyntheticSpec, TileSpec
from sads_jax.core.types import RLE, Defect, Findings
from sads_jax.data.failures import FAILURES, spoiled
from sads_jax.data.images import Placement
from sads_jax.data.synthetic import plan_parts, render_part
from sads_jax.domains.surface.gate import FACTS, gate_bands, left_out, photo_facts, unusable, usual_facts
from sads_jax.domains.surface.pipeline import SADSPipeline
from sads_jax.domains.surface.postprocessor import SADSPostprocessor
from sads_jax.domains.surface.rules import judge
from sads_jax.domains.surface.tiling import TiledPredictor
from sads_jax.evaluation.operating import choose_limit
from sads_jax.inference.predictor import CVPredictor

PLACE = Placement(0, 1., 0, 0, 64, 64, 64, 64)
MILD = DecisionSpec(rules=(RuleSpec(name='large', max_area_px=1e4),))  # everything that is found is small enough


def findings(score, n=1):
    "Sound findings with `n` boxes"
    row = lambda *a: np.tile(np.array(a, np.float32), (n, 1))
    return Findings(row(8, 8, 20, 20), np.full(n, 0.9, np.float32), np.ones(n, bool),
        np.tile(np.float32([1, 0]), (n, 1)), row(8, 8, 20, 20), np.ones((n, 8, 8), np.float32),
        np.full((16, 16), 0.1, np.float32), np.float32(score), True, np.float32(1), np.full(n, 0.9, np.float32))

def wrong(value):
    "Ways in which one field can be no answer"
    a = np.asarray(value)
    yield 'nothing', None
    yield 'another shape', np.zeros((*a.shape, 3), a.dtype)
    if a.dtype == bool: return
    for name, x in ('NaN', np.nan), ('Inf', np.inf), ('-Inf', -np.inf), ('negative', -5.), ('huge', 1e30):
        b = np.array(a, np.float32)
        b.reshape(-1)[-1] = x
        yield name, b if a.ndim else np.float32(x)
    if a.ndim: yield 'empty', a[:0]
    if a.ndim > 1: yield 'empty within', a[..., :0]

CASES = [
    (field, name, x, score)
    for score in (0.1, 0.9)
    for field, value in findings(score)._asdict().items()
    for name, x in wrong(value)
    if (field, name) not in (('tile_scores', 'nothing'), ('anomaly', 'huge'))
]  # seen at once; a distance may be large

@pytest.mark.parametrize('field,name,x,score', CASES, ids=lambda v: v if isinstance(v, str) else '')
def test_every_field_of_findings_that_is_no_answer(field, name, x, score):
    decide = SADSPostprocessor(('crack', 'pit'), MILD, .5, anomaly_limit=2.)
    defects, verdict, reasons, said = decide(findings(score)._replace(**{field: x}), PLACE)
    assert (verdict, reasons[0].rule, defects, said) == ('REVIEW', 'not inspected', [], 1)

def test_sound_findings_still_pass():
    decide = SADSPostprocessor(('crack', 'pit'), MILD, .5, anomaly_limit=2.)
    assert decide(findings(.1), PLACE)[1] == 'PASS'
    assert decide(findings(.9), PLACE)[1] == 'PASS'  # found, and within every limit
    assert decide(findings(.1, 0), PLACE)[1] == 'PASS'

@pytest.mark.parametrize('field', ['area_px', 'length_px', 'area_mm2', 'length_mm', 'score'])
def test_a_defect_whose_size_is_no_number_never_passes(field):
    defect = Defect(box=(0, 0, 1, 1), label='pit', label_score=1, score=0.9, area_px=9, length_px=3, area_mm2=9,
        length_mm=3, mask=RLE(size=(1, 1), counts='01'))
    limit = {'score': 'max_area_px'}.get(field, f'max_{field}')
    rule = RuleSpec(name='r', min_score=.5, **{limit: 1. if field == 'score' else 100.})
    spec = DecisionSpec(mm_per_px=1., rules=(rule,))
    assert judge([defect], .9, None, spec)[0] == ('FAIL' if field == 'score' else 'PASS')
    assert judge([defect.model_copy(update={field: np.nan})], .9, None, spec)[0] != 'PASS'

# -- a broken network

def poisoned(params, name, x):
    out = {k: np.array(v) for k, v in params.items()}
    out[name].reshape(-1)[out[name].size//2] = x
    return out

@pytest.mark.parametrize('x', [np.nan, np.inf, -np.inf])
def test_a_network_with_one_weight_that_is_no_number_never_passes(x):
    params, cascade = F.random_params(), jax.jit(F.random_cascade())
    decide = SADSPostprocessor(F.CATEGORIES, MILD, .999)
    rng = np.random.default_rng(0)
    photos = np.stack([F.noise_image(rng, 64, 64) for _ in range(3)])
    whole = jax.device_get(cascade(params, photos))
    assert whole.finite.all() and whole.valid.any(1).all()  # every network is asked
    for name in params:
        said = jax.device_get(cascade(poisoned(params, name, x), photos))
        for i in range(3):
            one = jax.tree.map(lambda a, i=i: a[i], said)
            assert decide(one, PLACE)[1] == 'REVIEW', name
            assert all(np.isfinite(a).all() for a in one if a is not None)

def test_what_the_clipping_of_activations_would_hide():
    from sads_jax.models.backbone import Lite0, bounded, pure, to_flat
    assert bounded(jnp.array([-1., 3, 9]), 0., 6.).tolist() == [0, 3, 6]
    assert jnp.isnan(bounded(jnp.array([jnp.nan, jnp.inf, -jnp.inf]), 0., 6.)).all()
    model = Lite0()
    params, call = to_flat(model), jax.jit(pure(model))
    images = jnp.full((1, 32, 32, 3), .5)
    assert all(jnp.isfinite(f).all() for f in call(params, images))
    for name in ('stem_bias', 'blocks/3/expand_bias', 'blocks/9/depthwise_bias', 'blocks/15/expand_bias'):
        assert not all(jnp.isfinite(f).all() for f in call(poisoned(params, name, np.inf), images)), name

def test_one_tile_that_was_not_inspected_is_enough():
    def half(params, images):  # broken where it is black
        found, dense = F.dark_cascade().detect(params, images)
        return found, jnp.where(images.min() < .1, jnp.nan, dense)
    cascade = replace(F.dark_cascade(), detect=half)
    pipeline = SADSPipeline(TiledPredictor(CVPredictor(cascade, {}, [(64, 64)], (1,)), TileSpec(overlap=24)),
        SADSPostprocessor(F.CATEGORIES, MILD, 0.999), 'm', 'r')
    clean, black = F.bright(60, 300), F.bright(60, 300, (280, 20, 12))
    seen = pipeline.inspect([clean, black])
    assert [s.report.verdict for s in seen] == ['PASS', 'REVIEW']
    assert seen[1].report.reasons[0].rule == 'not inspected' and (seen[1].score_map == 1).all()
    assert seen[1].report.image_score == 1 and seen[1].report.defect_probability is None
    assert pipeline.uninspected == {'not inspected': 1}

# -- no photograph of a part

@pytest.fixture(scope='module')
def line():
    "Facts of good photographs of one camera"
    spec = SyntheticSpec(n_parts=140, defective=0., surfaces=('cast',), size=96)
    order = np.random.default_rng(0).permutation(len(plan_parts(spec, seed=0)))  # the light of this line drifts
    photos = [render_part(spec, int(i), exposure=0, seed=0)[0] for i in order]
    return photos, np.stack([photo_facts(p) for p in photos])

def test_the_gate_lets_good_parts_through_and_nothing_else(line):
    photos, facts = line
    far = left_out(facts[:60], [str(i) for i in range(60)])
    limit, _ = choose_limit(.01, list(far.values()), list(far), [True]*len(far))
    bands, rng = gate_bands(usual_facts(facts[:60]), limit), np.random.default_rng(0)
    assert sum(unusable(p, bands) is not None for p in photos[60:]) <= 2  # of eighty more; one in a hundred is promised
    for failure in FAILURES:
        assert all(unusable(spoiled(p, failure, 2, rng), bands) for p in photos[60:70]), failure
    assert all(unusable(np.full_like(photos[0], grey), bands) for grey in (0, 127, 255))
    assert unusable(rng.integers(0, 256, photos[0].shape, np.uint8), bands)
    assert unusable(
        np.broadcast_to(np.linspace(60, 200, photos[0].shape[1]).astype(np.uint8)[None, :, None], photos[0].shape),
        bands)

def test_facts_are_what_scipy_says(line):
    from scipy import ndimage
    for photo in line[0][:5]:
        g = photo[..., 1].astype(np.float64)
        x = ndimage.convolve(g, [[1, -2, 1]])[::2, 1:-1]
        y = ndimage.convolve(g, [[1], [-2], [1]])[1:-1, ::2]
        h = len(g)
        both = ndimage.convolve(g[h//4:h - h//4], np.outer([1, -2, 1], [1, -2, 1]))[1:-1, 1:-1]
        got = dict(zip((f.name for f in FACTS), photo_facts(photo)))
        rms = lambda a: np.sqrt((a**2).mean())
        assert got['sharpness'] == pytest.approx(np.sqrt(rms(x)*rms(y)), rel=1e-4)
        assert got['noise'] == pytest.approx(rms(both)/6, rel=1e-4)
        assert got['brightness'] == pytest.approx(g.mean(), abs=2)
        assert (got['height'], got['width']) == g.shape

def test_a_photograph_that_is_not_usable_is_reviewed_whatever_the_network_says(tmp_path):
    usable = {f.name: (-1e9, 1e9) for f in FACTS}
    make = lambda gate: SADSPipeline(CVPredictor(F.dark_cascade(), {}, [(64, 64)], (1,)),
        SADSPostprocessor(F.CATEGORIES, DecisionSpec(), 0.5), 'm', 'r', gate=gate)
    good, bad = F.bright(60, 60), F.bright(60, 60, (20, 20, 16))
    assert [make(usable).process_request(p).verdict for p in (good, bad)] == ['PASS', 'FAIL']
    strict = make(usable | {'height': (61., 99.)})
    for photo in good, bad:
        report = strict.process_request(photo)
        assert (report.verdict, report.reasons[0].rule, report.reasons[0].measured, report.reasons[0].limit) == (
            'REVIEW', 'not usable', 60, 61)
        assert 'height 60 below 61..99 of good ones' in report.reasons[0].text
    assert report.defects and report.reasons[1].verdict == 'REVIEW'  # what was found is shown, but decides nothing
    assert strict.uninspected == {'not usable': 2}
