"Rules, measurements and the pipeline: what must hold for any photograph and any defect."
import hashlib  # noqa: I001
import io

import fake_cascade as F
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from sads_jax.core.errors import ImageError, ParamsError, SADSError
from sads_jax.core.params import DecisionSpec, RuleSpec
from sads_jax.core.types import RLE, Defect, Findings, InspectionReport, Reason, Verdict
from sads_jax.data.images import letterbox, to_canvas
from sads_jax.domains.surface.lint import check_decision
from sads_jax.domains.surface.pipeline import SADSPipeline
from sads_jax.domains.surface.postprocessor import Patch, SADSPostprocessor, groups, paste_patch, patch_mask, patch_rle, union  # noqa: E501
from sads_jax.domains.surface.rules import judge, rules_version
from sads_jax.inference.export import export_program, load_program
from sads_jax.inference.predictor import CVPredictor
from sads_jax.ops.crops import paste_mask

# -- Rules

numbers = st.floats(0, 500).map(lambda v: round(v, 1))
defects_ = st.builds(
    lambda label, score, area, length: Defect(box=(0, 0, 1, 1), label=label, label_score=1, score=score, area_px=area,
        length_px=length, area_mm2=round(area * 0.01, 4), length_mm=round(length * 0.1, 4),
        mask=RLE(size=(1, 1), counts='01')),
    st.sampled_from(F.CATEGORIES),
    st.floats(0, 1).map(lambda v: round(v, 4)),
    numbers,
    numbers,
)
limit = st.none() | numbers
rules_ = st.builds(
    lambda label, v, **kw: (label, v, kw),
    st.sampled_from(('*', *F.CATEGORIES)),
    st.sampled_from(('FAIL', 'REVIEW')),
    max_area_px=limit,
    max_length_px=limit,
    max_area_mm2=limit,
    max_length_mm=limit,
    max_count=st.none() | st.integers(0, 4),
    min_score=st.floats(0, 1),
)
decisions = st.lists(rules_, max_size=4).map(
    lambda rs: DecisionSpec(
        mm_per_px=0.1, rules=tuple(RuleSpec(name=f'r{i}', label=l, verdict=v, **kw) for i, (l, v, kw) in enumerate(rs))
    )
)
doubts = st.none() | st.just(Reason(rule='doubt', verdict=Verdict.REVIEW, text='REVIEW: doubt'))
SEVERITY = {Verdict.PASS: 0, Verdict.REVIEW: 1, Verdict.FAIL: 2}

@settings(max_examples=300, deadline=None)
@given(decisions, st.lists(defects_, max_size=5), defects_, doubts, st.integers(0, 5))
def test_one_more_defect_never_makes_the_verdict_milder(decision, defects, new, doubt, at):
    before, after = (judge(defects, 0.5, doubt, decision)[0],
        judge([*defects[:at], new, *defects[at:]], 0.5, doubt, decision)[0])
    assert SEVERITY[after] >= SEVERITY[before]

@settings(max_examples=300, deadline=None)
@given(decisions, st.lists(defects_, min_size=1, max_size=5), doubts, st.data())
def test_a_larger_or_surer_defect_never_makes_the_verdict_milder(decision, defects, doubt, data):
    i, grow = data.draw(st.integers(0, len(defects) - 1)), data.draw(st.tuples(*[st.floats(0, 100)]*4))
    d = defects[i]
    larger = d.model_copy(
        update=dict(area_px=d.area_px + grow[0], length_px=d.length_px + grow[1], area_mm2=d.area_mm2 + grow[0],
            length_mm=d.length_mm + grow[1], score=min(1.0, d.score + grow[2] / 100))
    )
    before, after = (judge(defects, 0.5, doubt, decision)[0],
        judge([*defects[:i], larger, *defects[i + 1 :]], 0.5, doubt, decision)[0])
    assert SEVERITY[after] >= SEVERITY[before]

@settings(max_examples=200, deadline=None)
@given(decisions, st.lists(defects_, max_size=5), doubts)
def test_reasons_carry_the_verdict_and_their_numbers(decision, defects, doubt):
    verdict, reasons = judge(defects, .5, doubt, decision)
    assert reasons and reasons[0].verdict == verdict == max((r.verdict for r in reasons), key=SEVERITY.get)
    for r in reasons:
        assert r.text.startswith(f'{r.verdict}: ')
        if r.limit is not None: assert r.measured > r.limit
        if r.defect is not None: assert defects[r.defect].label in r.text

def test_sentences():
    d = Defect(box=(0, 0, 1, 1), label='crack', label_score=1, score=0.9, area_px=31, length_px=8.2, length_mm=3.1,
        mask=RLE(size=(1, 1), counts='01'))
    rules = (RuleSpec(name='any crack', label='crack', max_area_px=20),
        RuleSpec(name='long', max_length_mm=2, verdict='REVIEW'), RuleSpec(name='none', label='pit'),
        RuleSpec(name='one', max_count=0))
    texts = [r.text for r in judge([d], .9, None, DecisionSpec(mm_per_px=.378, rules=rules))[1]]
    assert texts == ['FAIL: crack 31 px² > 20 px² (any crack)', 'FAIL: 1 defects > 0 (one)',
        'REVIEW: crack 3.1 mm > 2 mm (long)']

def test_rules_that_cannot_be_judged_are_refused():
    for rule, message in (
        (RuleSpec(name='x', label='crak'), "rule 'x': no defect class 'crak'"),
        (RuleSpec(name='y', max_area_mm2=1), 'max_area_mm2 needs to know the size of a pixel')
    ):
        with pytest.raises(ParamsError, match=message): check_decision(DecisionSpec(rules=(rule,)), F.CATEGORIES)
    a, b = DecisionSpec(), DecisionSpec(review_margin=.4)
    assert rules_version(a) == rules_version(DecisionSpec(**a.model_dump())) != rules_version(b)


# -- Measuring

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_run_lengths_are_pycocotools(h, w, data):
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    bits = data.draw(st.integers(0, 2**32 - 1))
    mask = (
        np.random.default_rng(bits).random((data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left))))
        < (bits % 11) / 10
    )
    patch = Patch(top, left, mask)
    whole = patch_mask(patch, h, w)
    assert patch_rle(patch, h, w).counts == coco.encode(np.asfortranarray(whole.astype(np.uint8)))['counts'].decode()
    assert (coco.decode(patch_rle(patch, h, w).model_dump()) == whole).all()

@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=8
    )
)
def test_groups_are_the_components_of_what_they_paint(rectangles):
    patches = [Patch(t, l, np.ones((h, w), bool)) for t, l, h, w in rectangles]
    canvas = patch_mask(union(patches), 40, 40)
    labels, n = ndimage.label(canvas, np.ones((3, 3)))
    got = groups(patches, [0]*len(patches))
    assert len(got) == n and sorted(i for g in got for i in g) == list(range(len(patches)))
    for g in got:
        assert {int(labels[patches[i].top, patches[i].left]) for i in g} == {
            int(labels[patches[g[0]].top, patches[g[0]].left])
        }
    assert all(len(g) == 1 for g in groups(patches, range(len(patches))))

def test_pasting_in_a_window_is_pasting_in_the_image():
    rng = np.random.default_rng(0)
    for box in [3.3, 4.7, 20.2, 21.6], [-5.5, -2, 12, 9], [30, 20, 44, 52.5], [50, 50, 60, 60], [7, 7, 7, 9]:
        mask = rng.random((12, 12)).astype(np.float32)
        top, left, got = paste_patch(mask, np.array(box), 40, 36)
        full = np.zeros((40, 36), np.float32)
        full[top:top+got.shape[0], left:left+got.shape[1]] = got
        np.testing.assert_allclose(full, paste_mask(mask, np.float32(box), 40, 36), atol=1e-5)

def findings_of(box, placement, M=64, context=1.5, score=.9):
    "What perfect networks would say of one box of the original image"
    b = to_canvas(np.float32(box), placement)
    side, centre = (b[2:] - b[:2]).max()*context/2, (b[2:] + b[:2])/2
    crop = np.concatenate([centre - side, centre + side]).astype(np.float32)
    x, y = (crop[i] + (np.arange(M) + .5)/M*(crop[i+2] - crop[i]) for i in (0, 1))
    mask = ((y >= b[1]) & (y < b[3]))[:, None] & ((x >= b[0]) & (x < b[2]))
    one = lambda a: np.float32(a)[None]
    return Findings(one(b), one(score), np.array([True]), one([1, 0, 0]), one(crop), one(mask),
        np.zeros((16, 16), np.float32), np.float32(score), finite=True)

@settings(max_examples=150, deadline=None)
@given(st.integers(40, 300), st.integers(40, 300), st.data())
def test_geometry_there_and_back_within_a_pixel(h, w, data):
    """A box of the original image, seen on the canvas and through a mask of a crop, is measured where and as large as
    it was"""
    x1, y1 = data.draw(st.integers(0, w - 16)), data.draw(st.integers(0, h - 16))
    x2, y2 = data.draw(st.integers(x1 + 12, min(w, x1 + 80))), data.draw(st.integers(y1 + 12, min(h, y1 + 80)))
    _, placement = letterbox(np.zeros((h, w, 3), np.uint8), [(192, 192), (128, 256)])
    post = SADSPostprocessor(F.CATEGORIES, DecisionSpec(), .5)
    (d,), verdict, _, _ = post(findings_of((x1, y1, x2, y2), placement), placement)
    assert verdict == 'FAIL'
    assert np.abs(np.subtract(d.box, (x1, y1, x2, y2))).max() <= .1
    mask = coco.decode(d.mask.model_dump()).astype(bool)
    ys, xs = np.nonzero(mask)
    coarse = 1.5*max(x2 - x1, y2 - y1)/64  # side of a mask pixel in the original
    assert np.abs(np.subtract((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), (x1, y1, x2, y2))).max() <= max(
        1, coarse
    )
    assert d.area_px == mask.sum()
    assert abs(d.length_px - np.hypot(x2 - x1, y2 - y1)) <= 2*max(1, coarse)

def test_doubts_go_to_a_person():
    _, p = letterbox(np.zeros((60, 80, 3), np.uint8), [(64, 96)])
    post = SADSPostprocessor(
        F.CATEGORIES, DecisionSpec(review_margin=0.2, rules=(RuleSpec(name='big', max_area_px=1e4),)), 0.5
    )
    f = findings_of((10, 10, 40, 30), p)
    at = lambda score, **kw: post(f._replace(image_scores=np.float32(score), **kw), p)[1]
    assert at(.9) == 'PASS'  # found, and tolerated by the only rule
    assert at(.9, valid=np.array([False])) == 'REVIEW'  # suspicious, but nothing boxed
    assert [at(s, valid=np.array([False])) for s in (.39, .4, .4999)] == ['PASS', 'REVIEW', 'REVIEW']
    strict = SADSPostprocessor(F.CATEGORIES, DecisionSpec(review_margin=.2), .5)
    def shown(score, **kw):
        defects, verdict, reasons, _ = strict(f._replace(image_scores=np.float32(score), **kw), p)
        return len(defects), verdict, [r.rule for r in reasons]
    assert shown(.39) == (0, 'PASS', ['no defect'])
    assert shown(0.45) == (
        1,
        'REVIEW',
        ['review_margin', 'any defect'],
    )  # outlined for the person who looks, but no rule fails it
    assert shown(.5) == (1, 'FAIL', ['any defect'])
    tile = {'tile_scores': np.float32([.45])}
    assert shown(.45, **tile) == (1, 'REVIEW', ['review_margin', 'any defect'])  # the best of its tiles is in doubt
    assert shown(.9, **tile) == (0, 'REVIEW', ['no outline'])  # another tile made the score
    speck = f._replace(boxes=np.float32([[20, 20, 21, 21]]), crop_boxes=np.float32([[19.5, 19.5, 21.5, 21.5]]))
    assert post(speck, p)[1] == 'REVIEW'  # a speck is no defect, but the score remains
    blind, *_ = post(f._replace(masks=f.masks*0), p)
    assert blind[0].area_px == 600  # a segmenter that sees nothing doesn't make the defect go away

def test_a_neighbour_in_the_crop_is_not_part_of_the_defect():
    _, p = letterbox(np.zeros((64, 64, 3), np.uint8), [(64, 64)])
    f = findings_of((20, 20, 30, 30), p, M=30, context=3)
    f.masks[0][:, -4:] = 1  # something else at the right of the crop
    (d,), *_ = SADSPostprocessor(F.CATEGORIES, DecisionSpec(), .5)(f, p)
    assert d.area_px == 100


# -- The program

@pytest.mark.slow
def test_work_grows_with_the_defects_and_clean_images_cost_none():
    ran = []
    def chunks(chunk, *photos):
        ran.clear()
        program = jax.jit(F.dark_cascade(chunk, ran=lambda: ran.append(1)))
        jax.block_until_ready(program({}, np.stack(photos)))
        jax.effects_barrier()
        return len(ran)
    clean, one, five = (F.bright(64, 64), F.bright(64, 64, (8, 8, 8)),
        F.bright(64, 64, *[(12 * i, 20, 6) for i in range(5)]))
    assert chunks(1, clean, clean, clean, clean) == 0
    assert chunks(1, one, clean, five, clean) == 6
    assert chunks(4, one, clean, five, clean) == 2
    assert chunks(4, five, five, five, one) == 4

def pipeline_of(cascade, params=None, threshold=.5, sizes=(1, 3, 8), decision=None):
    decision = decision or DecisionSpec(review_margin=0.1,
        rules=(RuleSpec(name='any crack', label='crack', max_area_px=20), RuleSpec(name='rest', max_area_px=60)))
    return SADSPipeline(CVPredictor(cascade, params or {}, F.BUCKETS, batch_sizes=sizes),
        SADSPostprocessor(F.CATEGORIES, decision, threshold), model_version='m', rules_version=rules_version(decision),
        station_id='s1')

def png(x, kind='PNG'):
    out = io.BytesIO()
    Image.fromarray(x).save(out, kind)
    return out.getvalue()

def plain(report): return report.model_dump_json(exclude={'timings_ms'})

@pytest.fixture(scope='module')
def dark(): return pipeline_of(F.dark_cascade(), sizes=(1, 3))

def test_a_dark_square_is_one_fail_with_its_box_area_and_length(dark):
    for (h, w), (x, y, side) in {(60, 80): (40, 10, 20), (300, 200): (20, 200, 60), (64, 64): (3, 50, 10)}.items():
        r = dark.process_request(png(F.bright(h, w, (x, y, side))))
        assert r.verdict == 'FAIL' and len(r.defects) == 1 and r.image_size == (w, h)
        d, px = r.defects[0], max(1, h/64)
        assert np.abs(np.subtract(d.box, (x, y, x + side, y + side))).max() <= px
        assert abs(d.area_px**.5 - side) <= px and abs(d.length_px - side*2**.5) <= 2*px
        assert r.reasons[0].text == f'FAIL: crack {d.area_px:g} px² > 20 px² (any crack)'.replace('.0', '')
    assert dark.process_request(png(F.bright(60, 80))).verdict == 'PASS'

def test_hashes_of_the_bytes_and_who_asked(dark, tmp_path):
    data = png(F.bright(50, 70, (10, 10, 12)))
    (tmp_path/'a.png').write_bytes(data)
    of_bytes, of_path, of_str = (
        dark.process_request(s, part_id='P7') for s in (data, tmp_path / 'a.png', str(tmp_path / 'a.png'))
    )
    assert of_bytes.image_sha256 == hashlib.sha256(data).hexdigest()
    assert plain(of_bytes) == plain(of_path) == plain(of_str)
    assert (of_bytes.part_id, of_bytes.station_id, of_bytes.model_version) == ('P7', 's1', 'm')
    assert sorted(of_bytes.timings_ms) == ['decide', 'predict', 'read']
    assert InspectionReport.model_validate_json(of_bytes.model_dump_json()) == of_bytes

def test_one_bad_photograph_among_many(dark, tmp_path):
    good = [png(F.bright(40 + i, 60, (5 + i, 8, 10))) for i in range(10)]
    srcs = good[:4] + [b'', tmp_path/'none.png', b'text', png(F.bright(40, 60))[:90], np.zeros((30, 30))] + good[4:]
    got = dark.run_inference(srcs, batch_size=3, on_error='return')
    assert [isinstance(r, SADSError) for r in got] == [False]*4 + [True]*5 + [False]*6
    assert [plain(r) for r in got if not isinstance(r, SADSError)] == [plain(dark.process_request(g)) for g in good]
    assert (
        'empty file' in str(got[4])
        and 'none.png: no such file' in str(got[5])
        and 'not an image' in str(got[6])
        and 'no photograph' in str(got[8])
    )
    with pytest.raises(ImageError): dark.run_inference(srcs)
    with pytest.raises(SADSError, match='2 photographs, 1 part_ids'): dark.run_inference(good[:2], part_ids=['a'])
    seen = dark.inspect(srcs)
    assert [s.score_map is None for s in seen] == [isinstance(r, SADSError) for r in got]
    assert all(s.score_map.shape == s.report.image_size[::-1] for s in seen if s.placement)
    assert dark.run_inference([]) == [] and dark.categories == F.CATEGORIES

@pytest.mark.slow
def test_reports_are_equal_at_any_batch_size_and_from_the_exported_program():
    params, rng = F.random_params(), np.random.default_rng(3)
    photos = [
        png(F.noise_image(rng, int(h), int(w)) if i % 3 else F.bright(int(h), int(w)))
        for i, (h, w) in enumerate(rng.integers(40, 120, (24, 2)))
    ]
    fresh = pipeline_of(F.random_cascade(), params, threshold=.985, sizes=(1, 8))
    alone = [plain(fresh.process_request(p)) for p in photos]
    assert (
        alone
        == [plain(r) for r in fresh.run_inference(photos, batch_size=8)]
        == [plain(r) for r in fresh.run_inference(photos, batch_size=24)]
    )
    programs = {
        b: load_program(export_program(F.random_cascade(), params, b, platforms=('cpu',)), Findings) for b in F.BUCKETS
    }
    assert alone == [
        plain(r) for r in pipeline_of(programs, params, threshold=0.985, sizes=(3,)).run_inference(photos, batch_size=3)
    ]
    assert (
        any('"defects":[{' in r for r in alone) and len({r.split('"')[3] for r in alone}) > 1
    )  # not all the same verdict

@pytest.mark.slow
def test_one_look_for_both_networks_says_the_same():
    "Features computed once and handed to both, or by each for itself"
    from dataclasses import replace

    import jax.numpy as jnp
    apart, params, rng = F.random_cascade(), F.random_params(), np.random.default_rng(5)
    images = np.stack([F.noise_image(rng, 64, 64) for _ in range(8)])
    see = lambda params, crops: jax.nn.relu(crops*3 - 1)
    name = lambda params, seen, boxes, canvas: jax.nn.softmax(seen.mean((1, 2)) + boxes[:, :3]*1e-3)
    outline = lambda params, seen: jnp.clip(seen[..., 0], 0, 1)
    apart = replace(
        apart,
        classifier_least=0.0,
        classify=lambda p, x, b, c: name(p, see(p, x), b, c),
        segment=lambda p, x: outline(p, see(p, x)),
    )
    together = replace(apart, features=see, classify=name, segment=outline)
    a, b = (jax.device_get(jax.jit(c)(params, images)) for c in (apart, together))
    assert a.valid.sum() >= 8
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
