"""A project from anyone's photographs: what is recognised, what is chosen, what is written, and what is never
overwritten"""
import json
import os
import pwd
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from sads_jax.cli.doctor import processor
from sads_jax.cli.main import app
from sads_jax.core.errors import DataError, SADSError
from sads_jax.core.params import load_params, parse_params
from sads_jax.core.settings import Settings, load_settings
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.plan import THINNEST, as_tree, plan
from sads_jax.data.recognise import fingerprint, part_patterns, recognise
from sads_jax.orchestrators.base import settle
from sads_jax.orchestrators.project import graph_text, stage_graph, write_code
from sads_jax.registry.trackers import _have_a_name


def photo(path, h=60, w=80, mask=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((h, w), 120, np.uint8) if mask is None else mask).save(path)
    return path

def mvtec(root, h=60, w=80, crack=None, n=12):
    "MVTec's layout with masks"
    for i in range(n):
        photo(root/'train'/'good'/f'{i:03d}.png', h, w)
        photo(root/'test'/'good'/f'{i:03d}.png', h, w)
        photo(root/'test'/'crack'/f'{i:03d}.png', h, w)
        photo(root/'ground_truth'/'crack'/f'{i:03d}_mask.png', mask=crack)
    return root

def hairline(h, w, width=2):
    mask = np.zeros((h, w), np.uint8)
    for x in range(40, min(340, w, h + 20 - width)): mask[x - 20:x - 20 + width, x] = 255
    return mask

def run(*args):
    done = CliRunner().invoke(app, [str(a) for a in args], env={'COLUMNS': '200'})
    if isinstance(done.exception, SADSError): return done, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done, done.output

def coco(root):
    for i in range(4): photo(root/'images'/f'{i}.png')
    images = [{'id': i, 'file_name': f'{i}.png', 'width': 80, 'height': 60} for i in range(4)]
    marks = [
        {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [5, 6, 20, 10], 'area': 200,
            'segmentation': [[5, 6, 25, 6, 25, 16, 5, 16]]}
    ]
    (root/'annotations').mkdir()
    (root / 'annotations' / 'instances.json').write_text(
        json.dumps({'images': images, 'annotations': marks, 'categories': [{'id': 1, 'name': 'pit'}]})
    )
    return root

# -- what is recognised

def test_layouts_are_told_apart(tmp_path):
    bare = tmp_path/'bare'
    for c in 'OK', 'dent', 'rust': photo(bare/c/'1.png')
    found = {'mvtec': mvtec(tmp_path/'mvtec', crack=hairline(60, 80)), 'coco': coco(tmp_path/'coco'), 'bare': bare}
    kinds = {k: recognise(root) for k, root in found.items()}
    assert {k: v[0].kind for k, v in kinds.items()} == {'mvtec': 'folder', 'coco': 'coco', 'bare': 'folder'}
    assert kinds['coco'][0].fields == {'root': tmp_path / 'coco' / 'images',
        'annotations': Path('../annotations/instances.json')}
    for k, v in kinds.items():  # what is said can be read
        spec = parse_params({'data': {'kind': v[0].kind} | v[0].fields}).data
        assert len(ingest(ConnectorFactory(spec, seed=0), tmp_path / 'out' / k).images) == len(
            ConnectorFactory(spec, seed=0)
        )

@pytest.mark.parametrize(
    'make, says',
    [
        (lambda d: None, 'no photographs: it holds nothing'),
        (lambda d: (d / 'notes.txt').write_text('x'), 'no photographs: it holds 1 x .txt'),
        (lambda d: photo(d / 'a.png'), 'nothing says which parts are good'),
        (lambda d: [photo(d / n / 'train' / 'good' / '0.png') for n in ('bottle', 'cable')],
            '2 data sets side by side: bottle, cable'),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path, make, says):
    make(tmp_path)
    with pytest.raises(DataError, match=says): recognise(tmp_path)

def test_good_parts_alone_are_named_as_such(tmp_path):
    for i in range(3): photo(tmp_path/'good'/f'{i}.png')
    _, said = run('init', tmp_path/'mine', '--photos', tmp_path/'good'/'..', '--yes', '--no-scm')
    assert 'a model of good parts is trained; escapes cannot be measured' in said

# -- what is chosen

def test_hairline_cracks_of_large_photographs_are_not_shrunk_away(tmp_path):
    root = mvtec(tmp_path, 500, 1250, hairline(500, 1250), n=3)
    layout = recognise(root)[0]
    seen = fingerprint(ConnectorFactory(parse_params({'data': {'kind': 'folder', 'root': str(root)}}).data, seed=0))
    assert np.allclose(seen.thickness, 2, atol=.05)
    params = parse_params(as_tree(plan(seen, layout)))
    assert params.image.tile is not None and params.image.tile.scale == 1

@pytest.mark.parametrize('thick', [7, 12, 40])
def test_canvases_keep_the_thinnest_defect(tmp_path, thick):
    h, w = 600, 800
    mask = np.zeros((h, w), np.uint8)
    mask[100:100 + thick, 100:100 + 3*thick] = 255
    root = mvtec(tmp_path, h, w, mask, n=3)
    seen = fingerprint(ConnectorFactory(parse_params({'data': {'kind': 'folder', 'root': str(root)}}).data, seed=0))
    image = parse_params(as_tree(plan(seen, recognise(root)[0]))).image
    scale = image.tile.scale if image.tile else max(min(a/h, b/w) for a, b in image.buckets)
    assert thick*scale >= THINNEST*.93  # canvases are rounded to 32 px

def test_parts_are_offered_only_where_names_tell_them():
    views = [f'A{i:03d}_view{j}.png' for i in range(12) for j in range(4)]
    assert [(p.parts, p.largest) for p in part_patterns(views)] == [(12, 4)]
    assert part_patterns([*views, 'other.png']) == []
    assert part_patterns([f'exp{j}_num_{i}.jpg' for i in range(20) for j in range(3)])[0].parts == 20
    assert part_patterns([f'scratch_{i}.png' for i in range(50)]) == []

# -- what is written

def test_a_project_says_why_and_overwrites_nothing(tmp_path):
    root = mvtec(tmp_path/'photos', crack=hairline(60, 80))
    mine = tmp_path/'mine'
    done, said = run('init', mine, '--photos', root, '--yes', '--no-scm')
    assert done.exit_code == 0 and 'train and test, masks in ground_truth' in said and 'crack 12' in said
    params = load_params(mine/'params.yaml')
    assert params.data.root == Path('../photos') and params.data.kind == 'folder'
    load_settings(mine/'settings.ini')
    before = {p: p.read_bytes() for p in mine.rglob('*') if p.is_file()}
    for name in ('params.yaml', 'dvc.yaml', 'settings.ini'):
        other = tmp_path/f'other-{name}'
        other.mkdir()
        (other/name).write_text('mine')
        assert 'never overwritten' in run('init', other, '--photos', root, '--yes', '--no-scm')[1]
        assert [p.name for p in other.iterdir()] == [name] and (other/name).read_text() == 'mine'
    assert 'never overwritten' in run('init', mine, '--photos', root, '--yes', '--no-scm')[1]
    assert {p: p.read_bytes() for p in mine.rglob('*') if p.is_file()} == before
    assert (
        'is not laid out as voc' in run('init', tmp_path / 'voc', '--photos', root, '--kind', 'voc', '--yes')[1]
        and not (tmp_path / 'voc').exists()
    )

def test_the_graph_holds_every_stage_once_and_every_parameter_it_needs(tmp_path):
    root = mvtec(tmp_path/'photos', crack=hairline(60, 80))
    run('init', tmp_path/'mine', '--photos', root, '--yes', '--no-scm')
    stages, tree = (yaml.safe_load((tmp_path/'mine'/f).read_text()) for f in ('dvc.yaml', 'params.yaml'))
    stages = stages['stages']
    assert list(stages) == list(stage_graph()) and stages['ingest']['deps'][0] == '../photos'
    outs = {
        o if isinstance(o, str) else next(iter(o))
        for s in stages.values()
        for k in ('outs', 'metrics')
        for o in s.get(k, [])
    }
    for name, s in stages.items():
        for key in s.get('params', []):
            node = tree
            for step in key.split('.'): node = node[step]  # DVC refuses a graph whose parameters are not there
        for dep in s.get('deps', []): assert dep in outs or dep == '../photos', (name, dep)

def test_a_clone_and_a_project_have_one_graph():
    assert (Path(__file__).parents[1]/'dvc.yaml').read_text() == graph_text()

def test_a_change_of_the_server_is_no_change_of_training(tmp_path):
    graph = stage_graph('x')
    assert (
        'code/serving.txt' not in graph['train-detector']['deps']
        and 'code/models.txt' in graph['train-detector']['deps']
    )
    write_code(tmp_path)
    assert {f'code/{p.name}' for p in tmp_path.iterdir()} == {next(iter(o)) for o in graph['code']['outs']}

@pytest.mark.slow
@pytest.mark.skipif(shutil.which('dvc') is None, reason='dvc is not installed')
def test_dvc_notices_new_photographs_and_leaves_the_rest_alone(tmp_path, monkeypatch):
    from dvc.repo import Repo
    root = mvtec(tmp_path/'photos', crack=hairline(60, 80))
    run('init', tmp_path/'mine', '--photos', root, '--yes', '--no-scm')
    monkeypatch.chdir(tmp_path/'mine')
    with Repo() as repo:
        ran = lambda: [s.addressing for s in repo.reproduce('split')]
        assert ran() == ['code', 'ingest', 'split']
        assert ran() == ['code']
        photo(root/'train'/'good'/'new.png')
        assert ran() == ['code', 'ingest', 'split']

# -- small things of the command line

def test_the_version_is_told():
    assert run('--version')[1].startswith('sads_jax ')

@pytest.mark.parametrize('command', ['operate', 'parity'])
def test_a_bundle_is_given_either_way(command, tmp_path):
    assert 'no such bundle folder' in run(command, tmp_path/'none')[1]
    assert 'no such bundle folder' in run(command, '--bundle', tmp_path/'none')[1]
    assert 'give it once' in run(command, tmp_path/'none', '--bundle', tmp_path/'none')[1]

def test_the_doctor_names_the_processor(tmp_path):
    info = tmp_path/'cpuinfo'
    info.write_text('model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu sse4_2 avx2 fma\n\nmodel name\t: Another\n')
    assert processor(info) == 'Some CPU @ 2 GHz: sse4_2, avx2, fma'
    assert processor(tmp_path/'none')

@pytest.mark.parametrize('name', ['100%20', 'what?', 'Lot #3'])
def test_a_folder_that_no_registry_can_lie_in_is_refused_at_once(tmp_path, name):
    with pytest.raises(SADSError, match='means something else in the address'): settle(Settings(), tmp_path/name)
    settle(Settings(registry_uri='http://registry:5000'), tmp_path/name)

def test_a_user_without_a_name_can_register(monkeypatch):
    for k in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'): monkeypatch.delenv(k, raising=False)
    def nobody(uid): raise KeyError(uid)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    monkeypatch.setitem(os.environ, 'LOGNAME', '')
    _have_a_name()
    assert os.environ['LOGNAME'] == f'uid-{os.getuid()}'
