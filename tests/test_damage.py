"""What damage to files, masks, tables and names becomes of: nothing good is lost, nothing bad is silently kept

Each row changes a sound data set of eight photographs. Outcomes: `kept` (all are read, nothing is said), `noted` (all
are read, and a note says what was mended or is odd), `left out` (one is lost, and its error says why), `unused` (a
file beside the photographs is named with the reason), `refused` (nothing is read, and the error says why)."""

import os
import random
import struct
import zlib
from io import BytesIO

import fuzz_readers
import numpy as np
import pytest
from PIL import Image
from test_formats import page

from sads_jax.core.errors import SADSError
from sads_jax.core.params import parse_params
from sads_jax.data.connectors import ConnectorFactory, check_data

W, H = 48, 32
BAD, MASK, GOOD = 'test/rust/0.png', 'ground_truth/rust/0_mask.png', 'train/good/0.png'


def pixels(seed, mode='L', size=(W, H)):
    shape = size[::-1] + (() if mode == 'L' else (len(mode),))
    return Image.fromarray(
        np.random.default_rng(seed).integers(20, 230, shape, np.uint8), mode if mode != 'L' else None
    )


def encoded(im, kind='PNG', **kw):
    out = BytesIO()
    im.save(out, kind, **kw)
    return out.getvalue()


PHOTO = {i: encoded(pixels(i)) for i in range(8)}


def spot(value=255, box=(10, 8, 20, 16), size=(W, H), dtype=np.uint8):
    m = np.zeros(size[::-1], dtype)
    m[box[1] : box[3], box[0] : box[2]] = value
    return m


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encoded(Image.fromarray(content)))


def folder(root):
    for i in range(4):
        put(root, f'train/good/{i}.png', PHOTO[i])
        put(root, f'test/rust/{i}.png', PHOTO[4 + i])
        put(root, f'ground_truth/rust/{i}_mask.png', spot(box=(10 + i, 8, 20 + i, 16)))


def manifest(root):
    for i in range(8):
        put(root, f'shots/{i}.png', PHOTO[i])
    page(root / 'manifest.csv', TABLE)


TABLE = 'path,label\n' + ''.join(f'shots/{i}.png,{"rust" if i > 3 else "good"}\n' for i in range(8))


def yolo(root):
    for i in range(8):
        put(root, f'images/{i}.png', PHOTO[i])
        page(root / f'labels/{i}.txt', f'0 .{i}5 .5 .1 .2\n' if i > 3 else '')
    page(root / 'data.yaml', 'names: [rust]\n')


def becomes(name, content):
    return lambda root: put(root, name, content)


def renamed(old, new):
    return lambda root: ((root / new).parent.mkdir(parents=True, exist_ok=True), (root / old).rename(root / new))


def as_kind(kind, name=BAD, mode='L', **kw):
    return becomes(name, encoded(pixels(4, mode), kind, **kw))


def moved(kind, suffix, mode='L', **kw):
    "The photograph in another format under its own suffix"
    return lambda root: (
        (root / BAD).unlink(),
        put(root, BAD.replace('.png', suffix), encoded(pixels(4, mode), kind, **kw)),
    )


def frames(kind, name=BAD):
    return becomes(name, encoded(pixels(4), kind, save_all=True, append_images=[pixels(5), pixels(6)]))


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb():
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 0, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )


def turned_png():
    data = PHOTO[0]
    tags = b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    return data[:33] + chunk(b'eXIf', tags) + data[33:]


def exif(turn):
    e = Image.Exif()
    e[0x0112] = turn
    return e


def floats(x):
    return encoded(Image.fromarray(np.asarray(x, np.float32)), 'TIFF')


SHADE = np.linspace(0, 200, W * H).reshape(H, W).astype(np.float32)
HOLE = np.where(SHADE > 190, np.nan, SHADE)
COLOURED = np.stack([spot(200), spot(30), spot(0)], -1)
SEEN = np.stack([spot(200), spot(30), spot(10), spot()], -1)

DAMAGE = [  # base, kind of damage, change, outcome, what is said
    # -- photographs
    (folder, 'as it should be', lambda root: None, 'kept', ''),
    (folder, 'an empty file', becomes(BAD, b''), 'left out', 'empty file'),
    (folder, 'the first 60 bytes', becomes(BAD, PHOTO[4][:60]), 'left out', 'truncated or damaged PNG'),
    (
        folder,
        'the second half is zero',
        becomes(BAD, PHOTO[4][:700] + bytes(len(PHOTO[4]) - 700)),
        'left out',
        'damaged',
    ),
    (
        folder,
        'one byte of the pixels flipped',
        becomes(BAD, PHOTO[4][:400] + bytes([PHOTO[4][400] ^ 1]) + PHOTO[4][401:]),
        'left out',
        'damaged',
    ),
    (folder, 'text called .png', becomes(BAD, b'not a picture'), 'left out', 'not an image in a known format'),
    (
        folder,
        'the error page of a server',
        becomes(BAD, b'<!doctype html><title>404</title>'),
        'left out',
        'not an image',
    ),
    (
        folder,
        'a Git LFS pointer',
        becomes(BAD, b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
        'left out',
        'not an image',
    ),
    (folder, 'JPEG called .png', as_kind('JPEG'), 'kept', ''),
    (folder, 'bytes after the end', becomes(BAD, PHOTO[4] + b'x' * 999), 'kept', ''),
    (folder, 'half a JPEG', becomes(BAD, encoded(pixels(4), 'JPEG')[:700]), 'left out', 'truncated or damaged JPEG'),
    (folder, 'progressive JPEG', moved('JPEG', '.jpg', progressive=True), 'kept', ''),
    (folder, 'CMYK', moved('JPEG', '.jpg', 'CMYK'), 'kept', ''),
    (folder, 'a palette', becomes(BAD, encoded(pixels(4).convert('P'))), 'kept', ''),
    (folder, 'one bit', becomes(BAD, encoded(pixels(4).convert('1'))), 'kept', ''),
    (folder, 'transparency', as_kind('PNG', mode='RGBA'), 'kept', ''),
    (folder, 'BMP', moved('BMP', '.bmp'), 'kept', ''),
    (folder, 'WebP', moved('WEBP', '.webp', 'RGB'), 'kept', ''),
    (folder, 'PGM', moved('PPM', '.pgm'), 'kept', ''),
    (folder, 'TIFF', moved('TIFF', '.tif'), 'kept', ''),
    (folder, 'suffix in capitals', moved('JPEG', '.JPG'), 'kept', ''),
    (folder, 'several pages', frames('TIFF'), 'left out', 'holds 3 frames'),
    (folder, 'an animation', frames('GIF'), 'left out', 'holds 3 frames'),
    (folder, 'an animated PNG', frames('PNG'), 'left out', 'holds 3 frames'),
    (folder, 'NaN', becomes(BAD, floats(HOLE)), 'left out', 'pixels are NaN or infinite'),
    (folder, 'negative pixels', becomes(BAD, floats(SHADE - 50)), 'left out', 'float pixels from -50'),
    (folder, 'pixels of thousands', becomes(BAD, floats(SHADE * 50)), 'left out', 'float pixels from 0 to'),
    (
        folder,
        '16 bits over the full range',
        becomes(BAD, (SHADE * 327).astype(np.uint16)),
        'noted',
        'white of 16-bit photographs is 65535',
    ),
    (folder, 'a thumbnail', becomes(BAD, encoded(pixels(4, size=(9, 8)))), 'left out', 'too small'),
    (folder, 'a decompression bomb', becomes(BAD, bomb()), 'left out', 'megapixels'),
    (folder, 'a PNG that says it is turned', becomes(GOOD, turned_png()), 'kept', ''),
    (
        folder,
        'the mask of a turned photograph',
        lambda root: ((root / BAD).unlink(), put(root, 'test/rust/0.jpg', encoded(pixels(4), 'JPEG', exif=exif(6)))),
        'noted',
        'a mask was turned with its photograph',
    ),
    (folder, 'the same photograph twice', becomes('train/good/0 (1).png', PHOTO[0]), 'noted', 'there twice'),
    (folder, 'a photograph good and bad', becomes('train/good/9.png', PHOTO[4]), 'noted', 'with different labels'),
    # -- names and places
    (folder, 'a line break in a name', renamed(GOOD, 'train/good/a\nb.png'), 'kept', ''),
    (folder, 'a name of 240 signs', renamed(GOOD, f'train/good/{"a" * 236}.png'), 'kept', ''),
    (folder, 'a name in no encoding', renamed(GOOD, os.fsdecode(b'train/good/\xff\xfe.png')), 'kept', ''),
    (folder, 'signs that HTML reads', renamed(GOOD, 'train/good/<img src=x onerror=alert(1)>.png'), 'kept', ''),
    (folder, 'a name from right to left', renamed(GOOD, 'train/good/\u202egnp.צילום.png'), 'kept', ''),
    (folder, 'a folder called .png', lambda root: (root / 'train/good/x.png').mkdir(), 'kept', ''),
    (
        folder,
        'a link to nowhere',
        lambda root: (root / 'train/good/x.png').symlink_to('nowhere.png'),
        'unused',
        'class folder',
    ),
    (folder, 'what macOS leaves', becomes('train/good/._0.png', b'x'), 'unused', 'hidden, or left by a system'),
    (folder, 'what an archive leaves', becomes('__MACOSX/good/0.png', b'x'), 'unused', 'hidden, or left by a system'),
    (folder, 'what Windows leaves', becomes('train/good/Thumbs.db', b'x'), 'unused', 'hidden, or left by a system'),
    (folder, 'what a storage box leaves', becomes('train/good/@eaDir/0.png', PHOTO[0]), 'unused', 'hidden'),
    (folder, 'a half copied file', becomes('train/good/5.png.part', b'x'), 'unused', 'not a photograph'),
    (folder, 'a phone picture', becomes('train/good/5.heic', b'x'), 'unused', 'a kind that cannot be read'),
    (folder, 'a raw picture', becomes('train/good/5.nef', b'x'), 'unused', 'a kind that cannot be read'),
    (folder, 'a photograph beside the folders', becomes('5.png', PHOTO[1]), 'unused', 'in no class folder'),
    # -- masks
    (folder, 'no mask', lambda root: (root / MASK).unlink(), 'noted', '1 of 4 defective images have no mask'),
    (folder, 'an empty mask', becomes(MASK, spot(0)), 'noted', 'a mask of less than 4 px'),
    (folder, 'a mask of a speck', becomes(MASK, spot(box=(5, 5, 8, 6))), 'noted', 'a mask of less than 4 px'),
    (folder, 'a mask of another size', becomes(MASK, spot(size=(W, H + 1))), 'left out', 'mask is 48 x 33 px'),
    (folder, 'a mask cut off', becomes(MASK, encoded(Image.fromarray(spot()))[:50]), 'left out', 'mask cannot be read'),
    (folder, 'an empty file as mask', becomes(MASK, b''), 'left out', 'mask cannot be read'),
    (folder, 'a heat map as mask', becomes(MASK, (SHADE / 2).astype(np.uint8)), 'left out', 'says not clearly'),
    (folder, 'a mask of ones', becomes(MASK, spot(1)), 'kept', ''),
    (folder, 'a mask of 16 bits', becomes(MASK, spot(65535, dtype=np.uint16)), 'kept', ''),
    (folder, 'a mask inside out', becomes(MASK, 255 - spot()), 'noted', 'covers more than 80%'),
    (folder, 'a mask in colour', becomes(MASK, COLOURED), 'kept', ''),
    (folder, 'a mask on nothing', becomes(MASK, SEEN), 'kept', ''),
    (
        folder,
        'a mask as JPEG',
        lambda root: (
            (root / MASK).unlink(),
            put(root, MASK.replace('png', 'jpg'), encoded(Image.fromarray(spot()), 'JPEG')),
        ),
        'kept',
        '',
    ),
    (folder, 'a mask of nobody', becomes('ground_truth/rust/99_mask.png', spot()), 'unused', 'no mask of a photograph'),
    # -- tables
    (manifest, 'a table as it should be', lambda root: None, 'kept', ''),
    (manifest, 'semicolons', becomes('manifest.csv', TABLE.replace(',', ';').encode()), 'kept', ''),
    (manifest, 'tabs', becomes('manifest.csv', TABLE.replace(',', '\t').encode()), 'kept', ''),
    (manifest, 'the mark of Excel', becomes('manifest.csv', b'\xef\xbb\xbf' + TABLE.encode()), 'kept', ''),
    (manifest, 'UTF-16', becomes('manifest.csv', TABLE.encode('utf-16')), 'kept', ''),
    (manifest, 'line ends of Windows', becomes('manifest.csv', TABLE.replace('\n', '\r\n').encode()), 'kept', ''),
    (manifest, 'line ends of an old Mac', becomes('manifest.csv', TABLE.replace('\n', '\r').encode()), 'kept', ''),
    (
        manifest,
        'Windows-1252',
        becomes('manifest.csv', TABLE.replace('rust', 'Öl').encode('cp1252')),
        'noted',
        'Windows-1252',
    ),
    (manifest, 'backslashes', becomes('manifest.csv', TABLE.replace('/', '\\').encode()), 'kept', ''),
    (manifest, 'a row given twice', becomes('manifest.csv', (TABLE + 'shots/7.png,rust\n').encode()), 'kept', ''),
    (manifest, 'empty rows', becomes('manifest.csv', (TABLE + '\n,\n\n').encode()), 'kept', ''),
    (
        manifest,
        'a field too many',
        becomes('manifest.csv', (TABLE + 'shots/7.png,rust,x\n').encode()),
        'refused',
        '3 fields under 2 columns',
    ),
    (
        manifest,
        'a column twice',
        becomes('manifest.csv', TABLE.replace('path,', 'path,path,').encode()),
        'refused',
        'there twice',
    ),
    (manifest, 'no header', becomes('manifest.csv', TABLE.partition('\n')[2].encode()), 'refused', 'no column path'),
    (manifest, 'a spreadsheet called .csv', becomes('manifest.csv', b'PK\3\4' + bytes(range(256)) * 9), 'refused', ''),
    (manifest, 'good and bad', becomes('manifest.csv', (TABLE + 'shots/7.png,good\n').encode()), 'refused', 'is both'),
    (
        manifest,
        'a photograph that is not there',
        becomes('manifest.csv', (TABLE + 'shots/9.png,rust\n').encode()),
        'left out',
        'is not there',
    ),
    (
        manifest,
        'a photograph that is not named',
        becomes('shots/9.png', encoded(pixels(9))),
        'noted',
        'no label file names',
    ),
    # -- rows of YOLO
    (yolo, 'rows as they should be', lambda root: None, 'noted', 'without a label, which count as good: 4'),
    (yolo, 'a class without a name', becomes('labels/4.txt', b'3 .5 .5 .1 .2\n'), 'left out', 'class 3 has no name'),
    (yolo, 'a decimal comma', becomes('labels/4.txt', b'0 0,5 0,5 0,1 0,2\n'), 'left out', 'not a finite number'),
    (yolo, 'pixels for shares', becomes('labels/4.txt', b'0 24 16 5 6\n'), 'left out', 'no share of the photograph'),
    (yolo, 'a number lost', becomes('labels/4.txt', b'0 .5 .5 .1\n'), 'left out', '3 numbers after the class'),
    (yolo, 'a box of no width', becomes('labels/4.txt', b'0 .5 .5 0 .2\n'), 'left out', 'has no area'),
    (yolo, 'a box outside', becomes('labels/4.txt', b'0 1.4 .5 .1 .2\n'), 'left out', 'outside of the photograph'),
    (yolo, 'a box that reaches out', becomes('labels/4.txt', b'0 .98 .5 .3 .2\n'), 'noted', 'boxes clipped'),
    (yolo, 'a row given twice', becomes('labels/4.txt', b'0 .5 .5 .1 .2\n' * 2), 'noted', 'rows given twice'),
    (yolo, 'a confidence', becomes('labels/4.txt', b'0 .5 .5 .1 .2 .9\n'), 'noted', 'confidences'),
    (yolo, 'a label file of nobody', becomes('labels/99.txt', b'0 .5 .5 .1 .2\n'), 'noted', 'without a photograph'),
    (yolo, 'zeros for rows', becomes('labels/4.txt', bytes(40)), 'left out', 'the class number is'),
    (yolo, 'names that are none', becomes('data.yaml', b'names: 7\n'), 'refused', 'no list of classes'),
    (yolo, 'YAML that is none', becomes('data.yaml', b'names: [rust\n'), 'refused', 'data.yaml'),
]


def test_there_are_sixty_kinds_and_more():
    assert len(DAMAGE) >= 60 + 3 and len({(b.__name__, k) for b, k, *_ in DAMAGE}) == len(DAMAGE)


def told(base, root):
    "What a check says: the report, or the error"
    try:
        spec = parse_params({'data': {'kind': base.__name__, 'root': str(root)}}, 'test').data
        report, refused = check_data(ConnectorFactory(spec, seed=0), root.parent / 'check')
    except SADSError as e:
        return None, str(e)
    assert refused is None, refused
    return report, ''


@pytest.mark.parametrize('base, what, change, outcome, said', DAMAGE, ids=[f'{b.__name__}, {k}' for b, k, *_ in DAMAGE])
def test_damage(base, what, change, outcome, said, tmp_path):
    root = tmp_path / 'src'
    base(root)
    change(root)
    report, error = told(base, root)
    if outcome == 'refused':
        assert report is None and said in error and error.rstrip('.').count('. ') >= 1, error
        return
    assert report is not None, error
    lost, notes = (
        [s['error'] for s in report['skipped']],
        [n for n in report['notes'] if 'files were not used' not in n],
    )
    unused = [u['reason'] for u in report['unused']]
    if outcome == 'left out':
        assert len(lost) == 1 and said in lost[0] and report['images'] >= 7, (lost, report['images'])
    else:
        assert not lost and report['images'] >= 8, lost
    if outcome == 'noted':
        assert [n for n in notes if said in n], notes
    if outcome in ('kept', 'unused'):
        assert not notes, notes
    if outcome == 'unused':
        assert len(unused) == 1 and said in unused[0], report['unused']
    if outcome == 'kept':
        assert not unused, unused


@pytest.mark.parametrize('kind', fuzz_readers.READERS)
def test_random_changes_end_in_records_or_errors_of_ours(kind, tmp_path):
    "A few of each reader; `python tests/fuzz_readers.py` makes thousands"
    seen = [said for said, _ in fuzz_readers.inputs(kind, 15, 11, tmp_path)]
    assert set(seen) <= fuzz_readers.GOOD, seen


def test_the_fuzz_sees_an_exception_that_is_not_ours(tmp_path, monkeypatch):
    def broken(kind, root):
        raise KeyError('x')

    monkeypatch.setattr(fuzz_readers, 'outcome', broken)
    assert next(fuzz_readers.inputs('yolo', 1, 0, tmp_path))[0] == "KeyError: 'x'"
    rng = random.Random(0)
    assert len({fuzz_readers.changed(PHOTO[0], rng, [b'x']) for _ in range(50)}) > 40
