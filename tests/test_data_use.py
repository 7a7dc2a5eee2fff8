"Splits, data set and augmentation against independent truth, by property"
import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sads_jax.core.errors import DataError, ImageError, LeakError
from sads_jax.core.params import SplitSpec, SyntheticSpec
from sads_jax.data import splits as S
from sads_jax.data.dataset import CVDataset, load_examples
from sads_jax.data.records import ImageRecord, InspectionData, annotate_mask
from sads_jax.data.synthetic import render_all
from sads_jax.data.twins import Thumbnails, near_duplicates, read_thumbnails

SPEC = SplitSpec()
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ---------------------------------------------------------------- splits

part = st.tuples(st.integers(1, 6), st.sets(st.sampled_from('abc'), max_size=2))

def records(parts):
    ims = []
    for p, (n, classes) in enumerate(parts):
        for _ in range(n):
            ims.append(ImageRecord(len(ims)+1, f'{p}/{len(ims)}.png', 32, 32, f'p{p}', None, None, bool(classes),
                tuple(sorted(classes))))
    return InspectionData(Path('x'), ('a', 'b', 'c'), tuple(ims))

@quick
@given(st.lists(part, min_size=1, max_size=40), st.integers(0, 5), st.data())
def test_split_never_divides_a_part(parts, seed, draw):
    data = records(parts)
    ids = [r.id for r in data.images]
    twins = draw.draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids), st.just(.99)), max_size=6))
    split = S.split_parts(data, SPEC, seed, twins)
    assert sorted(i for s in split.values() for i in s) == ids
    side = {i: k for k, v in split.items() for i in v}
    for r in data.images: assert len({side[o.id] for o in data.images if o.part_id == r.part_id}) == 1
    for a, b, _ in twins: assert side[a] == side[b]
    S.audit_leaks(split, data, twins)
    assert split == S.split_parts(data, SPEC, seed, twins)

@quick
@given(st.integers(4, 9), st.integers(4, 9), st.integers(4, 40), st.integers(0, 20))
def test_every_split_gets_every_class(n_a, n_b, n_good, seed):
    data = records([(3, {'a'})]*n_a + [(3, {'b'})]*n_b + [(3, set())]*n_good)
    for ids in S.split_parts(data, SPEC, seed).values():
        assert {c for i in ids for c in data.by_id[i].classes} == {'a', 'b'}
        assert any(not data.by_id[i].defective for i in ids)

def test_fractions_are_met_when_parts_are_many():
    data = records([(2, {'a'})]*60 + [(2, {'b'})]*40 + [(2, set())]*200)
    split = S.split_parts(data, SPEC, 0)
    for name, ids in split.items():
        for stratum, total in (('a', 120), ('b', 80), (None, 400)):
            got = sum((stratum in data.by_id[i].classes) if stratum else not data.by_id[i].classes for i in ids)
            assert abs(got/total - getattr(SPEC, name)) < .03

def test_too_few_parts_go_where_they_matter():
    data = records([(1, {'a'})] + [(1, {'b'})]*2 + [(1, set())]*20)
    where = Counter((c, k) for k, ids in S.split_parts(data, SPEC, 0).items() for i in ids
        for c in data.by_id[i].classes)
    assert where == {('a', 'train'): 1, ('b', 'train'): 1, ('b', 'test'): 1}

def test_seed_offset_and_zero_fraction():
    data = records([(2, {'a'})]*10 + [(2, set())]*30)
    assert S.split_parts(data, SplitSpec(seed_offset=3), 1) == S.split_parts(data, SplitSpec(seed_offset=1), 3)
    assert S.split_parts(data, SplitSpec(train=.8, val=0, calibration=0, test=.2), 0)['val'] == ()
    with pytest.raises(DataError, match='no images'): S.split_parts(replace(data, images=()), SPEC, 0)

def test_audit_raises_on_a_planted_leak():
    data = records([(3, {'a'})]*8 + [(2, set())]*8)
    split = dict(S.split_parts(data, SPEC, 0))
    S.audit_leaks(split, data)
    moved = split['train'][0]
    bad = split | {'train': split['train'][1:], 'test': (*split['test'], moved)}
    with pytest.raises(LeakError, match=f'part {data.by_id[moved].part_id} is in'): S.audit_leaks(bad, data)
    with pytest.raises(LeakError, match='is in train and in test'):
        S.audit_leaks(split | {'test': (*split['test'], moved)}, data)
    with pytest.raises(DataError, match='image id 999'): S.audit_leaks({'train': (999,)}, data)

# ---------------------------------------------------------------- photographs

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root, ims = tmp_path_factory.mktemp('photos'), []
    spec = SyntheticSpec(n_parts=16, exposures=2, size=96)
    for p, _, e, im, _, inst in render_all(spec, 0):
        Image.fromarray(im).save(root/f'{p}_{e}.png')
        marks = tuple(a for i in inst for a in annotate_mask(i[1], i[0], split=False))
        ims.append(ImageRecord(len(ims)+1, f'{p}_{e}.png', im.shape[1], im.shape[0], f'p{p}', None, str(e), bool(marks),
            tuple(sorted({a.category for a in marks})), marks))
    return InspectionData(root, tuple(sorted(spec.defects)), tuple(ims))

def test_planted_twin_is_found_and_refused(photos, tmp_path):
    x = np.asarray(Image.open(photos.path(photos.images[0]))).astype(float)
    Image.fromarray((x*.8 + 6).astype(np.uint8)).save(tmp_path/'twin.jpg', quality=80)
    twin = replace(photos.images[0], id=99, file_name=str(tmp_path/'twin.jpg'), part_id='other')
    data = replace(photos, images=(*photos.images, twin))
    twins = near_duplicates(data, .8)
    found = next(t for t in twins if t[:2] == (1, 99))
    assert found[2] > .85
    split = {'train': (1, 2), 'test': (99,)}
    with pytest.raises(LeakError, match=r'0_0.png \(train\) and .*twin.jpg \(test\).*similarity 0\.\d+'):
        S.audit_leaks(split, data, [found])
    assert S.audit_leaks(split, data, [found], on_twin='warn')['leaking_twins']
    with pytest.raises(LeakError, match='look like the same part'):
        S.split_parts(data, SplitSpec(on_leak='fail'), 0, [found])
    grouped = S.split_parts(data, SplitSpec(on_leak='group'), 0, [found])
    assert any({1, 2, 99} <= set(ids) for ids in grouped.values())

def test_similarity_is_symmetric_and_blocks_do_not_matter(photos):
    thumbnails = read_thumbnails(photos)
    whole = near_duplicates(photos, .3, thumbnails=thumbnails)
    assert whole and {t[:2] for t in whole} == {t[:2] for t in near_duplicates(photos, .3, thumbnails=thumbnails,
        block=7)}
    backwards = replace(photos, images=photos.images[::-1])
    again = near_duplicates(backwards, .3, thumbnails=Thumbnails(*(v[::-1] for v in thumbnails)))
    assert [t[:2] for t in again] == [t[:2] for t in whole] or {t[:2]: t[2]
        for t in again} == pytest.approx({t[:2]: t[2] for t in whole}, abs=2e-4)

def test_blank_photographs_are_not_twins(photos, tmp_path):
    ims = []
    for i in range(6):
        Image.fromarray(np.full((64, 64, 3), 40*i, np.uint8)).save(tmp_path/f'{i}.png')
        ims.append(ImageRecord(i, f'{i}.png', 64, 64, str(i)))
    assert near_duplicates(InspectionData(tmp_path, (), tuple(ims)), .5) == []

def test_shortcut_is_found(photos):
    thumbnails = read_thumbnails(photos)
    honest = S.shortcut_audit(photos, thumbnails=thumbnails)
    assert set(honest) == {'width', 'height', 'aspect', 'mean', 'std', 'format', 'exposure', 'size', 'all'}
    renamed = replace(photos, images=tuple(replace(r, exposure='b' if r.defective else 'a') for r in photos.images))
    told = S.shortcut_audit(renamed, thumbnails=thumbnails)
    assert told['exposure'] > .9 > honest['exposure'] and S.shortcut_warnings(told)
    assert honest == S.shortcut_audit(photos, thumbnails=thumbnails)

def test_split_file_and_fingerprint(photos, tmp_path):
    split = S.split_parts(photos, SPEC, 0)
    mark = S.fingerprint(photos, split)
    S.write_split(tmp_path/'a.json', split, mark)
    S.write_split(tmp_path/'b.json', dict(reversed(split.items())), mark)
    assert (tmp_path/'a.json').read_bytes() == (tmp_path/'b.json').read_bytes()
    assert S.read_split(tmp_path/'a.json') == split and S.read_fingerprint(tmp_path/'a.json') == mark
    (tmp_path/'c.json').write_text('{"splits": {"train": ["x"]}}')
    with pytest.raises(DataError, match='splits.train'): S.read_split(tmp_path/'c.json')
    (tmp_path/'d.json').write_text('{')
    with pytest.raises(DataError, match='not valid JSON'): S.read_split(tmp_path/'d.json')
    changed = replace(photos, images=(replace(photos.images[0], annotations=()), *photos.images[1:]))
    assert len({mark, S.fingerprint(changed, split), S.fingerprint(photos)}) == (3 if photos.images[0].annotations
        else 2)

# ---------------------------------------------------------------- data set

BUCKETS = [(96, 96), (96, 128), (128, 96)]

def test_examples_agree_with_themselves(photos):
    for r in photos.images:
        ex, = load_examples(photos, r, BUCKETS)
        assert ex.canvas.dtype == np.uint8 and ex.canvas.shape[:2] == ex.class_map.shape == ex.instance_map.shape
        for i, box in enumerate(ex.boxes):
            ys, xs = np.nonzero(ex.instance_map == i+1)
            if not len(ys): continue
            assert xs.min() >= box[0]-1.5 and ys.min() >= box[1]-1.5
            assert xs.max()+1 <= box[2]+1.5 and ys.max()+1 <= box[3]+1.5
            assert (ex.class_map[ys, xs] > 0).all()

@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('prefetch', [0, 2])
def test_a_pass_shows_everything_once(photos, shuffle, prefetch):
    ds = CVDataset(photos, [r.id for r in photos.images], BUCKETS)
    batches = list(ds.batches(5, shuffle=shuffle, seed=1, prefetch=prefetch))
    index = np.concatenate([b['index'] for b in batches])
    assert sorted(index[index >= 0]) == list(range(len(ds))) and len(batches) == ds.n_batches(5)
    for b in batches:
        assert b['images'].shape[0] == 5 and b['boxes'].shape == (5, ds.max_boxes, 4)
        for k, i in enumerate(b['index']):
            if i < 0:
                assert not b['valid'][k].any() and not b['class_map'][k].any()
                continue
            ex = ds[int(i)]
            assert (b['images'][k] == ex.canvas).all() and b['valid'][k].sum() == len(ex.boxes)
            assert (b['boxes'][k][b['valid'][k]] == ex.boxes).all()

def test_no_thread_is_left_and_errors_surface(photos, tmp_path):
    ds = CVDataset(photos, [r.id for r in photos.images], BUCKETS)
    it = ds.batches(2)
    next(it)
    it.close()
    gone = replace(photos, images=(*photos.images, replace(photos.images[0], id=77, file_name='gone.png')))
    with pytest.raises(ImageError, match='gone.png'): list(CVDataset(gone, [1, 77], BUCKETS).batches(2))
    other = replace(photos, images=(replace(photos.images[0], width=5, annotations=()),))
    with pytest.raises(DataError, match='its record says'): CVDataset(other, [1], BUCKETS)[0]
    assert not [t for t in threading.enumerate() if t.name == 'sads-prefetch']

def test_too_many_boxes_keep_the_largest(photos):
    m = [np.zeros((96, 96), bool) for _ in range(3)]
    m[0][2:4, 2:5], m[1][20:60, 20:60], m[2][70:80, 70:90] = 1, 1, 1
    r = replace(photos.images[0], width=96, height=96, annotations=tuple(a for x in m for a in annotate_mask(x,
        photos.categories[0])), file_name='sq.png')
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photos.root/'sq.png')
    b = next(CVDataset(replace(photos, images=(r,)), [r.id], [(96, 96)], max_boxes=2).batches(1))
    assert b['boxes'][0].tolist() == [[20, 20, 60, 60], [70, 70, 90, 80]]
    assert (b['instance_map'][0][25:50, 25:50] == 1).all() and b['instance_map'][0][75,
        75] == 2 and b['instance_map'][0][3, 3] == 0

# ---------------------------------------------------------------- augmentation

jax = pytest.importorskip('jax')
import jax.numpy as jnp

from sads_jax.data import augment as A


def drawn(h=96, w=96, b=8, seed=0):
    "Images whose bright rectangles are the defects, so that image, mask and box can be compared"
    rng = np.random.default_rng(seed)
    ims, cm, im_, bx = np.full((b, h, w, 3), .2, np.float32), np.zeros((b, h, w), np.uint8), np.zeros((b, h, w),
        np.uint16), np.zeros((b, 2, 4), np.float32)
    for k in range(b):
        for g in range(2):
            bh, bw = rng.integers(10, 24, 2)
            y, x = rng.integers(4, h-bh-4), rng.integers(4 + g*w//2, w//2-bw-2 + g*w//2)
            ims[k, y:y+bh, x:x+bw], cm[k, y:y+bh, x:x+bw], im_[k, y:y+bh, x:x+bw], bx[k, g] = .9, g+1, g+1, (x, y, x+bw,
                y+bh)
    return tuple(map(jnp.asarray, (ims, cm, bx, np.ones((b, 2), bool), im_)))

STILL = A.Augmentation(gain=0., offset=0., contrast=0., gamma=0., noise=0.)

def moved(spec, size, seed, instances):
    h, w = size
    images, cm, boxes, valid, im = drawn(h, w, seed=seed)
    out = A.augment(jax.random.key(seed), images, cm, boxes, valid, *([im] if instances else []), spec=spec)
    return map(np.asarray, out)

@pytest.mark.parametrize('instances', [False, True])
@pytest.mark.parametrize('size', [(96, 96), (64, 96)])
def test_image_mask_and_boxes_move_together(size, instances):
    h, w = size
    seen = 0
    for seed in range(6):
        images, cm, boxes, valid = moved(STILL._replace(rotate=20.), size, seed, instances)
        for k in range(len(images)):
            bright, mask = images[k, ..., 0] > .55, cm[k] > 0
            edge = mask ^ bright
            assert edge.sum() <= .25*max(1, mask.sum()) + 8  # they differ on outlines only
            for g in range(2):
                ys, xs = np.nonzero(cm[k] == g+1)
                if not valid[k, g]:
                    assert (boxes[k, g] == 0).all()
                    continue
                seen += 1
                tight = np.array([xs.min(), ys.min(), xs.max()+1, ys.max()+1])
                clipped = (tight == 0).any() or tight[2] == w or tight[3] == h  # a cut corner leaves the box loose
                assert (boxes[k, g] >= np.array([-1e-3]*4)).all() and (boxes[k, g] <= np.array([w, h, w, h])
                    + 1e-3).all()
                if not clipped: assert np.abs(tight - boxes[k, g]).max() <= 1.6
    assert seen > 60

def test_nothing_asked_nothing_done():
    args = drawn()
    for a, b in zip(args, A.augment(jax.random.key(3), *args, spec=A.NO_AUGMENTATION)):
        assert (np.asarray(a) == np.asarray(b)).all()

def test_key_decides():
    args = drawn()
    a, b, c = (A.augment(jax.random.key(k), *args) for k in (1, 1, 2))
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b))
    assert (np.asarray(a[0]) != np.asarray(c[0])).any()
    assert not (np.asarray(a[0][0]) == np.asarray(a[0][1])).all()

def test_shapes_types_and_range():
    args = drawn(64, 96)
    for a, b in zip(args, A.augment(jax.random.key(0), *args)): assert a.shape == b.shape and a.dtype == b.dtype
    x = np.asarray(A.augment(jax.random.key(0), *args)[0])
    assert np.isfinite(x).all() and 0 <= x.min() and x.max() <= 1

def test_padding_stays_grey():
    images, cm, boxes, valid, im = drawn()
    images = images.at[:, :16].set(127/255).at[:, 80:].set(127/255)
    out = np.asarray(A.augment(jax.random.key(0), images, cm, boxes, valid, spec=A.Augmentation(rotate=0., scale=0.,
        shear=0., shift=0., symmetries=False))[0])
    assert np.abs(out[:, :16] - 127/255).max() < 1e-6 and np.abs(out[:, 80:] - 127/255).max() < 1e-6
    assert np.abs(out[:, 16:80] - np.asarray(images)[:, 16:80]).mean() > .01

def test_boxes_that_leave_are_not_valid():
    images, cm, boxes, valid, _ = drawn()
    far = jnp.tile(jnp.array([[0., 40., 3., 50.]]), (8, 2, 1))
    out = A.augment(jax.random.key(0), images, cm, far, valid, spec=A.NO_AUGMENTATION._replace(shift=.3))
    gone = ~np.asarray(out[3])
    assert gone.any() and (np.asarray(out[2])[gone] == 0).all()

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 7), st.integers(2, 7), st.integers(2, 7), st.integers(0, 99))
def test_flip_rotate_is_exact_and_undone(k, h, w, seed):
    x = np.random.default_rng(seed).random((2, h, w, 3), np.float32)
    boxes = jnp.array([[[0., 1, 1, 2]], [[1., 0, 2, 2]]])
    y, b = A.flip_rotate(k, jnp.asarray(x), boxes)
    assert y.shape[1:3] == ((w, h) if k % 2 else (h, w))
    back, bb = A.flip_rotate(A.inverse_flip_rotate(k), y, b)
    assert (np.asarray(back) == x).all() and (np.asarray(bb) == np.asarray(boxes)).all()
    for n in range(2):  # what lies in the box stays in the box
        x1, y1, x2, y2 = map(int, boxes[n, 0])
        u1, v1, u2, v2 = map(int, b[n, 0])
        assert np.allclose(np.sort(x[n, y1:y2, x1:x2].ravel()), np.sort(np.asarray(y)[n, v1:v2, u1:u2].ravel()))

def test_compiled_once_a_shape():
    args = drawn(64, 96)
    A.augment(jax.random.key(0), *args)
    before = A.augment._cache_size()
    for k in range(4): A.augment(jax.random.key(k), *args)
    assert A.augment._cache_size() == before

# ---------------------------------------------------------------- real photographs

SHARED = Path(os.environ.get('SADS_SHARED', '../shared'))/'data'/'magnetic_tile'

@pytest.mark.shared
@pytest.mark.skipif(not (SHARED/'groups.csv').exists(), reason='magnetic_tile is not on this machine (SADS_SHARED)')
def test_exposures_of_a_tile_are_found_without_part_ids():
    import csv
    rows = sorted(csv.DictReader((SHARED/'groups.csv').open()), key=lambda r: int(r['frame']))[:240]
    ims = []
    for i, r in enumerate(rows):
        with Image.open(SHARED/f"{r['file']}.jpg") as im: w, h = im.size
        ims.append(ImageRecord(i, f"{r['file']}.jpg", w, h, str(i), None, r['exposure'], r['class'] != 'Free'))
    data = InspectionData(SHARED, (), tuple(ims))
    twins = near_duplicates(data, .75)
    home = {i: k for k, ids in enumerate(S._groups(data, twins)) for i in ids}
    near = [(i, i+1) for i in range(len(rows)-1) if rows[i]['tile_group'] == rows[i+1]['tile_group']
        and int(rows[i+1]['frame'])-int(rows[i]['frame']) <= 25]
    assert np.mean([home[a] == home[b] for a, b in near]) > .85
    refiled = [{'5', '11'}, {'9', '10'}, {'34', '39'}]  # looked at: one tile, filed as two groups
    pairs = [{rows[a]['tile_group'], rows[b]['tile_group']} for a, b, _ in twins]
    assert np.mean([len(p) == 1 or p in refiled for p in pairs]) > .99
