"""Program: the same photographs through Python, `sads predict` and POST /predict; every field must agree.

    python tests/parity_check.py BUNDLE IMAGE|FOLDER…

Everything but `timings_ms` is compared. Exits 0 and says how many agreed, or 1 naming file and field.
"""
import base64
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from sads_jax.cli.predict import find_photographs
from sads_jax.core.settings import load_settings


def strip(report): return {k: v for k, v in report.items() if k != 'timings_ms'}

def by_python(bundle, files):
    "As a notebook does it: one at a time"
    from sads_jax.registry.bundle import load_pipeline
    s = load_settings()
    pipeline = load_pipeline(bundle, settings=s, cache_dir=s.cache_dir/'programs', station_id=s.station_id)
    return [strip(pipeline.process_request(f).model_dump(mode='json')) for f in files]

def by_cli(bundle, files):
    "As a person does it: a batch at a time"
    with tempfile.TemporaryDirectory() as d:
        out = Path(d)/'out.jsonl'
        subprocess.run(
            [sys.executable, '-m', 'sads_jax.cli.main', 'predict', *map(str, files), '--bundle', str(bundle), '--out',
                str(out), '--quiet'],
            check=True,
            timeout=600,
            stdout=subprocess.DEVNULL,
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r['file'] for r in rows] == [str(f) for f in files]
    return [strip(r['report']) for r in rows]

def by_http(bundle, files):
    "As a machine does it: sixteen requests at once, half of them multipart, half JSON, batched as they come"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    url = f'http://127.0.0.1:{port}'
    p = subprocess.Popen(
        [sys.executable, '-m', 'sads_jax.cli.main', 'serve', '--bundle', str(bundle), '--port', str(port)],
        start_new_session=True)
    try:
        end = time.monotonic() + 240
        while True:
            if p.poll() is not None: sys.exit(f'the server ended with {p.returncode}')
            try:
                if httpx.get(f'{url}/health', timeout=5).status_code == 200: break
            except httpx.TransportError: pass
            if time.monotonic() > end: sys.exit('the server was not healthy in 240 s')
            time.sleep(.2)
        def post(i, f):
            data = f.read_bytes()
            r = (
                httpx.post(f'{url}/predict', files={'file': (f.name, data)}, timeout=120)
                if i % 2
                else httpx.post(f'{url}/predict', json={'image': base64.b64encode(data).decode()}, timeout=120)
            )
            assert r.status_code == 200, f'{f}: {r.status_code} {r.text}'
            return strip(r.json())
        with concurrent.futures.ThreadPoolExecutor(16) as pool: return list(pool.map(post, range(len(files)), files))
    finally:
        p.send_signal(signal.SIGTERM)
        try: p.wait(60)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)

def differences(files, reports):
    "Sentences, one for each field of each file that is not the same three times"
    ways, out = list(reports), []
    for i, f in enumerate(files):
        first = reports[ways[0]][i]
        for way in ways[1:]:
            other = reports[way][i]
            out += [
                f'{f}: {k}: {ways[0]} {first.get(k)!r}, {way} {other.get(k)!r}'
                for k in sorted(first.keys() | other.keys())
                if first.get(k) != other.get(k)
            ]
    return out

def main(bundle, *sources):
    files = find_photographs(sources)
    reports = {}
    for name, way in (('Python', by_python), ('sads predict', by_cli), ('POST /predict', by_http)):
        start = time.monotonic()
        reports[name] = way(bundle, files)
        print(f'{name}: {len(reports[name])} reports in {time.monotonic() - start:.1f} s', flush=True)
    wrong = differences(files, reports)
    for line in wrong[:20]: print(line)
    n = sum(len(r['defects']) for r in reports['Python'])
    verdicts = [r['verdict'] for r in reports['Python']]
    print(
        f"{len(files)} photographs, {len(reports['Python'][0])} fields each, {n} defects, "
        + ', '.join(f'{verdicts.count(v)} {v}' for v in ('PASS', 'REVIEW', 'FAIL'))
        + (f': {len(wrong)} differences' if wrong else ': equal field by field, three ways')
    )
    return 1 if wrong else 0

if __name__ == '__main__':
    if len(sys.argv) < 3: sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
