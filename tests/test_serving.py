"The real server, over HTTP on loopback, in its own processes."
import base64
import concurrent.futures
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from fake_pipeline import FakePipeline  # noqa: E402

from sads_jax.core.types import InspectionReport  # noqa: E402


def png(value=200, size=(40, 48), fmt='PNG'):
    b = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(b, fmt)
    return b.getvalue()

def png_header(w, h):
    "A PNG that claims to be w x h px and ends after its header"
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b''))
        + chunk(b'IEND', b'')
    )

def nan_tiff():
    b = io.BytesIO()
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(b, 'TIFF')
    return b.getvalue()

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(*args, port=None, wait=True):
    "A server process in its own process group, healthy if `wait`"
    port = port or free_port()
    env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{HERE.parent}'}
    p = subprocess.Popen([sys.executable, str(HERE / 'serve_fake.py'), str(port), *map(str, args)], env=env,
        cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    url = f'http://127.0.0.1:{port}'
    end = time.monotonic() + 60
    while wait:
        if p.poll() is not None: raise AssertionError(p.stdout.read())
        try:
            if httpx.get(f'{url}/health', timeout=2).status_code == 200: break
        except httpx.TransportError: pass
        if time.monotonic() > end:
            os.killpg(p.pid, signal.SIGKILL)
            raise AssertionError(f'not healthy in 60 s: {p.stdout.read()}')
        time.sleep(.1)
    return p, url

def group(pgid):
    "Living members of a process group (zombies are not alive)"
    alive = []
    for d in Path('/proc').glob('[0-9]*'):
        try: state, _, pg = (d/'stat').read_text().rpartition(')')[2].split()[:3]
        except (OSError, ValueError): continue
        if int(pg) == pgid and state != 'Z': alive.append(int(d.name))
    return alive

def stop(p, sig=signal.SIGTERM, everyone=False):
    "Exit status after `sig`; kills what is left in any case, and says what that was"
    (os.killpg if everyone else os.kill)(p.pid, sig)
    try: out, _ = p.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        raise
    return p.returncode, leftovers(p), out

def leftovers(p):
    "Processes of a group that are still there 3 s after its first member ended, and are now killed"
    end = time.monotonic() + 3
    while (left := group(p.pid)) and time.monotonic() < end: time.sleep(.05)
    for pid in left: os.kill(pid, signal.SIGKILL)
    return left

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
    assert sum(sizes) == len(shots) and max(sizes) > 1, f'batched: {sizes}'
    for name, r in answers.items():
        if name in bad:
            assert r.status_code == 422 and r.json()['where'] == name and r.json()['error'] and r.json()['remedy'], (
                name, r.text)
        else:
            assert r.status_code == 200 and r.json()['image_size'] == [48, 40], (name, r.text)
    assert answers['empty.png'].json()['error'] == 'empty file'

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
        (415, {'content': b'\x89PNG', 'headers': {'content-type': 'image/png'}}), (415, {}),
        (422, {'json': {'image': ''}}), (422, {'files': {'file': ('x.png', b'')}}),
        (400, {'files': [('file', ('a.png', b'x')), ('file', ('b.png', b'x'))]}),
        (400, {'files': {'file': ('a.png', b'x')}, 'data': {'lot': 'x'}}),
        (400, {'content': b'{"image": "", "image": ""}', 'headers': {'content-type': 'application/json'}}),
        (413, {'files': {'file': ('big.png', bytes(5 * 2**20))}}),
        (413, {'content': bytes(7 * 2**20), 'headers': {'content-type': 'application/json'}})],
)
def test_malformed_requests_are_the_clients_fault_and_say_why(server, status, kw):
    r = httpx.post(f'{server[0]}/predict', timeout=30, **kw)
    assert r.status_code == status, (r.status_code, r.text)
    assert (
        set(r.json()) == {'error', 'where', 'remedy'}
        and r.json()['error']
        and r.json()['where']
        and 'Traceback' not in r.text
    )

def test_a_flood_of_fields_is_answered_at_once_and_not_sent_back(server):
    body = json.dumps({f'field {i}': i for i in range(200_000)}).encode()
    start = time.monotonic()
    r = httpx.post(f'{server[0]}/predict', content=body, headers={'content-type': 'application/json'}, timeout=30)
    assert r.status_code == 400 and len(r.content) < 1000 and time.monotonic() - start < 3

def test_documents_itself(server):
    doc = httpx.get(f'{server[0]}/openapi.json').json()
    post = doc['paths']['/predict']['post']
    assert set(post['requestBody']['content']) == {'multipart/form-data', 'application/json'}
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

@pytest.mark.parametrize('sig, everyone', [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_stops_cleanly_with_requests_in_flight(sig, everyone):
    "SIGTERM to the main process (a container), Ctrl-C and SIGTERM to the whole group (a terminal, systemd)"
    p, url = start('load', .8)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        flying = [pool.submit(post, url, png(i)) for i in range(4)]
        time.sleep(.5)
        code, left, out = stop(p, sig, everyone)
    assert (code, left) == (0, []), out
    assert 'Traceback' not in out
    assert [f.result().status_code for f in flying] == [200]*4

def test_kill_9_frees_the_port():
    p, url = start()
    _, left, _ = stop(p, signal.SIGKILL)
    assert left == []
    with pytest.raises(httpx.ConnectError): httpx.get(f'{url}/health', timeout=2)

@pytest.mark.parametrize('loader', ['load_broken', 'load_killed'])
def test_a_worker_that_cannot_load_ends_the_server(loader):
    p, _ = start(loader, wait=False)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 1 and 'error: the worker could not load the model' in out, out
    assert leftovers(p) == []

def test_port_in_use_is_said_before_anything_starts():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        p, _ = start(port=port, wait=False)
        out, _ = p.communicate(timeout=60)
    assert (
        p.returncode == 1
        and out
        == f'error: 127.0.0.1:{port}: cannot listen: Address already in use. Stop the other server, or choose another '
        'port with --port\n'
    )


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

def test_ready_is_said_when_the_port_answers():
    p, url = start(wait=False)
    try:
        assert p.stdout.readline() == 'ready\n'
        assert httpx.get(f'{url}/health', timeout=5).status_code == 200  # at the first try
    finally: os.killpg(p.pid, signal.SIGKILL)

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
