"What an ingest tells: counts, losses, mended and doubtful labels, duplicates, every file accounted for"
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_formats import KIND, SCENES, cvat, page, photos, studio, yolo

from sads_jax.core.files import sweep
from sads_jax.core.params import parse_params
from sads_jax.data.connectors import ConnectorFactory, check_data, ingest
from sads_jax.data.records import annotate_mask
from sads_jax.data.survey import Hand, Spread, habits

SHARED = Path(os.environ.get('SADS_SHARED', '../shared'))/'data'


def connect(root, kind='folder', **fields):
    return ConnectorFactory(parse_params({'data': {'kind': kind, 'root': str(root)} | fields}, 'test').data, seed=0)

def grey(path, value=90, size=(48, 32), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(value).integers(value, value + 40, size[::-1], np.uint8)
    Image.fromarray(x).save(path, **kw)

def mask(path, box=(10, 8, 20, 16), size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    m = np.zeros(size[::-1], np.uint8)
    m[box[1]:box[3], box[0]:box[2]] = 255
    Image.fromarray(m).save(path)

@pytest.fixture
def folder(tmp_path):
    "Four good photographs and four with rust, of which three have a mask"
    root = tmp_path/'src'
    for i in range(4): grey(root/f'train/good/{i}.png', 20 + i)
    for i in range(4): grey(root/f'test/rust/{i}.jpg', 90 + i, size=(48, 32 + 8*(i == 3)))
    for i in range(3): mask(root/f'ground_truth/rust/{i}_mask.png', (10 + i, 8, 20 + i, 16))
    return root


def test_counts_by_class_size_form_and_source(folder, tmp_path):
    ingest(connect(folder), tmp_path/'out')
    told = json.loads((tmp_path/'out'/'ingest.json').read_text())
    assert told['rows'] == [
        {'class': 'rust', 'photographs': 4, 'outlined': 3, 'boxed': 0, 'no_place': 1, 'labels': 3, 'left_out': 0},
        {'class': 'good', 'photographs': 4, 'outlined': 0, 'boxed': 0, 'no_place': 0, 'labels': 0, 'left_out': 0}]
    assert told['sizes']['most'] == [[48, 32, 7], [48, 40, 1]] and told['sizes']['largest'] == [48, 40]
    assert told['forms'] == {'8-bit grey JPEG': 4, '8-bit grey PNG': 4}
    assert told['sources']['most'] == [['test/rust', 4], ['train/good', 4]] and told['parts'] == 8


def test_the_page_is_whole_and_fetches_nothing(folder, tmp_path):
    (folder/'test/rust/<b>&.jpg').write_bytes((folder/'test/rust/0.jpg').read_bytes())
    ingest(connect(folder), tmp_path/'out')
    text = (tmp_path/'out'/'ingest.html').read_text()
    assert "default-src 'none'" in text and '<b>&.jpg' not in text and '&lt;b&gt;&amp;.jpg' in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert text.count('<svg') == 4 + 5 + 1, 'sheets of two classes, and the one that is there twice'
    outlines = text.count('class="truth"')
    assert outlines == 3, 'the three masks are drawn'


def test_a_check_copies_nothing_and_tells_the_same(folder, tmp_path):
    ingest(connect(folder), tmp_path/'out')
    report, refused = check_data(connect(folder), tmp_path/'check')
    assert refused is None and report == json.loads((tmp_path/'out'/'ingest.json').read_text())
    assert sorted(p.name for p in (tmp_path/'check').iterdir()) == ['.sads-made', 'ingest.html', 'ingest.json']


def test_a_check_tells_what_an_ingest_refuses(folder, tmp_path):
    for i in range(4): (folder/f'test/rust/{i}.jpg').write_bytes(b'no picture')
    report, refused = check_data(connect(folder), tmp_path/'check')
    assert "all photographs of 'rust' would be left out" in refused
    assert report['classes'] == {'rust': {'kept': 0, 'left_out': 4}}
    text = (tmp_path/'check'/'ingest.html').read_text()
    assert 'An ingest would refuse this' in text and '4 × not an image in a known format' in text


def test_notes_of_many_files_are_one_line(folder, tmp_path):
    for i in range(4, 20):
        grey(folder/f'test/rust/{i}.jpg', 90 + i)
        mask(folder/f'ground_truth/rust/{i}_mask.png', (0, 0, 0, 0))
    report, _ = check_data(connect(folder), tmp_path/'check')
    notes = [n for n in report['notes'] if 'less than 4 px' in n]
    assert notes == ['a mask of less than 4 px: the photograph counts as rust without saying where: 16 (10.jpg, '
        '11.jpg, 12.jpg, …)']
    assert report['mended'][0]['count'] == 1 and 'less than 4 px' in report['mended'][0]['what']


def box(name, x, y, w, h, **more): return dict(category_id=name, bbox=[x, y, w, h], **more)

DOUBTS = {
    'a box and its outline lie apart': [box(1, 2, 2, 30, 28, segmentation=[[10, 8, 20, 8, 20, 16, 10, 16]])],
    'a speck: a label of less than 9 px²': [box(1, 5, 5, 2, 3)],
    'a label covers more than 80% of its photograph': [box(1, 0, 0, 48, 30)],
    'the same pit is labelled twice': [box(1, 5, 5, 20, 10), box(1, 5, 5, 20, 10)],
    'pit and stain lie over one another': [box(1, 5, 5, 20, 10), box(2, 6, 6, 18, 8)],
}

@pytest.mark.parametrize('what', DOUBTS)
def test_doubtful_labels_are_named_and_kept(what, tmp_path):
    marks = [dict(m, id=i, image_id=0) for i, m in enumerate(DOUBTS[what])]
    grey(tmp_path/'src/0.png')
    grey(tmp_path/'src/1.png', 30)
    page(tmp_path/'src/annotations.json', dict(annotations=marks,
        images=[dict(id=i, file_name=f'{i}.png', width=48, height=32) for i in range(2)],
        categories=[dict(id=1, name='pit'), dict(id=2, name='stain')]))
    data = ingest(connect(tmp_path/'src', 'coco'), tmp_path/'out')
    lint = json.loads((tmp_path/'out'/'ingest.json').read_text())['lint']
    assert lint == [{'what': what, 'count': 1, 'first': 'images/0.png'}]
    assert len(data.images[0].annotations) == len(marks)


def test_sound_labels_raise_no_doubt(tmp_path):
    for scene in SCENES:
        scene(tmp_path/scene.__name__)
        kind = KIND.get(scene.__name__, scene.__name__)
        report, _ = check_data(connect(tmp_path/scene.__name__, kind), tmp_path/'check')
        assert report['lint'] == [], scene.__name__


def test_a_box_copied_from_photograph_to_photograph(tmp_path):
    marks = [dict(box(1, 5 + (i > 3), 5, 20, 10), id=i, image_id=i) for i in range(5)]
    for i in range(6): grey(tmp_path/f'src/{i}.png', 20 + i)
    page(tmp_path/'src/annotations.json', dict(annotations=marks, categories=[dict(id=1, name='pit')],
        images=[dict(id=i, file_name=f'{i}.png', width=48, height=32) for i in range(6)]))
    report, _ = check_data(connect(tmp_path/'src', 'coco'), tmp_path/'check')
    assert report['lint'] == [{'what': 'the same box on 3 photographs or more', 'count': 2, 'first': 'images/2.png'}]


def test_duplicates_by_pixels_not_by_bytes(folder, tmp_path):
    with Image.open(folder/'train/good/0.png') as im: im.save(folder/'train/good/again.bmp')
    (folder/'train/good/1.png').rename(folder/'test/rust/9.png')
    (folder/'train/good/z.png').write_bytes((folder/'test/rust/9.png').read_bytes())
    report, _ = check_data(connect(folder), tmp_path/'check')
    pairs = [(Path(d['first']).name, Path(d['second']).name, d['same_labels']) for d in report['duplicates']['pairs']]
    assert sorted(pairs) == [('0.png', 'again.bmp', True), ('9.png', 'z.png', False)] or sorted(pairs) == [
        ('0.png', 'again.bmp', True), ('z.png', '9.png', False)]


def test_habits_of_annotators():
    from sads_jax.data.records import ImageRecord
    def hand(n, bad, side):
        h, m = Hand(), np.zeros((60, 80), bool)
        m[:side, :side] = True
        for i in range(n):
            marks = annotate_mask(m, 'pit') if i < bad else ()
            h.add(ImageRecord(i, f'{i}.png', 80, 60, str(i), defective=i < bad, annotations=marks))
        return h
    told = lambda **hands: {r['annotator']: r['doubts'] for r in habits(hands)}
    assert told(a=hand(60, 30, 10), b=hand(60, 31, 10)) == {'a': [], 'b': []}
    many = told(a=hand(60, 55, 10), b=hand(60, 25, 10), c=hand(60, 25, 10))
    assert many['a'] == ['calls 92% of the photographs defective, others 42%']
    wide = told(a=hand(60, 30, 20), b=hand(60, 30, 10))
    assert wide['a'] == ['draws boxes 4.0 times as large as others']
    assert told(a=hand(9, 9, 10), b=hand(60, 0, 10)) == {'a': [], 'b': []}, 'too few to say'


def test_label_studio_names_its_annotators(tmp_path):
    studio(tmp_path)
    tasks = json.loads((tmp_path/'tasks.json').read_text())
    tasks[0]['annotations'][0]['completed_by'] = {'id': 3, 'email': 'anna@example.org'}
    tasks[1]['annotations'][0]['completed_by'] = 4
    page(tmp_path/'tasks.json', tasks)
    assert [s.annotator for s in connect(tmp_path, 'label_studio').records()] == ['anna@example.org', '4', None]


@pytest.mark.parametrize('scene', SCENES, ids=lambda f: f.__name__)
def test_every_offered_file_is_accounted_for(scene, tmp_path):
    "Read, left out, or named with the reason; nothing else"
    src = tmp_path/'src'
    scene(src)
    (src/'notes.docx').write_bytes(b'x')
    (src/'.DS_Store').write_bytes(b'x')
    connector = connect(src, KIND.get(scene.__name__, scene.__name__))
    named = {str(s.path.relative_to(src)) for s in connector.records() if s.path}
    others = dict(connector.unused())
    assert others.pop('notes.docx') == 'not a photograph'
    assert others.pop('.DS_Store') == 'hidden, or left by a system'
    assert not named & set(others)
    assert set(others) <= {'images/c.png', 'c.png', 'shots/c.png'}, 'label files and masks are used'


def test_a_lost_photograph_counts_under_its_class(tmp_path):
    cvat(tmp_path/'cvat')
    (tmp_path/'yolo').mkdir()
    yolo(tmp_path/'yolo')
    assert [s.classes for s in connect(tmp_path/'yolo', 'yolo').records()] == [('pit', 'stain'), (), None]
    assert [s.classes for s in connect(tmp_path/'cvat', 'cvat').records()] == [('pit', 'stain'), ()]


def test_bits_of_16_bit_photographs_are_stated_for_tools(tmp_path):
    photos(tmp_path/'images', 'b.png')
    Image.fromarray(np.arange(80*60, dtype=np.uint16).reshape(60, 80) % 4096).save(tmp_path/'images/a.png')
    page(tmp_path/'labels/a.txt', '0 .5 .5 .2 .2\n')
    page(tmp_path/'labels/b.txt', '')
    page(tmp_path/'data.yaml', 'names: {0: pit}\n')
    report, _ = check_data(connect(tmp_path, 'yolo', bits=12), tmp_path.parent/'check')
    assert report['white'] == 4095 and report['forms'] == {'16-bit grey PNG': 1, '8-bit grey PNG': 1}


def test_voc_reads_parts_csv(tmp_path):
    for name in 'ab': grey(tmp_path/f'JPEGImages/{name}.jpg', ord(name))
    one = ('<annotation><object><name>pit</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax>'
        '</bndbox></object></annotation>')
    page(tmp_path/'Annotations/a.xml', one)
    page(tmp_path/'Annotations/b.xml', '<annotation/>')
    page(tmp_path/'parts.csv', 'path,part_id,lot,exposure\nJPEGImages/a.jpg,P7,L1,e2\n')
    a, b = (s.load()[1] for s in connect(tmp_path, 'voc').records())
    assert (a.part_id, a.lot, a.exposure) == ('P7', 'L1', 'e2') and (b.part_id, b.lot) == ('b', None)


@pytest.mark.parametrize('n', [0, 1, 7, 8, 9, 1000])
def test_a_spread_is_bounded_and_even(n):
    some = Spread(4)
    for i in range(n): some.offer(lambda i=i: i)
    found = list(some)
    assert len(found) == min(n, 4) and len(some.kept) < 8 and found == sorted(set(found))
    if n == 1000: assert found[-1] >= n//2


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED/'neu_steel').is_dir(), reason='steel photographs are not here (SADS_SHARED)')
def test_counts_of_the_steel_photographs_are_those_of_its_readme(tmp_path):
    fields = dict(images='images', annotations='annotations_voc', masks='masks_sd900')
    connector = connect(SHARED/'neu_steel', 'voc', **fields)
    by_name = [re.sub(r'_\d+\.jpg$', '', p.name) for p in connector.files]
    assert len(by_name) == 1800 and all(by_name.count(c) == 300 for c in connector.categories)
    assert connector.unused() == []


KILLED = '''
import os, signal, sys
from sads_jax.data.connectors import ConnectorFactory, ingest
def dies(items, description, total):
    for i, x in enumerate(items):
        if i == total//2: os.kill(os.getpid(), signal.SIGKILL)
        yield x
ingest(ConnectorFactory({'kind': 'folder', 'root': sys.argv[1]}), sys.argv[2], dies)
'''

def test_after_kill_nothing_is_lost_or_there_twice(folder, tmp_path):
    ended = subprocess.run([sys.executable, '-c', KILLED, str(folder), str(tmp_path/'line/out')], capture_output=True)
    assert ended.returncode == -signal.SIGKILL and not (tmp_path/'line/out').exists()
    assert len(sweep(tmp_path/'line')) == 1, 'what the killed process had written'
    data = ingest(connect(folder), tmp_path/'line/out')
    fresh = ingest(connect(folder), tmp_path/'fresh')
    assert data.images == fresh.images and len({r.file_name for r in data.images}) == 8
    assert [p.name for p in (tmp_path/'line').iterdir()] == ['out']
