"Photographs of every kind and from everywhere: what is read, what is refused and why, and what is kept of it"
import json  # noqa: I001
import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sads_jax.core.errors import DataError, ImageError, SADSError
from sads_jax.core.params import CocoSpec, FolderSpec, MagneticTileSpec, SyntheticSpec, VocSpec
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.formats import mask_to_rle, segmentation_to_mask, split_components
from sads_jax.data.images import (
    choose_bucket,
    image_size,
    letterbox,
    letterbox_mask,
    read_image,
    to_canvas,
    to_original,
)  # noqa: E501
from sads_jax.data.records import (Annotation, ImageRecord, InspectionData, annotate_class_map, class_map,
    instance_masks, read_coco, write_coco)
from sads_jax.data.synthetic import plan_parts, render_all, render_part

pytestmark = [pytest.mark.filterwarnings('ignore::UserWarning:PIL'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning:pycocotools')]
MAGNETIC = Path(os.environ.get('SADS_SHARED', '../shared'))/'data'/'magnetic_tile'


def encoded(image, fmt='PNG', **kw):
    out = BytesIO()
    image.save(out, fmt, **kw)
    return out.getvalue()


def photo(h=40, w=60, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def giant_png(w, h):
    "The header of a PNG of w x h px and nothing else: 57 bytes"
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IEND', b'')


def refusal(src, **kw):
    with pytest.raises(ImageError) as e: read_image(src, **kw)
    assert e.value.remedy, 'every refusal says what to do'
    return str(e.value)


# ---- the bad input table, one by one


def test_no_such_file(tmp_path):
    assert refusal(tmp_path/'lost.png') == f'{tmp_path}/lost.png: no such file. Check the path'


def test_folder(tmp_path):
    assert refusal(tmp_path) == f'{tmp_path}: is a folder, not an image. Name a file'


def test_empty_file(tmp_path):
    (tmp_path/'a.png').touch()
    assert refusal(tmp_path/'a.png') == f'{tmp_path}/a.png: empty file. Copy or photograph it again'
    assert refusal(b'', name='upload') == 'upload: empty file. Copy or photograph it again'


def test_text_renamed(tmp_path):
    (tmp_path/'notes.jpg').write_text('milk, bread, eggs\n'*20)
    assert (
        refusal(tmp_path / 'notes.jpg')
        == f'{tmp_path}/notes.jpg: not an image in a known format. Known are PNG, JPEG, TIFF, BMP, WEBP, GIF, PPM, '
        'JPEG2000'
    )


@pytest.mark.parametrize('keep', [.3, .6, .95])
def test_truncated_jpeg(tmp_path, keep):
    whole = encoded(photo(200, 200), 'JPEG')
    (tmp_path/'cut.jpg').write_bytes(whole[:int(len(whole)*keep)])
    message = refusal(tmp_path/'cut.jpg')
    assert re.fullmatch(
        re.escape(f'{tmp_path}/cut.jpg')
        + r': truncated or damaged JPEG file: image file is truncated \(\d+ bytes not processed\)\. Copy or '
        r'photograph it again',
        message,
    ), message


@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP'])
def test_truncated_anywhere(fmt):
    "Wherever a file is cut, the answer is an ImageError (or, where nothing was lost, the picture)"
    whole = encoded(photo(48, 48), fmt)
    for n in range(1, len(whole) - 1, max(1, len(whole)//97)):
        try: read_image(whole[:n], name='cut')
        except ImageError as e: assert e.where == 'cut'


def test_damaged_inside():
    "Flipped bytes never raise anything but ImageError"
    rng = np.random.default_rng(0)
    for fmt in ('PNG', 'JPEG', 'TIFF', 'GIF', 'WEBP', 'BMP'):
        whole = np.frombuffer(encoded(photo(48, 48), fmt), np.uint8)
        for _ in range(60):
            bad = whole.copy()
            bad[rng.integers(0, min(len(bad), 400), 6)] = rng.integers(0, 256, 6)
            try: read_image(bad.tobytes(), name=fmt, max_megapixels=1)
            except ImageError: pass


def test_giant_header(tmp_path):
    (tmp_path/'big.png').write_bytes(giant_png(30_000, 30_000))
    message = f'{tmp_path}/big.png: 30000 x 30000 px is 900 megapixels, over the limit of 25 megapixels. Crop it, or raise max_megapixels in settings.ini'  # noqa: E501
    assert refusal(tmp_path/'big.png') == message


def test_limit_is_ours_not_pillows(recwarn):
    "9,600 x 9,600 warns in Pillow alone; ours is a plain limit, and raising it is enough"
    assert 'over the limit of 50 megapixels' in refusal(giant_png(9600, 9600), max_megapixels=50.)
    assert 'truncated or damaged PNG' in refusal(giant_png(20_000, 20_000), max_megapixels=1000.)
    assert not recwarn.list


def test_one_pixel():
    assert (
        refusal(encoded(Image.new('RGB', (1, 1))), name='dot.png')
        == 'dot.png: 1 x 1 px is too small. Both sides must be at least 16 px'
    )
    assert '400 x 15 px is too small' in refusal(encoded(Image.new('RGB', (400, 15))))
    assert read_image(encoded(Image.new('RGB', (16, 16)))).shape == (16, 16, 3)


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF'])
def test_sixteen_bit(fmt):
    ramp = np.tile(np.arange(0, 65536, 257*8, dtype=np.uint16), (20, 1))
    got = read_image(encoded(Image.fromarray(ramp), fmt))
    assert got.dtype == np.uint8 and (got[..., 0] == ramp//257).all() and (got[..., 0] == got[..., 2]).all()
    dark = read_image(encoded(Image.fromarray(np.full((20, 20), 3*257, np.uint16)), fmt))
    assert (dark == 3).all(), 'nothing is stretched'


def test_thirty_two_bit_beyond_sixteen():
    x = np.full((20, 20), 70_000, np.int32)
    assert (
        refusal(encoded(Image.fromarray(x), 'TIFF'), name='a.tif')
        == 'a.tif: 32-bit pixels from 70000 to 70000. Save it with 8 or 16 bits a channel'
    )


def test_alpha_is_dropped():
    rgb = np.asarray(photo())
    see_through = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (read_image(encoded(Image.fromarray(see_through))) == rgb).all()
    la = Image.merge('LA', (photo().getchannel(0), Image.new('L', (60, 40))))
    assert (read_image(encoded(la))[..., 0] == rgb[..., 0]).all()


def test_palette():
    p = photo().quantize(64)
    assert (read_image(encoded(p)) == np.asarray(p.convert('RGB'))).all()
    assert (read_image(encoded(p, transparency=3)) == np.asarray(p.convert('RGB'))).all()
    bits = Image.fromarray(np.random.default_rng(0).random((20, 30)) > .5)
    assert set(np.unique(read_image(encoded(bits)))) == {0, 255}


def test_cmyk():
    red = Image.new('RGB', (32, 32), (200, 30, 40))
    got = read_image(encoded(red.convert('CMYK'), 'JPEG', quality=95))
    assert np.abs(got.astype(int) - (200, 30, 40)).max() <= 4


def test_nan_tiff():
    x = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    assert np.abs(read_image(encoded(Image.fromarray(x), 'TIFF'))[..., 0] - x*255).max() <= .5
    x[3, 4], x[5, 6] = np.nan, np.inf
    assert (
        refusal(encoded(Image.fromarray(x), 'TIFF'), name='depth.tif')
        == 'depth.tif: 2 pixels are NaN or infinite. Save it with 8 or 16 bits a channel'
    )
    assert (
        refusal(encoded(Image.fromarray(np.full((20, 20), 1e4, np.float32)), 'TIFF'), name='d')
        == 'd: float pixels from 10000 to 10000. Scale them to 0..1 or 0..255'
    )


def test_lab_is_refused():
    lab = Image.new('LAB', (20, 20))
    assert 'pixels of mode LAB are not supported' in refusal(encoded(lab, 'TIFF'))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ImageOps
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), 'PNG', exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert (read_image(data) == want).all()
    assert image_size(data) == want.shape[:2]


def test_path_and_bytes_agree(tmp_path):
    (tmp_path/'a.jpg').write_bytes(encoded(photo(), 'JPEG'))
    assert (read_image(tmp_path/'a.jpg') == read_image((tmp_path/'a.jpg').read_bytes())).all()
    assert (read_image(str(tmp_path/'a.jpg')) == np.asarray(Image.open(tmp_path/'a.jpg'))).all()


# ---- letterbox


@settings(deadline=None, max_examples=60)
@given(
    st.integers(16, 400),
    st.integers(16, 400),
    st.lists(
        st.tuples(st.sampled_from([32, 64, 128, 192]), st.sampled_from([32, 96, 128, 256])), min_size=1, max_size=3
    ),
)
def test_letterbox_there_and_back(h, w, buckets):
    image = np.full((h, w, 3), 200, np.uint8)
    canvas, p = letterbox(image, buckets)
    assert canvas.shape[:2] == buckets[p.bucket]
    inside = np.zeros(canvas.shape[:2], bool)
    inside[p.top:p.top+p.height, p.left:p.left+p.width] = True
    assert (canvas[inside] == 200).all() and (canvas[~inside] == 127).all()
    assert max(p.height/canvas.shape[0], p.width/canvas.shape[1]) == 1, 'it touches two sides'
    boxes = np.array([[0, 0, w, h], [w*.2, h*.3, w*.7, h*.9]])
    assert np.allclose(to_original(to_canvas(boxes, p), p), boxes, atol=1e-3)
    mask = letterbox_mask(np.ones((h, w), np.uint8), p, canvas.shape[:2])
    assert (mask.astype(bool) == inside).all()


def test_bucket_shrinks_least():
    for h, w in [(100, 300), (300, 100), (64, 64), (1000, 900)]:
        buckets = [(128, 256), (256, 128), (192, 192)]
        kept = [min(1, a/h, b/w) for a, b in buckets]
        assert kept[choose_bucket(h, w, buckets)] == max(kept)


# ---- masks and COCO


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_rle_round_trip(h, w, seed):
    mask = np.random.default_rng(seed).random((h, w)) > .6
    assert (segmentation_to_mask(mask_to_rle(mask), h, w) == mask).all()
    pieces = split_components(mask, 1)
    assert (sum(p.astype(int) for p in pieces) == mask).all() if pieces else not mask.any()


def test_uncompressed_rle_and_polygons_agree_with_pycocotools():
    mask = np.zeros((9, 11), bool)
    mask[2:6, 3:8] = True
    flat, counts, last = mask.flatten('F'), [], 0
    for v in flat:
        if counts and v == last: counts[-1] += 1
        else: counts += [0, 1] if not counts and v else [1]
        last = v
    assert (segmentation_to_mask({'size': [9, 11], 'counts': counts}, 9, 11) == mask).all()
    triangle = [[1., 1., 9., 1., 5., 8.]]
    want = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(triangle, 9, 11))).astype(bool)
    assert (segmentation_to_mask(triangle, 9, 11) == want).all()


def test_class_map_round_trip():
    rng = np.random.default_rng(1)
    painted = np.kron(rng.integers(0, 4, (5, 6)), np.ones((4, 4), int)).astype(np.uint8)
    cats = ('a', 'b', 'c')
    rec = ImageRecord(1, 'x.png', 24, 20, 'p', defective=True, annotations=annotate_class_map(painted, cats))
    assert (class_map(rec, cats) == painted).all()
    assert sum(m.sum() for m in instance_masks(rec)) == (painted > 0).sum()
    with pytest.raises(DataError, match="label 'c' is not in the map"): class_map(rec, ('a', 'b'))
    with pytest.raises(DataError, match='class id 3, the map has 2'): annotate_class_map(painted, ('a', 'b'))


def test_box_only_annotation():
    rec = ImageRecord(1, 'x.png', 24, 20, 'p', defective=True, annotations=(Annotation('a', (2., 3., 5., 4.)),))
    assert not rec.weak and instance_masks(rec)[0].sum() == 20


def coco_file(folder, change=lambda tree: None):
    mask = np.zeros((40, 60), bool)
    mask[5:9, 10:20] = True
    records = []
    for i in range(1, 6):
        photo(seed=i).save(folder/f'{i}.png')
        marks = (Annotation('dent', (10., 5., 10., 4.), mask_to_rle(mask), 40.),) if i % 2 else ()
        records.append(
            ImageRecord(i, f'{i}.png', 60, 40, f'p{i}', 'L1', 'e1', bool(marks), ('dent',) if marks else (), marks)
        )
    path = write_coco(InspectionData(folder, ('dent',), tuple(records)), folder)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return path


def test_coco_is_coco(tmp_path):
    coco = COCO(coco_file(tmp_path))
    assert [int(coco.annToMask(a).sum()) for a in coco.loadAnns(coco.getAnnIds())] == [40, 40, 40]
    assert coco.loadCats([1])[0]['name'] == 'dent'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t['annotations'][0].update(category_id=7),
            'annotations.json, annotations[0]: label 7 is not in the map. Known are 1 dent'),
        (lambda t: t['images'][1].update(classes=['rust']),
            "annotations.json, images[1]: label 'rust' is not in the map. Known are dent"),
        (lambda t: t['annotations'][0].update(image_id=99),
            'annotations.json, annotations[0]: image_id 99 is no image of this file'),
        (lambda t: t['images'][0].update(width=600),
            'annotations.json, annotations[0]: mask is 60 x 40 px but its image is 600 x 40 px'),
        (lambda t: t['images'][2].pop('file_name'), "annotations.json, images[2]: field 'file_name' is missing"),
        (lambda t: t['images'][2].update(id=1), 'annotations.json, images[2]: image id 1 is used twice'),
        (lambda t: t.pop('images'), 'annotations.json: not a COCO file'),
    ],
)
def test_coco_contradictions(tmp_path, change, message):
    coco_file(tmp_path, change)
    with pytest.raises(DataError) as e: read_coco(tmp_path)
    assert str(e.value).startswith(f'{tmp_path}/{message}'), str(e.value)


def test_coco_not_there_or_no_json(tmp_path):
    with pytest.raises(DataError, match='annotations.json: no such file'): read_coco(tmp_path)
    (tmp_path/'annotations.json').write_text('{"images": [')
    with pytest.raises(DataError, match='not valid JSON'): read_coco(tmp_path)


# ---- connectors


def test_factory_and_specs_agree():
    "Every kind of params.yaml has a builder that takes all its fields"
    assert set(ConnectorFactory) >= {'synthetic', 'magnetic_tile', 'coco', 'folder', 'voc'}
    assert len(ConnectorFactory(SyntheticSpec(n_parts=3), seed=1)) == 9
    for spec in (
        MagneticTileSpec(root='nowhere'), CocoSpec(root='nowhere'), FolderSpec(root='nowhere'), VocSpec(root='nowhere')
    ):
        with pytest.raises(DataError, match='nowhere'): ConnectorFactory(spec, seed=1)


def report(out): return json.loads((out/'ingest.json').read_text())


def test_one_bad_image_is_left_out_and_named(tmp_path):
    src, out = tmp_path/'src', tmp_path/'out'
    src.mkdir()
    coco_file(src)
    (src/'4.png').write_bytes((src/'4.png').read_bytes()[:3000])
    data = ingest(ConnectorFactory(CocoSpec(root=src)), out)
    assert [r.id for r in data.images] == [1, 2, 3, 5]
    skipped = report(out)['skipped']
    assert (
        len(skipped) == 1
        and skipped[0]['file'] == f'{src}/4.png'
        and 'truncated or damaged PNG file' in skipped[0]['error']
    )
    assert read_coco(out).images == data.images
    assert all(data.path(r).read_bytes() == (src/Path(r.file_name).name).read_bytes() for r in data.images)


def test_one_bad_mask_costs_one_image(tmp_path):
    src, out = tmp_path/'src', tmp_path/'out'
    src.mkdir()
    coco_file(src, lambda t: t['annotations'][1]['segmentation'].update(size=[41, 60]))
    assert len(ingest(ConnectorFactory(CocoSpec(root=src)), out)) == 4
    assert 'mask is 60 x 41 px but its image is 60 x 40 px' in report(out)['skipped'][0]['error']


def test_image_of_another_size_than_annotated(tmp_path):
    src, out = tmp_path/'src', tmp_path/'out'
    src.mkdir()
    coco_file(src)
    photo(50, 60).save(src/'2.png')
    ingest(ConnectorFactory(CocoSpec(root=src)), out)
    assert (
        report(out)['skipped'][0]['error']
        == f'{src}/2.png: the annotations are for 60 x 40 px but the image is 60 x 50 px. Export the annotations '
        'again for this image'
    )


def test_more_than_half_bad_stops(tmp_path):
    src = tmp_path/'src'
    src.mkdir()
    coco_file(src)
    for i in (1, 2, 3): (src/f'{i}.png').unlink()
    with pytest.raises(DataError, match='3 of 5 images cannot be used: .*1.png: no such file'):
        ingest(ConnectorFactory(CocoSpec(root=src)), tmp_path / 'out')


def test_paths_stay_inside(tmp_path):
    src, out = tmp_path/'src', tmp_path/'out'
    src.mkdir()
    photo().save(tmp_path/'secret.png')
    coco_file(src, lambda t: t['images'][1].update(file_name='../secret.png'))
    ingest(ConnectorFactory(CocoSpec(root=src)), out)
    assert 'leads out of the data set' in report(out)['skipped'][0]['error']
    with pytest.raises(DataError, match='over its own source'): ingest(ConnectorFactory(CocoSpec(root=src)), src)


def test_part_ids_of_coco(tmp_path):
    def strip(tree):
        for im in tree['images']: del im['part_id']
    coco_file(tmp_path, strip)
    assert [r.part_id for r in read_coco(tmp_path).images] == ['1', '2', '3', '4', '5']
    (tmp_path/'12.png').write_bytes((tmp_path/'1.png').read_bytes())
    data = ingest(ConnectorFactory(CocoSpec(root=tmp_path, part_id_pattern=r'^(\d)')), tmp_path/'out')
    assert [r.part_id for r in data.images] == ['1', '2', '3', '4', '5']
    with pytest.raises(DataError, match='does not match the file name'):
        ingest(ConnectorFactory(CocoSpec(root=tmp_path, part_id_pattern='part(.)')), tmp_path / 'out2')


def test_ingest_twice_is_the_same(tmp_path):
    spec = SyntheticSpec(n_parts=4, exposures=2, size=64)
    def files(): return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    ingest(ConnectorFactory(spec, seed=1), tmp_path)
    first = files()
    ingest(ConnectorFactory(spec, seed=1), tmp_path)
    assert files() == first
    ingest(ConnectorFactory(SyntheticSpec(n_parts=2, exposures=1, size=64), seed=1), tmp_path)
    assert len(files()) == 6, 'nothing of the earlier, larger set is left'


def test_ingest_after_a_crash(tmp_path):
    "Killed half way, the next ingest gives what the first would have given"
    spec, seen = SyntheticSpec(n_parts=4, exposures=2, size=64), []
    def dies(it, description, total):
        for x in it:
            if len(seen) == 3: raise KeyboardInterrupt
            seen.append(x); yield x
    ingest(ConnectorFactory(spec, seed=2), tmp_path/'a')
    with pytest.raises(KeyboardInterrupt):
        ingest(ConnectorFactory(SyntheticSpec(n_parts=9, size=64), seed=2), tmp_path / 'b', dies)
    with pytest.raises(DataError, match='no such file'): read_coco(tmp_path/'b')
    ingest(ConnectorFactory(spec, seed=2), tmp_path/'b')
    a, b = (
        {str(p.relative_to(tmp_path / d)): p.read_bytes() for p in (tmp_path / d).rglob('*') if p.is_file()}
        for d in 'ab'
    )
    assert a == b


def test_progress_is_shown(tmp_path):
    seen = []
    def progress(it, description, total):
        for x in it: seen.append((description, total)); yield x
    ingest(ConnectorFactory(SyntheticSpec(n_parts=2, exposures=2, size=64)), tmp_path, progress)
    assert seen == [('ingest', 4)]*4


def mvtec(root):
    for name in (
        'train/good/000.png', 'train/good/001.png', 'test/good/000.png', 'test/scratch/000.png', 'test/scratch/001.png',
        'test/dent/000.png'
    ):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        photo(seed=len(name)).save(root/name)
    for kind, n in (('scratch', 2), ('dent', 1)):
        for i in range(n):
            mask = np.zeros((40, 60), np.uint8)
            mask[4:8, 5:30] = mask[20:24, 5:9] = 255
            (root/'ground_truth'/kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root/f'ground_truth/{kind}/{i:03d}_mask.png')


def test_mvtec_layout(tmp_path):
    mvtec(tmp_path/'src')
    data = ingest(ConnectorFactory(FolderSpec(root=tmp_path/'src')), tmp_path/'out')
    assert data.categories == ('dent', 'scratch')
    assert [(r.file_name, r.classes, len(r.annotations)) for r in data.images if r.defective] == [
        ('images/test/dent/000.png', ('dent',), 2), ('images/test/scratch/000.png', ('scratch',), 2),
        ('images/test/scratch/001.png', ('scratch',), 2)]
    assert len({r.part_id for r in data.images}) == 6 and not any(r.weak for r in data.images)
    told = report(tmp_path/'out')
    assert (told['images'], told['skipped'], told['unused']) == (6, [], [])
    assert told['classes'] == {'dent': {'kept': 1, 'left_out': 0}, 'scratch': {'kept': 2, 'left_out': 0}}


def test_mvtec_mask_of_another_size(tmp_path):
    mvtec(tmp_path/'src')
    Image.new('L', (61, 40)).save(tmp_path/'src/ground_truth/scratch/000_mask.png')
    ingest(ConnectorFactory(FolderSpec(root=tmp_path/'src')), tmp_path/'out')
    error = report(tmp_path/'out')['skipped'][0]['error']
    assert (
        error
        == f'{tmp_path}/src/ground_truth/scratch/000_mask.png: mask is 61 x 40 px but its image is 60 x 40 px. Export '
        'the masks at the size of the images'
    )


def test_plain_folders_give_weak_labels(tmp_path):
    src = tmp_path/'src'
    for name in ('OK/a.JPG', 'OK/b.jpg', 'rust/c.jpg', 'rust/d.jpg', 'rust/Thumbs.db'):
        (src/name).parent.mkdir(parents=True, exist_ok=True)
        (src/name).write_bytes(encoded(photo(), 'JPEG') if 'db' not in name else b'x')
    mask = np.zeros((40, 60), np.uint8)
    mask[3:9, 3:9] = 1  # zeros and ones instead of 0 and 255
    Image.fromarray(mask).save(src/'rust/d_mask.png')
    data = ingest(ConnectorFactory(FolderSpec(root=src)), tmp_path/'out')
    assert [(r.defective, r.weak, r.classes) for r in data.images] == [(False, False, ()), (False, False, ()),
        (True, True, ('rust',)), (True, False, ('rust',))]
    notes = report(tmp_path/'out')['notes']
    assert notes[0] == '1 of 2 defective images have no mask: they count for image-level figures only'
    assert notes[-1] == '1 files were not used: 1 hidden, or left by a system'


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match='no images in class folders. Expected train/good'):
        ConnectorFactory(FolderSpec(root=tmp_path))
    with pytest.raises(DataError, match='no MT_<Class> folders'): ConnectorFactory(MagneticTileSpec(root=tmp_path))


# ---- magnetic tiles


def tiles(root, names, groups=None):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        photo(30, 40, seed=len(name)).convert('L').save((root/name).with_suffix('.jpg'))
        mask = np.zeros((30, 40), np.uint8)
        mask[5:9, 6:12] = 128
        mask[9, 6:12] = 127  # antialiased: not part of the defect
        Image.fromarray(mask*('Free' not in name)).save((root/name).with_suffix('.png'))
    if groups:
        (root / 'groups.csv').write_text(
            'file,class,exposure,frame,tile_group\n' + ''.join(f'{k},,,,{g}\n' for k, g in groups.items())
        )


NAMES = ['MT_Break/exp1_num_100', 'MT_Break/exp2_num_590', 'MT_Free/exp3_num_1080', 'MT_Free/exp1_num_1600',
    'MT_Free/odd']


def test_tile_groups(tmp_path):
    tiles(tmp_path, NAMES, {n: i for i, n in enumerate(NAMES)})
    data = ingest(ConnectorFactory(MagneticTileSpec(root=tmp_path)), tmp_path/'out')
    assert [r.part_id for r in data.images] == ['tile-0', 'tile-1', 'tile-3', 'tile-2', 'tile-4']
    assert [r.exposure for r in data.images] == ['exp1', 'exp2', 'exp1', 'exp3', None]
    assert data.images[0].annotations[0].bbox == (6, 5, 6, 4), 'defect is above 127'


def test_tile_groups_inferred_and_said(tmp_path):
    tiles(tmp_path, NAMES)
    c = ConnectorFactory(MagneticTileSpec(root=tmp_path))
    assert c.parts == {NAMES[0]: 'frame-100', NAMES[1]: 'frame-100', NAMES[2]: 'frame-100', NAMES[3]: 'frame-1600',
        NAMES[4]: 'MT_Free/odd'}
    assert c.notes[0].startswith('5 of 5 photographs have no group in groups.csv')


def test_tile_groups_partly_given(tmp_path):
    "One that is not named joins what lies near, and so joins two groups it lies between"
    tiles(tmp_path, NAMES, {NAMES[0]: 1, NAMES[2]: 2, NAMES[3]: 3, NAMES[4]: 4})
    parts = ConnectorFactory(MagneticTileSpec(root=tmp_path)).parts
    assert parts[NAMES[0]] == parts[NAMES[1]] == parts[NAMES[2]] != parts[NAMES[3]] != parts[NAMES[4]]


def test_tile_by_image_is_said_to_leak(tmp_path):
    tiles(tmp_path, NAMES)
    c = ConnectorFactory(MagneticTileSpec(root=tmp_path, group='image'))
    assert len(set(c.parts.values())) == 5 and 'figures are too good' in c.notes[0]


@pytest.mark.shared
@pytest.mark.skipif(not MAGNETIC.is_dir(), reason='magnetic tile photographs are not here (SADS_SHARED)')
def test_magnetic_tile(tmp_path):
    data = ingest(ConnectorFactory(MagneticTileSpec(root=MAGNETIC), seed=0), tmp_path)
    counts = {c: sum(r.classes == (c,) for r in data.images) for c in data.categories}
    assert counts == {'Blowhole': 84, 'Break': 60, 'Crack': 44, 'Fray': 24, 'Uneven': 77}
    assert sum(r.defective is False for r in data.images) == 710
    weak = [r.file_name for r in data.images if r.weak]
    # three masks are empty above 127, one has 1 px and one 3 px: none of them says where
    assert len(weak) == 5 and all(n.startswith('images/MT_Uneven/') for n in weak)
    assert report(tmp_path)['skipped'] == []
    assert len({r.part_id for r in data.images}) == 135
    r = next(r for r in data.images if r.file_name == 'images/MT_Blowhole/exp1_num_108719.jpg')
    mask = np.asarray(Image.open(MAGNETIC/'MT_Blowhole/exp1_num_108719.png')) > 127
    assert (class_map(r, data.categories) == mask).all(), 'Blowhole is class 1'


# ---- synthetic


def test_synthetic_is_deterministic_and_seeded():
    spec = SyntheticSpec(n_parts=8, exposures=2, size=80)
    a, b, c = ([(i, e, im.tobytes(), m.tobytes()) for i, _, e, im, m, _ in render_all(spec, s)] for s in (0, 0, 1))
    assert a == b and a != c
    image, classes, _ = render_part(spec, 5, 1, 0)
    assert (image.tobytes(), classes.tobytes()) == a[5*2 + 1][2:]


def test_synthetic_shows_what_it_says():
    spec = SyntheticSpec(n_parts=30, exposures=2)
    for _, part, _, image, classes, defects in render_all(spec, 7):
        names = {sorted(spec.defects)[k - 1] for k in np.unique(classes) if k}
        assert names == set(part.defects) == {d.category for d in defects}
        for d in defects: assert 20 <= d.mask.sum() < .3*d.mask.size
        assert 15 < image.mean() < 235 and image.std() > 4
        if part.defects: assert (classes > 0).mean() < .35


def test_synthetic_defects_change_the_picture():
    "Beside its mask a defective part looks as if it were good; under it, it does not"
    from sads_jax.data import synthetic as s
    spec = SyntheticSpec(n_parts=24, exposures=1, defective=1.)
    seen = []
    for i, part in enumerate(plan_parts(spec, 2)):
        bad = s._expose(spec, part, s._make(spec, part, i, 2), i, 0, 2)
        good = s._expose(spec, part, s._make(spec, part._replace(defects=()), i, 2), i, 0, 2)[0]
        change = np.abs(bad[0].astype(int) - good).mean(-1)
        seen.append((change[bad[1] > 0].mean(), change[bad[1] == 0].mean()))
    under, beside = np.array(seen).T
    assert np.median(under) > 12 and under.min() > 3, under
    assert beside.max() < 2.5, beside


def test_synthetic_classes_are_balanced():
    parts = plan_parts(SyntheticSpec(), 0)
    counts = [sum(d in p.defects for p in parts) for d in SyntheticSpec().defects]
    assert min(counts) >= 7
    assert sum(not p.defects for p in parts) == 45
    assert all(sum(bool(p.defects) for p in parts if p.surface == s) >= 3 for s in SyntheticSpec().surfaces)


def test_synthetic_size_and_light_do_not_tell():
    "Size, mean and spread alone: no single one separates good from defective parts"
    def auroc(x, y):
        r = np.argsort(np.argsort(x, kind='stable'))
        return (r[y].sum() - y.sum()*(y.sum() - 1)/2)/(y.sum()*(~y).sum())
    rows = [
        (bool(p.defects), *im.shape[:2], im.mean(), im.std())
        for _, p, _, im, _, _ in render_all(SyntheticSpec(exposures=1), 0)
    ]
    y = np.array([r[0] for r in rows])
    for k in range(1, 5): assert .35 < auroc(np.array([r[k] for r in rows]), y) < .65, k


def test_synthetic_bad_fields():
    with pytest.raises((SADSError, ValueError)): ConnectorFactory({'kind': 'synthetic', 'n_parts': 0})
