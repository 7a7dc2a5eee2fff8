"Versions of a data set: packed and back, compared, described."
import hashlib
import json
import random
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sads_jax.cli.main import main
from sads_jax.core.errors import DataError, SADSError
from sads_jax.core.params import SyntheticSpec
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.records import Automatic, ImageRecord, InspectionData, write_coco
from sads_jax.data.splits import write_split
from sads_jax.data.versions import INDEX, SHARDS, compare_data, croissant, pack, unpack


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return ingest(ConnectorFactory(SyntheticSpec(n_parts=14, exposures=1, size=64), seed=0),
        tmp_path_factory.mktemp('source')/'data')

@pytest.fixture
def data(source, tmp_path):
    shutil.copytree(source.root, tmp_path/'data')
    return replace(source, root=tmp_path/'data')

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def tiny(folder, n, seed=0):
    "Many small photographs of random bytes, quickly"
    rng, records = random.Random(seed), []
    (folder/'images').mkdir(parents=True)
    for i in range(n):
        (folder/'images'/f'{i:06d}.png').write_bytes(rng.randbytes(200))
        records.append(ImageRecord(i + 1, f'images/{i:06d}.png', 4, 4, str(i), defective=False))
    made = InspectionData(folder, (), tuple(records))
    write_coco(made, folder)
    return made


# -- Packed

def test_the_same_photographs_give_the_same_archives_whatever_they_are_called(data, tmp_path):
    pack(data.root, tmp_path/'a', largest=20_000)
    names = {r.file_name: f'images/other_{i}.png' for i, r in enumerate(data.images)}
    for old, new in names.items(): (data.root/old).rename(data.root/new)
    write_coco(replace(data, images=tuple(replace(r, file_name=names[r.file_name]) for r in data.images)), data.root)
    pack(data.root, tmp_path/'b', largest=20_000)
    assert tree(tmp_path/'a'/SHARDS) == tree(tmp_path/'b'/SHARDS) and len(tree(tmp_path/'a'/SHARDS)) > 2

def test_archives_are_as_large_as_asked_and_named_after_content(tmp_path):
    made = tiny(tmp_path/'many', 3000)
    pack(made.root, tmp_path/'packed', largest=50_000)
    seen = 0
    for shard in (tmp_path/'packed'/SHARDS).iterdir():
        with zipfile.ZipFile(shard) as z:
            assert sum(i.file_size for i in z.infolist()) <= 50_000
            for i in z.infolist():
                assert hashlib.sha256(z.read(i)).hexdigest() == i.filename and i.compress_type == zipfile.ZIP_STORED
                seen += 1
    assert seen == 3000
    assert unpack(tmp_path/'packed', tmp_path/'again') == 3000
    assert tree(tmp_path/'again'/'images') == tree(made.root/'images')

def test_one_more_photograph_changes_one_archive(tmp_path):
    made = tiny(tmp_path/'many', 1000)
    pack(made.root, tmp_path/'a', largest=20_000)
    (made.root/'images'/'new.png').write_bytes(b'new')
    more = (*made.images, ImageRecord(5000, 'images/new.png', 4, 4, 'new', defective=False))
    write_coco(replace(made, images=more), made.root)
    pack(made.root, tmp_path/'b', largest=20_000)
    a, b = tree(tmp_path/'a'/SHARDS), tree(tmp_path/'b'/SHARDS)
    assert a.keys() == b.keys() and sum(a[k] != b[k] for k in a) == 1

def test_a_photograph_that_is_there_twice_is_stored_once(tmp_path):
    made = tiny(tmp_path/'two', 2)
    shutil.copyfile(made.root/'images'/'000000.png', made.root/'images'/'000001.png')
    pack(made.root, tmp_path/'packed')
    (shard,) = (tmp_path/'packed'/SHARDS).iterdir()
    assert len(zipfile.ZipFile(shard).namelist()) == 1
    unpack(tmp_path/'packed', tmp_path/'again')
    assert len(list((tmp_path/'again'/'images').iterdir())) == 2

def test_a_photograph_larger_than_an_archive_may_be_has_one_of_its_own(tmp_path):
    made = tiny(tmp_path/'many', 20)
    (made.root/'images'/'000003.png').write_bytes(b'x'*100_000)
    pack(made.root, tmp_path/'packed', largest=4000)
    unpack(tmp_path/'packed', tmp_path/'again')
    assert (tmp_path/'again'/'images'/'000003.png').stat().st_size == 100_000

@pytest.mark.parametrize('harm', ['flip', 'cut', 'missing', 'outside', 'digest', 'no index', 'bits'])
def test_a_damaged_pack_gives_nothing(data, tmp_path, harm):
    pack(data.root, tmp_path/'packed', largest=30_000)
    shard = sorted((tmp_path/'packed'/SHARDS).iterdir())[0]
    index = tmp_path/'packed'/INDEX
    said = json.loads(index.read_text())
    if harm == 'flip': shard.write_bytes(shard.read_bytes()[:90] + b'?' + shard.read_bytes()[91:])
    if harm == 'cut': shard.write_bytes(shard.read_bytes()[:-30])
    if harm == 'missing': shard.unlink()
    if harm == 'outside': said['files'] = {'../../x.png': next(iter(said['files'].values()))}
    if harm == 'digest': said['files'] = dict.fromkeys(said['files'], 'zz')
    if harm == 'bits': said['bits'] = 900
    index.write_text(json.dumps(said))
    if harm == 'no index': index.unlink()
    with pytest.raises(DataError): unpack(tmp_path/'packed', tmp_path/'again')
    assert not (tmp_path/'again').exists() and not (tmp_path.parent/'x.png').exists()

def test_a_folder_of_somebody_else_is_left_alone(data, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'notes.txt').write_text('keep')
    with pytest.raises(SADSError, match='did not write'): pack(data.root, tmp_path/'mine')
    assert (tmp_path/'mine'/'notes.txt').read_text() == 'keep'


# -- Compared

def test_nothing_changed_says_nothing(data):
    found = compare_data(data, data)
    assert not any(found[k] for k in ('added', 'removed', 'renamed', 'replaced', 'relabelled', 'regrouped', 'moved'))
    assert all(n['before'] == n['after'] for n in found['classes'].values())

def test_every_kind_of_change_is_told_and_no_other(data, tmp_path):
    gone, renamed, replaced, relabelled, regrouped, guessed, *rest = data.images
    shutil.copytree(data.root, tmp_path/'new')
    new = tmp_path/'new'
    (new/renamed.file_name).rename(new/'images'/'renamed.png')
    Image.fromarray(np.zeros((replaced.height, replaced.width, 3), np.uint8)).save(new/replaced.file_name)
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save(new/'images'/'added.png')
    flip = replace(relabelled, defective=not relabelled.defective, annotations=(),
        classes=() if relabelled.defective else (data.categories[0],))
    machine = replace(guessed, automatic=Automatic('m', 0.9))
    added = ImageRecord(999, 'images/added.png', 8, 8, 'new part', defective=False)
    after = replace(data, root=new, images=(replace(renamed, file_name='images/renamed.png'), replaced, flip,
        replace(regrouped, part_id='elsewhere'), machine, *rest, added))
    ids = [r.id for r in data.images]
    splits = {'train': ids[:10], 'test': ids[10:]}, {'train': [*ids[:10], ids[10]], 'test': ids[11:]}
    found = compare_data(data, after, splits)
    files = {k: [e.get('file', e.get('after')) for e in found[k]] for k in found if k not in ('classes', 'parts')}
    assert files == {'added': ['images/added.png'], 'removed': [gone.file_name], 'renamed': ['images/renamed.png'],
        'replaced': [replaced.file_name], 'relabelled': [relabelled.file_name, guessed.file_name],
        'regrouped': [regrouped.file_name], 'moved': [data.images[10].file_name]}
    assert found['relabelled'][1]['after'].endswith('by m')
    assert found['parts'] == {'added': ['elsewhere', 'new part'], 'removed': sorted({gone.part_id, regrouped.part_id})}

def test_the_command_reads_runs_and_data_sets(data, tmp_path, capsys):
    run = tmp_path/'run'
    shutil.copytree(data.root, run/'data'/'dataset')
    write_split(run/'data'/'split'/'split.json', {'train': [r.id for r in data.images]})
    write_coco(replace(data, images=data.images[1:]), data.root)
    command = ['data', 'diff', str(run), str(data.root), '--json', str(tmp_path/'d.json')]
    with pytest.raises(SystemExit) as e: main(command)
    out = capsys.readouterr().out
    assert e.value.code == 0 and '1 removed' in out and '0 relabelled' in out
    assert [r['file'] for r in json.loads((tmp_path/'d.json').read_text())['removed']] == [data.images[0].file_name]


# -- Described

def test_a_card_says_what_the_labels_say(data):
    card = croissant(data, 'parts', 'CC-BY-4.0', 'https://example.org/parts')
    good, bad = (sum(r.defective is k for r in data.images) for k in (False, True))
    assert f'{good} good, {bad} defective' in card['description'] and 'by people' in card['description']
    labels = (data.root/'annotations.json').read_bytes()
    assert card['distribution'][0]['sha256'] == hashlib.sha256(labels).hexdigest()
    fields = {f['name'] for f in card['recordSet'][0]['field']}
    assert fields <= set(json.loads(labels)['images'][0])  # each field is there to be read
    told = replace(data, images=tuple(replace(r, automatic=Automatic('m', 0.5)) for r in data.images))
    assert f'{len(data)} carry labels that a program made' in croissant(told, 'p', 'x', 'u')['description']

def test_a_validator_accepts_the_card(data, tmp_path):
    mlc = pytest.importorskip('mlcroissant', reason='the package mlcroissant is not installed')
    from sads_jax.data.versions import write_card
    write_card(croissant(data, 'parts', 'https://creativecommons.org/licenses/by/4.0/', 'https://example.org/parts'),
        data.root/'croissant.json')
    card = mlc.Dataset(jsonld=data.root/'croissant.json')
    rows = list(card.records('photographs'))
    assert [r['photographs/file_name'].decode() for r in rows] == [r.file_name for r in data.images]
    assert [r['photographs/part_id'].decode() for r in rows] == [r.part_id for r in data.images]
