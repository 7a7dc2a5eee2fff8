"Faults, each against a real server in its own processes: what dies, hangs, floods, stalls, or is told to stop."
import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from server_kit import family, leftovers, png, start, stop


def post(url, data, name='a.png', **kw):
    return httpx.post(f'{url}/predict', files={'file': (name, data)}, timeout=30, **kw)

def worker_of(p):
    "Process ids of the workers: children of the main process that judge"
    return [q for q in family(p.pid) if q != p.pid and 'spawn_main' in Path(f'/proc/{q}/cmdline').read_text()]

@pytest.fixture
def begun():
    "Starts servers, and leaves nothing of them"
    there = []
    def begin(*args, **settings):
        there.append(start(*args, **settings))
        return there[-1]
    yield begin
    for p, _ in there:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
        p.communicate()


# -- Starting and stopping

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


def test_ready_is_said_when_the_port_answers():
    p, url = start(wait=False)
    try:
        assert p.stdout.readline() == 'ready\n'
        assert httpx.get(f'{url}/health', timeout=5).status_code == 200  # at the first try
    finally: os.killpg(p.pid, signal.SIGKILL)


# -- One bad photograph, one dead worker

def test_a_photograph_that_breaks_the_program_fails_alone(begun):
    p, url = begun('load', .2)
    names = ['a.png', 'poison.png', 'b.png', 'c.png', 'kind.png']
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        flying = {n: pool.submit(post, url, png(i), n) for i, n in enumerate(names)}
    codes = {n: f.result().status_code for n, f in flying.items()}
    assert codes == dict.fromkeys(names, 200) | {'poison.png': 500}
    assert flying['poison.png'].result().json()['where'] == 'poison.png'

def test_killing_a_worker_answers_those_in_flight_and_starts_another(begun):
    p, url = begun('load', .3)
    before, = worker_of(p)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        flying = [pool.submit(post, url, png(i)) for i in range(8)]
        time.sleep(.25)
        os.kill(before, signal.SIGKILL)
        answers = [f.result() for f in flying]
    assert {r.status_code for r in answers} <= {200, 503} and any(r.status_code == 503 for r in answers)
    assert all(r.headers['retry-after'] == '2' for r in answers if r.status_code == 503)
    end = time.monotonic() + 60
    while httpx.get(f'{url}/readyz').status_code != 200 and time.monotonic() < end: time.sleep(.2)
    assert post(url, png(9)).status_code == 200
    after, = worker_of(p)
    assert after != before and httpx.get(f'{url}/admin/models').json()['deaths'] == 1

def test_a_worker_that_hangs_is_replaced(begun):
    p, url = begun('load', worker_timeout_s=1.5)
    r = post(url, png(), 'hang.png')
    assert r.status_code == 503 and httpx.get(f'{url}/livez').status_code == 200


# -- More than can be judged

def test_the_queue_is_bounded_and_says_when_to_come_back(begun):
    p, url = begun('load', .5, max_waiting=3)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: post(url, png(i)), range(12)))
    codes = sorted(r.status_code for r in answers)
    assert set(codes) == {200, 429} and codes.count(200) >= 3
    assert all(int(r.headers['retry-after']) >= 1 for r in answers if r.status_code == 429)
    assert httpx.get(f'{url}/admin/models').json()['accepted'] == 0

def test_who_waited_too_long_or_hung_up_is_not_computed(begun, tmp_path):
    log = tmp_path/'batches'
    p, url = begun('load', 2, str(log), max_batch_size=1)
    fast = dict(headers={'x-deadline-ms': '300'})
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        first = [pool.submit(post, url, png(i)) for i in range(2)]  # both places of the worker
        while httpx.get(f'{url}/admin/models').json()['judging'] < 2: time.sleep(.02)
        late = [pool.submit(post, url, png(20 + i), **fast) for i in range(4)]
        time.sleep(.1)
        for i in range(4):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f'{url}/predict', files={'file': png(50 + i)}, timeout=.05)
        assert [f.result().status_code for f in first + late] == [200]*2 + [504]*4
    time.sleep(.3)
    assert log.read_text().split() == ['1']*3  # warming up, and the first two


# -- Clients that stall, and those that should not be here

def connect(url):
    host, port = url.removeprefix('http://').split(':')
    return socket.create_connection((host, int(port)), 10)

def test_slow_clients_crowds_and_strangers(begun):
    p, url = begun(header_timeout_s=1, body_timeout_s=1, max_connections=6)
    said = {}
    def slow(name, first, byte):
        with connect(url) as s:
            s.sendall(first)
            end = time.monotonic() + 8
            s.settimeout(.2)
            got = b''
            while time.monotonic() < end:
                try: got = s.recv(4096)
                except TimeoutError: s.sendall(byte)
                else: break
            said[name] = got, time.monotonic() - end + 8
    head = b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
    threads = [threading.Thread(target=slow, args=a) for a in (('head', head, b'X'), ('nothing', b'', b''),
        ('body', head + b'Content-Type: image/png\r\nContent-Length: 999\r\n\r\n', b'x'))]
    for t in threads: t.start()
    for t in threads: t.join()
    for name, (got, seconds) in said.items():
        assert got.startswith(b'HTTP/1.1 408 ') and b'connection: close' in got.lower() and seconds < 5, (name, got)
    held = [connect(url) for _ in range(6)]
    with connect(url) as one_more: assert one_more.recv(4096).startswith(b'HTTP/1.1 503 ')
    for s in held: s.close()
    time.sleep(.2)
    with connect(url) as s:
        s.sendall(b'GET /livez HTTP/1.1\r\nX: ' + b'y'*40_000 + b'\r\n\r\n')
        assert s.recv(4096).startswith(b'HTTP/1.1 431 ')
    for path, body, closes in (('nope', b'Content-Length: 999\r\n\r\nx', True), ('nope', b'\r\n', False)):
        with connect(url) as s:  # whose body nobody waits for may not go on sending it
            s.sendall(b'POST /' + path.encode() + b' HTTP/1.1\r\nHost: localhost\r\n' + body)
            assert (b'connection: close' in s.recv(4096)) == closes
    assert httpx.get(f'{url}/livez', headers={'host': 'evil.example'}).status_code == 421
    assert httpx.get(f'{url}/livez').status_code == 200


# -- Changing the model

def versions_under_load(url, stop_at, seen):
    with httpx.Client(base_url=url, timeout=30) as c:
        i = 0
        while not stop_at.is_set():
            r = c.post('/predict', content=png(i % 200, size=(40, 48 + i % 50)), headers={'content-type': 'image/png'})
            seen.append((r.status_code, r.json().get('model_version')))
            i += 1

def change(url, ref): return httpx.post(f'{url}/admin/models', json={'ref': ref}, timeout=60)

def test_the_model_changes_between_two_batches(begun):
    p, url = begun(cached_answers=0)
    stop_at, seen = threading.Event(), []
    crowd = [threading.Thread(target=versions_under_load, args=(url, stop_at, seen)) for _ in range(3)]
    for t in crowd: t.start()
    for i in range(5): assert change(url, f'v{i}').json()['version'] == f'v{i}'
    r = change(url, 'broken')
    assert r.status_code == 422 and 'no model here' in r.json()['what'] and 'goes on with v4' in r.json()['remedy']
    assert httpx.post(f'{url}/admin/models', content=b'{"ref": "x"}').status_code == 415
    time.sleep(.3)
    stop_at.set()
    for t in crowd: t.join()
    assert {code for code, _ in seen} == {200} and seen[-1][1] == 'v4' and httpx.get(f'{url}/readyz').status_code == 200
    os.kill(worker_of(p)[0], signal.SIGKILL)  # the one that takes its place loads the new model, too
    end = time.monotonic() + 60
    while httpx.get(f'{url}/readyz').status_code != 200 and time.monotonic() < end: time.sleep(.2)
    assert post(url, png()).json()['model_version'] == 'v4'


# -- SIGTERM under load

def ask_until_closed(url, answers, errors):
    "Over one kept-alive connection after another, until an answer closes it or nobody listens"
    data = [png(i, size=(40, 50)) for i in range(8)]
    wants = {i: 'FAIL' if i < 64 else 'PASS' for i in range(8)}
    while True:
        try: s = connect(url)
        except ConnectionRefusedError: return
        with s:
            i = 0
            while True:
                i += 1
                body = data[i % 8]
                head = f'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n' \
                    f'Content-Length: {len(body)}\r\n\r\n'
                try:
                    s.sendall(head.encode() + body)
                    got = b''
                    while b'\r\n\r\n' not in got:
                        got += (more := s.recv(65536))
                        if not more: raise ConnectionError('closed without an answer')
                    top, _, rest = got.partition(b'\r\n\r\n')
                    length = int(top.lower().split(b'content-length: ')[1].split(b'\r\n')[0])
                    while len(rest) < length: rest += s.recv(65536)
                except OSError as e:
                    errors.append(repr(e))
                    return
                answers.append((top[9:12], json.loads(rest).get('verdict') == wants[i % 8]))
                if b'connection: close' in top.lower(): return

def leave_under_load(begun, least):
    "Answers, errors, exit status and seconds to the end"
    p, url = begun(drain_s=1.5, cached_answers=0)
    answers, errors = [], []
    crowd = [threading.Thread(target=ask_until_closed, args=(url, answers, errors)) for _ in range(12)]
    for t in crowd: t.start()
    while len(answers) < least: time.sleep(.01)
    begin = time.monotonic()
    p.send_signal(signal.SIGTERM)
    time.sleep(.3)
    red = httpx.get(f'{url}/readyz')
    for t in crowd: t.join(60)
    p.wait(30)
    return answers, errors, p.returncode, time.monotonic() - begin, red.status_code, leftovers(p)

def test_sigterm_under_load_loses_nothing(begun):
    answers, errors, code, seconds, red, left = leave_under_load(begun, 150)
    assert errors == [] and set(answers) == {(b'200', True)}
    assert (code, red, left) == (0, 503, []) and seconds < 15

@pytest.mark.slow
def test_sigterm_after_two_thousand_requests_loses_nothing(begun):
    answers, errors, code, seconds, red, left = leave_under_load(begun, 2000)
    assert errors == [] and set(answers) == {(b'200', True)} and len(answers) >= 2000
    assert (code, red, left) == (0, 503, []) and seconds < 15
