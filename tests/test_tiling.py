"""Tiles: a defect is found once wherever the seams lie, its size is that of the drawing, and without `image.tile`
nothing has changed."""
from functools import cache

import fake_cascade as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sads_jax.core.errors import ParamsError
from sads_jax.core.params import DecisionSpec, Params, TileSpec, parse_params
from sads_jax.core.types import Findings
from sads_jax.data.dataset import CVDataset
from sads_jax.data.images import Placement, Window, letterbox, tile_windows
from sads_jax.data.records import ImageRecord, InspectionData, annotate_mask
from sads_jax.domains.surface.pipeline import SADSPipeline
from sads_jax.domains.surface.postprocessor import Patch, SADSPostprocessor, groups, touching
from sads_jax.domains.surface.tiling import TiledPredictor, stitch
from sads_jax.inference.predictor import CVPredictor

SIDE, SPEC = 64, TileSpec(overlap=24)

@cache
def predictor(): return CVPredictor(F.dark_cascade(), {}, [(SIDE, SIDE)], batch_sizes=(8,))

def pipeline(tile=SPEC):
    return SADSPipeline(TiledPredictor(predictor(), tile) if tile else predictor(),
        SADSPostprocessor(F.CATEGORIES, DecisionSpec(), 0.5), 'test', 'test')

def untimed(report): return report.model_dump(exclude={'timings_ms'})

# -- Geometry

@settings(max_examples=200, deadline=None)
@given(st.integers(16, 700), st.integers(16, 700), st.integers(1, 30), st.sampled_from((.4, .5, 1.)), st.data())
def test_whatever_is_smaller_than_the_overlap_is_whole_on_some_tile(h, w, overlap, scale, data):
    spec = TileSpec(overlap=overlap, scale=scale)
    windows = tile_windows(h, w, ((64, 64), (64, 96)), spec)
    a, b = min(overlap, h), min(overlap, w)
    y, x = data.draw(st.integers(0, h - a)), data.draw(st.integers(0, w - b))
    assert any(t.top <= y and t.left <= x and y + a <= t.top + t.height and x + b <= t.left + t.width for t in windows)
    assert all(t.top >= 0 and t.left >= 0 and t.top + t.height <= h and t.left + t.width <= w for t in windows)
    assert len({t[2:] for t in windows}) == 1  # one shape, so one program
    if len(windows) > 1:
        _, p = letterbox(np.zeros((*windows[0][2:], 3), np.uint8), ((64, 64), (64, 96)))
        assert p.scale == pytest.approx(scale, rel=.02)

def test_only_what_would_be_shrunk_is_cut():
    assert len(tile_windows(96, 144, ((64, 96),), TileSpec(overlap=24))) == 1   # by 1.5: may stay whole
    assert len(tile_windows(97, 144, ((64, 96),), TileSpec(overlap=24))) > 1
    assert tile_windows(9999, 9999, ((64, 96),), None) == (Window(0, 0, 9999, 9999),)
    with pytest.raises(ParamsError, match='half their side, 96 px, not by 97'):
        parse_params({'image': {'tile': {'overlap': 97}}})
    assert Params().image.tile is None

# -- Seams

STEP = 40  # from tile to tile

def test_a_defect_at_any_offset_is_found_once_with_its_size():
    """12 px squares at every distance to the seams, along both axes and so over every corner, sides and corners of the
    photograph included"""
    found = []
    assert [t.left for t in tile_windows(304, 304, ((SIDE, SIDE),), SPEC)[:7]] == list(range(0, 241, STEP))
    for shift in range(0, STEP, 2):
        cells = [
            (62 * i + (shift + 7 * j) % STEP, 62 * j + (shift + 7 * i + 20 * (i % 2)) % STEP)
            for i in range(5)
            for j in range(5)
        ]
        if shift == 0: cells[0], cells[-1] = (0, 0), (292, 292)
        report = pipeline().process_request(F.bright(304, 304, *((x, y, 12) for x, y in cells)))
        assert sorted((round(d.box[0]), round(d.box[1])) for d in report.defects) == sorted(cells)
        found += report.defects
    assert len(found) == 500
    assert len({(round(d.box[0]) % STEP, round(d.box[1]) % STEP) for d in found}) == 300
    for d in found:
        assert abs(d.box[2] - d.box[0] - 12) <= 1 and abs(d.box[3] - d.box[1] - 12) <= 1
        assert abs(d.area_px - 144) <= 12 and abs(d.length_px - 12*2**.5) <= 1

@pytest.mark.parametrize('flip', [False, True])
def test_a_defect_longer_than_a_tile_is_one_defect(flip):
    photo = F.bright(200, 300)
    for x in range(5, 295): photo[60 + x//5:64 + x//5, x] = 5
    if flip: photo = np.ascontiguousarray(photo.transpose(1, 0, 2))
    d, = pipeline().process_request(photo).defects
    box = (5, 61, 295, 122)
    assert np.abs(np.array(d.box) - ((box[1], box[0], box[3], box[2]) if flip else box)).max() <= 2
    assert abs(d.area_px - 4*290) <= .05*4*290
    assert abs(d.length_px - np.hypot(290, 61)) <= 3

def test_pieces_of_one_defect_take_one_name():
    "Three tiles name their piece of a bar: two weak voices for class 0, a long sure one for class 2"
    def look(left, right, score, label):
        row = lambda *a: np.array(a, np.float32)
        found = Findings(row((left, 20, right, 30)), row(score), np.ones(1, bool),
            np.eye(3, dtype=np.float32)[[label]] * 0.6 + 0.4 / 3, row((left, 0, right, right - left)),
            np.zeros((1, 8, 8), np.float32), np.zeros((16, 16), np.float32), np.float32(score))
        return found, Placement(0, 1., 0, 0, 64, 64, 64, 64)
    looks = [(Window(0, 0, 64, 64), *look(50, 64, 0.5, 0)), (Window(0, 40, 64, 64), *look(10, 64, 0.9, 2)),
        (Window(0, 80, 64, 64), *look(0, 30, 0.6, 0))]
    found, place = stitch(looks, 64, 144, overlap=24)
    assert found.label_scores.argmax(1).tolist() == [2, 2, 2]
    assert found.boxes[:, [0, 2]].tolist() == [[50, 104], [80, 110], [50, 64]]
    assert found.image_scores == np.float32(.9) and place[2:] == (0, 0, 64, 144, 64, 144)

def test_halves_under_a_seam_give_way_and_lend_their_score():
    "A tile that saw half of a defect, and was surer; and one that saw another defect there"
    def look(boxes, scores):
        n = len(boxes)
        return Findings(np.array(boxes, np.float32), np.array(scores, np.float32), np.ones(n, bool),
            np.ones((n, 1), np.float32), np.array(boxes, np.float32), np.ones((n, 4, 4), np.float32),
            np.zeros((16, 16), np.float32), np.float32(max(scores))), Placement(0, 1.0, 0, 0, 64, 64, 64, 64)
    looks = [(Window(0, 0, 64, 64), *look([(38, 10, 50, 22)], [0.6])),
        (Window(0, 40, 64, 64), *look([(0, 10, 10, 22), (4, 40, 20, 50)], [0.8, 0.7]))]
    found, _ = stitch(looks, 64, 104, overlap=24)
    assert found.boxes.tolist() == [[38, 10, 50, 22], [44, 40, 60, 50]]
    assert found.scores.tolist() == [np.float32(.8), np.float32(.7)]

def test_a_trick_of_the_border_is_no_defect():
    "A peak at a seam that the neighbour does not see, and one in the middle of a tile, which nobody else looks at"
    def look(box, peak, score):
        dense = np.zeros((16, 16), np.float32)
        dense[box[1]//4:box[3]//4, box[0]//4:box[2]//4] = peak
        row = np.array([box], np.float32)
        return Findings(row, np.array([score], np.float32), np.ones(1, bool), np.ones((1, 1), np.float32), row,
            np.ones((1, 4, 4), np.float32), dense, np.float32(score)), Placement(0, 1.0, 0, 0, 64, 64, 64, 64)
    looks = [(Window(0, 0, 64, 64), *look((60, 8, 64, 12), 0.9, 0.9)),
        (Window(0, 40, 64, 64), *look((40, 20, 48, 28), 0.8, 0.7))]
    found, _ = stitch(looks, 64, 104, overlap=24)
    assert found.boxes.tolist() == [[80, 20, 88, 28], [60, 8, 64, 12]]
    assert found.scores[0] == found.image_scores == np.float32(.7)
    assert found.scores[1] < .1  # 2 px from the seam of one, 22 from the other's
    assert found.defect_map[2, 15] == pytest.approx(.9*2/24, abs=.01)

def test_a_defect_does_not_lower_the_bar_for_the_rest_of_the_photograph():
    """A speck at .6 counts beside a defect at .9 on its own tile, as on a photograph of its own; on a tile that is
    clean by itself it does not"""
    def look(box, score, image_score):
        row = np.array([box], np.float32)
        return Findings(row, np.array([score], np.float32), np.ones(1, bool), np.ones((1, 1), np.float32), row,
            np.ones((1, 4, 4), np.float32), np.zeros((16, 16), np.float32), np.float32(image_score),
            finite=True), Placement(0, 1.0, 0, 0, 64, 64, 64, 64)
    decide = SADSPostprocessor(('speck',), DecisionSpec(), .8)
    for beside, count in (.9, 2), (.6, 1):
        looks = [(Window(0, 0, 64, 64), *look((10, 8, 20, 18), 0.9, 0.9)),
            (Window(0, 64, 64, 64), *look((40, 20, 48, 28), 0.6, beside))]
        defects, _, _, score = decide(*stitch(looks, 64, 128, overlap=24))
        assert (len(defects), score) == (count, .9)

def test_maps_meet_without_a_step():
    "Each tile shows its part of one smooth picture; so does the joint map, whatever the offsets"
    wave = lambda y, x: .5 + .2*np.sin(x/40)[None] + .2*np.cos(y/30)[:, None]
    at = lambda start: start + 4*np.arange(16) + 2.
    for h, w in (130, 211), (203, 129):
        empty = Findings(np.zeros((2, 4)), np.zeros(2), np.zeros(2, bool), np.zeros((2, 1)), np.zeros((2, 4)),
            np.zeros((2, 4, 4)), None, np.float32(0))
        looks = (
            (t, empty._replace(defect_map=wave(at(t.top), at(t.left))), Placement(0, 1.0, 0, 0, 64, 64, 64, 64))
            for t in tile_windows(h, w, ((64, 64),), SPEC)
        )
        found, _ = stitch(looks, h, w, overlap=24)
        assert found.defect_map.shape == (-(-h//4), -(-w//4)) and found.boxes.shape == (0, 4)
        want = wave(4*np.arange(-(-h//4)) + 2., 4*np.arange(-(-w//4)) + 2.)
        assert np.abs(found.defect_map - want)[1:-1, 1:-1].max() < .01

def test_half_the_resolution_on_tiles_twice_the_size():
    photo = F.bright(400, 500, (100, 120, 24), (230, 250, 24))
    report = pipeline(TileSpec(overlap=60, scale=.5)).process_request(photo)
    assert sorted(tuple(round(v) for v in d.box) for d in report.defects) == [(100, 120, 124, 144),
        (230, 250, 254, 274)]
    assert all(abs(d.area_px - 576) <= 50 for d in report.defects)

def test_a_strip_lower_than_a_tile():
    report = pipeline().process_request(F.bright(40, 400, (100, 14, 12), (388, 28, 12)))
    assert sorted(tuple(round(v) for v in d.box) for d in report.defects) == [(100, 14, 112, 26), (388, 28, 400, 40)]

# -- Nothing else changes

def test_photographs_that_are_not_cut_have_the_bits_they_had():
    rng = np.random.default_rng(1)
    photos = [F.bright(int(h), int(w), (9, 9, 12)) for h, w in rng.integers(40, 96, (6, 2))]
    large = F.bright(300, 200, (90, 90, 12))
    tiled = pipeline().inspect([photos[0], large, *photos[1:]])
    for a, b in zip(pipeline(None).inspect(photos), [tiled[0], *tiled[2:]], strict=True):
        assert untimed(a.report) == untimed(b.report)
        assert a.score_map.tobytes() == b.score_map.tobytes()
    assert tiled[1].score_map.shape == (300, 200) and tiled[1].report.image_size == (200, 300)
    assert predictor().compiles == 1

def test_groups_are_those_of_comparing_everything_with_everything():
    rng = np.random.default_rng(2)
    for n in (0, 1, 5, 40):
        patches = [
            Patch(*(int(v) for v in rng.integers(0, 40, 2)), rng.random(rng.integers(1, 9, 2)) < 0.6) for _ in range(n)
        ]
        labels = rng.integers(0, 2, n).tolist()
        joined = np.eye(n, dtype=bool) | np.array(
            [[a == b and touching(p, q) for q, b in zip(patches, labels)] for p, a in zip(patches, labels)], bool
        ).reshape(n, n)
        for _ in range(n): joined = joined | (joined.astype(int) @ joined.astype(int) > 0)
        assert [tuple(g) for g in groups(patches, labels)] == sorted(
            {tuple(np.flatnonzero(row).tolist()) for row in joined}
        )

# -- Learning from tiles

def test_examples_are_the_photograph_and_its_labels_piece_by_piece(tmp_path):
    rng = np.random.default_rng(3)
    photo = rng.integers(0, 255, (230, 310, 3), np.uint8)
    mask = np.zeros((2, 230, 310), bool)
    mask[0, 50:62, 20:150], mask[1, 200:210, 290:300] = True, True
    marks = tuple(a for m, c in zip(mask, ('crack', 'pit')) for a in annotate_mask(m, c, split=False))
    record = lambda i, bad, **kw: ImageRecord(
        i, f'{i}.png', 310, 230, f'p{i}', None, '0', bad, ('crack', 'pit') if bad else (), marks if bad else (), **kw
    )
    for i in (1, 2): Image.fromarray(photo).save(tmp_path/f'{i}.png')
    data = InspectionData(tmp_path, ('crack', 'pit'), (record(1, True), record(2, False)))
    ds = CVDataset(data, [1, 2], [(64, 64)], tile=TileSpec(overlap=16, background=3))
    again = CVDataset(data, [1, 2], [(64, 64)], tile=TileSpec(overlap=16, background=3), cache=False)
    assert sum(r.id == 2 for r in ds.records) == 3 and ds.windows == again.windows
    seen = np.zeros((230, 310), np.uint8)
    for k, e in enumerate(ds):
        np.testing.assert_array_equal(e.canvas, e.window.of(photo))
        assert e.record is ds.records[k] and e.window == ds.windows[k]
        np.testing.assert_array_equal(again[k].instance_map, e.instance_map)
        if e.record.id == 2: assert not e.class_map.any() and not len(e.boxes)
        for i, (box, label) in enumerate(zip(e.boxes, e.labels)):
            x1, y1, x2, y2 = box.astype(int)
            inside = e.window.of(mask[label])
            assert inside[y1:y2, x1:x2].all() and inside.sum() == (x2 - x1)*(y2 - y1)
            assert ((e.instance_map == i + 1) == inside).all()
        if e.record.id == 1: e.window.of(seen)[:] = e.class_map
    np.testing.assert_array_equal(seen, mask[0] + 2*mask[1])
    whole = CVDataset(data, [1, 2], [(64, 64)])
    assert len(whole) == 2 and len(whole[0].boxes) == 2
