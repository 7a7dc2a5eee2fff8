"The real server, over HTTP on loopback, in its own processes."
import base64
import concurrent.futures
import io
import json
import os
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from fake_pipeline import FakePipeline
from PIL import Image
from pycocotools import mask as coco
from server_kit import free_port, nan_tiff, png, png_header, start, stop

from sads_jax.core.types import InspectionReport


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp('serve')/'batches'
    p, url = start('load', .05, log)
    yield url, log
    code, left, out = stop(p)
    assert (code, left) == (0, []), out


def post(url, data, name='a.png', **form):
    return httpx.post(f'{url}/predict', files={'file': (name, data)}, data=form, timeout=30)

def test_multipart_and_json_give_the_report_python_gives(server):
    url, _ = server
    for data in (png(200), png(10)):
        want = FakePipeline().process_request(data, part_id='A7').model_dump(mode='json', exclude={'timings_ms'})
        a = post(url, data, part_id='A7')
        b = httpx.post(f'{url}/predict', json={'image': base64.b64encode(data).decode(), 'part_id': 'A7'}, timeout=30)
        for r in (a, b):
            assert r.status_code == 200, r.text
            assert InspectionReport.model_validate(r.json()).model_dump(mode='json', exclude={'timings_ms'}) == want

def test_large_upload_stays_in_memory_and_arrives_whole(server):
    b = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)).save(
        b, 'BMP'
    )  # 3.2 MB: Starlette spools over 1 MB to disk
    assert post(server[0], b.getvalue()).json()['image_size'] == [1200, 900]

def test_a_bad_image_is_answered_alone(server):
    url, log = server
    bad = {'empty.png': b'', 'text.jpg': b'not a picture at all', 'cut.png': png(fmt='PNG')[:60],
        'tiny.png': png(size=(1, 1)), 'cut.jpg': png(fmt='JPEG')[:200], 'huge.png': png_header(30_000, 30_000),
        'nan.tif': nan_tiff()}
    shots = [(f'good{i}.png', png(20*i)) for i in range(12)]
    for i, item in enumerate(bad.items()): shots.insert(2*i + 1, item)
    before = len(log.read_text().splitlines())
    with concurrent.futures.ThreadPoolExecutor(len(shots)) as pool:
        answers = dict(zip([n for n, _ in shots], pool.map(lambda s: post(url, s[1], s[0]), shots), strict=True))
    sizes = [int(n) for n in log.read_text().splitlines()[before:]]
    assert 12 <= sum(sizes) < len(shots), f'what is certainly wrong is never queued: {sizes}'
    assert max(sizes) > 1, f'batched: {sizes}'
    for name, r in answers.items():
        if name in bad:
            assert r.status_code == 422 and r.json()['where'] == name and r.json()['what'] and r.json()['remedy'], (
                name, r.text)
        else:
            assert r.status_code == 200 and r.json()['image_size'] == [48, 40], (name, r.text)
    assert answers['empty.png'].json()['what'] == 'empty file'

@pytest.mark.parametrize(
    'status, kw',
    [(400, {'content': b'{"image": ', 'headers': {'content-type': 'application/json'}}),
        (400, {'content': b'', 'headers': {'content-type': 'application/json'}}),
        (400, {'content': b'\xff\xfe', 'headers': {'content-type': 'application/json'}}),
        (400, {'content': b'[' * 100_000, 'headers': {'content-type': 'application/json'}}),
        (400, {'json': 'a string'}), (400, {'json': {}}), (400, {'json': {'image': 7}}),
        (400, {'json': {'image': '***'}}), (400, {'json': {'image': '', 'part_id': 7}}),
        (400, {'json': {'image': '', 'part': 'x'}}), (400, {'files': {'photo': b'x'}}),
        (400, {'data': {'file': 'text'}, 'files': {'other': b'x'}}),
        (400, {'content': b'--x\r\nnonsense', 'headers': {'content-type': 'multipart/form-data; boundary=x'}}),
        (400, {'content': b'nonsense', 'headers': {'content-type': 'multipart/form-data'}}),
        (422, {'content': b'\x89PNG', 'headers': {'content-type': 'image/png'}}), (415, {}),
        (415, {'content': b'x', 'headers': {'content-type': 'text/plain'}}),
        (400, {'json': {'image': '', 'path': 'a'}}), (403, {'json': {'path': '/etc/hostname'}}),
        (403, {'json': {'url': 'http://127.0.0.1:1/a.png'}}), (400, {'json': {'views': []}}),
        (400, {'json': {'image': '', 'lot': 'a\nb'}}), (400, {'json': {'image': '', 'lot': 'x' * 201}}),
        (400, {'content': png(), 'headers': {'content-type': 'image/png', 'x-deadline-ms': 'soon'}}),
        (400, {'content': png(), 'headers': {'content-type': 'image/png', 'x-deadline-ms': '0'}}),
        (400, {'content': png(), 'headers': {'content-type': 'image/png', 'idempotency-key': 'k' * 201}}),
        (400, {'content': png(), 'headers': {'content-type': 'image/png'}, 'params': {'masks': 'svg'}}),
        (400, {'content': png(), 'headers': {'content-type': 'image/png'}, 'params': {'overlay': 'jpeg'}}),
        (422, {'content': png_header(30_000, 30_000), 'headers': {'content-type': 'image/png'}}),
        (422, {'content': b'%PDF-1.7', 'headers': {'content-type': 'image/jpeg'}}),
        (422, {'content': png(size=(4, 4)), 'headers': {'content-type': 'image/png'}}),
        (422, {'json': {'image': ''}}), (422, {'files': {'file': ('x.png', b'')}}),
        (400, {'files': [('file', ('a.png', b'x')), ('file', ('b.png', b'x'))]}),
        (400, {'files': {'file': ('a.png', b'x')}, 'data': {'lots': 'x'}}),
        (400, {'content': b'{"image": "", "image": ""}', 'headers': {'content-type': 'application/json'}}),
        (413, {'files': {'file': ('big.png', bytes(5 * 2**20))}}),
        (413, {'content': bytes(7 * 2**20), 'headers': {'content-type': 'application/json'}})],
)
def test_malformed_requests_are_the_clients_fault_and_say_why(server, status, kw):
    r = httpx.post(f'{server[0]}/predict', timeout=30, **kw)
    assert r.status_code == status, (r.status_code, r.text)
    assert (
        {'type', 'title', 'status', 'detail', 'what', 'where', 'remedy', 'request_id'} == set(r.json())
        and r.json()['what'] and r.json()['where'] and r.json()['status'] == status
        and r.headers['content-type'] == 'application/problem+json'
        and r.json()['request_id'] == r.headers['x-request-id']
        and 'Traceback' not in r.text and len(r.text) < 1500
    )

def test_a_flood_of_fields_is_answered_at_once_and_not_sent_back(server):
    body = json.dumps({f'field {i}': i for i in range(200_000)}).encode()
    start = time.monotonic()
    r = httpx.post(f'{server[0]}/predict', content=body, headers={'content-type': 'application/json'}, timeout=30)
    assert r.status_code == 400 and len(r.content) < 1000 and time.monotonic() - start < 3

def raw(url, data, kind='image/png', **kw):
    headers = {'content-type': kind} | kw.pop('headers', {})
    return httpx.post(f'{url}/predict', content=data, headers=headers, timeout=30, **kw)

@pytest.mark.parametrize('fmt, mode', [('PNG', 'RGB'), ('JPEG', 'RGB'), ('BMP', 'RGB'), ('TIFF', 'RGB'),
    ('WEBP', 'RGB'), ('TIFF', 'I;16'), ('PNG', 'I;16'), ('PNG', 'L'), ('PNG', 'RGBA')])
def test_the_content_says_what_it_is_whatever_it_is_called(server, fmt, mode):
    deep = np.full((40, 48), 50_000, np.uint16)
    grey = 200 if mode == 'L' else (200,)*len(mode)
    image = Image.fromarray(deep) if mode == 'I;16' else Image.new(mode, (48, 40), grey)
    image.save(b := io.BytesIO(), fmt)
    for kind in ('image/gif', 'application/octet-stream'):
        r = raw(server[0], b.getvalue(), kind, params={'part_id': 'A7'})
        assert (r.status_code, r.json()['image_size'], r.json()['part_id']) == (200, [48, 40], 'A7'), r.text

def test_a_photograph_that_lies_on_its_side_is_turned(server):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (48, 40), (200, 200, 200)).save(b := io.BytesIO(), 'JPEG', exif=exif)
    assert raw(server[0], b.getvalue(), 'image/jpeg').json()['image_size'] == [40, 48]

def test_views_of_a_part_have_the_worst_verdict(server):
    good, bad = png(200), png(10)
    for shots, verdict in (((good, good), 'PASS'), ((good, bad), 'FAIL')):
        body = {'views': [base64.b64encode(x).decode() for x in shots], 'part_id': 'A7'}
        a = httpx.post(f'{server[0]}/predict', json=body, timeout=30)
        b = httpx.post(f'{server[0]}/predict', files=[('views', ('x.png', x)) for x in shots], timeout=30)
        for r in (a, b):
            assert r.json()['verdict'] == verdict and len(r.json()['views']) == 2, r.text
        assert a.json()['part_id'] == a.json()['views'][1]['part_id'] == 'A7'
    r = httpx.post(f'{server[0]}/predict', files=[('views', ('x.png', good)), ('views', ('y.png', b'?'))], timeout=30)
    assert (r.status_code, r.json()['where']) == (422, 'y.png')

def test_a_batch_is_answered_line_by_line_with_errors_in_place(server):
    shots = [png(i) for i in range(20)]
    shots[3] = b'no picture'
    form = httpx.post(f'{server[0]}/predict/batch', files=[('file', (f'{i}.png', x)) for i, x in enumerate(shots)],
        timeout=60)
    rows = [json.dumps({'image': base64.b64encode(x).decode(), 'part_id': f'P{i}'}) for i, x in enumerate(shots)]
    lines = httpx.post(f'{server[0]}/predict/batch', content='\n'.join(rows).encode(), timeout=60,
        headers={'content-type': 'application/x-ndjson'})
    for r in (form, lines):
        assert r.status_code == 200 and r.headers['content-type'] == 'application/x-ndjson'
        got = [json.loads(line) for line in r.text.splitlines()]
        assert [g['index'] for g in got] == list(range(20))
        assert [i for i, g in enumerate(got) if 'problem' in g] == [3] and got[3]['problem']['status'] == 422
        want = [FakePipeline().process_request(x).image_sha256 for i, x in enumerate(shots) if i != 3]
        assert [g['report']['image_sha256'] for g in got if 'report' in g] == want
    assert got[7]['report']['part_id'] == 'P7'

def test_the_picture_and_other_forms_of_masks(server):
    dark = png(10)
    r = raw(server[0], dark, params={'overlay': 'png'})
    image = Image.open(io.BytesIO(r.content))
    assert r.headers['content-type'] == 'image/png' and r.headers['x-verdict'] == 'FAIL' and image.size == (48, 40)
    assert image.getpixel((2, 2)) == (255, 140, 0) and image.getpixel((40, 30)) == (10, 10, 10)
    rle, polygon, none = (raw(server[0], dark, params={'masks': m}).json() for m in ('rle', 'polygon', 'none'))
    assert set(rle['defects'][0]['mask']) == {'size', 'counts'}
    mask = rle['defects'][0]['mask']
    inside = coco.decode({'size': mask['size'], 'counts': mask['counts'].encode()}).sum()
    rings = [np.reshape(r, (-1, 2)) for r in polygon['defects'][0]['mask']['polygons']]
    shoelace = sum((x*np.roll(y, -1) - y*np.roll(x, -1)).sum()/2 for x, y in (r.T for r in rings))
    assert abs(shoelace) == inside > 0 and none['defects'][0]['mask'] is None
    without = lambda d: {k: v for k, v in d['defects'][0].items() if k != 'mask'}
    assert without(rle) == without(polygon) == without(none)

def test_identical_photographs_are_judged_once(server):
    url, log = server
    data = png(123, size=(33, 44))
    first = raw(url, data, params={'part_id': 'A'})
    n = len(log.read_text().splitlines())
    again = raw(url, data, params={'part_id': 'B', 'station_id': 'S9'})
    assert len(log.read_text().splitlines()) == n
    assert (first.headers['x-cache'], again.headers['x-cache']) == ('miss', 'hit')
    assert again.json() == first.json() | {'part_id': 'B', 'station_id': 'S9'}
    assert httpx.get(f'{url}/admin/models').json()['cache']['hits'] >= 1

def test_an_idempotency_key_answers_the_same(server):
    data, key = png(124, size=(34, 44)), {'idempotency-key': 'k1'}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        same = [f.result() for f in [pool.submit(raw, server[0], data, headers=key) for _ in range(4)]]
    assert len({r.content for r in same}) == 1 and {r.status_code for r in same} == {200}
    other = raw(server[0], png(125), headers=key)
    assert (other.status_code, other.json()['where']) == (422, 'Idempotency-Key')

def test_every_answer_has_the_request_id_and_says_nothing_to_browsers(server):
    for r in (raw(server[0], png(), headers={'x-request-id': 'line3-7', 'origin': 'http://evil.example'}),
            httpx.get(f'{server[0]}/nope', headers={'x-request-id': 'line3-7'})):
        assert r.headers['x-request-id'] == 'line3-7' and r.headers['x-content-type-options'] == 'nosniff'
        assert not [k for k in r.headers if k.startswith('access-control')] and 'server' not in r.headers
    for bad in ('a b', 'x'*65):
        assert httpx.get(f'{server[0]}/livez', headers={'x-request-id': bad}).headers['x-request-id'] != bad

def test_observers_hear_of_every_answer_once(tmp_path, monkeypatch):
    monkeypatch.setenv('FAKE_SEEN', str(tmp_path/'seen'))
    p, url = start()
    for i in range(3): raw(url, png(i), params={'part_id': f'P{i}', 'lot': 'L'}, headers={'x-request-id': f'r{i}'})
    raw(url, b'x', headers={'x-request-id': 'bad'})
    raw(url, png(0), params={'part_id': 'again'}, headers={'x-request-id': 'r3'})  # from the cache
    assert stop(p)[0] == 0
    seen = {r.pop('id'): r for r in map(json.loads, (tmp_path/'seen').read_text().splitlines())}
    assert set(seen) == {'r0', 'r1', 'r2', 'r3', 'bad'} and seen['bad'] == {'status': 422}
    assert (seen['r1']['part'], seen['r1']['lot'], seen['r3']['part']) == ('P1', 'L', 'again') and seen['r1']['same']
    assert seen['r1']['stages'] == ['judge', 'parse', 'queue', 'receive', 'total'] and seen['r1']['size'] == len(png(1))

def test_another_application_can_be_mounted_beside(tmp_path):
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    from sads_jax.core.settings import Settings
    from sads_jax.serving.server import make_server
    server = make_server(dict, Settings(api_keys=tmp_path/'none'), mounts={'/metrics': PlainTextResponse('up 1')})
    assert TestClient(server.app, base_url='http://localhost').get('/metrics').text == 'up 1'

# -- The Open Inference protocol

def test_the_open_inference_protocol_in_json(server):
    url, shots = server[0], [png(200), png(10)]
    assert [httpx.get(f'{url}/v2/{p}').status_code for p in ('health/ready', 'models/sads/ready')] == [200, 200]
    about = httpx.get(f'{url}/v2/models/sads').json()
    assert (about['inputs'][0]['datatype'], [o['name'] for o in about['outputs']]) == ('BYTES',
        ['verdict', 'image_score', 'report'])
    tensor = dict(name='image', datatype='BYTES', shape=[2], data=[base64.b64encode(x).decode() for x in shots])
    r = httpx.post(f'{url}/v2/models/sads/infer', json={'id': '42', 'inputs': [tensor]}, timeout=30).json()
    out = {o['name']: o for o in r['outputs']}
    assert (r['id'], out['verdict']['data'], out['report']['shape']) == ('42', ['PASS', 'FAIL'], [2])
    assert json.loads(out['report']['data'][1])['image_sha256'] == FakePipeline().process_request(shots[1]).image_sha256

def test_the_open_inference_protocol_in_binary(server):
    "As Triton's client sends it: lengths by hand, from the protocol's text"
    elements = b''.join(len(x).to_bytes(4, 'little') + x for x in (png(200), png(10)))
    head = json.dumps({'inputs': [dict(name='image', datatype='BYTES', shape=[2],
        parameters={'binary_data_size': len(elements)})], 'outputs': [{'name': 'verdict',
            'parameters': {'binary_data': True}}]}).encode()
    r = httpx.post(f'{server[0]}/v2/models/sads/infer', content=head + elements, timeout=30,
        headers={'inference-header-content-length': str(len(head)), 'content-type': 'application/octet-stream'})
    n = int(r.headers['inference-header-content-length'])
    assert r.content[n:] == b'\x04\0\0\0PASS\x04\0\0\0FAIL' and json.loads(r.content[:n])['outputs'][0]['shape'] == [2]
    cut = httpx.post(f'{server[0]}/v2/models/sads/infer', content=head + elements[:-1], timeout=30,
        headers={'inference-header-content-length': str(len(head))})
    assert cut.status_code == 400

def test_documents_itself(server):
    doc = httpx.get(f'{server[0]}/openapi.json').json()
    post = doc['paths']['/predict']['post']
    assert set(post['requestBody']['content']) == {'multipart/form-data', 'application/json', 'image/*',
        'application/octet-stream'}
    assert {'200', '400', '413', '415', '422'} <= set(post['responses'])
    schemas = doc['components']['schemas']
    assert set(schemas['InspectionReport']['properties']) == set(InspectionReport.model_fields)
    assert {r.rpartition('/')[2] for r in _refs(doc)} <= set(schemas)
    assert httpx.get(f'{server[0]}/docs').status_code == 200

def _refs(x):
    if isinstance(x, dict):
        if isinstance(x.get('$ref'), str): yield x['$ref']
        for v in x.values(): yield from _refs(v)
    elif isinstance(x, list):
        for v in x: yield from _refs(v)

# -- a real bundle, without networks

@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    import dark_cascade
    d = tmp_path_factory.mktemp('bundle')
    dark_cascade.bundle(d/'bundle')
    (d/'photos').mkdir()
    for i in range(9):
        dark_cascade.photo(
            d / 'photos' / f'{i}.{("png", "jpg")[i % 2]}', dark=i % 3 == 0, size=(80 + 7 * i, 60 + 9 * i)
        )
    return d

def test_three_ways_one_report(bundle, capfd, monkeypatch):
    "Python one at a time, the command line in batches, HTTP sixteen at once: equal field by field"
    import parity_check
    monkeypatch.chdir(bundle)
    assert parity_check.main('bundle', 'photos') == 0
    out = capfd.readouterr().out
    assert '9 photographs, 12 fields each' in out and 'equal field by field, three ways' in out

def test_the_main_process_of_a_real_server_has_no_jax(bundle):
    code = f'import sys; from sads_jax.core.settings import Settings; from sads_jax.serving.server import build_server; build_server({str(bundle / "bundle")!r}, Settings(port={free_port()})); print(*{{m.partition(".")[0] for m in sys.modules}})'  # noqa: E501
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert 'litserve' in loaded and not {'jax', 'jaxlib', 'flax', 'mlflow'} & set(loaded)

def test_another_bundle_is_taken_over_and_a_corrupt_one_is_not(bundle, tmp_path):
    "`sads serve`, a folder as the reference: loaded in the worker, its golden photographs judged first"
    import dark_cascade

    from sads_jax.registry.bundle import bundle_version
    for name, threshold in (('next', .6), ('corrupt', .7)):
        dark_cascade.bundle(tmp_path/name, threshold=threshold)
    weights = tmp_path/'corrupt'/'weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'?')
    port = free_port()
    env = os.environ | {'SADS_DRAIN_S': '0', 'SADS_CACHE_DIR': str(tmp_path/'cache')}
    command = [sys.executable, '-m', 'sads_jax.cli.main', 'serve', '--bundle', bundle/'bundle', '--port', port]
    p = subprocess.Popen(list(map(str, command)), env=env, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    url, data = f'http://127.0.0.1:{port}', (bundle/'photos'/'0.png').read_bytes()
    try:
        while not p.stdout.readline().startswith('ready'): assert p.poll() is None
        change = lambda ref: httpx.post(f'{url}/admin/models', json={'ref': str(ref)}, timeout=120)
        before = raw(url, data).json()
        r = change(tmp_path/'corrupt')
        assert r.status_code == 422 and 'weights.safetensors' in r.json()['detail'], r.text
        assert raw(url, data).json()['model_version'] == before['model_version'] == bundle_version(bundle/'bundle')
        assert change(tmp_path/'next').json()['version'] == bundle_version(tmp_path/'next')
        assert raw(url, data).json()['model_version'] == bundle_version(tmp_path/'next')
        assert change('nobody').status_code == 422
    finally:
        code, left, out = stop(p)
    assert (code, left) == (0, []), out
