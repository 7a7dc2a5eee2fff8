"Sinks against real receivers: an HTTP server, mosquitto, an OPC UA client, files; and a server whose sink hangs."
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from ops_kit import start_ops, stop_ops
from server_kit import free_port, png
from typer.testing import CliRunner

from sads_jax.cli.main import app
from sads_jax.core.errors import ParamsError, ServingError
from sads_jax.core.types import InspectionReport, Verdict
from sads_jax.serving import sinks
from sads_jax.serving.observers import Judged
from sads_jax.serving.sinks import SinkFactory, SinkSpec, SpooledSink, read_sinks, signed_by, sinks_from
from sads_jax.serving.spool import Spool

FAST = 'first_pause_s = 0.02\nlongest_pause_s = 0.1\n'


def judged(i, verdict='PASS', station='line-3'):
    report = InspectionReport(verdict=Verdict(verdict), reasons=[], defects=[], image_score=.25, image_sha256=f'{i}',
        image_size=(8, 8), model_version='m1', rules_version='r1', part_id=f'A{i}', station_id=station)
    return Judged(report, b'jpeg', f'{i}', f'req-{i}', datetime.now(UTC), {'total': 12. + i})

def until(true, seconds=15):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.02)

def settings(tmp_path, text):
    (tmp_path/'settings.ini').write_text(text)
    return tmp_path/'settings.ini'

class Receiver:
    "An HTTP server that answers with the statuses it is given, then 200"
    def __init__(self, *statuses):
        self.statuses, self.got, outer = list(statuses), [], self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers['content-length']))
                outer.got.append(({k.lower(): v for k, v in self.headers.items()}, body, time.monotonic()))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                self.send_header('content-length', '0')
                if outer.statuses == ['after']: outer.statuses.clear() or self.send_header('retry-after', '1')
                self.end_headers()
            def log_message(self, *a): pass
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}/v'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self): self.server.shutdown(); self.server.server_close()

@pytest.fixture
def hooked(tmp_path, monkeypatch):
    "A sink that posts to a receiver"
    monkeypatch.setenv('MES_KEY', 'k' * 32)
    made = []
    def make(*statuses, more=''):
        r = Receiver(*statuses)
        ini = settings(tmp_path, f'[sink.mes]\nkind = webhook\nurl = {r.url}\nsecret = env:MES_KEY\n{FAST}{more}')
        sink, = sinks_from(ini, tmp_path)
        made.append((r, sink))
        return r, sink, ini
    yield make
    for r, sink in made:
        sink.close()
        r.close()

def test_a_webhook_is_signed_and_comes_in_order(hooked):
    r, sink, _ = hooked()
    for i in range(20): sink.judged(judged(i))
    until(lambda: len(r.got) == 20 and not sink.counts()['waiting'])
    assert [json.loads(b)['part'] for _, b, _ in r.got] == [f'A{i}' for i in range(20)]
    headers, body, _ = r.got[0]
    assert signed_by('k' * 32, headers, body) and not signed_by('k' * 32, headers, body + b' ')
    assert headers['x-sads-event'] == json.loads(body)['event'] and b'jpeg' not in body

def test_a_webhook_is_tried_again_and_is_told_when(hooked):
    r, sink, _ = hooked(503, 500, 429, 'after')
    sink.judged(judged(1))
    until(lambda: sink.counts()['sent'] == 1)
    assert len(r.got) == 4 and len({h['x-sads-event'] for h, _, _ in r.got}) == 1
    assert r.got[3][2] - r.got[2][2] >= 1, 'Retry-After was not respected'

def test_what_is_refused_becomes_a_dead_letter_that_is_replayed(hooked, tmp_path):
    r, sink, ini = hooked(410)
    for i in range(3): sink.judged(judged(i))
    until(lambda: sink.counts()['sent'] == 2)
    assert sink.counts()['dead'] == 1 and [json.loads(b)['part'] for _, b, _ in r.got] == ['A0', 'A1', 'A2']
    run = lambda *a: CliRunner().invoke(app, ['sinks', *a, '--settings', str(ini), '--workdir', str(tmp_path)])
    listed = run('list')
    assert listed.exit_code == 0 and 'mes' in listed.output and 'webhook' in listed.output, listed.output
    shown = run('dead', 'mes')
    assert '410 Gone' in shown.output and json.loads(shown.output.splitlines()[0])['part'] == 'A0'
    assert '1 wait again' in run('replay', 'mes').output
    until(lambda: sink.counts()['sent'] == 3)  # by the program that runs
    assert json.loads(r.got[3][1])['part'] == 'A0' and sink.counts()['dead'] == 0
    wrong = run('replay', 'fax')
    assert wrong.exit_code == 1 and 'mes' in str(wrong.exception.remedy)

def test_a_letter_that_is_too_old_is_dead(hooked):
    r, sink, _ = hooked(*[500]*1000, more='give_up_s = 0.3\n')
    sink.judged(judged(1))
    until(lambda: sink.counts()['dead'] == 1)
    assert len(r.got) >= 3

def test_what_waited_is_delivered_after_a_restart_once(hooked, tmp_path):
    r, sink, ini = hooked()
    r.close()
    events = [judged(i) for i in range(5)]
    for e in events: sink.judged(e)
    sink.close()
    r2, again, _ = hooked()
    for e in events: again.judged(e)  # told twice, as after a crash
    until(lambda: len(r2.got) == 5)
    time.sleep(.2)
    assert [json.loads(b)['part'] for _, b, _ in r2.got] == [f'A{i}' for i in range(5)]

class Hangs:
    "A sink that never returns"
    def __init__(self): self.close = lambda: None
    def send(self, messages): threading.Event().wait()

def test_a_full_spool_loses_and_counts(tmp_path):
    sink = SpooledSink('slow', Hangs(), SinkSpec(spool=tmp_path, most_waiting=10))
    for i in range(25): sink.judged(judged(i))
    assert sink.counts() == dict(waiting=10, dead=0, sent=0, failed=0, lost=15)
    start = time.monotonic()
    sink.close(seconds=.2)
    assert time.monotonic() - start < 2
    assert len(Spool(tmp_path/'slow.db').take(100)) == 10

def test_a_sink_that_fails_in_an_unforeseen_way_goes_on(tmp_path):
    class Odd:
        def __init__(self): self.tries, self.got = 0, []
        def send(self, messages):
            self.tries += 1
            if self.tries < 3: raise RuntimeError('a fault of the program')
            self.got += messages
        def close(self): pass
    sink = SpooledSink('odd', odd := Odd(), SinkSpec(spool=tmp_path, first_pause_s=.01, longest_pause_s=.05))
    sink.judged(judged(1))
    until(lambda: len(odd.got) == 1)
    sink.close()

def test_a_kind_of_somebody_else(tmp_path):
    got = []
    class Mine:
        def __init__(self, colour, **_): self.colour = colour
        def send(self, messages): got.extend((self.colour, m['part']) for m in messages)
        def close(self): pass
    SinkFactory.register('mine', Mine)
    try:
        sink, = sinks_from(settings(tmp_path, '[sink.a]\nkind = mine\ncolour = red\n'), tmp_path)
        sink.judged(judged(1))
        until(lambda: got == [('red', 'A1')])
        sink.close()
    finally: del SinkFactory['mine']

WRONG = {'kind = fax': 'sink has no kind', 'kind = webhook\nurl = mes\nsecret = env:K': 'url',
    'kind = webhook\nurl = http://m\nsecret = hunter2': 'secret', 'kind = folder': 'folder',
    'kind = mqtt\nhost = h\nport = 70000': 'port', 'kind = folder\nfolder = x\nrow = 3': 'row', '': 'sink has no kind',
    'kind = opcua\nmost_waiting = 0': 'most_waiting'}

@pytest.mark.parametrize('text', WRONG)
def test_settings_that_are_wrong_name_section_and_key(tmp_path, text):
    with pytest.raises(ParamsError) as e: read_sinks(settings(tmp_path, f'[sink.x]\n{text}\n'))
    assert '[sink.x]' in e.value.where and WRONG[text] in str(e.value) and e.value.remedy

def test_a_secret_that_is_not_there(tmp_path):
    ini = settings(tmp_path, '[sink.x]\nkind = webhook\nurl = http://m\nsecret = env:NOT_SET_ANYWHERE\n')
    with pytest.raises(ParamsError, match='env:NOT_SET_ANYWHERE: holds no secret'): sinks_from(ini, tmp_path)

# ---------------------------------------------------------------- MQTT, a real broker

needs_mosquitto = pytest.mark.skipif(not shutil.which('mosquitto', path=os.environ['PATH'] + ':/usr/sbin'),
    reason='mosquitto is not installed')

def broker(tmp_path, port):
    conf = tmp_path/'mosquitto.conf'
    conf.write_text(f'listener {port} 127.0.0.1\nallow_anonymous true\n')
    p = subprocess.Popen([shutil.which('mosquitto', path=os.environ['PATH'] + ':/usr/sbin'), '-c', str(conf)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def up():
        try: return socket.create_connection(('127.0.0.1', port), 1).close() is None
        except OSError: return False
    until(up)
    return p

def listener(port, topic):
    import paho.mqtt.client as mqtt
    got, there = [], threading.Event()
    c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    c.on_message = lambda _, __, m: got.append((m.topic, m.payload.decode(), m.retain))
    c.on_subscribe = lambda *_: there.set()
    c.connect('127.0.0.1', port)
    c.subscribe(topic, qos=1)
    c.loop_start()
    assert there.wait(10)
    return c, got

@needs_mosquitto
def test_mqtt_against_mosquitto_that_restarts(tmp_path):
    port = free_port()
    p = broker(tmp_path, port)
    sink, = sinks_from(settings(tmp_path, f'[sink.b]\nkind = mqtt\nhost = 127.0.0.1\nport = {port}\n{FAST}'), tmp_path)
    try:
        c, got = listener(port, 'sads/#')
        sink.judged(judged(1, 'FAIL', 'hall/3'))
        until(lambda: any(t == 'sads/hall_3/verdict' for t, _, _ in got))
        message = next(json.loads(m) for t, m, _ in got if t == 'sads/hall_3/verdict')
        assert (message['verdict'], message['part']) == ('FAIL', 'A1') and ('sads/state', 'online', True) in got or [
            g for g in got if g[:2] == ('sads/state', 'online')]
        c.loop_stop()
        p.kill(); p.wait()
        for i in range(2, 6): sink.judged(judged(i))
        until(lambda: sink.counts()['failed'] >= 1)
        assert sink.counts()['waiting'] >= 4 - 1
        p = broker(tmp_path, port)
        c, got = listener(port, 'sads/line-3/verdict')
        until(lambda: {json.loads(m)['part'] for _, m, _ in got} == {'A2', 'A3', 'A4', 'A5'}, 40)
        c.loop_stop()
    finally:
        sink.close()
        p.kill(); p.wait()

@needs_mosquitto
def test_the_broker_says_offline_when_the_program_is_gone(tmp_path):
    port = free_port()
    p = broker(tmp_path, port)
    try:
        sink, = sinks_from(settings(tmp_path, f'[sink.b]\nkind = mqtt\nhost = 127.0.0.1\nport = {port}\n'), tmp_path)
        c, got = listener(port, 'sads/state')
        until(lambda: [m for _, m, _ in got] == ['online'])
        sink.sink.client._sock_close()  # as when the machine dies: no DISCONNECT is sent
        sink.sink.client.loop_stop()
        until(lambda: [m for _, m, _ in got][-1] == 'offline')
        c.loop_stop()
        sink.close()
    finally: p.kill(); p.wait()

# ---------------------------------------------------------------- OPC UA, read as a PLC does

def test_opcua_is_read_by_a_client(tmp_path):
    from asyncua import ua
    from asyncua.sync import Client
    port = free_port()
    sink, = sinks_from(settings(tmp_path, f'[sink.plc]\nkind = opcua\nport = {port}\n'), tmp_path)
    try:
        for i, v in enumerate(('PASS', 'PASS', 'REVIEW', 'FAIL')): sink.judged(judged(i, v))
        until(lambda: sink.counts()['sent'] == 4)
        with Client(f'opc.tcp://127.0.0.1:{port}/sads') as c:
            space = c.get_namespace_index('urn:sads_jax:verdicts')
            node = lambda name: c.get_node(ua.NodeId(f'SADS.{name}', space))
            read = {k: node(k).read_value() for k in sinks.VARIABLES}
            assert {k: read[k] for k in ('Verdict', 'Part', 'Station', 'Score', 'Number')} == dict(
                Verdict='FAIL', Part='A3', Station='line-3', Score=.25, Number=4)
            assert (read['Passed'], read['Reviewed'], read['Failed']) == (2, 1, 1)
            assert json.loads(read['Last'])['verdict'] == 'FAIL'
            until(lambda: node('Heartbeat').read_value() > read['Heartbeat'])
            with pytest.raises(ua.UaStatusCodeError): node('Verdict').write_value('PASS')  # nobody may write
        with pytest.raises(ServingError, match=f'opcua 127.0.0.1:{port}: cannot listen'):
            sinks_from(settings(tmp_path, f'[sink.two]\nkind = opcua\nport = {port}\n'), tmp_path)
    finally: sink.close()

# ---------------------------------------------------------------- a real server

def ask(url, n):
    "Seconds of each of n answers"
    took = []
    with httpx.Client() as c:
        for i in range(n):
            start = time.perf_counter()
            r = c.post(f'{url}/predict', content=png(i % 200), headers={'content-type': 'image/png'}, timeout=30)
            assert r.status_code == 200, r.text
            took.append(time.perf_counter() - start)
    return sorted(took)

def test_a_sink_that_hangs_delays_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv('MES_KEY', 'k' * 32)
    silent = socket.create_server(('127.0.0.1', 0))  # takes connections, and never answers
    ini = settings(tmp_path, f'''[sink.dead]\nkind = webhook\nurl = http://127.0.0.1:{silent.getsockname()[1]}/
secret = env:MES_KEY\ntimeout_s = 600\nmost_waiting = 5\n[sink.good]\nkind = folder\nfolder = rows\n''')
    p, url = start_ops(ini, tmp_path)
    try:
        took = ask(url, 40)
        assert took[len(took)//2] < .5 and took[-1] < 5, took
        rows = lambda: [r for f in (tmp_path/'rows').glob('*.csv') for r in csv.DictReader(open(f))]
        until(lambda: len(rows()) == 40)  # the other sink has them all
        until(lambda: 'sads_sink_lost_total{sink="dead"} 35.0' in httpx.get(f'{url}/metrics/').text)
        os.kill(p.pid, signal.SIGTERM)
        assert p.wait(timeout=30) == 0, (tmp_path/'server.log').read_text()
    finally:
        stop_ops(p)
        silent.close()
    assert len(Spool(tmp_path/'.sads'/'sinks'/'dead.db').take(100)) == 5
