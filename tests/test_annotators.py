"Labels by people and by programs: out to a tool, in again, and never mistaken for each other."
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sads_jax.core.errors import DataError
from sads_jax.core.params import CvatSpec, LabelMeSpec, Params, SplitSpec, SyntheticSpec
from sads_jax.core.types import RLE, Defect, InspectionReport, Reason, Verdict
from sads_jax.data.annotators import (
    AutoAnnotatorFactory,
    ManualAnnotatorFactory,
    mask_iou,
    match_masks,
    merge_labels,
    propose,
)
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.records import (
    Annotation,
    Automatic,
    instance_masks,
    read_coco,
    trusted,
    write_coco,
)
from sads_jax.data.writers import export_data
from sads_jax.orchestrators import stages

GUESS = Automatic('model 3f2a', 0.75)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return ingest(ConnectorFactory(SyntheticSpec(n_parts=16, exposures=1, size=64), seed=0),
        tmp_path_factory.mktemp('made')/'data')

def guessed(data, ids=None, by=GUESS):
    "The data with the labels of these photographs made by a program"
    def told(r): return replace(r, automatic=by, annotations=tuple(replace(a, automatic=by) for a in r.annotations))
    return replace(data, images=tuple(told(r) if ids is None or r.id in ids else r for r in data.images))

def blank(data):
    "Nobody has judged anything"
    return replace(data, images=tuple(replace(r, defective=None, classes=(), annotations=(), automatic=None)
        for r in data.images))

def bad_ones(data): return [r for r in data.images if r.defective]


# -- Provenance

def test_a_persons_labels_are_written_as_they_always_were(made, tmp_path):
    assert 'automatic' not in write_coco(made, tmp_path).read_text()

def test_provenance_survives_coco(made, tmp_path):
    told = guessed(made)
    write_coco(told, tmp_path)
    assert read_coco(tmp_path).images == told.images

def test_provenance_that_cannot_be_read_is_no_persons_label(made, tmp_path):
    path = write_coco(guessed(made), tmp_path)
    tree = json.loads(path.read_text())
    tree['images'][0]['automatic'] = 'yes'
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match='by whom'): read_coco(tmp_path)

def test_a_copy_of_the_data_keeps_it(made, tmp_path):
    from sads_jax.core.params import CocoSpec
    told = guessed(made)
    shutil.copytree(made.root, tmp_path/'src')
    write_coco(told, tmp_path/'src')
    again = ingest(ConnectorFactory(CocoSpec(root=tmp_path/'src')), tmp_path/'out')
    assert [r.automatic for r in again.images] == [GUESS]*len(made)
    assert {a.automatic for r in again.images for a in r.annotations} == {GUESS}

@pytest.mark.parametrize('kind, spec', [('cvat', CvatSpec), ('labelme', LabelMeSpec)])
def test_tools_that_can_say_it_do(made, tmp_path, kind, spec):
    bad = bad_ones(made)
    told = guessed(replace(made, images=tuple(bad)), {r.id for r in bad[:2]})
    export_data(told, tmp_path/'out', kind)
    back = {r.part_id: r for r in (s.load()[1] for s in ConnectorFactory(spec(root=tmp_path/'out')).records())}
    assert [back[r.part_id].automatic for r in told.images] == [r.automatic for r in told.images]
    for r in told.images:
        assert [a.automatic for a in back[r.part_id].annotations] == [a.automatic for a in r.annotations]

@pytest.mark.parametrize('kind', ['yolo', 'voc'])
def test_formats_that_cannot_say_it_leave_automatic_labels_out(made, tmp_path, kind):
    bad = bad_ones(made)
    remarks = export_data(guessed(made, {bad[0].id}), tmp_path/'out', kind)
    assert any('cannot tell' in r for r in remarks)
    stem = Path(bad[0].file_name).stem
    assert not [p for p in (tmp_path/'out').rglob(f'{stem}.*') if p.suffix in ('.txt', '.xml')]
    assert [p for p in (tmp_path/'out').rglob(f'{Path(bad[1].file_name).stem}.*') if p.suffix in ('.txt', '.xml')]

@pytest.mark.parametrize('kind', ['cvat', 'labelme'])
def test_a_program_that_says_good_does_not_come_back_as_a_person_who_does(made, tmp_path, kind):
    good = [r for r in made.images if not r.defective]
    export_data(guessed(replace(made, images=tuple(good))), tmp_path/'out', kind)
    if kind == 'cvat':
        assert not list(ElementTree.parse(tmp_path/'out'/'annotations.xml').iter('image'))
        return
    assert not list((tmp_path/'out').rglob('*.json'))

def test_cvat_reads_our_shapes_as_its_own_automatic_ones(made, tmp_path):
    export_data(guessed(made), tmp_path/'out', 'cvat')
    tree = ElementTree.parse(tmp_path/'out'/'annotations.xml')
    shapes = [s for im in tree.iter('image') for s in im]
    assert shapes and {s.get('source') for s in shapes} == {'auto'}
    declared = {a.findtext('name') for a in tree.iter('attribute') if a.find('name') is not None}
    used = {a.get('name') for s in shapes for a in s.iter('attribute')}
    assert used and used <= declared  # CVAT refuses attributes that its labels do not declare

def test_a_shape_that_a_person_changed_in_cvat_is_theirs(made, tmp_path):
    one = replace(made, images=tuple(bad_ones(made)[:1]))
    export_data(guessed(one), tmp_path/'out', 'cvat')
    path = tmp_path/'out'/'annotations.xml'
    path.write_text(path.read_text().replace('source="auto"', 'source="semi-auto"'))
    (r,) = [s.load()[1] for s in ConnectorFactory(CvatSpec(root=tmp_path/'out')).records()]
    assert r.automatic is None and {a.automatic for a in r.annotations} == {None}


# -- They never count as a person's

def test_automatic_labels_do_not_split_train_or_judge(made, tmp_path):
    class Said(list):
        def say(self, text): self.append(text)
        def track(self, items, *a, **kw): return items
    shutil.copytree(made.root, tmp_path/'dataset')
    few = {r.id for r in made.images[::4]}
    write_coco(guessed(made, few), tmp_path/'dataset')
    said = Said()
    plain = stages.split(SplitSpec(), tmp_path/'dataset', tmp_path/'split', seed=0, progress=said)
    assert any('none of them counts' in t for t in said)
    learning = SplitSpec(learn_automatic=0.5)
    again = stages.split(learning, tmp_path/'dataset', tmp_path/'split2', seed=0, progress=said)
    assert again == plain  # who is judged does not hang on what programs said
    fingerprints = [json.loads((tmp_path/f/'split.json').read_text())['fingerprint'] for f in ('split', 'split2')]
    assert fingerprints[0] != fingerprints[1]  # but what is learnt does: trained models must not be taken for current

    from types import SimpleNamespace
    seen = {}
    def train_anomaly(data, ids, *a, **kw):
        seen['data'] = data
        return 1
    for spec, n in ((SplitSpec(), 0), (learning, 1), (SplitSpec(learn_automatic=0.9), 0)):
        at = SimpleNamespace(dataset=tmp_path/'dataset', split=tmp_path/'split', models=tmp_path)
        stages.anomaly(params=Params(split=spec), at=at, train_anomaly=train_anomaly, progress=Said())
        judged = {r.id for r in seen['data'].images if r.defective is not None} & few
        assert judged == (few & set(plain['train']) if n else set())

def test_trusted_keeps_what_a_person_drew_on_a_photograph_that_a_program_judged(made):
    r = bad_ones(made)[0]
    mixed = replace(r, automatic=GUESS, classes=('other', *r.classes),
        annotations=(*r.annotations, Annotation('other', (1, 1, 4, 4), None, 16.0, GUESS)))
    (kept,) = trusted(replace(made, images=(mixed,))).images
    assert kept.annotations == r.annotations and kept.automatic is None and kept.defective
    assert 'other' not in kept.classes


# -- People

@pytest.mark.parametrize('kind, out', [('cvat', 'x.zip'), ('cvat', 'x'), ('coco', 'x'), ('coco', 'x.zip'),
    ('label_studio', 'x')])
def test_out_and_in_again(made, tmp_path, kind, out):
    tool = ManualAnnotatorFactory({'kind': kind})
    assert not [r for r in tool.send(made, tmp_path/out) if 'left out' in r]
    judged, _ = tool.receive(tmp_path/out if kind != 'label_studio' else tmp_path/out/'tasks.json', made)
    again, remarks = merge_labels(blank(made), judged)
    assert not remarks
    for a, b in zip(made.images, again.images):
        assert (a.defective, a.classes, a.part_id, a.lot) == (b.defective, b.classes, b.part_id, b.lot)
        for x, y in zip(instance_masks(a), instance_masks(b)): assert mask_iou(x, y) >= 0.999

def test_studio_is_sent_proposals_as_predictions_of_each_program(made, tmp_path):
    r = bad_ones(made)[0]
    second = Automatic('anomaly', 0.4)
    two = replace(r, automatic=GUESS, annotations=(replace(r.annotations[0], automatic=GUESS),
        replace(r.annotations[0], automatic=second)))
    ManualAnnotatorFactory({'kind': 'label_studio'}).send(replace(made, images=(two,)), tmp_path/'out')
    (task,) = json.loads((tmp_path/'out'/'tasks.json').read_text())
    assert task['annotations'] == []  # nobody has judged it
    assert [(p['model_version'], p['score'], len(p['result'])) for p in task['predictions']] == [
        ('anomaly', 0.4, 1), ('model 3f2a', 0.75, 1)]
    names = {c.get('name') for c in ElementTree.parse(tmp_path/'out'/'interface.xml').iter()}
    assert {x['from_name'] for p in task['predictions'] for x in p['result']} <= names

def test_one_of_two_people_can_be_read(made, tmp_path):
    r = bad_ones(made)[0]
    ManualAnnotatorFactory({'kind': 'label_studio'}).send(replace(made, images=(r,)), tmp_path/'out')
    path = tmp_path/'out'/'tasks.json'
    (task,) = json.loads(path.read_text())
    task['annotations'][0] |= {'completed_by': {'id': 3, 'email': 'ann@example.org'}}
    task['annotations'].append({'completed_by': 4, 'result': [], 'was_cancelled': False})
    path.write_text(json.dumps([task]))
    for who, defective in (('3', True), ('ann@example.org', True), ('4', False)):
        tool = ManualAnnotatorFactory({'kind': 'label_studio', 'annotator': who})
        assert tool.receive(path, made)[0][0].defective is defective
    assert ManualAnnotatorFactory({'kind': 'label_studio', 'annotator': '5'}).receive(path, made)[0] == []

def test_an_archive_cannot_write_outside(made, tmp_path):
    with zipfile.ZipFile(tmp_path/'evil.zip', 'w') as z: z.writestr('../../annotations.xml', '<annotations/>')
    with pytest.raises(DataError): ManualAnnotatorFactory({'kind': 'cvat'}).receive(tmp_path/'evil.zip', made)
    assert not (tmp_path.parent/'annotations.xml').exists()

def test_a_proposal_does_not_replace_what_a_person_said(made):
    r = bad_ones(made)[0]
    again, remarks = merge_labels(made, guessed(replace(made, images=(r,))).images)
    assert again.images == made.images and 'a person had judged' in remarks[0]


# -- Programs

def report_of(verdict, *defects):
    return InspectionReport(verdict=verdict, reasons=[Reason(rule='any', verdict=verdict, text='x')],
        defects=list(defects), image_score=0.7, image_sha256='0', image_size=(64, 64), model_version='m',
        rules_version='r')

def defect(mask, label='pit'):
    from sads_jax.data.formats import mask_to_rle
    rle = mask_to_rle(mask)
    return Defect(box=(0, 0, 1, 1), label=label, label_score=0.5, score=0.8, area_px=1, length_px=1,
        mask=RLE(size=tuple(rle['size']), counts=rle['counts']))

@pytest.mark.parametrize('verdict, says', [(Verdict.FAIL, True), (Verdict.PASS, False), (Verdict.REVIEW, None)])
def test_a_models_report_becomes_a_proposal(made, verdict, says):
    one = replace(blank(made), images=blank(made).images[:1])
    h, w = one.images[0].height, one.images[0].width
    whole = np.zeros((h, w), bool)
    whole[5:9, 5:12] = True
    annotator = AutoAnnotatorFactory({'kind': 'model'}, by='model m',
        inspect=lambda photo: report_of(verdict, defect(whole)))
    (r,) = propose(one, annotator)[0].images
    assert r.defective is says
    if says is False: assert r.annotations == () and r.automatic.confidence == pytest.approx(0.3)
    else:
        assert r.annotations[0].automatic == ('model m', pytest.approx(0.4))
        assert r.annotations[0].bbox == (5, 5, 7, 4)
    assert trusted(replace(one, images=(r,))).images[0].defective is None

def test_anomaly_proposals_keep_their_promise_on_good_photographs():
    "Of new good photographs, about 1 - usual get a proposal, whatever the unit of the heat"
    rng = np.random.default_rng(0)
    heat = lambda photo: photo[..., 0]*1000.
    photo = lambda: np.broadcast_to(rng.exponential(), (8, 8))[..., None].repeat(3, -1)
    annotator = AutoAnnotatorFactory({'kind': 'anomaly', 'usual': 0.9}, heat=heat,
        good=[heat(photo()).max() for _ in range(999)])
    hit = np.mean([annotator.look(photo()).defective for _ in range(2000)])
    assert 0.07 < hit < 0.13

def test_consensus_needs_enough_annotators():
    with pytest.raises(DataError, match='cannot agree'):
        AutoAnnotatorFactory({'kind': 'consensus', 'least': 2}, annotators=[])

def test_the_assignment_is_the_best_of_all():
    "Against every permutation"
    from itertools import permutations
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = ([rng.random((6, 6)) < 0.5 for _ in range(4)] for _ in range(2))
        best = max(sum(mask_iou(a[i], b[p[i]]) for i in range(4)) for p in permutations(range(4)))
        assert sum(v for *_, v in match_masks(a, b, least=0)) == pytest.approx(best)


# -- A real Label Studio

STUDIO = os.environ.get('SADS_LABEL_STUDIO') or shutil.which('label-studio')
TOKEN = '0123456789abcdef0123456789abcdef01234567'

class Studio:
    "Requests to a running server"
    def __init__(self, port): self.base = f'http://127.0.0.1:{port}'

    def __call__(self, method, path, body=None):
        request = urllib.request.Request(self.base + path, method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={'Authorization': f'Token {TOKEN}', 'Content-Type': 'application/json'})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
                return json.loads(data) if 'json' in answer.headers.get('Content-Type', '') else data
        except urllib.error.HTTPError as e:
            raise AssertionError(f'{method} {path}: {e.code} {e.read()[:500]!r}') from e

@pytest.fixture
def studio(tmp_path):
    "A Label Studio of its own, that serves the files of `tmp_path`/out"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | {'LABEL_STUDIO_BASE_DATA_DIR': str(tmp_path/'studio'), 'LATEST_VERSION_CHECK': 'false',
        'COLLECT_ANALYTICS': 'false', 'SENTRY_DSN': '', 'FRONTEND_SENTRY_DSN': '',
        'LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN': 'true', 'LABEL_STUDIO_USER_TOKEN': TOKEN,
        'LABEL_STUDIO_USERNAME': 'ann@example.org', 'LABEL_STUDIO_PASSWORD': 'not-a-secret',
        'LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED': 'true',
        'LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT': str(tmp_path/'out')}
    env.pop('PYTHONPATH', None)
    with open(tmp_path/'studio.log', 'w') as log:
        command = [STUDIO, 'start', '--no-browser', '--port', str(port), '--internal-host', '127.0.0.1']
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
    ask, end = Studio(port), time.monotonic() + 600
    try:
        while True:
            try: ask('GET', '/api/projects')
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < end and server.poll() is None, (tmp_path/'studio.log').read_text()[-2000:]
                time.sleep(2)
            else: break
        yield ask
    finally:
        server.terminate()
        server.wait(30)

@pytest.mark.slow
@pytest.mark.skipif(not STUDIO, reason='no label-studio on PATH and none in SADS_LABEL_STUDIO')
def test_a_real_label_studio_shows_proposals_and_gives_back_what_a_person_changed(made, tmp_path, studio):
    box, brush = bad_ones(made)[:2]
    def boxed(r): return replace(r, annotations=tuple(replace(a, segmentation=None) for a in r.annotations))
    sent = guessed(replace(made, images=(boxed(box), brush)))
    tool = ManualAnnotatorFactory({'kind': 'label_studio'})
    tool.send(sent, tmp_path/'out')
    config = (tmp_path/'out'/'interface.xml').read_text()
    pid = studio('POST', '/api/projects', {'title': 'line 3', 'label_config': config})['id']
    storage = {'project': pid, 'path': str(tmp_path/'out'/'images'), 'use_blob_urls': True}
    studio('POST', '/api/storages/localfiles', storage)
    tasks = json.loads((tmp_path/'out'/'tasks.json').read_text())
    got = studio('POST', f'/api/projects/{pid}/import', tasks)
    assert (got['task_count'], got['prediction_count'], got['annotation_count']) == (2, 2, 0)

    shown = {t['id']: t for t in studio('GET', f'/api/tasks?project={pid}&fields=all')['tasks']}
    by_part = {t['data']['part_id']: t for t in shown.values()}
    for r in sent.images:
        (p,) = studio('GET', f'/api/predictions?task={by_part[r.part_id]["id"]}')
        assert (p['model_version'], p['score']) == ('model 3f2a', 0.75)
        assert [x['type'] for x in p['result']] == [
            'brushlabels' if a.segmentation else 'rectanglelabels' for a in r.annotations]
        photo = studio('GET', by_part[r.part_id]['data']['image'])
        assert photo == made.path(r).read_bytes()  # the browser is given the photograph itself

    # a person takes one proposal as it is, and moves the box of the other by a tenth of the photograph
    ids = {}
    for r in sent.images:
        task = by_part[r.part_id]['id']
        result = studio('GET', f'/api/predictions?task={task}')[0]['result']
        ids[r.part_id] = studio('POST', f'/api/tasks/{task}/annotations/', {'result': result})['id'], result
    a, result = ids[box.part_id]
    result[0]['value'] |= {'x': 10.0, 'y': 20.0, 'width': 30.0, 'height': 25.0}
    studio('PATCH', f'/api/annotations/{a}/', {'result': result})
    export = tmp_path/'export.json'
    export.write_text(json.dumps(studio('GET', f'/api/projects/{pid}/export?exportType=JSON')))

    judged, _ = tool.receive(export, made)
    back = {r.part_id: r for r in merge_labels(blank(made), judged)[0].images}
    moved = back[box.part_id].annotations[0]
    assert moved.bbox == pytest.approx([0.1*box.width, 0.2*box.height, 0.3*box.width, 0.25*box.height])
    assert back[box.part_id].automatic is None and moved.automatic is None  # it is the person's now
    for x, y in zip(instance_masks(brush), instance_masks(back[brush.part_id])): assert mask_iou(x, y) == 1
    assert sum(r.defective is not None for r in back.values()) == 2
