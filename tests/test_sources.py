"Clips, addresses and databases: what is taken, as which part, and what a reader is told where it fails"
import functools
import http.server
import json
import sqlite3
import threading
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sads_jax.core.errors import DataError, ParamsError
from sads_jax.core.params import parse_params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.remote import layout_of_names, without_password


def connect(kind, **fields):
    return ConnectorFactory(parse_params({'data': {'kind': kind} | fields}, 'test').data, seed=0)

def picture(seed, size=(48, 32)):
    out = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size[::-1], np.uint8)).save(out, 'PNG')
    return out.getvalue()

def white(box, size=(48, 32)):
    m, out = np.zeros(size[::-1], np.uint8), BytesIO()
    m[box[1]:box[3], box[0]:box[2]] = 255
    Image.fromarray(m).save(out, 'PNG')
    return out.getvalue()

FILES = {f'train/good/{i}.png': picture(i) for i in range(3)} | {f'test/pit/{i}.png': picture(9 + i) for i in range(2)}
FILES |= {'ground_truth/pit/0_mask.png': white((4, 2, 9, 8)), 'readme.txt': b'x', '__MACOSX/a.png': b'x'}

def written(root):
    for name, content in FILES.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)
    return root


# -- Addresses

@pytest.fixture(params=['zip', 'memory', 'http', 'file'])
def address(request, tmp_path):
    "The same files in an archive, in memory, behind a server and on the disk"
    if request.param == 'zip':
        with zipfile.ZipFile(tmp_path/'line.zip', 'w') as z:
            for name, content in FILES.items(): z.writestr(name, content)
        yield f'zip://::file://{tmp_path}/line.zip'
    elif request.param == 'memory':
        import fsspec
        memory = fsspec.filesystem('memory')
        for name, content in FILES.items(): memory.pipe(f'/{tmp_path.name}/{name}', content)
        yield f'memory://{tmp_path.name}'
        memory.rm(f'/{tmp_path.name}', recursive=True)
    elif request.param == 'file': yield f'file://{written(tmp_path/"src")}'
    else:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args): pass
        make = functools.partial(Quiet, directory=str(written(tmp_path/'src')))
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), make)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

def test_the_same_data_set_from_any_address(address, tmp_path):
    data = ingest(connect('url', root=address), tmp_path/'out')
    assert [(r.file_name, r.classes, len(r.annotations)) for r in data.images] == [
        ('images/test/pit/0.png', ('pit',), 1), ('images/test/pit/1.png', ('pit',), 0),
        *((f'images/train/good/{i}.png', (), 0) for i in range(3))]
    assert data.images[0].annotations[0].bbox == (4, 2, 5, 6)
    for r in data.images: assert data.path(r).read_bytes() == FILES[r.file_name.removeprefix('images/')]
    told = json.loads((tmp_path/'out'/'ingest.json').read_text())
    assert {u['file']: u['reason'] for u in told['unused']} == {'readme.txt': 'not a photograph',
        '__MACOSX/a.png': 'hidden, or left by a system'}

def test_each_photograph_is_fetched_once(tmp_path):
    import fsspec
    memory = fsspec.filesystem('memory')
    for name, content in FILES.items(): memory.pipe(f'/once/{name}', content)
    connector, seen = connect('url', root='memory://once'), []
    was = connector.fs.open
    class Counting:
        def open(self, path, mode): seen.append(path); return was(path, mode)
    connector.fs = Counting()
    ingest(connector, tmp_path/'out')
    assert len(seen) == len(set(seen)) == 6, 'five photographs and a mask'
    memory.rm('/once', recursive=True)

REFUSED = [
    (dict(root='nowhere://x'), 'cannot be read: Protocol not known'),
    (dict(root='zip://::file:///absent.zip'), 'cannot be read'),
    (dict(root='http://127.0.0.1:9/'), 'cannot be read'),
    (dict(root='memory://nothing-here'), 'cannot be read'),
]

@pytest.mark.parametrize('fields, what', REFUSED, ids=lambda v: v if isinstance(v, str) else v['root'])
def test_an_address_that_fails_is_named_with_a_remedy(fields, what):
    with pytest.raises(DataError, match=what) as e: connect('url', **fields)
    assert e.value.remedy and e.value.where

def test_a_file_that_is_lost_on_the_way_costs_one_photograph(tmp_path):
    import fsspec
    memory = fsspec.filesystem('memory')
    for name, content in FILES.items(): memory.pipe(f'/lossy/{name}', content)
    connector = connect('url', root='memory://lossy')
    memory.rm('/lossy/test/pit/1.png')
    assert len(ingest(connector, tmp_path/'out')) == 4
    told = json.loads((tmp_path/'out'/'ingest.json').read_text())
    assert told['classes'] == {'pit': {'kept': 1, 'left_out': 1}} and 'cannot be read' in told['skipped'][0]['error']

def test_passwords_are_not_repeated(monkeypatch):
    assert without_password('https://me:secret@host/x') == 'https://…@host/x'
    monkeypatch.setenv('LINE_PASSWORD', 's3cret')
    with pytest.raises(DataError) as e: connect('url', root='http://me:$LINE_PASSWORD@127.0.0.1:9/')
    assert 's3cret' not in str(e.value)

def test_a_set_in_plain_folders_and_without_labels():
    found, others = layout_of_names(['OK/a.png', 'rust/b.png', 'c.png'])
    assert [(f.name, f.category) for f in found] == [('OK/a.png', None), ('rust/b.png', 'rust')]
    assert others == [('c.png', 'in no class folder')]


# -- Databases

@pytest.fixture
def line(tmp_path):
    for i, name in enumerate('abc'): (tmp_path/f'{name}.png').write_bytes(picture(i))
    db = sqlite3.connect(tmp_path/'line.db')
    db.execute('CREATE TABLE p (path, label, part, lot, side INTEGER)')
    db.executemany('INSERT INTO p VALUES (?, ?, ?, ?, ?)', [('a.png', 'pit', 'P1', 'L1', 1),
        ('b.png', 'ok', 'P1', 'L1', 2), ('c.png', None, 'P2', None, 1)])
    db.commit()
    db.close()
    return tmp_path

def query(line, text, **fields):
    return connect('sql', url=f'sqlite:///{line}/line.db', query=text, root=str(line), **fields)

def test_rows_of_a_query_are_photographs(line):
    found = query(line, 'SELECT path, label, part AS part_id, lot, side AS exposure FROM p')
    seen = [s.load()[1] for s in found.records()]
    assert [(r.file_name, r.defective, r.part_id, r.lot, r.exposure) for r in seen] == [
        ('a.png', True, 'P1', 'L1', '1'), ('b.png', False, 'P1', 'L1', '2'), ('c.png', None, 'P2', None, '1')]

@pytest.mark.parametrize('text, what', [
    ('SELECT path FROM p', 'no column label. It has path'),
    ('SELECT pfad, label FROM p', 'no such column: pfad'),
    ('SELECT path, label, side AS path FROM p', 'a column is there twice'),
    ('SELECT path, label FROM p WHERE 0', 'the query gave no row'),
    ('DELETE FROM p', 'is no SELECT'),
    ('SELECT path, label FROM p; DELETE FROM p', 'the query failed'),
])
def test_a_query_that_fails_is_named_with_a_remedy(line, text, what):
    with pytest.raises(DataError, match=what) as e: query(line, text)
    assert e.value.remedy
    assert sqlite3.connect(line/'line.db').execute('SELECT count(*) FROM p').fetchone() == (3,)

def test_a_database_that_is_not_there(tmp_path):
    picture_file = tmp_path/'a.png'
    picture_file.write_bytes(picture(0))
    for url, what in (('sqlite:////absent/x.db', 'unable to open'), ('nosuch://x', 'the query failed|needs another'),
            ('no url', 'the query failed')):
        with pytest.raises(DataError, match=what):
            connect('sql', url=url, query='SELECT 1 AS path, 2 AS label', root=str(tmp_path))


# -- Clips

def sequence(root, clips):
    for clip, n in clips.items():
        (root/clip).mkdir(parents=True)
        for i in range(n): (root/clip/f'frame_{i}.png').write_bytes(picture(hash(clip) % 1000 + i))
    return root

def test_each_nth_frame_in_the_order_of_numbers(tmp_path):
    found = connect('sequence', root=str(sequence(tmp_path, {'good/a': 12, 'pit/b': 3})), every=5, labels='folder')
    seen = [s.load()[1] for s in found.records()]
    assert [(r.file_name, r.part_id, r.exposure, r.defective) for r in seen] == [
        ('good/a/frame_0.png', 'good/a', 'frame 1', False), ('good/a/frame_5.png', 'good/a', 'frame 6', False),
        ('good/a/frame_10.png', 'good/a', 'frame 11', False), ('pit/b/frame_0.png', 'pit/b', 'frame 1', True)]
    assert len(found) == 4 and found.categories == ('pit',) and len(found.unused()) == 11

def test_frames_outside_of_a_clip_are_refused(tmp_path):
    (tmp_path/'a.png').write_bytes(picture(0))
    with pytest.raises(DataError, match='1 photographs lie in no folder of a clip'):
        connect('sequence', root=str(tmp_path))
    with pytest.raises(DataError, match='lies in no class folder'):
        connect('sequence', root=str(sequence(tmp_path/'x', {'a': 2})), labels='folder')
    with pytest.raises(ParamsError, match='every'): connect('sequence', root='x', every=0)

def film(path, frames, size=(48, 32)):
    cv2 = pytest.importorskip('cv2', reason='videos need the extra sads_jax[video]')
    path.parent.mkdir(parents=True, exist_ok=True)
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, size)
    rows = np.arange(size[1])[:, None, None]*3
    for i in range(frames): out.write(np.broadcast_to(rows + 5*i, (*size[::-1], 3)).astype(np.uint8))
    out.release()

def test_frames_of_videos(tmp_path):
    film(tmp_path/'src/good/belt.avi', 25)
    film(tmp_path/'src/pit/belt.avi', 11)
    data = ingest(connect('video', root=str(tmp_path/'src'), labels='folder'), tmp_path/'out')
    assert [(r.file_name, r.part_id, r.exposure, r.classes) for r in data.images] == [
        *((f'images/good/belt.avi/{n:06d}.png', 'good/belt', f'frame {n}', ()) for n in (1, 11, 21)),
        *((f'images/pit/belt.avi/{n:06d}.png', 'pit/belt', f'frame {n}', ('pit',)) for n in (1, 11))]
    first, second = (data.photograph(r).mean() for r in data.images[:2])
    assert second - first == pytest.approx(50, abs=3), 'the eleventh frame is ten steps of five brighter'

def test_a_video_that_is_none_or_ends_early_is_named(tmp_path):
    film(tmp_path/'src/a.avi', 40)
    whole = (tmp_path/'src/a.avi').read_bytes()
    (tmp_path/'src/b.avi').write_bytes(whole[:len(whole)//2])
    (tmp_path/'src/c.avi').write_bytes(b'no film')
    ingest(connect('video', root=str(tmp_path/'src')), tmp_path/'out')
    told = json.loads((tmp_path/'out'/'ingest.json').read_text())
    assert [s['file'].rpartition('/')[2] for s in told['skipped']] == ['c.avi']
    assert 'no frame of this video can be read' in told['skipped'][0]['error']
    with pytest.raises(DataError, match='no videos'): connect('video', root=str(tmp_path/'out'))
