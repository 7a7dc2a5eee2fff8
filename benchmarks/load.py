"""Program: the server under load, beside the bare pipeline and beside the same pipeline behind plain FastAPI.

    python benchmarks/load.py BUNDLE PHOTOGRAPHS [--seconds 60] [--concurrency 1 8 32 128] [--sides 192 640 1280]

Real JPEGs of several sizes are posted over kept-alive connections by a client of its own process that does nothing
else. The cache of answers is off. Prints a table, and JSON with --json FILE. Everything runs on this machine, so
client, listener and worker share its cores; the bare pipeline has them alone.
"""
import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).parent
TICKS = os.sysconf('SC_CLK_TCK')


def jpegs(folder, sides, most=60):
    "Encoded photographs: those of a folder, scaled to each side in turn"
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg', '.bmp'))[:most]
    out = []
    for i, path in enumerate(files):
        side = sides[i % len(sides)]
        with Image.open(path) as im:
            im = im.convert('RGB')
            scale = side/max(im.size)
            im.resize([max(16, round(v*scale)) for v in im.size]).save(b := io.BytesIO(), 'JPEG', quality=90)
        out.append(b.getvalue())
    return out


# -- The client

async def one_connection(port, requests, first, step, end, times, statuses):
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    i = first
    while time.perf_counter() < end:
        start = time.perf_counter()
        writer.write(requests[i % len(requests)])
        head = await reader.readuntil(b'\r\n\r\n')
        length = next(int(h[15:]) for h in head.split(b'\r\n') if h.lower().startswith(b'content-length:'))
        await reader.readexactly(length)
        times.append(time.perf_counter() - start)
        statuses[head[9:12].decode()] = statuses.get(head[9:12].decode(), 0) + 1
        i += step
    writer.close()

async def load(port, photographs, concurrency, seconds):
    "Latencies [s] and statuses of so many connections that ask again as soon as they are answered"
    def request(data):
        head = (f'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n'
            f'Content-Length: {len(data)}\r\n\r\n')
        return head.encode() + data
    requests, times, statuses = [request(d) for d in photographs], [], {}
    start = time.perf_counter()
    await asyncio.gather(*(one_connection(port, requests, k, concurrency, start + seconds, times, statuses)
        for k in range(concurrency)))
    return times, statuses, time.perf_counter() - start

def client_main(port, folder, concurrency, seconds):
    photographs = [p.read_bytes() for p in sorted(Path(folder).iterdir())]
    times, statuses, wall = asyncio.run(load(port, photographs, concurrency, seconds))
    q = lambda p: round(float(np.percentile(times, p))*1e3, 2)
    print(json.dumps(dict(images_per_s=round(len(times)/wall, 2), p50=q(50), p95=q(95), p99=q(99), n=len(times),
        statuses=statuses)))

def run_client(port, folder, concurrency, seconds):
    out = subprocess.run([sys.executable, __file__, '--client', str(port), str(folder), str(concurrency), str(seconds)],
        capture_output=True, text=True, check=True, timeout=seconds + 120).stdout
    return json.loads(out.splitlines()[-1])


# -- What is compared

def bare_main(bundle, folder, seconds):
    "The pipeline without a server: in batches as fast as it goes, and one by one"
    from sads_jax.core.settings import load_settings
    from sads_jax.serving.service import load_bundle, warm_up
    s = load_settings()
    pipeline = load_bundle(bundle, s)
    warm_up(pipeline, s.max_batch_size)
    photographs = [p.read_bytes() for p in sorted(Path(folder).iterdir())]
    list(pipeline.stream(photographs[:16], batch_size=s.max_batch_size))
    rates, cpu = {}, {}
    for size in (s.max_batch_size, 32):
        start, busy, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds/2:
            n += sum(1 for _ in pipeline.stream(photographs, batch_size=size))
        rates[size], cpu[size] = n/(time.perf_counter() - start), (time.process_time() - busy)*1e3/n
    times, start, busy = [], time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds/2:
        for d in photographs:
            t = time.perf_counter()
            pipeline.process_request(d)
            times.append(time.perf_counter() - t)
    cpu[1] = (time.process_time() - busy)*1e3/len(times)
    print(json.dumps(dict(batched={k: round(v, 2) for k, v in rates.items()},
        cpu_ms_per_image={k: round(v, 2) for k, v in cpu.items()},
        p50=round(statistics.median(times)*1e3, 2), one_by_one=round(len(times)/sum(times), 2))))

def fastapi_main(bundle, port):
    "The same pipeline behind plain FastAPI and uvicorn: one request, one call, in a thread"
    import uvicorn
    from fastapi import FastAPI, Request, Response

    from sads_jax.core.settings import load_settings
    from sads_jax.serving.service import load_bundle, warm_up
    s = load_settings()
    pipeline = load_bundle(bundle, s)
    warm_up(pipeline, s.max_batch_size)
    app = FastAPI()
    @app.get('/readyz')
    def ready(): return 'ok'
    @app.post('/predict')
    async def predict(request:Request):
        report = await asyncio.to_thread(pipeline.process_request, await request.body())
        return Response(report.model_dump_json(), media_type='application/json')
    uvicorn.run(app, host='127.0.0.1', port=port, log_level='warning', access_log=False)


# -- Processes

def family(pid):
    "A process and its descendants"
    try: return [pid, *(p.pid for p in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess: return [pid]

def cpu_seconds(pid, alone=False):
    "Of a process, with its descendants or alone"
    total = 0
    for p in [pid] if alone else family(pid):
        try: total += sum(map(int, Path(f'/proc/{p}/stat').read_text().rpartition(')')[2].split()[11:13]))
        except OSError: continue
    return total/TICKS

def memory_mb(pid):
    total = 0
    for p in family(pid):
        try: lines = Path(f'/proc/{p}/smaps_rollup').read_text().splitlines()
        except OSError: continue
        total += sum(int(x.split()[1]) for x in lines if x.startswith('Pss:'))
    return round(total/1024)

def start_server(args):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    start = time.perf_counter()
    env = os.environ | {'SADS_CACHED_ANSWERS': '0', 'SADS_DRAIN_S': '0'}
    p = subprocess.Popen([sys.executable, *map(str, args(port))], env=env, start_new_session=True)
    while True:
        if p.poll() is not None: sys.exit(f'the server ended with {p.returncode}')
        try:
            if urllib.request.urlopen(f'http://127.0.0.1:{port}/readyz', timeout=5).status == 200: break
        except OSError: time.sleep(.1)
    return p, port, time.perf_counter() - start

def measure(name, args, folder, concurrency, seconds, idle_s):
    p, port, ready = start_server(args)
    try:
        run_client(port, folder, 8, 3)
        rows = {'ready_s': round(ready, 1), 'memory_start_mb': memory_mb(p.pid)}
        before = cpu_seconds(p.pid)
        time.sleep(idle_s)
        rows['idle_cpu_percent'] = round((cpu_seconds(p.pid) - before)/idle_s*100, 2)
        for c in concurrency:
            before, listener = cpu_seconds(p.pid), cpu_seconds(p.pid, alone=True)
            rows[c] = run_client(port, folder, c, seconds)
            n = max(rows[c]['n'], 1)
            rows[c]['cpu_ms_per_image'] = round((cpu_seconds(p.pid) - before)*1e3/n, 2)
            rows[c]['main_process_cpu_ms'] = round((cpu_seconds(p.pid, alone=True) - listener)*1e3/n, 2)
            print(f'{name:8} c={c:<4} {rows[c]}', flush=True)
        rows['memory_end_mb'] = memory_mb(p.pid)
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        try: p.wait(30)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)
    return rows

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('bundle')
    a.add_argument('photographs')
    a.add_argument('--seconds', type=float, default=60)
    a.add_argument('--concurrency', type=int, nargs='+', default=[1, 8, 32, 128])
    a.add_argument('--sides', type=int, nargs='+', default=[192, 640, 1280])
    a.add_argument('--idle', type=float, default=10, help='seconds of idle CPU')
    a.add_argument('--only', nargs='+', default=['bare', 'sads', 'fastapi'])
    a.add_argument('--json', type=Path)
    o = a.parse_args()
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        for i, data in enumerate(jpegs(o.photographs, o.sides)): (Path(d)/f'{i:03}.jpg').write_bytes(data)
        found = {}
        if 'bare' in o.only:
            out = subprocess.run([sys.executable, __file__, '--bare', o.bundle, d, str(o.seconds)], text=True,
                capture_output=True, check=True).stdout
            found['bare'] = json.loads(out.splitlines()[-1])
            print('bare', found['bare'], flush=True)
        ways = {'sads': lambda port: ['-m', 'sads_jax.cli.main', 'serve', '--bundle', o.bundle, '--port', port],
            'fastapi': lambda port: [__file__, '--fastapi', o.bundle, port]}
        for name, args in ways.items():
            if name in o.only: found[name] = measure(name, args, d, o.concurrency, o.seconds, o.idle)
    for name in ways:
        if name in found: print(name, {k: v for k, v in found[name].items() if not isinstance(k, int)})
    if o.json: o.json.write_text(json.dumps(found, indent=1) + '\n')

if __name__ == '__main__':
    kind = sys.argv[1] if len(sys.argv) > 1 else ''
    if kind == '--client': client_main(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    elif kind == '--bare': bare_main(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    elif kind == '--fastapi': fastapi_main(sys.argv[2], int(sys.argv[3]))
    else: main()
