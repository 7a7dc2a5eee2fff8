"The client and the command lines of the page about curl, against a real server."
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ops_kit import start_ops, stop_ops
from server_kit import HERE, png, start

from sads_jax.client import SADSClient, ServerError
from sads_jax.core.types import InspectionReport
from sads_jax.serving.keys import add_key

PAGE = HERE.parent/'nbs'/'tutorials'/'06_asking_by_curl.ipynb'


@pytest.fixture(scope='module')
def plant(tmp_path_factory):
    place = tmp_path_factory.mktemp('plant')
    p, url = start_ops(place/'none.ini', place, max_waiting=16, max_image_mb=1)
    yield url, place
    stop_ops(p)

def test_a_photograph_is_judged(plant, tmp_path):
    url, _ = plant
    (tmp_path/'part.png').write_bytes(png(20))
    with SADSClient(url, station_id='line-3') as c:
        assert c.ready()
        good, bad = c.predict(png(), part_id='A7'), c.predict(tmp_path/'part.png', station_id='line-4')
        assert (good.verdict, good.part_id, good.station_id) == ('PASS', 'A7', 'line-3')
        assert (bad.verdict, bad.defects[0].label, bad.station_id) == ('FAIL', 'pit', 'line-4')
        assert c.overlay(png(20)).startswith(b'\x89PNG')
        part = c.predict_part([png(), png(20)], part_id='A8')
        assert (part['verdict'], len(part['views'])) == ('FAIL', 2)
        part = c.predict_part([png()], part_id='A9')
        assert (part['verdict'], len(part['views'])) == ('PASS', 1)

def test_an_error_is_that_of_the_server(plant):
    url, _ = plant
    with SADSClient(url) as c:
        start = time.monotonic()
        with pytest.raises(ServerError) as e: c.predict(b'no picture')
        assert time.monotonic() - start < 5, 'tried again in vain'
    assert 400 <= e.value.status < 500 and e.value.what and e.value.where == 'photograph' and e.value.request_id
    again = pickle.loads(pickle.dumps(e.value))
    assert (again.status, str(again)) == (e.value.status, str(e.value))

def test_many_are_answered_in_order_with_errors_in_place(plant):
    url, _ = plant
    files = [b'no picture' if i % 9 == 4 else png(20 if i % 3 == 1 else 200, (32, 33 + i)) for i in range(50)]
    with SADSClient(url) as c: said = list(c.predict_many(iter(files), lot='L1', at_once=20))
    assert len(said) == 50
    for i, s in enumerate(said):
        if i % 9 == 4: assert isinstance(s, ServerError) and s.status
        else: assert (s.verdict, s.image_size) == ('FAIL' if i % 3 == 1 else 'PASS', (33 + i, 32))

def test_a_full_queue_is_waited_for(plant):
    "Sixty callers where sixteen have room: each gets its verdict"
    url, _ = plant
    got, errors = [], []
    def one(i):
        try:
            with SADSClient(url, tries=20) as c: got.append((i, c.predict(png(100 + i, (33, 40))).image_score))
        except ServerError as e: errors.append(e)
    threads = [threading.Thread(target=one, args=[i]) for i in range(60)]
    for t in threads: t.start()
    for t in threads: t.join(90)
    assert not errors and {i: s for i, s in got} == {i: round(1 - (100 + i)/255, 4) for i in range(60)}

def test_the_same_key_gets_the_same_answer(plant):
    url, _ = plant
    with SADSClient(url) as c:
        first = c.predict(png(77, (34, 34)), part_id='A1', idempotency_key='k1')
        assert c.predict(png(77, (34, 34)), part_id='A1', idempotency_key='k1') == first
        with pytest.raises(ServerError) as e: c.predict(png(78), part_id='A1', idempotency_key='k1')
        assert e.value.status in (409, 422)

class Moody(BaseHTTPRequestHandler):
    "Answers with what `moods` says"
    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        self.server.seen.append((time.monotonic(), self.headers['idempotency-key']))
        mood = self.server.moods.pop(0)
        if mood == 'cut': return self.connection.close()
        status, after, body = mood
        self.send_response(status)
        if after: self.send_header('retry-after', after)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass

def moody(*moods):
    s = ThreadingHTTPServer(('127.0.0.1', 0), Moody)
    s.moods, s.seen = list(moods), []
    threading.Thread(target=s.serve_forever, daemon=True).start()
    return s, f'http://127.0.0.1:{s.server_port}'

REPORT = InspectionReport(verdict='PASS', reasons=[], defects=[], image_score=0., image_sha256='', image_size=(8, 8),
    model_version='m', rules_version='r').model_dump_json().encode()

def test_what_may_pass_is_tried_again_no_sooner_than_asked():
    s, url = moody((503, '1', b'{"what": "the worker is being started"}'), 'cut', (502, None, b'<html>'),
        (200, None, REPORT))
    with SADSClient(url) as c: assert c.predict(png()).verdict == 'PASS'
    times, keys = zip(*s.seen)
    assert len(times) == 4 and times[1] - times[0] >= 1 and len(set(keys)) == 1
    s.shutdown()

def test_it_gives_up_with_the_last_error():
    s, url = moody(*[(429, '0', b'{"what": "full", "status": 429}')]*3)
    with SADSClient(url, tries=3) as c:
        with pytest.raises(ServerError, match='full') as e: c.predict(png())
    assert e.value.status == 429 and len(s.seen) == 3
    s.shutdown()

def test_the_client_needs_no_model():
    code = 'import sads_jax.client, sys; print(*{m.partition(".")[0] for m in sys.modules})'
    out = subprocess.run([sys.executable, '-c', code], cwd=HERE.parent, capture_output=True, text=True,
        check=True).stdout
    assert not set(out.split()) & {'jax', 'numpy', 'scipy', 'litserve', 'fastapi', 'PIL'}

def test_a_key_is_sent_and_a_wrong_one_named(tmp_path):
    key = add_key(tmp_path/'keys.json', 'line', ['predict'])
    p, url = start(api_keys=str(tmp_path/'keys.json'))
    try:
        with SADSClient(url, key=key) as c: assert c.predict(png()).verdict == 'PASS'
        with SADSClient(url, key='sads_wrong') as c:
            with pytest.raises(ServerError) as e: c.predict(png())
        assert e.value.status == 401 and 'sads_wrong' not in str(e.value)
    finally: stop_ops(p); p.stdout.close()

# ---------------------------------------------------------------- the page about curl

def commands():
    "The command lines of the page"
    return [c for cell in json.loads(PAGE.read_text())['cells']
        for c in re.findall(r'```sh\n(.*?)\n```', ''.join(cell['source']), re.S)]

def checks(i, command, out, folder):
    "What the answer to each must be"
    if 'overlay=png' in command: return (folder/'outlined.png').read_bytes().startswith(b'\x89PNG')
    if '/predict/batch' in command:
        return [json.loads(x)['report']['verdict'] for x in out.splitlines()] == ['FAIL', 'PASS']
    if 'python3 -c' in command: return out.strip() == 'FAIL'
    if '/metrics' in command: return 'sads_verdicts_total' in out
    if '/openapi' in command: return '/predict' in json.loads(out)['paths']
    if '/readyz' in command: return json.loads(out)['ok'] is True
    return json.loads(out)['verdict'] == 'FAIL'

@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_every_command_line_of_the_page_is_right(plant, tmp_path):
    url, _ = plant
    (tmp_path/'part.png').write_bytes(png(20))
    (tmp_path/'other.png').write_bytes(png())
    assert len(commands()) >= 12
    for i, command in enumerate(commands()):
        assert 'http://127.0.0.1:8000' in command
        r = subprocess.run(['bash', '-euo', 'pipefail', '-c', command.replace('http://127.0.0.1:8000', url)],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ)
        assert r.returncode == 0 and checks(i, command, r.stdout, tmp_path), (command, r.stdout[:500], r.stderr)
