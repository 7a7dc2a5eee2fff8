"`sads watch`: killed again and again, each photograph has one verdict; a film stands in for a camera."
import csv
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fake_pipeline
import numpy as np
import pytest
from server_kit import HERE, png
from typer.testing import CliRunner

from sads_jax.cli.main import app
from sads_jax.cli.watch import watch_camera, watch_folder
from sads_jax.core.errors import SADSError
from sads_jax.serving import watch as w
from sads_jax.serving.watch import FolderWatch, Journal


@pytest.fixture
def place(tmp_path):
    (tmp_path/'inbox').mkdir()
    (tmp_path/'settings.ini').write_text('[sink.rows]\nkind = folder\nfolder = rows\n')
    return tmp_path

def start(place, *words):
    env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{HERE.parent}'}
    return subprocess.Popen([sys.executable, str(HERE/'watch_fake.py'), str(place/'inbox'), str(place/'journal.db'),
        str(place/'settings.ini'), str(place), *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)

def drop(place, i):
    "A photograph written in two pieces, as cameras do; every seventh is bad, every eleventh no picture"
    data = b'no picture %d' % i if i % 11 == 10 else png(20 if i % 7 == 6 else 200, (32, 32 + i % 64)) + b'%d' % i
    path = place/'inbox'/f'{i:05d}.png'
    with open(path, 'wb') as f:
        f.write(data[:len(data)//2])
        f.flush()
        f.write(data[len(data)//2:])

def expected(n):
    return Counter('unreadable' if i % 11 == 10 else 'fail' if i % 7 == 6 else 'pass' for i in range(n))

def table(place):
    with sqlite3.connect(place/'journal.db') as db:
        return db.execute('SELECT name, place, state FROM seen').fetchall()

def rows(place):
    return [r for f in (place/'rows').glob('*.csv') for r in csv.DictReader(open(f))]

def killed_ten_times(place, n):
    "Photographs are dropped in while the watch is killed ten times"
    rng, dropped = random.Random(3), threading.Event()
    def camera():
        for i in range(n):
            drop(place, i)
            time.sleep(8/n)
        dropped.set()
    threading.Thread(target=camera, daemon=True).start()
    for _ in range(10):
        p = start(place, 'move')
        assert p.stdout.readline() == 'watching\n'
        time.sleep(rng.uniform(.05, .3))
        p.send_signal(signal.SIGKILL)
        p.communicate()
    assert dropped.wait(60)
    p = start(place, 'move', 'once')
    out, _ = p.communicate(timeout=120)
    assert p.returncode == 0, out
    seen = table(place)
    assert Counter(name for name, *_ in seen) == Counter(f'{i:05d}.png' for i in range(n))
    assert Counter(where for _, where, _ in seen) == expected(n)
    assert {state for *_, state in seen} == {'moved'}
    told = rows(place)
    assert Counter(r['name'] for r in told) == Counter(f'{i:05d}.png' for i in range(n))  # each once
    assert {r['name']: r['verdict'] for r in told} == {
        name: {'unreadable': 'REVIEW'}.get(where, where.upper()) for name, where, _ in seen}
    there = Counter(p.parent.name for p in (place/'inbox').rglob('*.png'))
    assert there == expected(n)

def test_each_is_judged_once_though_it_is_killed_ten_times(place): killed_ten_times(place, 60)

@pytest.mark.slow
def test_a_thousand_are_judged_once_though_it_is_killed_ten_times(place): killed_ten_times(place, 1000)

def test_it_stops_in_order_and_only_one_may_watch(place):
    drop(place, 0)
    p = start(place)
    try:
        assert p.stdout.readline() == 'watching\n'
        end = time.monotonic() + 20
        while not rows(place): assert time.monotonic() < end; time.sleep(.05)
        second = start(place)
        out, _ = second.communicate(timeout=30)
        assert second.returncode == 1 and 'another process is at work here' in out
    finally: p.send_signal(signal.SIGTERM)
    out, _ = p.communicate(timeout=20)
    assert p.returncode == 0 and [r['verdict'] for r in rows(place)] == ['PASS'], out
    assert (place/'inbox'/'00000.png').exists()  # nobody asked to move it

class Heard:
    def __init__(self): self.events = []
    def judged(self, event): self.events.append(event)

def watching(place, pipeline=None, **more):
    heard, journal = Heard(), Journal(place/'journal.db')
    plain = dict(settle_s=0., unreadable_s=0., batch_size=4)
    return FolderWatch(place/'inbox', pipeline or fake_pipeline.load(), journal, [heard], **(plain | more)), heard

def test_a_file_is_judged_when_it_is_whole_and_never_before(place):
    watch, heard = watching(place, settle_s=.15, unreadable_s=.5)
    data, path = png(), place/'inbox'/'a.png'
    for k in range(1, 9):
        path.write_bytes(data[:len(data)*k//8])
        assert watch.step() == 0
        time.sleep(.05)
    end = time.monotonic() + 10
    while not heard.events and time.monotonic() < end: watch.step(); time.sleep(.02)
    assert [(e.report.verdict, e.photograph == data) for e in heard.events] == [('PASS', True)]

def test_half_a_picture_is_review_and_the_whole_is_judged_when_it_comes(place):
    watch, heard = watching(place)
    path = place/'inbox'/'a.png'
    path.write_bytes(png(20)[:60])
    watch.step()
    path.write_bytes(png(20))
    watch.step()
    assert [e.report.verdict for e in heard.events] == ['REVIEW', 'FAIL']

@pytest.mark.parametrize('kind', ['empty', 'text', 'huge', 'locked', 'fault'])
def test_what_cannot_be_judged_is_never_a_pass(place, kind, monkeypatch):
    name = 'poison.png' if kind == 'fault' else 'a.png'
    path = place/'inbox'/name
    path.write_bytes(dict(empty=b'', text=b'hello', huge=png() + b' '*200_000).get(kind, png()))
    if kind == 'locked':
        real = Path.read_bytes
        def denied(self):
            if self.name == name: raise PermissionError(13, 'Permission denied')
            return real(self)
        monkeypatch.setattr(Path, 'read_bytes', denied)
    watch, heard = watching(place, move=True, most_mb=.1)
    assert watch.step() == 1
    e, = heard.events
    assert (e.report.verdict, e.report.reasons[0].rule, e.report.image_score) == ('REVIEW', 'unreadable', 1.)
    assert (place/'inbox'/'unreadable'/name).exists() and not path.exists()

def test_the_same_name_again_is_another_photograph_and_nothing_is_replaced(place):
    watch, heard = watching(place, move=True)
    for grey in (200, 210, 220):
        (place/'inbox'/'part.png').write_bytes(png(grey))
        watch.step()
    assert len(heard.events) == 3 == len({e.request_id for e in heard.events})
    assert len(list((place/'inbox'/'pass').iterdir())) == 3

def test_folders_below_hidden_files_and_other_files(place):
    for name in ('day1/a.png', '.tmp.png', 'notes.txt', 'day1/.part/b.png', 'pass/old.png', 'day1/pass/c.jpg'):
        path = place/'inbox'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    watch, heard = watching(place, move=True)
    watch.step()
    assert sorted(e.name for e in heard.events) == ['day1/a.png', 'day1/pass/c.jpg']
    assert (place/'inbox'/'pass'/'day1'/'a.png').exists()

def test_an_observer_that_fails_does_not_stop_the_line(place):
    class Broken:
        def judged(self, event): raise OSError('disk full')
    watch, heard = watching(place)
    watch.observers = [Broken(), heard]
    (place/'inbox'/'a.png').write_bytes(png())
    assert watch.step() == 1 and len(heard.events) == 1

def test_a_drive_that_is_away_is_waited_for(place):
    watch, heard = watching(place)
    away, stop = place/'away', threading.Event()
    (place/'inbox').rename(away)
    t = threading.Thread(target=watch.run, args=[stop, .02])
    t.start()
    time.sleep(.1)
    (away/'a.png').write_bytes(png())
    away.rename(place/'inbox')
    end = time.monotonic() + 10
    while not heard.events and time.monotonic() < end: time.sleep(.02)
    stop.set()
    t.join(10)
    assert [e.report.verdict for e in heard.events] == ['PASS']

@pytest.mark.parametrize('crash', ['tell', 'move'])
def test_a_crash_between_verdict_and_move_is_taken_up(place, crash, monkeypatch):
    watch, heard = watching(place, move=True)
    (place/'inbox'/'a.png').write_bytes(png(20))
    with monkeypatch.context() as m:
        m.setattr(FolderWatch, '_finish' if crash == 'tell' else '_file', lambda *a: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit): watch.step()
    watch.journal.close()
    again, told = watching(place, move=True)
    again.resume()
    assert len(told.events) == (crash == 'tell') and again.step() == 0
    assert all(e.photograph == png(20) for e in told.events)
    assert (place/'inbox'/'fail'/'a.png').exists() and again.journal.left('judged') == again.journal.left('told') == []

def test_two_of_the_same_process_are_refused(place):
    stop = threading.Event()
    stop.set()
    with w.open_database(place/'x.db', 'SELECT 1') as db: db.execute('SELECT 1')
    assert watch_folder(place/'inbox', fake_pipeline.load(), [], place/'journal.db', stop) == {}

# ---------------------------------------------------------------- camera

def film(path, greys, fps=10):
    import cv2
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), fps, (64, 48))
    assert out.isOpened()
    for g in greys: out.write(np.full((48, 64, 3), g, np.uint8))
    out.release()

def test_a_film_is_judged_frame_by_frame(place):
    film(place/'line.avi', [200]*20 + [20]*10)
    heard, places = Heard(), []
    n = watch_camera(str(place/'line.avi'), fake_pipeline.load(), [heard], threading.Event(), .5,
        lambda e: places.append(e.place))
    assert n == 6 and places == ['pass']*4 + ['fail']*2
    assert {e.source for e in heard.events} == {'camera'} and len({e.request_id for e in heard.events}) == 6
    assert all(e.photograph.startswith(b'\x89PNG') for e in heard.events)

def test_a_camera_that_breaks_is_opened_again(place, monkeypatch):
    from sads_jax.serving import camera
    film(place/'line.avi', [200]*3)
    film(place/'later.avi', [20]*3)
    sources, real = [place/'line.avi', None, place/'later.avi'], camera.opened
    def opened(source):
        path = sources.pop(0) if len(sources) > 1 else sources[0]
        if path is None: raise camera.ServingError('no such camera')
        return real(str(path))
    monkeypatch.setattr(camera, 'opened', opened)
    stop, seen = threading.Event(), []
    for frame in camera.live_frames('rtsp://camera', .0, stop):
        seen.append(frame.mean() > 100)
        if not seen[-1]: stop.set()
    assert seen[0] and not seen[-1]

# ---------------------------------------------------------------- the command

def test_the_command_says_what_it_needs(place):
    run = lambda *a: CliRunner().invoke(app, ['watch', *a])
    assert run().exit_code == 2 and run(str(place), '--camera', '0').exit_code == 2
    r = run(str(place/'nowhere'))
    assert isinstance(r.exception, SADSError) and 'no such folder' in str(r.exception)

@pytest.fixture
def fake_bundle(monkeypatch):
    "Any bundle is the fake pipeline"
    pipeline = fake_pipeline.load()
    pipeline.model_version = pipeline.rules_version = 'fake'
    monkeypatch.setattr('sads_jax.registry.bundle.load_pipeline', lambda *a, **k: pipeline)
    monkeypatch.setattr('sads_jax.registry.signing.admit_bundle', lambda *a: 'fake')

def told(place, *words):
    "Output of `sads watch` in a working folder"
    old = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    r = CliRunner().invoke(app, ['watch', *words, '--bundle', str(place), '--settings', str(place/'settings.ini'),
        '--workdir', str(place)])
    for s, f in zip((signal.SIGTERM, signal.SIGINT), old): signal.signal(s, f)
    assert r.exit_code == 0, (r.output, r.exception)
    return r.output

def test_the_command_judges_a_folder_once_and_tells_the_sinks(place, fake_bundle):
    for i in range(12): drop(place, i)
    words = str(place/'inbox'), '--once', '--settle', '0', '--unreadable', '0', '--move'
    out = told(place, *words)
    assert out.count('PASS') == 10 and 'in all: 1 fail, 10 pass, 1 unreadable' in out
    assert Counter(r['verdict'] for r in rows(place)) == {'PASS': 10, 'FAIL': 1, 'REVIEW': 1}
    again = told(place, *words)
    assert 'PASS' not in again and 'in all: 1 fail, 10 pass, 1 unreadable' in again and len(rows(place)) == 12

def test_the_command_judges_a_film(place, fake_bundle):
    film(place/'line.avi', [200]*20 + [20]*10)
    out = told(place, '--camera', str(place/'line.avi'), '--every', '0.5')
    assert '6 frames judged' in out and Counter(r['verdict'] for r in rows(place)) == {'PASS': 4, 'FAIL': 2}
