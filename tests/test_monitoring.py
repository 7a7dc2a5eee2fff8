"Metrics of a real server, read by a real Prometheus; rules and dashboard are tested with it."
import json
import re
import shutil
import signal
import subprocess
import time

import httpx
import pytest
import yaml
from ops_kit import start_ops, stop_ops
from prometheus_client.parser import text_string_to_metric_families
from server_kit import HERE, free_port, png

from sads_jax.serving.monitoring import Counted, Few, MonitoringService
from sads_jax.serving.observers import Observer

DEPLOY = HERE.parent/'deploy'
needs_prometheus = pytest.mark.skipif(not (shutil.which('prometheus') and shutil.which('promtool')),
    reason='prometheus is not installed')


@pytest.fixture(scope='module')
def plant(tmp_path_factory):
    "A server with a sink, after some photographs"
    place = tmp_path_factory.mktemp('plant')
    ini = place/'settings.ini'
    ini.write_text('[sink.office]\nkind = folder\nfolder = rows\n')
    p, url = start_ops(ini, place, max_image_mb=1)
    ask(url)
    yield p, url, place
    stop_ops(p)

def ask(url, n=24, start=0):
    "A third bad, the last two from the cache, two wrong"
    with httpx.Client(base_url=url, timeout=30) as c:
        for i in range(n):
            k = start + min(i, n - 4)
            body = png(20 if i % 3 == 2 and i <= n - 4 else 150 + k % 90, (32 + k % 16, 32 + k//16 % 64))
            r = c.post('/predict?station_id=line-3', content=body, headers={'content-type': 'image/png',
                'x-request-id': f'shot-{i}'})
            assert r.status_code == 200, r.text
        assert c.post('/predict', content=b'no picture', headers={'content-type': 'image/png'}).status_code >= 400
        assert c.post('/predict', content=b'{', headers={'content-type': 'application/json'}).status_code == 400

def numbers(url):
    "Name and labels -> value"
    text = httpx.get(f'{url}/metrics', follow_redirects=True).text
    return {(s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text)
        for s in f.samples}

def test_the_numbers_are_those_of_what_was_asked(plant):
    _, url, _ = plant
    end = time.monotonic() + 10
    while (got := numbers(url)).get(('sads_sink_sent_total', ('sink', 'office')), 0) < 24:
        assert time.monotonic() < end, got
        time.sleep(.05)
    verdict = lambda v: got['sads_verdicts_total', ('station', 'line-3'), ('verdict', v)]
    assert (verdict('PASS'), verdict('FAIL')) == (17, 7)
    assert got['sads_defects_total', ('label', 'pit'), ('verdict', 'FAIL')] == 7
    hits, misses = (got.get(('sads_photographs_total', ('cache', c), ('source', 'http')), 0) for c in ('hit', 'miss'))
    assert hits + misses == 24 and hits == got['sads_cache_hits_total',] == 2
    assert got['sads_image_score_count', ('station', 'line-3')] == 24
    assert got['sads_stage_seconds_count', ('stage', 'total')] == 24
    assert got['sads_batch_size_count',] == misses and got['sads_batch_size_sum',] >= misses
    assert sum(v for k, v in got.items() if k[0] == 'sads_errors_total') == 2 == got['sads_refusals_total',]
    assert got['sads_model_info', ('version', 'fake')] == 1 == got['sads_workers_ready',]
    assert got['sads_sink_waiting', ('sink', 'office')] == 0 == got['sads_events_lost_total',]
    judge = got['sads_stage_seconds_sum', ('stage', 'judge')]
    assert .01*misses <= judge <= got['sads_stage_seconds_sum', ('stage', 'total')]

def test_each_answer_is_a_line_of_json(plant):
    _, url, place = plant
    key = 'sads_' + 'A'*43
    httpx.post(f'{url}/predict?api_key={key}', content=b'x', headers={'authorization': f'Bearer {key}'})
    end = time.monotonic() + 10
    while (text := (place/'server.log').read_text()).count('refused') < 3 and time.monotonic() < end: time.sleep(.05)
    lines = [json.loads(x) for x in text.splitlines()]
    judged = {x['request_id']: x for x in lines if x['message'] == 'judged'}
    assert {f'shot-{i}' for i in range(24)} <= set(judged) and judged['shot-2']['verdict'] == 'FAIL'
    assert judged['shot-0']['station'] == 'line-3' and judged['shot-0']['total_ms'] > 0
    assert key not in text and 'PNG' not in text

def test_labels_have_an_end():
    few = Few(3)
    assert [few(f's{i}') for i in range(5)] == ['s0', 's1', 's2', 'other', 'other']
    assert isinstance(MonitoringService(), Observer) and not isinstance(MonitoringService(), Counted)

def test_metrics_cost_the_server_little(plant):
    _, url, _ = plant
    with httpx.Client() as c:
        took = []
        for _ in range(20):
            start = time.perf_counter()
            assert c.get(f'{url}/metrics/').status_code == 200
            took.append(time.perf_counter() - start)
    assert sorted(took)[10] < .2

# ---------------------------------------------------------------- rules

@needs_prometheus
def test_alerts_speak_and_are_silent_when_they_must():
    r = subprocess.run(['promtool', 'test', 'rules', 'tests.yml'], cwd=DEPLOY/'prometheus', capture_output=True,
        text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    r = subprocess.run(['promtool', 'check', 'config', 'prometheus.yml'], cwd=DEPLOY/'prometheus', capture_output=True,
        text=True)
    assert r.returncode == 0, r.stdout + r.stderr

def rules():
    return [r for f in ('recording', 'alerts') for g in yaml.safe_load(
        (DEPLOY/'prometheus'/f'{f}.rules.yml').read_text())['groups'] for r in g['rules']]

def test_each_alert_is_tested_to_speak():
    tested = {a['alertname'] for t in yaml.safe_load((DEPLOY/'prometheus'/'tests.yml').read_text())['tests']
        for a in t['alert_rule_test'] if a['exp_alerts']}
    alerts = {r['alert']: r for r in rules() if 'alert' in r}
    assert tested == set(alerts)
    assert all({'summary', 'action'} <= set(r['annotations']) and r['labels']['severity'] in ('page', 'ticket', 'info')
        for r in alerts.values())

def test_rules_and_dashboard_name_metrics_that_the_server_has(plant):
    "A metric that was renamed would leave an alert silent for ever"
    _, url, _ = plant
    known = {k[0] for k in numbers(url)} | {r['record'] for r in rules() if 'record' in r}
    asked = {n for e in [r['expr'] for r in rules()] + [e for _, e in queries()]
        for n in re.findall(r'\b(sads[_:][a-z0-9_:]+)\b', e)}
    assert asked <= known, asked - known
    assert len(asked) > 15

# ---------------------------------------------------------------- a real Prometheus

def queries():
    "(Panel, query) of the dashboard"
    board = json.loads((DEPLOY/'grafana'/'dashboard.json').read_text())
    return [(p['title'], t['expr']) for p in board['panels'] for t in p['targets']]

def filled(expr):
    "As Grafana would ask"
    for name, value in {'$__rate_interval': '10s', '$instance': '.*', '$station': '.*'}.items():
        expr = expr.replace(name, value)
    return expr

@pytest.fixture(scope='module')
def prometheus(plant, tmp_path_factory):
    "Prometheus, which has scraped the server several times while photographs came"
    _, url, _ = plant
    place, port = tmp_path_factory.mktemp('prometheus'), free_port()
    for f in DEPLOY.glob('prometheus/*.rules.yml'): shutil.copy(f, place)
    config = yaml.safe_load((DEPLOY/'prometheus'/'prometheus.yml').read_text())
    config['global'] = dict(scrape_interval='1s', evaluation_interval='1s')
    config['scrape_configs'][0]['static_configs'][0]['targets'] = [url.removeprefix('http://')]
    (place/'prometheus.yml').write_text(yaml.safe_dump(config))
    with open(place/'log', 'w') as log:
        p = subprocess.Popen(['prometheus', f'--config.file={place}/prometheus.yml',
            f'--storage.tsdb.path={place}/data', f'--web.listen-address=127.0.0.1:{port}'], stdout=log,
            stderr=subprocess.STDOUT)
    ask_it = lambda q: httpx.get(f'http://127.0.0.1:{port}/api/v1/query', params={'query': q}, timeout=10).json()
    end, n = time.monotonic() + 60, 1
    try:
        while True:
            assert p.poll() is None and time.monotonic() < end, (place/'log').read_text()
            ask(url, 6, 24*n)
            n += 1
            try:
                if (r := ask_it('sum(rate(sads_errors_total[10s]))')['data']['result']) and float(r[0]['value'][1]) > 0:
                    break
            except httpx.TransportError: pass
            time.sleep(.5)
        yield ask_it
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait(20)

@needs_prometheus
def test_every_query_of_the_dashboard_has_an_answer(prometheus):
    wrong = {}
    for title, expr in queries():
        r = prometheus(filled(expr))
        if r['status'] != 'success' or not r['data']['result']: wrong[title, expr] = r
        elif any(s['value'][1] == 'NaN' for s in r['data']['result']): wrong[title, expr] = 'NaN'
    assert not wrong, wrong
    assert len(queries()) > 20

@needs_prometheus
def test_recorded_rules_have_values_and_nobody_is_alarmed_for_nothing(prometheus):
    end = time.monotonic() + 20
    fast = [r['record'] for r in rules() if 'record' in r]
    while missing := [n for n in fast if not prometheus(n)['data']['result']]:
        assert time.monotonic() < end, missing
        time.sleep(.5)
    firing = {a['metric']['alertname'] for a in prometheus('ALERTS{alertstate="firing"}')['data']['result']}
    assert not firing & {'SadsDown', 'SadsNotReady', 'SadsLost', 'SadsWorkersDie', 'SadsSinkDeadLetters'}, firing

def test_the_dashboard_is_one_that_grafana_reads():
    board = json.loads((DEPLOY/'grafana'/'dashboard.json').read_text())
    assert board['uid'] and board['schemaVersion'] >= 36
    assert len({p['id'] for p in board['panels']}) == len(board['panels'])
    names = {v['name'] for v in board['templating']['list']}
    used = set(re.findall(r'\$(?:\{)?([a-z]+)', json.dumps([p['targets'] for p in board['panels']])))
    assert used - {'__rate_interval'} <= names | {''} and 'instance' in used
    cells = [(x, y) for p in board['panels'] for x in range(p['gridPos']['x'], p['gridPos']['x'] + p['gridPos']['w'])
        for y in range(p['gridPos']['y'], p['gridPos']['y'] + p['gridPos']['h'])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # no two panels overlap
