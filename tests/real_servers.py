"PostgreSQL from Debian and an S3 server from PyPI, in processes of their own, for as long as a test needs them."
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def until_open(port, process, seconds=60):
    "Wait for a port"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as s:
            if s.connect_ex(('127.0.0.1', port)) == 0: return
        if process.poll() is not None: raise AssertionError(f'{process.args[0]} ended with {process.returncode}')
        time.sleep(.05)
    raise AssertionError(f'nothing at port {port} after {seconds} s')

class Postgres:
    "A database cluster in a temporary folder"
    def __init__(self, bin:Path, folder:Path, user:str|None):
        self.bin, self.folder, self.user, self.port, self.process = bin, folder, user, free_port(), None
        self.url = f'postgresql://sads@127.0.0.1:{self.port}/postgres'
        subprocess.run([bin/'initdb', '-D', folder/'data', '-U', 'sads', '-A', 'trust', '-E', 'UTF8', '--locale=C',
            '--no-sync'], user=user, cwd=folder, check=True, capture_output=True)

    def start(self):
        self.process = subprocess.Popen([self.bin/'postgres', '-D', self.folder/'data', '-p', str(self.port), '-h',
            '127.0.0.1', '-k', str(self.folder), '-F'], user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        until_open(self.port, self.process)
        until = time.monotonic() + 30
        ready = [self.bin/'pg_isready', '-q', '-h', '127.0.0.1', '-p', str(self.port)]
        while subprocess.run(ready).returncode and time.monotonic() < until: time.sleep(.05)

    def kill(self):
        "As when the machine goes"
        self.process.send_signal(3)  # SIGQUIT: immediate shutdown of all its processes
        self.process.wait(30)

def postgres_bin() -> Path:
    "Folder of the server's programs; skips where there are none"
    found = sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb'))
    named = shutil.which('initdb')
    if not found and not named: pytest.skip('PostgreSQL is not installed (Debian: apt-get install postgresql)')
    return Path(named or found[-1]).resolve().parent

@contextmanager
def postgres():
    "A running PostgreSQL; it does not run as root, so there it runs as its own user"
    bin = postgres_bin()
    user = 'postgres' if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix='pg'))
    if user: shutil.chown(folder, user, user)
    server = Postgres(bin, folder, user)
    server.start()
    try: yield server
    finally:
        if server.process.poll() is None: server.kill()
        shutil.rmtree(folder)

@contextmanager
def s3():
    "An S3 server with an empty bucket; yields its URL"
    pytest.importorskip('s3fs')
    pytest.importorskip('moto')
    port = free_port()
    process = subprocess.Popen([sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_open(port, process)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait(30)
