"What the tests of the server share: pictures, and a real server in processes of its own."
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).parent


def png(value=200, size=(40, 48), fmt='PNG'):
    b = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(b, fmt)
    return b.getvalue()

def png_header(w, h):
    "A PNG that claims to be w x h px and ends after its header"
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b''))
        + chunk(b'IEND', b'')
    )

def nan_tiff():
    b = io.BytesIO()
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(b, 'TIFF')
    return b.getvalue()

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(*args, port=None, wait=True, **settings):
    "A server process in its own process group, healthy if `wait`"
    port = port or free_port()
    env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{HERE.parent}', 'FAKE_SETTINGS': json.dumps(settings)}
    p = subprocess.Popen([sys.executable, str(HERE / 'serve_fake.py'), str(port), *map(str, args)], env=env,
        cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    url = f'http://127.0.0.1:{port}'
    end = time.monotonic() + 60
    while wait:
        if p.poll() is not None: raise AssertionError(p.stdout.read())
        try:
            if httpx.get(f'{url}/health', timeout=2).status_code == 200: break
        except httpx.TransportError: pass
        if time.monotonic() > end:
            os.killpg(p.pid, signal.SIGKILL)
            raise AssertionError(f'not healthy in 60 s: {p.stdout.read()}')
        time.sleep(.1)
    return p, url

def group(pgid):
    "Living members of a process group (zombies are not alive)"
    alive = []
    for d in Path('/proc').glob('[0-9]*'):
        try: state, _, pg = (d/'stat').read_text().rpartition(')')[2].split()[:3]
        except (OSError, ValueError): continue
        if int(pg) == pgid and state != 'Z': alive.append(int(d.name))
    return alive

def stop(p, sig=signal.SIGTERM, everyone=False):
    "Exit status after `sig`; kills what is left in any case, and says what that was"
    (os.killpg if everyone else os.kill)(p.pid, sig)
    try: out, _ = p.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        raise
    return p.returncode, leftovers(p), out

def leftovers(p):
    "Processes of a group that are still there 3 s after its first member ended, and are now killed"
    end = time.monotonic() + 3
    while (left := group(p.pid)) and time.monotonic() < end: time.sleep(.05)
    for pid in left: os.kill(pid, signal.SIGKILL)
    return left

def family(pid):
    "A process and its descendants"
    try: return [pid, *(p.pid for p in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess: return [pid]
