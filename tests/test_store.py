"The store keeps each decision once, whatever is killed or away; it is searched, pruned and handed on."
import csv
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from real_servers import postgres, s3
from sqlalchemy import func, select, text
from typer.testing import CliRunner

from sads_jax.cli.main import app
from sads_jax.core.errors import ParamsError
from sads_jax.core.types import RLE, Defect, InspectionReport, Reason
from sads_jax.data.formats import mask_to_rle
from sads_jax.data.records import read_coco
from sads_jax.serving import recorder as recording
from sads_jax.serving.audit import verify, what_ran
from sads_jax.serving.exports import export
from sads_jax.serving.monitoring import Counted
from sads_jax.serving.observers import Judged
from sads_jax.serving.recorder import Recorder, Spool
from sads_jax.serving.store import Decision, Photographs, Query, Store, open_store, prune, review
from sads_jax.serving.tables import AUDIT, INSPECTIONS, METADATA, StoreError, open_engine, reading

BEGIN = datetime(2026, 11, 2, 6, tzinfo=UTC)
SQUARE = np.zeros((32, 32), bool)
SQUARE[4:12, 4:12] = True
MASK = RLE(**mask_to_rle(SQUARE))

def report(i, sha, verdict='PASS', label=None, model='3f9a', station='line-3', part=None):
    found = [Defect(box=(4, 4, 12, 12), label=label, label_score=.9, score=.8, area_px=64, length_px=11.3,
        mask=MASK)] if label else []
    why = [Reason(rule='any defect', verdict=verdict, text=f'{verdict}: {label}', measured=64., limit=4., unit='px²')]
    return InspectionReport(verdict=verdict, reasons=why if label else [], defects=found, image_score=i % 10/10,
        image_sha256=sha, image_size=(32, 32), model_version=model, rules_version='r1', part_id=part or f'A{i}',
        station_id=station)

def photograph(i): return b'\x89PNG' + str(i).encode()*50

def event(i, **more):
    "A judged photograph, as the server tells of it"
    data = photograph(i)
    sha = hashlib.sha256(data).hexdigest()
    return Judged(report(i, sha, **more), data, sha, f'q{i}', BEGIN + timedelta(seconds=i), {'total': 12.}, f'{i}.png',
        lot=f'L{i % 3}')

def decision(i, **more):
    "The same, as it is stored"
    e = event(i, **more)
    return Decision(request_id=e.request_id, index=0, received=BEGIN + timedelta(minutes=i), report=e.report,
        sha256=e.sha256, source='http', name=e.name, lot=e.lot, threshold=.41), e.photograph

@pytest.fixture(scope='module')
def database():
    with postgres() as server: yield server

@pytest.fixture(scope='module')
def bucket():
    "The place of a bucket on a real S3 server"
    with s3() as url:
        before = dict(os.environ)
        os.environ |= dict(AWS_ACCESS_KEY_ID='testing', AWS_SECRET_ACCESS_KEY='testing', AWS_ENDPOINT_URL_S3=url,
            AWS_DEFAULT_REGION='us-east-1')
        import boto3
        boto3.client('s3', endpoint_url=url).create_bucket(Bucket='plant')
        yield 's3://plant/photographs'
        os.environ.clear()
        os.environ |= before

def emptied(url):
    "A database without our tables"
    engine = open_engine(url)
    with engine.begin() as con:
        for name in ('audit', 'defects', 'inspections', 'alembic_version'):
            con.execute(text(f'DROP TABLE IF EXISTS {name}'))
    engine.dispose()
    return url

@pytest.fixture(params=['sqlite', 'postgres'])
def store(request, tmp_path):
    "SQLite and a folder; PostgreSQL and S3"
    if request.param == 'sqlite': made = open_store(f'sqlite:///{tmp_path}/i.db', f'{tmp_path}/photographs')
    else:
        url = emptied(request.getfixturevalue('database').url)
        made = open_store(url, request.getfixturevalue('bucket') + f'/{tmp_path.name}')
    yield made
    made.close()

def whole(store, n):
    "The chain has a row for each of n inspections, and nobody touched it"
    with reading(store.engine) as con:
        checked = verify(con)
        kinds = dict(con.execute(select(AUDIT.c.kind, func.count()).group_by(AUDIT.c.kind)).all())
        stored = con.execute(select(func.count()).select_from(INSPECTIONS)).scalar()
    assert checked.faults == [] and kinds.get('inspection', 0) == stored == n
    return kinds

# ---------------------------------------------------------------- what is kept, and how it is found

def test_each_decision_once_and_found_by_what_people_search_for(store):
    made = [decision(i, verdict='FAIL' if i % 4 == 0 else 'PASS', label='crack' if i % 8 == 0 else 'pit'
        if i % 4 == 0 else None, station='line-3' if i < 20 else 'line-4', model='3f9a' if i < 30 else '77c0')
        for i in range(1, 41)]
    assert store.add(made[:25]) == 25 and store.add(made[20:]) == 15 and store.add(made) == 0
    assert store.add(made[:1]*3) == 0
    assert whole(store, 40)['ran'] == 3  # line-3 begins, line-4 begins, line-4 takes the new model
    found = lambda **q: sorted(int(i.part[1:]) for i in store.find(Query(**q), 1000))
    assert found() == list(range(1, 41))
    assert found(verdict='FAIL') == list(range(4, 41, 4)) and found(label='crack') == list(range(8, 41, 8))
    assert found(station='line-4', model='77') == list(range(30, 41)) and found(lot='L1', until=BEGIN +
        timedelta(minutes=10)) == [1, 4, 7] and found(part='A9') == [9] and found(label='scratch') == []
    assert found(since=BEGIN + timedelta(minutes=39)) == [39, 40] and found(request_id='q5') == [5]
    assert found(model='%') == [] and found(station="line-3' OR 1=1 --") == []
    assert store.count(Query(station='line-3')) == {'FAIL': 4, 'PASS': 15}
    one = store.find(Query(part='A8'))[0]
    assert store.photograph(one) == photograph(8) and one.received == BEGIN + timedelta(minutes=8)
    assert InspectionReport.model_validate_json(one.report) == made[7][0].report
    with reading(store.engine) as con:
        ran = {m: [(r.station, r.model, r.threshold, r.seq) for r in what_ran(con, BEGIN + timedelta(minutes=m))]
            for m in (0, 5, 25, 35)}
    three = 'line-3', '3f9a', .41, 1
    assert ran == {0: [], 5: [three], 25: [three, ('line-4', '3f9a', .41, 21)],
        35: [three, ('line-4', '77c0', .41, 32)]}

def test_a_review_is_in_the_store_and_in_the_chain(store):
    store.add([decision(1, verdict='REVIEW', label='pit'), decision(2)])
    review(store, 1, 'PASS', 'M. Keller', note='a fingerprint', now=lambda: BEGIN)
    assert store.get(1).review == 'PASS' and store.find(Query(review='any'))[0].id == 1
    assert [i.id for i in store.find(Query(review='none'))] == [2]
    assert whole(store, 2)['review'] == 1
    with reading(store.engine) as con:
        row = json.loads(con.execute(select(AUDIT.c.text).order_by(-AUDIT.c.place)).scalar())
    assert (row['judged'], row['verdict'], row['by'], row['note']) == ('REVIEW', 'PASS', 'M. Keller', 'a fingerprint')
    for number, by, says in ((99, 'x', 'no such inspection'), (1, ' ', 'somebody')):
        with pytest.raises(StoreError, match=says): review(store, number, 'PASS', by)

def test_pruning_leaves_the_audit_rows_and_what_others_still_need(store):
    store.add([decision(i, verdict='FAIL' if i > 15 else 'PASS') for i in range(1, 21)])
    twin, data = decision(1)
    store.add([(twin.model_copy(update={'request_id': 'again'}), data)])  # the same photograph on the same day
    kept = lambda: sum(i.photograph is not None for i in store.find(most=1000))
    old = Query(verdict='PASS', until=BEGIN + timedelta(minutes=10), request_id='q1')
    assert prune(store, old) .photographs == 0 and kept() == 20  # its twin still needs the file
    said = prune(store, Query(verdict='PASS'), pretend=True)
    assert said.photographs == 15 and kept() == 20
    assert prune(store, Query(verdict='PASS')) == said and kept() == 5
    assert store.photograph(store.find(Query(part='A16'))[0]) == photograph(16)
    with pytest.raises(StoreError, match='not kept'): store.photograph(store.find(Query(part='A2'))[0])
    prune(store, most_bytes=2*len(photograph(20)))
    assert [i.part for i in store.find(most=1000) if i.photograph] == ['A20', 'A19']
    prune(store, Query(verdict='PASS'), whole=True)
    assert len(store.find(most=1000)) == 5
    with reading(store.engine) as con:
        assert verify(con).faults == []
        assert con.execute(select(func.count()).where(AUDIT.c.kind == 'inspection')).scalar() == 21

def test_a_photograph_that_was_exchanged_or_removed_is_found(store):
    store.add([decision(1), decision(2)])
    first, second = store.get(1), store.get(2)
    store.photographs.files.pipe_file(f'{store.photographs.root}/{first.photograph}', b'another part')
    store.photographs.drop(second.photograph)
    store.photographs.drop(second.photograph)
    store.photographs.files.invalidate_cache()
    with pytest.raises(StoreError, match='altered'): store.photograph(first)
    with pytest.raises(StoreError, match='gone'): store.photograph(second)

@pytest.mark.parametrize('forge, says', [
    ("UPDATE audit SET text = replace(text, 'FAIL', 'PASS') WHERE place = 5", 'row 5 was altered'),
    ('DELETE FROM audit WHERE place = 6', 'row 6 is missing'),
    ("UPDATE audit SET at = '2026-01-01T00:00:00.000000Z' WHERE place = 4", 'row 4 is found by another time'),
    ("INSERT INTO audit SELECT place + 90, previous, text, hash, kind, at, station FROM audit WHERE place = 3",
        'a row 3 at place 93 was inserted'),
    ('UPDATE audit SET place = 1000 WHERE place = 4; UPDATE audit SET place = 4 WHERE place = 7; '
        'UPDATE audit SET place = 7 WHERE place = 1000', 'was moved')])
def test_verify_names_what_somebody_did_in_the_database(store, forge, says):
    store.add([decision(i, verdict='FAIL', label='pit') for i in range(1, 10)])
    with store.engine.begin() as con:
        for statement in forge.split(';'): con.execute(text(statement))
    with reading(store.engine) as con: faults = verify(con).faults
    assert faults and all(says in f.text for f in faults), faults

def test_migrations_make_the_tables_that_the_code_knows(store):
    with store.engine.connect() as con:
        assert compare_metadata(MigrationContext.configure(con, opts={'compare_type': True}), METADATA) == []

def test_addresses_that_are_none_are_refused(tmp_path):
    for url in ('', 'inspections.db', 'oracle7://x', 'sqlite'):
        with pytest.raises(StoreError, match='no address'): open_engine(url)
    with pytest.raises(StoreError, match='no place'): Photographs('nowhere://x')
    away = Store(open_engine('postgresql://sads@127.0.0.1:9/none'))
    with pytest.raises(StoreError, match='cannot be read'): away.find()

def test_exports_say_the_same_as_the_store(store, tmp_path):
    import pyarrow.parquet as pq
    store.add([decision(1, verdict='FAIL', label='pit', part='=cmd()'), decision(2), decision(3, verdict='REVIEW',
        label='crack'), decision(4, verdict='FAIL', label='pit')])
    review(store, 4, 'PASS', 'M. Keller')
    assert [export(store, Query(), tmp_path/f'o.{k}', k) for k in ('csv', 'parquet', 'coco')] == [4, 4, 4]
    rows = list(csv.DictReader((tmp_path/'o.csv').open()))
    table = pq.read_table(tmp_path/'o.parquet').to_pylist()
    assert [r['id'] for r in rows] == ['4', '3', '2', '1'] == [str(r['id']) for r in table]
    assert rows[3]['part'] == "'=cmd()" and table[3]['part'] == '=cmd()' and table[0]['classes'] == 'pit'
    data = read_coco(tmp_path/'o.coco')
    assert {r.part_id: (r.defective, [a.category for a in r.annotations]) for r in data.images} == {
        '=cmd()': (True, ['pit']), 'A2': (False, []), 'A3': (None, ['crack']), 'A4': (False, [])}
    with pytest.raises(ParamsError, match='no format'): export(store, Query(), tmp_path/'x', 'xlsx')

def test_the_commands_say_what_the_store_says(tmp_path):
    store = open_store(f'sqlite:///{tmp_path}/.sads/inspections.db', f'{tmp_path}/.sads/photographs')
    store.add([decision(i, verdict='FAIL' if i == 2 else 'PASS', label='pit' if i == 2 else None) for i in range(1, 6)])
    store.close()
    def sads(*args, code=0):
        done = CliRunner().invoke(app, ['inspections', *map(str, args), '--workdir', str(tmp_path)])
        assert done.exit_code == code, (args, done.output)
        return done.output + (str(done.exception) if code else '')
    assert '4 PASS' in sads('list', '--verdict', 'PASS')
    assert 'A2' not in sads('list', '--until', '2026-11-02T06:02+00:00')
    assert json.loads(sads('show', 2, '--photo', tmp_path/'p.png'))['report']['defects'][0]['label'] == 'pit'
    assert (tmp_path/'p.png').read_bytes() == photograph(2)
    assert sads('review', 2, 'PASS', '--by', 'M. Keller') == '2: FAIL -> PASS by M. Keller\n'
    assert sads('export', tmp_path/'o.csv', '--review', 'PASS').endswith('o.csv: 1 inspections\n')
    assert len((tmp_path/'o.csv').read_text().splitlines()) == 2
    size = 4*len(photograph(1))/1e9
    assert sads('prune', '--verdict', 'PASS') == f'would remove 4 photographs ({size:.3f} GB), 0 inspections\n'
    assert sads('prune', '--verdict', 'PASS', '--yes').startswith('removed 4')
    assert sads('prune', '--verdict', 'PASS', '--yes').startswith('removed 0')
    for args, says in ((['prune', '--yes'], 'everything would go'), (['show', 77], 'no such inspection'),
            (['review', 2, 'GOOD', '--by', 'x'], 'is no verdict'), (['list', '--since', 'soon'], 'is no time'),
            (['show', 1, '--photo', tmp_path/'q.png'], 'not kept'), (['export', 'x.xls'], 'no format')):
        assert says in sads(*args, code=1), args

# ---------------------------------------------------------------- the recorder: nothing twice, nothing lost

def drained(recorder, seconds=30):
    end = time.monotonic() + seconds
    while len(recorder.spool) and time.monotonic() < end: time.sleep(.02)
    assert len(recorder.spool) == 0, recorder.counts()

def test_a_killed_server_leaves_each_decision_once(tmp_path):
    rng, said, first = random.Random(0), [], 0
    env = os.environ | {'PYTHONPATH': os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))}
    for _ in range(4):
        child = subprocess.Popen([sys.executable, Path(__file__).parent/'spool_child.py', tmp_path, str(first)],
            env=env, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == 'ready\n'
        time.sleep(rng.uniform(.3, 1.2))
        child.kill()
        said += map(int, child.communicate()[0].split())
        first = 1 + (said[-1] if said else 0)
    store = partial(open_store, f'sqlite:///{tmp_path}/i.db', f'{tmp_path}/photographs')
    recorder = Recorder(store, Spool(tmp_path/'spool'))
    drained(recorder)
    recorder.close()
    after = store()
    counts = Counter(i.request_id for i in after.find(most=10**6))
    assert set(counts.values()) == {1} and {f'q{i}' for i in said} <= set(counts) and len(said) > 20
    assert len(counts) - len(said) <= 4  # at most one a kill was spooled and not yet said
    whole(after, len(counts))
    after.close()

def test_photographs_of_a_request_and_repeated_ids_are_decisions_of_their_own(tmp_path):
    recorder = Recorder(partial(open_store, f'sqlite:///{tmp_path}/i.db'), Spool(tmp_path/'spool'))
    same = event(1)
    for _ in range(3): recorder.judged(same)  # three photographs of one request
    later = Judged(**(vars(same) | {'received': BEGIN + timedelta(hours=1)}))  # the client uses its id again
    recorder.judged(later)
    drained(recorder)
    keys = [i.key.partition('@')[2] for i in recorder.store.find()]
    assert sorted(keys) == [f'2026-11-02T06:00:01.000000Z#{i}' for i in range(3)] + ['2026-11-02T07:00:00.000000Z#0']
    recorder.close()

def test_the_database_is_away_for_ten_seconds(database, tmp_path):
    url = emptied(database.url)
    recorder = Recorder(partial(open_store, url, f'{tmp_path}/photographs'), Spool(tmp_path/'spool'))
    for i in range(20): recorder.judged(event(i))
    drained(recorder)
    assert recorder.trouble is None
    database.kill()
    gone, i, longest = time.monotonic(), 20, 0.
    while time.monotonic() < gone + 10:
        start = time.monotonic()
        recorder.judged(event(i))
        longest, i = max(longest, time.monotonic() - start), i + 1
        time.sleep(.05)
    assert longest < 2 and 'away' in recorder.trouble and len(recorder.spool) >= i - 21
    database.start()
    drained(recorder, 40)
    assert recorder.trouble is None and recorder.lost == recorder.bad == 0
    assert len(recorder.store.find(most=10**5)) == i
    whole(recorder.store, i)
    recorder.close()

def test_two_servers_write_into_one_chain(database, tmp_path):
    url = emptied(database.url)
    both = [Recorder(partial(open_store, url), Spool(tmp_path/'spool')) for _ in range(2)]  # one spool folder each
    for i in range(120): both[i % 2].judged(event(i, station=f'line-{i % 2}'))
    for r in both: drained(r)
    kinds = whole(both[0].store, 120)
    assert kinds['ran'] == 2 and [r.bad for r in both] == [0, 0]
    for r in both: r.close()

def test_a_decision_without_its_photograph_is_kept(tmp_path):
    "Of a file that could not be read, or was moved before a crash: no bytes, and still a decision"
    recorder = Recorder(partial(open_store, f'sqlite:///{tmp_path}/i.db', str(tmp_path/'photos')), Spool(tmp_path/'s'))
    recorder.judged(replace(event(1), photograph=b'', sha256=''))
    recorder.judged(replace(event(2), photograph=b''))
    drained(recorder)
    found = recorder.store.find()
    assert [(i.part, i.photograph) for i in found] == [('A2', None), ('A1', None)]
    with pytest.raises(StoreError, match='not kept'): recorder.store.photograph(found[0])
    assert isinstance(recorder, Counted) and recorder.counts() == dict(waiting=0, dead=0, sent=2, failed=0, lost=0)
    recorder.close()

def test_what_goes_on_being_wrong_is_said_once_a_minute(tmp_path, monkeypatch, caplog):
    recorder = Recorder(partial(open_store, f'sqlite:///{tmp_path}/i.db'), Spool(tmp_path/'spool', most_bytes=1))
    for second in (1, 31, 62, 92, 123):
        monkeypatch.setattr(recording.time, 'monotonic', lambda second=second: float(second))
        recorder.judged(event(second))
    monkeypatch.undo()
    recorder.close()
    assert caplog.text.count('decisions are lost') == 3 and recorder.lost == 5

def test_what_the_database_refuses_is_set_aside_and_holds_up_nothing(database, tmp_path):
    url = emptied(database.url)
    recorder = Recorder(partial(open_store, url), Spool(tmp_path/'spool'))
    recorder.judged(event(1))
    recorder.judged(event(2, part='a\0b'))  # PostgreSQL has no such text
    recorder.judged(event(3))
    (recorder.spool.folder/'20260101-0.event').write_bytes(b'{}')
    drained(recorder)
    assert recorder.bad == 1 and len(list(recorder.spool.folder.glob('*.bad'))) == 1
    assert sorted(i.part for i in recorder.store.find()) == ['A1', 'A3']
    recorder.close()
    damaged = Recorder(partial(open_store, url), Spool(tmp_path/'spool'))  # meets the file that is no decision
    drained(damaged)
    assert damaged.bad == 1 and len(damaged.store.find()) == 2
    damaged.close()

def test_a_full_disk_loses_decisions_says_so_and_goes_on(tmp_path, monkeypatch):
    recorder = Recorder(partial(open_store, f'sqlite:///{tmp_path}/i.db'), Spool(tmp_path/'spool'))
    write, full = recording.write_whole, [True]
    def whole_or_full(path, data):
        if full[0]: raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, data)
    monkeypatch.setattr(recording, 'write_whole', whole_or_full)
    for i in range(5): recorder.judged(event(i))
    assert recorder.lost == 5 and 'No space left' in recorder.trouble
    full[0] = False
    recorder.judged(event(5))
    drained(recorder)
    assert recorder.trouble is None and recorder.lost == 5 and recorder.written == 1
    recorder.close()

def test_a_disk_that_is_really_full(tmp_path):
    "A small file system of its own, which only root can mount"
    small, here = tmp_path/'small', []
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', small], capture_output=True).returncode:
        pytest.skip('no small file system can be mounted here')
    def connect():
        if not here: raise ConnectionError('not yet')
        return open_store(f'sqlite:///{tmp_path}/i.db', f'{tmp_path}/photographs')
    try:
        recorder = Recorder(connect, Spool(small/'spool'))
        for i in range(200): recorder.judged(event(i))
        kept = len(recorder.spool)
        assert recorder.lost > 50 and kept > 20 and kept + recorder.lost == 200
        assert 'No space left' in recorder.trouble
        here.append(True)
        drained(recorder)
        recorder.judged(event(200))  # there is room again
        drained(recorder)
        assert recorder.trouble is None and recorder.bad == 0
        whole(recorder.store, kept + 1)
        recorder.close()
    finally: subprocess.run(['umount', '-l', small], check=True)

def test_a_second_server_adopts_what_a_killed_one_left(tmp_path):
    first, second = Spool(tmp_path), Spool(tmp_path)
    assert first.folder != second.folder
    made, data = decision(1)
    second.put(made, data)
    second.close()
    first.close()
    third = Spool(tmp_path)
    assert len(third) == 1 and third.read(third.first(1)[0]) == (made, data)
    third.close()

# ---------------------------------------------------------------- over HTTP, with real processes

def serve(tmp_path, port, **settings):
    from server_kit import HERE
    env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{HERE.parent}', 'FAKE_SETTINGS': json.dumps(dict(
        store_url=f'sqlite:///{tmp_path}/i.db', store_photographs=f'{tmp_path}/photographs',
        store_spool=f'{tmp_path}/spool') | settings)}
    p = subprocess.Popen([sys.executable, HERE/'serve_store.py', str(port)], env=env, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url, end = f'http://127.0.0.1:{port}', time.monotonic() + 60
    while time.monotonic() < end:
        if p.poll() is not None: raise AssertionError(p.stdout.read())
        try:
            if httpx.get(f'{url}/startupz', timeout=2).status_code == 200: return p, url
        except httpx.TransportError: pass
        time.sleep(.1)
    raise AssertionError('not up in 60 s')

def post(url, value, **form):
    from server_kit import png
    return httpx.post(f'{url}/predict', files={'file': (f'{value}.png', png(value))}, data=form, timeout=30,
        headers={'x-request-id': f'r{value}'})

def test_a_server_killed_with_verdicts_in_its_spool_has_each_once_after_a_restart(tmp_path):
    from server_kit import free_port, png
    away = 'postgresql://sads@127.0.0.1:9/none'
    p, url = serve(tmp_path, free_port(), store_url=away)
    assert [post(url, v, part_id=f'A{v}', lot='L7').json()['verdict'] for v in (10, 200, 30, 220)] == ['FAIL', 'PASS']*2
    end = time.monotonic() + 20
    while len(list(tmp_path.glob('spool/*/*.event'))) < 4 and time.monotonic() < end: time.sleep(.05)
    ready = httpx.get(f'{url}/readyz')
    assert ready.status_code == 200 and 'away' in ready.headers['x-store']  # it goes on, and says so
    assert httpx.get(f'{url}/inspections').status_code == 503
    os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    p, url = serve(tmp_path, free_port())
    try:
        end = time.monotonic() + 20  # what waited is stored without another decision
        while httpx.get(f'{url}/inspections').status_code == 503 and time.monotonic() < end: time.sleep(.1)
        post(url, 10, part_id='A10')  # the same id again: another decision
        end = time.monotonic() + 20
        while time.monotonic() < end:
            answer = httpx.get(f'{url}/inspections', params={'limit': 3})
            if answer.status_code == 200 and answer.json()['next']: break
            time.sleep(.1)
        page = answer.json()
        rest = httpx.get(url + page['next']).json()
        found = page['inspections'] + rest['inspections']
        assert sorted(i['part'] for i in found) == ['A10', 'A10', 'A200', 'A220', 'A30'] and rest['next'] is None
        one = next(i for i in found if i['part'] == 'A200')
        assert one['verdict'] == 'PASS' and one['lot'] == 'L7' and one['request_id'] == 'r200'
        assert httpx.get(f'{url}/inspections/{one["id"]}/photograph').content == png(200)
        assert httpx.get(f'{url}/inspections/{one["id"]}').json()['report']['model_version'] == 'fake'
        asked = {path: httpx.get(f'{url}/inspections{path}').status_code for path in ('/999', '/x', '?verdict=MAYBE',
            '?limit=0', '?limit=9e9', '?colour=red', '?since=x', '/999/photograph', '?before=-1', '/' + '9'*30)}
        assert asked == {'/999': 404, '/x': 404, '?verdict=MAYBE': 400, '?limit=0': 400, '?limit=9e9': 400,
            '?colour=red': 400, '?since=x': 400, '/999/photograph': 404, '?before=-1': 400, '/' + '9'*30: 404}
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        p.communicate(timeout=30)
    after = open_store(f'sqlite:///{tmp_path}/i.db')
    whole(after, 5)
    after.close()

def test_a_plant_that_must_keep_every_decision_judges_nothing_meanwhile(tmp_path):
    from server_kit import free_port
    p, url = serve(tmp_path, free_port(), store_url='postgresql://sads@127.0.0.1:9/none', store_required=True)
    try:
        post(url, 10)  # the first finds nothing wrong; its decision is in the spool
        end = time.monotonic() + 20
        while (late := post(url, 10)).status_code == 200 and time.monotonic() < end: time.sleep(.1)
        assert late.status_code == 503 and late.headers['retry-after'] == '5'
        assert late.json()['what'] == 'decisions cannot be kept, and store_required is set'
        assert httpx.get(f'{url}/readyz').status_code == 503 and httpx.get(f'{url}/livez').status_code == 200
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
