"Formats of labelling tools and public sets: files written by hand, what each reader refuses, round trips through COCO"
import base64
import json
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely import box as rectangle
from shapely.affinity import rotate, scale
from shapely.geometry import Point, Polygon

from sads_jax.cli.main import main
from sads_jax.core.errors import DataError, SADSError
from sads_jax.core.params import CocoSpec, SyntheticSpec, parse_params
from sads_jax.data.connectors import ConnectorFactory, check_data, ingest
from sads_jax.data.recognise import recognise
from sads_jax.data.records import Annotation, ImageRecord, InspectionData, instance_masks, read_coco, write_coco
from sads_jax.data.shapes import Frame, box_mark, clip_ring, ellipse_ring, polygon_mark, runs_mask, turned_box
from sads_jax.data.sources import Tally
from sads_jax.data.tools import brush_mask, brush_rle
from sads_jax.data.writers import WRITERS, export_data, mask_rings, one_ring

W, H = 80, 60
PIT, STAIN = (4, 2, 9, 8), [(20, 10), (40, 10), (40, 30), (20, 30)]  # x1 y1 x2 y2; corners, 20 x 20 px


# -- One scene in every format: a.png has a pit and a stain, b.png is good, c.png was judged by nobody

def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (W, H), 99).save(path)

def photos(folder, *names):
    for n in names or ('a.png', 'b.png', 'c.png'): photo(folder/n)

def page(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))

def png(mask):
    out = BytesIO()
    Image.fromarray(mask.astype(np.uint8)*255).save(out, 'PNG')
    return out.getvalue()

def yolo(d):
    photos(d/'images')
    page(d/'data.yaml', 'names: {0: pit, 1: stain}\nnc: 2\ntrain: images\n')
    x1, y1, x2, y2 = PIT
    corners = ' '.join(f'{x/W} {y/H}' for x, y in STAIN)
    page(d/'labels'/'a.txt', f'0 {(x1+x2)/2/W} {(y1+y2)/2/H} {(x2-x1)/W} {(y2-y1)/H}\n1 {corners}\n')
    page(d/'labels'/'b.txt', '')

def labelme(d):
    photos(d)
    head = dict(version='5.5.0', flags={}, imageHeight=H, imageWidth=W, imageData=None)
    page(d/'a.json', head | dict(imagePath='a.png', shapes=[
        dict(label='pit', shape_type='rectangle', points=[[9, 8], [4, 2]]),
        dict(label='stain', shape_type='mask', points=[[20, 10], [39, 29]], mask=base64.b64encode(
            png(np.ones((20, 20), bool))).decode())]))
    page(d/'b.json', head | dict(imagePath='b.png', shapes=[]))

def cvat(d):
    photos(d/'images', 'a.png', 'b.png')
    page(d/'annotations.xml', f'''<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
        <image id="0" name="a.png" width="{W}" height="{H}"><box label="pit" xtl="4.0" ytl="2" xbr="9" ybr="8"/>
        <mask label="stain" rle="0, 400" left="20" top="10" width="20" height="20"/></image>
        <image id="1" name="b.png" width="{W}" height="{H}"/></annotations>''')

def studio(d, small=False):
    photos(d)
    size = dict(original_width=W, original_height=H)
    pit = dict(x=400/W, y=200/H, width=500/W, height=600/H, rotation=0, rectanglelabels=['pit'])
    stain = dict(points=[[100*x/W, 100*y/H] for x, y in STAIN], polygonlabels=['stain'])
    if small:
        page(d/'min.json', [dict(image='/data/upload/1/0a1b2c3d-a.png', id=1, annotator=1, annotation_id=4,
            label=[pit | size, stain | size]), dict(image='b.png', id=2, annotation_id=5, choice='OK')])
        (d/'c.png').unlink()
        return
    done = [dict(type='rectanglelabels', value=pit) | size, dict(type='polygonlabels', value=stain) | size]
    page(d/'tasks.json', [
        dict(id=1, data=dict(image='/data/upload/1/0a1b2c3d-a.png'), annotations=[dict(result=done)]),
        dict(id=2, data=dict(image='/data/local-files/?d=shots%2Fb.png'), annotations=[dict(result=[])]),
        dict(id=3, data=dict(image='c.png'), annotations=[dict(result=done, was_cancelled=True)])])

def via(d):
    photos(d, 'a.png', 'b.png')
    xs, ys = zip(*STAIN)
    shapes = dict(name='rect', x=4, y=2, width=5, height=6), dict(name='polygon', all_points_x=xs, all_points_y=ys)
    regions = [dict(shape_attributes=s, region_attributes=dict(kind=k)) for s, k in zip(shapes, ('pit', 'stain'))]
    page(d/'via.json', {'_via_img_metadata': {'a.png123': dict(filename='a.png', size=123, regions=regions),
        'b.png1': dict(filename='b.png', size=1, regions=[])}})

def supervisely(d):
    photos(d/'ds'/'img', 'a.png', 'b.png')
    packed = base64.b64encode(zlib.compress(png(np.ones((20, 20), bool)))).decode()
    page(d/'ds'/'ann'/'a.png.json', dict(size=dict(height=H, width=W), tags=[], objects=[
        dict(classTitle='pit', geometryType='rectangle', points=dict(exterior=[[4, 2], [8, 7]], interior=[])),
        dict(classTitle='stain', geometryType='bitmap', bitmap=dict(data=packed, origin=[20, 10]))]))
    page(d/'ds'/'ann'/'b.png.json', dict(size=dict(height=H, width=W), tags=[], objects=[]))

def datumaro(d):
    photos(d/'images'/'train', 'a.png', 'b.png')
    marks = [dict(id=0, type='bbox', label_id=0, bbox=[4, 2, 5, 6]),
        dict(id=1, type='polygon', label_id=1, points=[v for p in STAIN for v in p])]
    items = [dict(id=n, annotations=m, image=dict(path=f'{n}.png', size=[H, W])) for n, m in (('a', marks), ('b', []))]
    page(d/'annotations'/'train.json', dict(info={}, items=items,
        categories=dict(label=dict(labels=[dict(name='pit', parent=''), dict(name='stain', parent='')]))))

def manifest(d):
    photos(d/'shots')
    pit, stain = np.zeros((2, H, W), bool)
    pit[2:8, 4:9] = stain[10:30, 20:40] = True
    for name, m in (('pit', pit), ('stain', stain)):
        (d/f'{name}_mask.png').write_bytes(png(m))
    page(d/'manifest.csv', 'path,label,mask\nshots/a.png,pit,pit_mask.png\nshots/a.png,stain,stain_mask.png\n'
        'shots/b.png,good,\nshots/c.png,,\n')

def rle_csv(d):
    photos(d/'train_images', 'a.png', 'b.png')
    runs = lambda x1, y1, x2, y2: ' '.join(f'{x*H + y1 + 1} {y2 - y1}' for x in range(x1, x2))
    page(d/'train.csv', f'ImageId,ClassId,EncodedPixels\na.png,pit,{runs(*PIT)}\na.png,stain,{runs(20, 10, 40, 30)}\n')

SCENES = [yolo, labelme, cvat, studio, via, supervisely, datumaro, manifest, rle_csv]
KIND = {'studio': 'label_studio'}

def connect(d, kind, **fields):
    return ConnectorFactory(parse_params({'data': {'kind': kind, 'root': str(d)} | fields}, 'test').data, seed=0)

def verdicts(d, kind, **fields): return [s.load()[1].defective for s in connect(d, kind, **fields).records()]

@pytest.mark.parametrize('scene', SCENES, ids=lambda f: f.__name__)
def test_every_format_says_the_same_of_the_same_scene(scene, tmp_path):
    scene(tmp_path/'src')
    data = ingest(connect(tmp_path/'src', KIND.get(scene.__name__, scene.__name__)), tmp_path/'out')
    assert data.categories == ('pit', 'stain')
    by_name = {r.file_name[-5:]: r for r in data.images}
    assert by_name['b.png'].defective is False
    assert 'c.png' not in by_name or by_name['c.png'].defective is None
    a = by_name['a.png']
    found = {m.category: (m, mask) for m, mask in zip(a.annotations, instance_masks(a))}
    assert a.defective and set(found) == {'pit', 'stain'} and len(a.annotations) == 2
    assert found['pit'][0].box == pytest.approx(PIT) and found['stain'][0].box == pytest.approx((20, 10, 40, 30))
    truth = np.zeros((2, H, W), bool)
    truth[0, 2:8, 4:9] = truth[1, 10:30, 20:40] = True
    assert (found['pit'][1] == truth[0]).all() and (found['stain'][1] == truth[1]).all()

def test_the_small_form_of_label_studio(tmp_path):
    studio(tmp_path, small=True)
    a, b = (s.load()[1] for s in connect(tmp_path, 'label_studio').records())
    assert a.classes == ('pit', 'stain') and a.annotations[0].box == pytest.approx(PIT)
    assert b.defective is False


def choice(control, value, **more): return dict(type='choices', from_name=control, value=dict(choices=[value])) | more

def test_choices_are_classes_only_where_they_speak_of_the_photograph(tmp_path):
    photos(tmp_path, 'a.png')
    region = dict(id='r1', type='rectanglelabels', from_name='box', value=dict(x=5, y=5, width=9, height=9,
        rectanglelabels=['pit']))
    results = [region, choice('severity', 'major', id='r1')]
    task = dict(id=1, data=dict(image='a.png'), annotations=[dict(result=results)])
    page(tmp_path/'tasks.json', [task])
    connector = connect(tmp_path, 'label_studio')
    assert next(connector.records()).load()[1].classes == ('pit',) and 'choices of a region' in connector.notes[-1]
    results += [choice('verdict', 'bad', id='c1'), choice('shift', 'night', id='c2')]
    page(tmp_path/'tasks.json', [task])
    with pytest.raises(DataError, match='choices of shift, verdict'): connect(tmp_path, 'label_studio')
    assert next(connect(tmp_path, 'label_studio', choices='verdict').records()).load()[1].classes == ('bad', 'pit')


# -- What each reader refuses, and what it says

def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

REFUSED = [
    (yolo, 'labels/a.txt', '0 0.0', '7 0.0', 'a.txt, line 1: class 7 has no name'),
    (yolo, 'labels/a.txt', '0 0.0', '0 nan 0.0', "a.txt, line 1: a share is 'nan'"),
    (yolo, 'labels/a.txt', '1 0.25', '1 25', 'a.txt, line 2: 25 is no share of the photograph'),
    (yolo, 'labels/a.txt', '1 0.25', 'one 0.25', "line 2: the class number is 'one'"),
    (labelme, 'a.json', '"imageHeight": 60', '"imageHeight": 61', 'the labels are for 80 x 61 px but the photo'),
    (labelme, 'a.json', '[9, 8]', '[9, NaN]', "a.json, shapes[0]: a coordinate is 'nan'"),
    (labelme, 'a.json', '[39, 29]', '[39, 28]', 'the mask is 20 x 20 px, its box 20 x 19 px'),
    (labelme, 'a.json', '"rectangle"', '"cuboid"', "shape_type 'cuboid' is not known"),
    (cvat, 'annotations.xml', 'xtl="4.0"', 'xtl="1e9"', 'image[0] a.png, box[0]: coordinate 1e+09 lies far outside'),
    (cvat, 'annotations.xml', 'rle="0, 400"', 'rle="0, 399"', 'mask[1]: run lengths add up to 399 px'),
    (cvat, 'annotations.xml', 'rle="0, 400"', 'rle="0, -1, 401"', 'a run length is -1, not a whole number'),
    (cvat, 'annotations.xml', 'left="20"', 'left="70"', 'reaches beyond 80 x 60 px'),
    (cvat, 'annotations.xml', '<box ', '<cuboid ', 'a <cuboid> is not known'),
    (studio, 'tasks.json', '"original_width": 80', '"original_width": 60', 'result[0]: the labels are for 60 x 60 px'),
    (studio, 'tasks.json', '["pit"]', '[]', 'a region without a class'),
    (studio, 'tasks.json', '"width": 6.25', '"width": null', "width is 'None', not a finite number"),
    (via, 'via.json', '"width": 5', '"width": -5', "the box of 'pit' (4, 2) to (-1, 8) has no area"),
    (via, 'via.json', '"all_points_x": [20, ', '"all_points_x": [', '3 x but 4 y'),
    (supervisely, 'ds/ann/a.png.json', '"origin": [20, 10]', '"origin": [70, 10]', 'reaches beyond'),
    (supervisely, 'ds/ann/a.png.json', '"data": "eJ', '"data": "eK', 'a mask cannot be unpacked'),
    (datumaro, 'annotations/train.json', '"label_id": 1', '"label_id": 2', 'label_id 2 has no name'),
    (datumaro, 'annotations/train.json', '"bbox": [4, 2, 5, 6]', '"bbox": [4, 2, 5]', 'a box of 3 numbers'),
    (rle_csv, 'train.csv', 'pit,243 6', 'pit,243 6 243 6', 'row 2: the run from pixel 243 begins before'),
    (rle_csv, 'train.csv', 'pit,243 6', 'pit,243', '9 numbers are no pairs'),
    (manifest, 'manifest.csv', 'pit_mask.png', 'lost.png', "mask 'lost.png' is not there"),
]

@pytest.mark.parametrize('scene, file, old, new, what', REFUSED, ids=lambda v: getattr(v, '__name__', None))
def test_what_could_be_misread_costs_one_photograph_and_is_named(scene, file, old, new, what, tmp_path):
    "`old` becomes `new` in the label file"
    scene(tmp_path/'src')
    edit(tmp_path/'src'/file, old, new)
    told, refused = check_data(connect(tmp_path/'src', KIND.get(scene.__name__, scene.__name__)), tmp_path/'out')
    assert [what in x['error'] for x in told['skipped']] == [True], told['skipped']
    assert refused and 'all photographs of ' in refused and what in refused, 'the only one of its class is lost'

WHOLE = [
    (yolo, 'data.yaml', 'names: {0: pit, 1: stain}', 'names: [pit, pit]', "class 'pit' is there twice"),
    (via, 'via.json', '"kind": "stain"', '"sort": "stain"', 'regions have the attributes kind, sort'),
    (manifest, 'manifest.csv', 'path,label', 'file,label', 'no column path. It has file, label, mask'),
    (manifest, 'manifest.csv', 'shots/b.png,good', 'shots/b.png,good\nshots/b.png,pit', 'fields under'),
    (cvat, 'annotations.xml', '</annotations>', '<track/></annotations>', 'holds tracks of a video'),
]

@pytest.mark.parametrize('scene, file, old, new, what', WHOLE, ids=lambda v: getattr(v, '__name__', None))
def test_what_concerns_all_photographs_stops_the_ingest(scene, file, old, new, what, tmp_path):
    scene(tmp_path)
    edit(tmp_path/file, old, new)
    with pytest.raises(DataError, match=what): connect(tmp_path, scene.__name__)

@pytest.mark.parametrize('kind', ['yolo', 'labelme', 'cvat', 'label_studio', 'via', 'supervisely', 'datumaro',
    'manifest', 'rle_csv', 'mvtec_loco', 'visa', 'kolektor', 'dagm', 'elpv'])
def test_a_folder_without_it_is_refused_with_a_remedy(kind, tmp_path):
    photos(tmp_path)
    with pytest.raises(DataError) as e: connect(tmp_path, kind)
    assert e.value.remedy and e.value.where
    with pytest.raises(DataError, match='no such f|no folder'): connect(tmp_path/'absent', kind)

def test_yolo_lists_say_what_is_background(tmp_path):
    yolo(tmp_path)
    assert verdicts(tmp_path, 'yolo') == [True, False, None]
    assert verdicts(tmp_path, 'yolo', unlabelled='good') == [True, False, False]
    edit(tmp_path/'data.yaml', 'train: images', 'train: train.txt')
    page(tmp_path/'train.txt', './images/a.png\n./images/c.png\n')
    assert verdicts(tmp_path, 'yolo') == [True, False, False]

def test_parts_come_from_their_own_file(tmp_path):
    yolo(tmp_path)
    page(tmp_path/'parts.csv', 'path,part_id,lot,exposure\nimages/a.png,A7,L1,e1\nimages/b.png,A7,L1,e2\n')
    records = [s.load()[1] for s in connect(tmp_path, 'yolo').records()]
    known = [(r.part_id, r.lot, r.exposure) for r in records]
    assert known == [('A7', 'L1', 'e1'), ('A7', 'L1', 'e2'), ('images/c', None, None)]

def test_labelme_takes_the_photograph_from_its_json(tmp_path):
    labelme(tmp_path)
    data = base64.b64encode((tmp_path/'a.png').read_bytes()).decode()
    edit(tmp_path/'a.json', '"imageData": null', f'"imageData": "{data}"')
    (tmp_path/'a.png').unlink()
    content, record = next(connect(tmp_path, 'labelme').records()).load()
    assert base64.b64encode(content).decode() == data and len(record.annotations) == 2


# -- Shapes against shapely

coordinate = st.floats(-100, 180, allow_nan=False)

@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=3))
def test_a_clipped_triangle_has_the_area_that_shapely_says(points):
    ring = clip_ring(np.array(points), W, H)
    theirs = Polygon(points).intersection(rectangle(0, 0, W, H)).area
    assert (Polygon(ring).area if len(ring) > 2 else 0) == pytest.approx(theirs, abs=1e-6)

@given(st.floats(-720, 720), st.floats(1, 20), st.floats(1, 20))
def test_turned_shapes_are_shapelys(degrees, w, h):
    # shapely turns from x towards y, which is clockwise where y points down
    box = rotate(rectangle(30, 20, 30 + w, 20 + h), degrees)
    assert Polygon(turned_box(30, 20, w, h, degrees)).symmetric_difference(box).area < 1e-6
    about = rotate(rectangle(30, 20, 30 + w, 20 + h), degrees, origin=(30, 20))
    assert Polygon(turned_box(30, 20, w, h, degrees, (30, 20))).symmetric_difference(about).area < 1e-6
    ellipse = rotate(scale(Point(40, 30).buffer(1, quad_segs=64), w, h), degrees)
    assert Polygon(ellipse_ring(40, 30, w, h, degrees)).symmetric_difference(ellipse).area < .01*ellipse.area

@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40), st.floats(.05, .95))
@settings(deadline=None)
def test_outlines_and_strokes_lose_no_pixel(seed, h, w, share):
    mask = np.random.default_rng(seed).random((h, w)) < share
    assert (brush_mask(brush_rle(mask), h, w, 'x') == mask).all()
    if not mask.any(): return
    ring = one_ring(mask_rings(mask))
    made = polygon_mark('pit', [ring], Frame(h, w, 'x', Tally()))
    record = ImageRecord(1, 'a.png', w, h, 'a', annotations=(made,))
    assert (instance_masks(record)[0] == mask).all()

anything = st.recursive(st.none() | st.booleans() | st.floats() | st.integers(-10**9, 10**9) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6)

@settings(max_examples=200)
@given(anything, anything, anything, anything)
def test_no_number_reaches_c_unchecked(a, b, c, d):
    frame = Frame(H, W, 'x', Tally())
    for make in (lambda: box_mark('pit', a, b, c, d, frame),
            lambda: polygon_mark('pit', [[(a, b), (c, d), (b, a)]], frame),
            lambda: runs_mask([a, b, c, d], H, W, 'x'), lambda: brush_mask([a, b, c, d], H, W, 'x')):
        try: make()
        except SADSError: pass

@pytest.mark.parametrize('scene', SCENES[1:7], ids=lambda f: f.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_broken_label_file_ends_in_one_of_our_errors(scene, data, tmp_path_factory):
    "Bytes are replaced and cut; whatever remains is read, or refused by a `SADSError`"
    d = tmp_path_factory.mktemp('fuzz')
    scene(d)
    files = sorted(p for p in d.rglob('*') if p.suffix in ('.json', '.xml', '.txt', '.csv'))
    path = data.draw(st.sampled_from(files))
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        if not text: break
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from(b'0-9e{}[],:"<>/ax\x00\xff '))
    path.write_bytes(text[:data.draw(st.integers(len(text)//2, len(text)))])
    try:
        for s in connect(d, KIND.get(scene.__name__, scene.__name__)).records():
            try: s.load()
            except SADSError: continue
    except SADSError: pass


# -- Out and in again

@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "Synthetic parts with masks; of one a box only, one weakly labelled, one that nobody judged"
    d = tmp_path_factory.mktemp('first')
    data = ingest(ConnectorFactory(SyntheticSpec(n_parts=9, exposures=2, size=72), seed=5), d)
    images = list(data.images)
    bad = [i for i, r in enumerate(images) if r.annotations]
    boxes = tuple(Annotation(a.category, a.bbox, None, a.bbox[2]*a.bbox[3]) for a in images[bad[0]].annotations)
    images[bad[0]] = replace(images[bad[0]], annotations=boxes)
    images[bad[1]] = replace(images[bad[1]], annotations=())
    good = next(i for i, r in enumerate(images) if r.defective is False)
    images[good] = replace(images[good], defective=None)
    write_coco(InspectionData(d, data.categories, tuple(images)), d)
    return read_coco(d)

BACK = {'coco': {}, 'cvat': {}, 'label_studio': {}, 'labelme': {}, 'yolo': {}, 'voc': {'masks': 'masks'}}

@pytest.mark.parametrize('kind', WRITERS)
def test_round_trip(kind, first, tmp_path):
    remarks = export_data(first, tmp_path/'there', kind)
    spec = CocoSpec(root=tmp_path/'there') if kind == 'coco' else None
    data = ingest(ConnectorFactory(spec) if spec else connect(tmp_path/'there', kind, **BACK[kind]), tmp_path/'back')
    name = lambda r: r.file_name.removeprefix('images/').removeprefix('images/')
    again, silent = {name(r): r for r in data.images}, 0
    for r in first.images:
        b = again.get(name(r))
        if b is None or (b.defective is None and r.defective is not None):
            assert r.defective is None and kind == 'cvat' or r.weak and kind in ('voc', 'yolo')
            silent += 1
            continue
        assert b.defective == r.defective and b.classes == r.classes
        if kind != 'voc': assert (b.part_id, b.lot, b.exposure) == (r.part_id, r.lot, r.exposure)
        key = lambda a: (a.category, *np.round(a.box))
        mine, theirs = (sorted(zip(x.annotations, instance_masks(x)), key=lambda am: key(am[0])) for x in (r, b))
        assert [a.category for a, _ in mine] == [a.category for a, _ in theirs]
        for (a, m), (c, n) in zip(mine, theirs):
            assert np.abs(np.subtract(a.box, c.box)).max() <= 1
            if kind != 'voc': assert (m & n).sum() >= .999*(m | n).sum()
    assert silent == {'cvat': 1, 'voc': 1, 'yolo': 1}.get(kind, 0)
    assert (silent == 0) or any('nobody judged' in x or 'without a place' in x for x in remarks)
    if kind == 'coco':
        one, two = (min(x.images, key=name).annotations for x in (data, first))
        assert one == two

def test_the_same_data_gives_the_same_bytes(first, tmp_path):
    for kind in WRITERS:
        for to in ('one', 'two'): export_data(first, tmp_path/to/kind, kind)
    files = [p.relative_to(tmp_path/'one') for p in (tmp_path/'one').rglob('*') if p.is_file()]
    assert len(files) > 6*18 and all((tmp_path/'one'/f).read_bytes() == (tmp_path/'two'/f).read_bytes() for f in files)

def test_export_from_the_command_line(first, tmp_path, capsys):
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'dataset').symlink_to(first.root)
    with pytest.raises(SystemExit) as e:
        main(['data', 'export', '--format', 'yolo', '--out', str(tmp_path/'o'), '--workdir', str(tmp_path)])
    out, err = capsys.readouterr()
    assert e.value.code == 0 and out.startswith('18 photographs') and 'photographs that nobody judged' in err
    with pytest.raises(SystemExit) as e:
        main(['data', 'export', '--format', 'pdf', '--out', str(tmp_path/'p'), '--workdir', str(tmp_path)])
    assert e.value.code == 1 and "no format 'pdf'. Formats are coco, cvat" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(['data', 'export', '--help'])
    assert '  sads data export' in capsys.readouterr().out.partition('Examples:')[2]


# -- Layouts of public sets

def picture(path, mask=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.zeros((H, W), np.uint8) if mask is None else mask.astype(np.uint8)
    Image.fromarray(x).save(path)

SPOT = np.zeros((H, W), int)
SPOT[10:14, 20:26] = 3  # whatever is not background

def loco(d):
    for n in ('train/good', 'validation/good', 'test/good', 'test/logical_anomalies'): picture(d/n/'000.png')
    picture(d/'ground_truth/logical_anomalies/000/000.png', SPOT)

def ad2(d):
    for n in ('train/good/000_regular', 'test_public/good/000_regular', 'test_public/bad/001_regular',
            'test_public/bad/001_overexposed', 'test_private/000_regular'): picture(d/f'{n}.png')
    for light in ('regular', 'overexposed'): picture(d/f'test_public/ground_truth/bad/001_{light}_mask.png', SPOT)

def visa(d):
    for n in ('Normal/0', 'Normal/1', 'Anomaly/0'): picture(d/f'Data/Images/{n}.png')
    picture(d/'Data/Masks/Anomaly/0.png', SPOT)
    page(d/'image_anno.csv', 'image,label,mask\ncandle/Data/Images/Anomaly/0.png,"melt,chip",x\n')

def sdd(d):
    for n in ('kos01/Part0', 'kos01/Part1', 'kos02/Part0'):
        picture(d/f'{n}.png')
        picture(d/f'{n}_label.bmp', SPOT if n == 'kos01/Part1' else None)

def sdd2(d):
    for n in ('train/10000', 'train/10001', 'test/20000'):
        picture(d/f'{n}.png')
        picture(d/f'{n}_GT.png', SPOT if n == 'train/10001' else None)

def dagm(d):
    for n in ('Train/0001', 'Train/0002', 'Test/0001'): picture(d/'Class1'/f'{n}.PNG')
    (d/'Class1/Test/Label').mkdir()
    picture(d/'Class1/Train/Label/0002_label.PNG', SPOT)

LAYOUTS = [(loco, 'mvtec_loco', 4, 'logical_anomalies'), (ad2, 'mvtec_loco', 5, 'bad'), (visa, 'visa', 3, 'anomaly'),
    (sdd, 'kolektor', 3, 'defect'), (sdd2, 'kolektor', 3, 'defect'), (dagm, 'dagm', 3, 'Class1')]

@pytest.mark.parametrize('make, kind, count, category', LAYOUTS, ids=lambda v: getattr(v, '__name__', None))
def test_public_layouts(make, kind, count, category, tmp_path):
    make(tmp_path/'src')
    data = ingest(connect(tmp_path/'src', kind), tmp_path/'out')
    assert len(data) == count and data.categories == (category,)
    bad = [r for r in data.images if r.defective]
    assert len(bad) == (2 if make is ad2 else 1) and all((instance_masks(r)[0] == (SPOT > 0)).all() for r in bad)
    if make is ad2:
        assert {r.part_id for r in bad} == {'test_public-bad-001'}
        assert {r.exposure for r in bad} == {'regular', 'overexposed'}
        assert [r.defective for r in data.images if 'private' in r.file_name] == [None]
    if make is sdd: assert [r.part_id for r in data.images] == ['kos01', 'kos01', 'kos02']
    if make is visa:
        assert connect(tmp_path/'src', 'visa', classes='label').categories == ('chip+melt',)

def test_solar_cells(tmp_path):
    for i in range(4): picture(tmp_path/f'images/cell000{i}.png')
    rows = (f'images/cell000{i}.png {p} mono\n' for i, p in enumerate((0, '.3333', '.6667', 1)))
    page(tmp_path/'labels.csv', ''.join(rows))
    assert verdicts(tmp_path, 'elpv') == [False, None, True, True]
    assert verdicts(tmp_path, 'elpv', defective_from=.9) == [False, None, None, True]

def test_a_mask_of_another_size_costs_its_photograph(tmp_path):
    loco(tmp_path/'src')
    Image.new('L', (W, H + 1), 255).save(tmp_path/'src/ground_truth/logical_anomalies/000/000.png')
    told, refused = check_data(connect(tmp_path/'src', 'mvtec_loco'), tmp_path/'out')
    assert 'mask is 80 x 61 px, the photograph 80 x 60 px' in told['skipped'][0]['error']
    assert "'logical_anomalies' would be left out" in refused, 'it was the only one'



# -- Recognised without a word

@pytest.mark.parametrize('make, kind', [(yolo, 'yolo'), (labelme, 'labelme'), (cvat, 'cvat'), (studio, 'label_studio'),
    (via, 'via'), (supervisely, 'supervisely'), (datumaro, 'datumaro'), (manifest, 'manifest'), (rle_csv, 'rle_csv'),
    *((make, kind) for make, kind, *_ in LAYOUTS)], ids=lambda v: getattr(v, '__name__', None))
def test_a_folder_is_recognised_and_can_be_read_as_what_it_is(make, kind, tmp_path):
    make(tmp_path)
    first = recognise(tmp_path)[0]
    assert first.kind == kind
    fields = {k: str(v) for k, v in first.fields.items()}
    assert len(ConnectorFactory(parse_params({'data': {'kind': kind} | fields}, 'test').data, seed=0)) >= 2


def test_an_export_of_photographs_below_images_is_found_by_readers_of_yolo(tmp_path):
    "They look for labels/ in the place of the last images/ of a path"
    record = ImageRecord(1, 'images/images/a.png', 40, 30, 'a', defective=False)
    (tmp_path/'in'/'images'/'images').mkdir(parents=True)
    Image.new('RGB', (40, 30), 'grey').save(tmp_path/'in'/record.file_name)
    export_data(InspectionData(tmp_path/'in', ('pit',), (record,)), tmp_path/'out', 'yolo')
    assert (tmp_path/'out'/'images'/'a.png').is_file() and (tmp_path/'out'/'labels'/'a.txt').is_file()
