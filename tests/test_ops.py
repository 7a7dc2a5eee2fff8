"ops against independent truth: a greedy loop in numpy, shapely, pycocotools, scipy.ndimage and a flood fill"
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from scipy import ndimage
from scipy.spatial.distance import pdist

from sads_jax.ops import boxes as B
from sads_jax.ops import crops as C
from sads_jax.ops import host as H
from sads_jax.ops import regions as R
from sads_jax.ops.nms import batched_nms, nms

F = np.float32


# --------------------------------------------------------------------------- boxes
def random_boxes(rng, shape, *, lattice=False, extent=100):
    corner = rng.uniform(0, extent, (*shape, 2))
    side = rng.uniform(-.1*extent, .6*extent, (*shape, 2))
    out = np.concatenate([corner, corner + side], -1)
    return (np.round(out/10) if lattice else out).astype(F)

def iou_numpy(a, b):
    "IoU of all pairs, every operation rounded to float32 by numpy, which never fuses two"
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T[...,None], b.T[:,None]
    w, h = np.minimum(ax2, bx2) - np.maximum(ax1, bx1), np.minimum(ay2, by2) - np.maximum(ay1, by1)
    hit = (w > 0) & (h > 0)
    inter = w*h
    union = (ax2 - ax1)*(ay2 - ay1) + (bx2 - bx1)*(by2 - by1) - inter
    return np.where(hit, inter/np.where(hit, union, F(1)), F(0))

def test_area():
    b = random_boxes(np.random.default_rng(0), (50, 7))
    want = np.maximum(b[...,2] - b[...,0], 0)*np.maximum(b[...,3] - b[...,1], 0)
    np.testing.assert_array_equal(B.area(b), want)

def test_iou_of_shapely_and_pycocotools():
    rng = np.random.default_rng(1)
    b = random_boxes(rng, (60,))
    b[:,2:] = np.maximum(b[:,2:], b[:,:2] + 1)
    got = np.asarray(B.pairwise_iou(b[:25], b))
    poly = [shapely.box(*map(float, r)) for r in b]
    want = [[p.intersection(q).area/p.union(q).area for q in poly] for p in poly[:25]]
    np.testing.assert_allclose(got, want, atol=2e-6)
    xywh = np.concatenate([b[:,:2], b[:,2:] - b[:,:2]], 1).astype(float)
    np.testing.assert_allclose(got, coco.iou(xywh[:25], xywh, [0]*60), atol=2e-6)

@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='bits are promised on CPUs')
@pytest.mark.parametrize('how', ['plain', 'jit', 'vmap'])
def test_iou_bits_are_numpys(how):
    "No fused multiply-add: overlaps are the same floats with and without jit, or a threshold would flip"
    b = random_boxes(np.random.default_rng(2), (1500,))
    f = {
        'plain': B.pairwise_iou,
        'jit': jax.jit(B.pairwise_iou),
        'vmap': lambda a, b: jax.jit(jax.vmap(B.pairwise_iou))(a[None], b[None])[0],
    }[how]
    np.testing.assert_array_equal(f(b, b), iou_numpy(b, b))

def test_iou_of_nothing():
    b = np.array([[0, 0, 0, 0], [5, 5, 2, 2], [0, 0, 10, 0], [np.nan, 0, 3, 3], [0, 0, 4, 4]], F)
    want = np.zeros((5, 5)); want[4, 4] = 1
    np.testing.assert_array_equal(B.pairwise_iou(b, b), want)
    assert B.pairwise_iou(np.zeros((3, 0, 4), F), np.zeros((3, 2, 4), F)).shape == (3, 0, 2)

def test_clip_and_square():
    b = random_boxes(np.random.default_rng(3), (4, 30), extent=300) - 60
    cut = np.asarray(B.clip_boxes(b, 100, 160))
    np.testing.assert_array_equal(cut[...,0::2], np.clip(b[...,0::2], 0, 160))
    np.testing.assert_array_equal(cut[...,1::2], np.clip(b[...,1::2], 0, 100))
    b[...,2:] = b[...,:2] + np.abs(b[...,2:] - b[...,:2])
    square = np.asarray(B.square_context(b, 1.4))
    side = square[...,2:] - square[...,:2]
    np.testing.assert_allclose(
        side, np.repeat(1.4 * (b[..., 2:] - b[..., :2]).max(-1)[..., None], 2, -1), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(square[...,2:] + square[...,:2], b[...,2:] + b[...,:2], atol=1e-3)


# --------------------------------------------------------------------------- nms
def greedy(boxes, scores, valid, iou, labels=None, max_out=None):
    "Textbook greedy suppression, one box at a time; index of the boxes kept, best first"
    ok = [i for i in range(len(boxes)) if valid[i] and not np.isnan(scores[i]) and np.isfinite(boxes[i]).all()]
    over, kept = iou_numpy(boxes, boxes) > F(iou), []
    for i in sorted(ok, key=lambda i: (-scores[i], i)):
        if not any(over[j, i] and (labels is None or labels[i] == labels[j]) for j in kept): kept.append(i)
    return kept[:max_out]

def check(got, want, max_out):
    index, keep = map(np.asarray, got)
    assert index.dtype == np.int32 and keep.dtype == bool and len(index) == len(keep) == max_out
    assert keep.tolist() == [k < len(want) for k in range(max_out)]
    assert index[:len(want)].tolist() == want and not index[len(want):].any()

@pytest.mark.parametrize('lattice', [True, False])
@pytest.mark.parametrize('n,max_out,iou,classes',
    [(1, 1, 0.5, 0), (6, 10, 0.5, 0), (20, 20, 1 / 3, 3), (20, 5, 0.0, 0), (40, 40, 0.25, 0), (40, 12, 0.7, 2)])
def test_nms_thousands(n, max_out, iou, classes, lattice):
    """900 cases each, 10,800 in all: boxes on a lattice (equal boxes, overlaps just at the limit), tied scores, NaN,
    inf, degenerate, invalid"""
    rng, count = np.random.default_rng(n + max_out + lattice), 900
    b = random_boxes(rng, (count, n), lattice=lattice)
    b = np.where(rng.random((count, n, 1)) < .15, b[:,:1], b)  # some equal to the first
    b[rng.random((count, n)) < .02, 2] = np.nan
    s = (
        rng.choice([0.1, 0.2, 0.3, 0.5, 0.9, 0.0, -0.0, -1.0, np.nan, np.inf, -np.inf], (count, n))
        if lattice
        else rng.random((count, n))
    )
    s, v = s.astype(F), rng.random((count, n)) < .9
    labels = rng.integers(0, classes, (count, n)) if classes else None
    index, keep = map(np.asarray, batched_nms(b, s, v, iou=iou, labels=labels, max_out=max_out))
    for i in range(count):
        check(
            (index[i], keep[i]), greedy(b[i], s[i], v[i], iou, None if labels is None else labels[i], max_out), max_out
        )

_coordinate = st.integers(0, 5).map(float) | st.floats(0, 5, width=32, allow_subnormal=False)
_score = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, np.nan, np.inf, -np.inf]) | st.floats(
    0, 1, width=32, allow_subnormal=False
)

_nms9 = jax.jit(partial(nms, max_out=9)) # compiled twice, for 600 cases

@settings(max_examples=300, deadline=None)
@given(hnp.arrays(F, (9, 4), elements=_coordinate), hnp.arrays(F, 9, elements=_score), hnp.arrays(bool, 9),
       st.sampled_from([0., .2, 1/3, .5, 1.]), hnp.arrays(np.int32, 9, elements=st.integers(0, 1)))
def test_nms_property(b, s, v, iou, labels):
    check(_nms9(b, s, v, iou=iou), greedy(b, s, v, iou), 9)
    check(_nms9(b, s, v, iou=iou, labels=labels), greedy(b, s, v, iou, labels), 9)

def test_nms_at_the_limit():
    "Overlap equal to the limit is kept, the next float below it is not"
    b, s, v = np.array([[0, 0, 2, 1], [1, 0, 3, 1]], F), np.array([.9, .8], F), np.ones(2, bool)
    check(nms(b, s, v, iou=1/3, max_out=2), [0, 1], 2)
    check(nms(b, s, v, iou=np.nextafter(F(1/3), F(0)), max_out=2), [0], 2)

def test_nms_empty():
    check(nms(np.zeros((0, 4), F), np.zeros(0, F), np.zeros(0, bool), iou=.5, max_out=3), [], 3)
    check(nms(np.zeros((4, 4), F), np.zeros(4, F), np.zeros(4, bool), iou=.5, max_out=3), [], 3)
    check(
        nms(np.zeros((4, 4), F), np.zeros(4, F), np.ones(4, bool), iou=0.5, max_out=3), [0, 1, 2], 3
    )  # zero-area boxes overlap nothing

def test_nms_compiles_once():
    f = jax.jit(partial(nms, max_out=4))
    for iou in (.1, .5, .9): f(np.ones((8, 4), F), np.ones(8, F), np.ones(8, bool), iou=iou)
    assert f._cache_size() == 1


# --------------------------------------------------------------------------- crops
def sampled(image, box, rows, cols):
    "Bilinear samples at pixel positions, by scipy in float64; beyond the edge the edge"
    at = np.meshgrid(rows - .5, cols - .5, indexing='ij')
    return np.stack(
        [
            ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode='nearest')
            for c in range(image.shape[-1])
        ],
        -1,
    )

@pytest.mark.parametrize('dtype', ['float32', 'uint8'])
def test_crops_of_scipy(dtype):
    rng = np.random.default_rng(5)
    images = rng.uniform(0, 255, (3, 37, 52, 2)).astype(dtype)
    box = random_boxes(rng, (40,), extent=60) - 8  # many reach over an edge; some are inverted: mirror images
    which = rng.integers(0, 3, 40)
    got = np.asarray(C.crop_and_resize(images, box, which, 11))
    assert got.shape == (40, 11, 11, 2) and got.dtype == F
    grid = (np.arange(11) + .5)/11
    for i, (x1, y1, x2, y2) in enumerate(box.astype(float)):
        want = sampled(images[which[i]], None, y1 + (y2 - y1)*grid, x1 + (x2 - x1)*grid)
        np.testing.assert_allclose(got[i], want, atol=.02)  # 255 levels; a position is good to 1e-5 px

def test_crop_on_the_grid_is_the_pixels():
    image = np.random.default_rng(6).random((1, 30, 40, 3)).astype(F)
    crop = C.crop_and_resize(image, np.array([[7, 3, 23, 19]], F), np.zeros(1, int), 16)
    np.testing.assert_array_equal(crop[0], image[0, 3:19, 7:23])

def test_crop_of_a_flat_image_is_flat():
    image = np.full((1, 20, 20, 1), .1, F)
    crop = C.crop_and_resize(image, random_boxes(np.random.default_rng(7), (9,), extent=30), np.zeros(9, int), 7)
    np.testing.assert_array_equal(crop, np.full(crop.shape, F(.1)))

def test_crop_repeats_the_edge():
    image = np.arange(4, dtype=F)[None,None,:,None].repeat(4, 1)
    crop = np.asarray(
        C.crop_and_resize(image, np.array([[-50, -50, -10, -10], [50, 0, 60, 4]], F), np.zeros(2, int), 4)
    )
    assert (crop[0] == 0).all() and (crop[1] == 3).all()

def test_crop_of_a_bad_box_is_finite():
    image = np.ones((2, 8, 8, 1), F)
    bad = np.array([[np.nan]*4, [-np.inf, 0, np.inf, 4], [3, 3, 3, 3], [1e30, 0, -1e30, 5]], F)
    assert np.isfinite(C.crop_and_resize(image, bad, np.array([0, 1, 5, -1]), 6)).all()

@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='bits are promised on CPUs')
def test_crops_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(8)
    images, box, which = (rng.random((4, 64, 48, 3)).astype(F), random_boxes(rng, (32,), extent=50),
        rng.integers(0, 4, 32))
    whole = np.asarray(C.crop_and_resize(images, box, which, 24))
    for k in (1, 4):
        parts = [C.crop_and_resize(images, box[i:i+k], which[i:i+k], 24) for i in range(0, 32, k)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)

def test_paste_of_scipy_and_host():
    rng = np.random.default_rng(9)
    for box in np.concatenate(
        [random_boxes(rng, (40,), extent=60) - 8, [[5, 5, 5, 9], [-90, 0, -80, 30], [-20, -20, 90, 70]]]
    ).astype(F):
        mask = rng.random((13, 13)).astype(F)
        got = np.asarray(C.paste_mask(mask, box, 37, 52))
        x1, y1, x2, y2 = box.astype(float)
        y, x = np.arange(37) + .5, np.arange(52) + .5
        inside = ((y >= y1) & (y < y2))[:,None] & ((x >= x1) & (x < x2))
        want = np.zeros((37, 52))
        if inside.any():
            want = np.where(
                inside, sampled(mask[..., None], None, (y - y1) / (y2 - y1) * 13, (x - x1) / (x2 - x1) * 13)[..., 0], 0
            )
        np.testing.assert_allclose(got, want, atol=1e-4)
        host = H.host_paste_mask(mask, box, 37, 52)
        np.testing.assert_array_equal(host, got)
    assert not H.host_paste_mask(mask, [np.nan]*4, 5, 6).any()
    assert not np.asarray(C.paste_mask(mask, np.full(4, np.nan, F), 5, 6)).any()

def test_paste_on_the_grid_is_the_mask():
    mask = np.random.default_rng(10).random((9, 9)).astype(F)
    out = np.asarray(C.paste_mask(mask, np.array([4, 2, 13, 11], F), 20, 30))
    np.testing.assert_array_equal(out[2:11, 4:13], mask)
    np.testing.assert_array_equal(out, H.host_paste_mask(mask, [4, 2, 13, 11], 20, 30))
    assert out.sum() == pytest.approx(mask.sum(), rel=1e-5)

def test_crop_then_paste_returns_the_ramp():
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:60, :80] + .5
    for _ in range(20):
        a, b, c = rng.normal(size=3)
        ramp = (a*x + b*y + c).astype(F)
        x1, y1 = rng.uniform(0, 20, 2); x2, y2 = x1 + rng.uniform(20, 55), y1 + rng.uniform(15, 35)
        box = np.array([[x1, y1, x2, y2]], F)
        crop = np.asarray(C.crop_and_resize(ramp[None,...,None], box, np.zeros(1, int), 28))[0,...,0]
        dx, dy = (x2 - x1)/56, (y2 - y1)/56  # half a crop pixel
        cx, cy = np.clip(x1 + 2*dx*(np.arange(28) + .5), .5, 79.5), np.clip(y1 + 2*dy*(np.arange(28) + .5), .5, 59.5)
        np.testing.assert_allclose(crop, a*cx + b*cy[:,None] + c, atol=2e-3)
        core = (x > max(x1, .5) + dx) & (x < x2 - dx) & (y > max(y1, .5) + dy) & (y < y2 - dy) & (x1 >= 0)
        back = np.asarray(C.paste_mask(crop, box[0], 60, 80))
        edge = (x < .5 + 2*dx) | (y < .5 + 2*dy)  # the first half pixel of the image is flat, not ramp
        np.testing.assert_allclose(back[core & ~edge], ramp[core & ~edge], atol=2e-3)
        assert not back[(x < x1) | (x >= x2) | (y < y1) | (y >= y2)].any()


# --------------------------------------------------------------------------- regions
def flood(mask):
    "Label by filling from each first pixel in reading order"
    out, n = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask)):
        if out[start]: continue
        n, todo = n + 1, [start]
        while todo:
            y, x = todo.pop()
            if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]) or not mask[y, x] or out[y, x]: continue
            out[y, x] = n
            todo += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return out, n

def length_of_all_corners(mask):
    y, x = np.nonzero(mask)
    corners = np.unique(np.concatenate([np.stack([y + i, x + j], 1) for i in (0, 1) for j in (0, 1)]), axis=0)
    return pdist(corners.astype(float)).max()

def snake(n):
    m = np.zeros((n, n), bool)
    m[::2] = True
    m[1::4, -1], m[3::4, 0] = True, True
    return m

HARD = {'empty': np.zeros((24, 24), bool), 'full': np.ones((24, 24), bool),
    'checks': np.indices((24, 24)).sum(0) % 2 == 0, 'snake': snake(24), 'snake down': snake(24).T,
    'snake up': snake(24)[::-1, ::-1], 'rings': np.max(np.abs(np.indices((24, 24)) - 11.5), 0).astype(int) % 2 == 0,
    'dots': (np.indices((24, 24)) % 2 == 0).all(0), 'anti-diagonal': np.eye(24, dtype=bool)[::-1],
    'comb': np.indices((24, 24))[1] % 2 == 0}

@pytest.mark.parametrize('name', HARD)
def test_components_hard(name):
    want, n = flood(HARD[name])
    labels, count = H.host_components(HARD[name])
    assert count == n and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, want)
    np.testing.assert_array_equal(R.components(HARD[name]), want)

def test_components_random():
    rng = np.random.default_rng(12)
    masks = rng.random((1000, 24, 24)) < rng.uniform(.02, .8, (1000, 1, 1))
    masks[::3] = ndimage.binary_dilation(masks[::3], np.ones((1, 2, 3)))
    got = jax.jit(jax.vmap(R.components))(masks)
    assert got.dtype == jnp.int32
    for m, labels in zip(masks, np.asarray(got)):
        np.testing.assert_array_equal(labels, ndimage.label(m, np.ones((3, 3)))[0])
        np.testing.assert_array_equal(labels, H.host_components(m)[0])
    for m, labels in zip(masks[:100], np.asarray(got)): np.testing.assert_array_equal(labels, flood(m)[0])

@pytest.mark.parametrize('shape', [(1, 1), (1, 30), (30, 1), (17, 40)])
def test_components_shapes(shape):
    rng = np.random.default_rng(13)
    for _ in range(20):
        m = rng.random(shape) < .6
        np.testing.assert_array_equal(R.components(m), flood(m)[0])

def test_region_properties():
    rng = np.random.default_rng(14)
    masks = ndimage.gaussian_filter(rng.normal(size=(150, 32, 40)), (0, 2, 2)) > .06
    r = 6
    got = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda m: R.region_properties(R.components(m), r)))(masks))
    for i, m in enumerate(masks):
        labels, n = ndimage.label(m, np.ones((3, 3)))
        assert got.valid[i].tolist() == [k < n for k in range(r)]
        for k, (ys, xs) in enumerate(ndimage.find_objects(labels)[:r]):
            one = labels == k + 1
            assert got.area[i, k] == one.sum()
            assert got.bbox[i, k].tolist() == [xs.start, ys.start, xs.stop, ys.stop]
            assert got.length[i, k] == pytest.approx(H.max_feret(one), rel=1e-6)
            if i < 30: assert H.max_feret(one) == pytest.approx(length_of_all_corners(one), rel=1e-12)
        for a in got: assert not a[i, n:].any()

def test_max_feret():
    rng = np.random.default_rng(15)
    for _ in range(300):
        m = rng.random((rng.integers(1, 25), rng.integers(1, 25))) < rng.uniform(
            0.01, 0.5
        )  # scattered: rows without a pixel too
        if not m.any(): assert H.max_feret(m) == 0; continue
        assert H.max_feret(m) == pytest.approx(length_of_all_corners(m), rel=1e-12)
        assert H.max_feret(m.T) == H.max_feret(m) == H.max_feret(m[::-1])
    disc = np.hypot(*(np.indices((400, 400)) - 200.)) < 150
    assert H.max_feret(disc) == pytest.approx(300, abs=2)
    assert H.max_feret(np.ones((3000, 4000), np.uint8)) == 5000


# --------------------------------------------------------------------------- all in one exported program
def test_everything_exports_with_any_batch():
    def program(images, boxes, scores):
        index, keep = batched_nms(boxes, scores, scores > .1, iou=.5, max_out=3)
        chosen = jnp.take_along_axis(boxes, index[...,None], 1)
        square = B.square_context(B.clip_boxes(chosen, 32, 32), 1.2).reshape(-1, 4)
        crops = C.crop_and_resize(images, square, jnp.arange(square.shape[0])//3, 8)
        found = jax.vmap(lambda m: R.region_properties(R.components(m), 2))(crops[...,0] > .5)
        return index, keep, crops, tuple(found), jax.vmap(partial(C.paste_mask, h=32, w=32))(crops[...,0], square)
    b, = jax.export.symbolic_shape('b')
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    exported = jax.export.export(jax.jit(program))(shape(b, 32, 32, 3), shape(b, 5, 4), shape(b, 5))
    again = jax.export.deserialize(exported.serialize())
    rng = np.random.default_rng(16)
    args = rng.random((4, 32, 32, 3)).astype(F), random_boxes(rng, (4, 5), extent=24), rng.random((4, 5)).astype(F)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), again.call(*args), jax.jit(program)(*args))
