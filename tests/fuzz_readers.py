"""Every reader against label files and photographs that were changed at random

python tests/fuzz_readers.py [--inputs 20000] [--seed 0]    prints inputs, outcomes, seconds and peak memory a reader

An input is a small data set of one format in which one file was changed: bytes flipped, cut, repeated, swapped with
another file's; numbers, names and brackets of its text replaced by hostile ones. Whatever is read must be read
within the promise of ingest: records, or a `SADSError`; no other exception, and bounded memory.
"""

import argparse
import random
import re
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import test_formats as formats
from PIL import Image

from sads_jax.core.errors import SADSError
from sads_jax.core.params import parse_params
from sads_jax.data.connectors import ConnectorFactory
from sads_jax.data.images import read_image
from sads_jax.data.records import instance_masks

NUMBERS = (
    'NaN',
    '-1',
    '1e308',
    '-1e308',
    '99999999999999999999',
    '0',
    '1e-300',
    '-0.0',
    'Infinity',
    'null',
    'true',
    '""',
    '[]',
    '{}',
    '"x"',
    '[[[]]]',
    '1.5',
    '2147483648',
    '4294967296',
    '65536',
)
WORDS = (
    '',
    '\0',
    '..',
    '../../etc/passwd',
    '/',
    'a' * 5000,
    'ü\u202e\u0000',
    '%00',
    '${HOME}',
    '<b>',
    '"',
    "'",
    '\\',
    '\ud800',
    'CON',
    '.',
    ' ',
    '\n',
    ']]>',
    '<!ENTITY x "y">',
    '&x;',
    ',,,',
    ';;;',
)


def coco(d):
    formats.photos(d, 'a.png', 'b.png')
    formats.page(
        d / 'annotations.json',
        dict(
            images=[dict(id=i, file_name=f'{n}.png', width=formats.W, height=formats.H) for i, n in enumerate('ab')],
            categories=[dict(id=1, name='pit')],
            annotations=[
                dict(
                    id=1, image_id=0, category_id=1, bbox=[4, 2, 5, 6], area=30, segmentation=[[4, 2, 9, 2, 9, 8, 4, 8]]
                ),
                dict(
                    id=2,
                    image_id=0,
                    category_id=1,
                    bbox=[4, 2, 5, 6],
                    segmentation=dict(size=[formats.H, formats.W], counts=[100, 20, 4680]),
                ),
            ],
        ),
    )


def folder(d):
    for k, name in enumerate(('good/a', 'good/b', 'rust/c')):
        (d / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32), 60 + k, np.uint8)).save(d / f'{name}.png')
    m = np.zeros((24, 32), np.uint8)
    m[4:9, 5:20] = 255
    Image.fromarray(m).save(d / 'rust/c_mask.png')


def voc(d):
    formats.photos(d / 'JPEGImages', 'a.png', 'b.png')
    formats.page(
        d / 'Annotations/a.xml',
        f'<annotation><size><width>{formats.W}</width><height>{formats.H}</height>'
        '</size><object><name>pit</name><bndbox><xmin>5</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>'
        '</object></annotation>',
    )
    formats.page(d / 'Annotations/b.xml', '<annotation></annotation>')
    formats.page(d / 'parts.csv', 'path,part_id,lot,exposure\nJPEGImages/a.png,P1,L1,e1\n')


def via_csv(d):
    formats.photos(d, 'a.png')
    formats.page(
        d / 'via.csv',
        'filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,'
        'region_attributes\na.png,1,"{}",1,0,"{""name"":""rect"",""x"":4,""y"":2,""width"":5,""height"":6}",'
        '"{""kind"":""pit""}"\n',
    )


def tiles(d):
    for name, bad in (('MT_Free/exp1_num_1', False), ('MT_Crack/exp1_num_900', True)):
        (d / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32), 90, np.uint8)).save(d / f'{name}.jpg')
        Image.fromarray(np.pad(np.full((6, 9), 255 * bad, np.uint8), ((5, 13), (5, 18)))).save(d / f'{name}.png')
    formats.page(d / 'groups.csv', 'file,class,exposure,frame,tile_group\nMT_Free/exp1_num_1,,,,7\n')


def sequence(d):
    for i in range(3):
        (d / 'good/a').mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32), 60 + i, np.uint8)).save(d / f'good/a/{i}.png')


def elpv(d):
    for i in range(2):
        formats.picture(d / f'images/cell{i:04d}.png')
    formats.page(d / 'labels.csv', 'images/cell0000.png 0 mono\nimages/cell0001.png 1.0 poly\n')


def archive(d):
    folder(d / 'in')
    d.mkdir(exist_ok=True)
    shutil.make_archive(str(d / 'line'), 'zip', d / 'in')
    shutil.rmtree(d / 'in')


def sql(d):
    formats.photos(d, 'a.png')
    with sqlite3.connect(d / 'line.db') as db:
        db.execute('CREATE TABLE p (path, label)')
        db.execute("INSERT INTO p VALUES ('a.png', 'pit')")
    db.close()


READERS = {
    'url': archive,
    'sql': sql,
    'elpv': elpv,
    'visa': formats.visa,
    'kolektor': formats.sdd,
    'dagm': formats.dagm,
    'coco': coco,
    'folder': folder,
    'voc': voc,
    'via_csv': via_csv,
    'magnetic_tile': tiles,
    'sequence': sequence,
    'mvtec_loco': formats.loco,
    **{formats.KIND.get(f.__name__, f.__name__): f for f in formats.SCENES},
}
FIELDS = {'via_csv': {'kind': 'via'}, 'sequence': {'every': 1, 'labels': 'folder'}}


def changed(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    "Data with one to three changes"
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((flipped, cut, repeated, swapped, renumbered, reworded, unbalanced))(data, rng, others)
    return data


def flipped(data, rng, others):
    x = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if x:
            x[rng.randrange(len(x))] = rng.randrange(256)
    return bytes(x)


def cut(data, rng, others):
    return data[: rng.randrange(len(data) + 1)]


def repeated(data, rng, others):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] * rng.randint(1, 3) + data[b:]


def swapped(data, rng, others):
    return rng.choice(others) if rng.random() < 0.2 else data


def _replaced(pattern, words, data, rng):
    text = data.decode('utf-8', 'surrogateescape')
    spots = list(re.finditer(pattern, text))
    if not spots:
        return data
    m = rng.choice(spots)
    return (text[: m.start()] + rng.choice(words) + text[m.end() :]).encode('utf-8', 'surrogatepass')


def renumbered(data, rng, others):
    try:
        return _replaced(r'-?\d+(\.\d+)?', NUMBERS, data, rng)
    except UnicodeEncodeError:
        return data


def reworded(data, rng, others):
    try:
        return _replaced(r'[A-Za-z_]{2,}', WORDS, data, rng)
    except UnicodeEncodeError:
        return data


def unbalanced(data, rng, others):
    try:
        return _replaced(r'[\[\]{}<>",:;=/]', ('', '[', '{', '<', ']', '"', ',', '}', '>'), data, rng)
    except UnicodeEncodeError:
        return data


def outcome(kind: str, root: Path) -> str:
    "'read', 'some left out', or 'refused'; any other exception is raised"
    fields = {'kind': kind, 'root': str(root)} | FIELDS.get(kind, {})
    if kind == 'url':
        fields['root'] = f'zip://::file://{root}/line.zip'
    if kind == 'sql':
        fields |= {'url': f'sqlite:///{root}/line.db', 'query': 'SELECT path, label FROM p'}
    try:
        connector = ConnectorFactory(parse_params({'data': fields}, 'fuzz').data, seed=0)
    except SADSError as e:
        assert str(e)
        return 'refused'
    lost = 0
    for source in connector.records():
        try:
            content, record = source.load()
            h, w = read_image(content).shape[:2]
            if (h, w) == (record.height, record.width):
                instance_masks(record)
        except SADSError:
            lost += 1
    connector.notes, getattr(connector, 'unused', list)()
    return 'some left out' if lost else 'read'


def inputs(kind: str, n: int, seed: int, folder: Path):
    "Change one file of a small data set `n` times; yields the outcome, or the exception with what was changed"
    rng, root = random.Random(f'{kind} {seed}'), folder / kind
    READERS[kind](root)
    files = sorted(p for p in root.rglob('*') if p.is_file())
    labels = [p for p in files if p.suffix.lower() not in ('.png', '.jpg', '.bmp')]
    were = {p: p.read_bytes() for p in files}
    for _ in range(n):
        path = rng.choice(labels if labels and rng.random() < 0.8 else files)
        data = changed(were[path], rng, list(were.values()))
        path.write_bytes(data)
        try:
            yield outcome(kind, root), None
        except Exception as e:
            yield f'{type(e).__name__}: {e}', (path.relative_to(root).as_posix(), data)
        path.write_bytes(were[path])
    shutil.rmtree(root)


GOOD = {'read', 'some left out', 'refused'}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--inputs', type=int, default=20_000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--keep', type=Path, help='folder for the first input of each exception')
    a, failed = p.parse_args(), 0
    for kind in READERS:
        start, seen = time.time(), Counter()
        with tempfile.TemporaryDirectory() as d:
            for said, what in inputs(kind, -(-a.inputs // len(READERS)), a.seed, Path(d)):
                if said not in GOOD and not seen[said]:
                    print(kind, said, what[0], what[1][:300])
                    if a.keep:
                        a.keep.mkdir(exist_ok=True)
                        (a.keep / f'{kind}-{len(seen)}').write_bytes(what[1])
                seen[said] += 1
        failed += sum(n for k, n in seen.items() if k not in GOOD)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f'{kind}: {sum(seen.values())} inputs, {dict((k, seen[k]) for k in sorted(GOOD))}, '
            f'{time.time() - start:.0f} s, peak so far {peak:.0f} MB',
            flush=True,
        )
    print(f'{failed} exceptions that are no SADSError')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
