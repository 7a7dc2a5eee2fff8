"What the tests of metrics, sinks and clients share: a real server with all of them, over a fake pipeline."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from server_kit import HERE, free_port


def start_ops(ini:Path, workdir:Path, **settings):
    "The server in its own process group, once it is ready, and its URL"
    port = free_port()
    env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{HERE.parent}'}
    with open(workdir/'server.log', 'w') as log:
        p = subprocess.Popen([sys.executable, str(HERE/'ops_server.py'), str(port), str(ini), str(workdir),
            json.dumps(settings)], env=env, cwd=HERE.parent, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True)
    url, end = f'http://127.0.0.1:{port}', time.monotonic() + 60
    while True:
        if p.poll() is not None: raise AssertionError((workdir/'server.log').read_text())
        try:
            if httpx.get(f'{url}/readyz', timeout=2).status_code == 200: return p, url
        except httpx.TransportError: pass
        if time.monotonic() > end:
            stop_ops(p)
            raise AssertionError(f'not ready in 60 s: {(workdir/"server.log").read_text()}')
        time.sleep(.05)

def stop_ops(p):
    "End it, whatever it does"
    if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    p.wait()
