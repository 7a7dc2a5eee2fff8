"What the server says of itself is true; what LitServe must still be."
import importlib
import inspect
import json
import random
import time
from importlib.metadata import version

import httpx
import litserve
import pytest
from server_kit import png, start, stop

from sads_jax.serving.api_document import document
from sads_jax.serving.server import SERVED


@pytest.fixture(scope='module')
def url():
    p, url = start('load', body_timeout_s=2)
    yield url
    code, left, out = stop(p)
    assert (code, left) == (0, []), out


def test_the_names_of_litserve_that_we_stand_on_are_there():
    "Fails loudly on a version that has moved them; then read its changes, and widen the range in pyproject.toml"
    assert version('litserve').startswith('0.2.'), 'a new LitServe: see serving.server'
    for name in SERVED:
        first, *rest = name.split('.')
        at = importlib.import_module(f'litserve.{first}') if first in ('loops', 'callbacks') else litserve
        for part in rest if at is not litserve else (first, *rest):
            if part == 'base': at = importlib.import_module('litserve.loops.base'); continue
            if (at, part) == (litserve.LitServer, 'app'): continue  # of an instance
            at = getattr(at, part)
    from litserve.loops import inference_worker
    assert list(inspect.signature(inference_worker).parameters) == ['lit_api', 'device', 'worker_id', 'request_queue',
        'transport', 'workers_setup_status', 'callback_runner', 'restart_workers']
    from litserve.loops.base import LitLoop
    assert list(inspect.signature(LitLoop.run).parameters)[1:] == ['lit_api', 'device', 'worker_id', 'request_queue',
        'transport', 'workers_setup_status', 'callback_runner']

def test_every_address_of_the_document_answers_as_it_says(url):
    doc = httpx.get(f'{url}/openapi.json').json()
    assert doc == json.loads(json.dumps(document('sads', 'fake')))
    for path, verbs in doc['paths'].items():
        for verb, op in verbs.items():
            r = httpx.request(verb.upper(), url + path, timeout=30)
            said = op['responses'].get(str(r.status_code))
            assert said is not None, (path, r.status_code)
            assert not said.get('content') or r.headers['content-type'] in said['content'], (path, r.headers)
        for wrong in {'get', 'post', 'put', 'delete'} - set(verbs):
            assert httpx.request(wrong.upper(), url + path).status_code == 405, (wrong, path)

def spoilt(rng):
    "A body and its content type, right or nearly so"
    body = bytearray(rng.choice([png(), b'{"image": "' + b'A'*40 + b'"}', b'--x\r\nContent-Disposition: form-data; '
        b'name="file"; filename="a.png"\r\n\r\n' + png() + b'\r\n--x--\r\n']))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(body))
        match rng.randrange(3):
            case 0: body[at] = rng.randrange(256)
            case 1: del body[at:at + rng.randrange(1, 20)]
            case 2: body[at:at] = rng.randbytes(rng.randrange(1, 20))
        if not body: break
    return bytes(body), rng.choice(['image/png', 'application/json', 'multipart/form-data; boundary=x', 'text/plain',
        'multipart/form-data', 'application/x-ndjson', 'application/octet-stream', ''])

def fuzz(url, n):
    rng = random.Random(7)
    with httpx.Client(base_url=url, timeout=30) as c:
        for i in range(n):
            body, kind = spoilt(rng)
            path = rng.choice(['/predict', '/predict?masks=polygon', '/predict?overlay=png', '/predict/batch',
                '/v2/models/sads/infer'])
            r = c.post(path, content=body, headers={'content-type': kind} if kind else {})
            assert r.status_code in (200, 400, 413, 415, 422), (i, path, kind, body, r.text)
            if r.status_code != 200: assert r.json()['what'] and len(r.text) < 1500
        end = time.monotonic() + 3  # the last answer may still be on its way
        while (state := c.get('/admin/models').json())['accepted'] and time.monotonic() < end: time.sleep(.05)
    assert (state['ready'], state['deaths'], state['accepted'], state['accepted_bytes']) == (1, 0, 0, 0)

def test_spoilt_bodies_are_refused_and_leave_nothing_behind(url): fuzz(url, 300)

@pytest.mark.slow
def test_ten_thousand_spoilt_bodies(url): fuzz(url, 10_000)
