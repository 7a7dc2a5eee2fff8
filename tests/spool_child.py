"Program: records decisions from FIRST on and prints the number of each that is spooled. spool_child.py FOLDER FIRST"
import sys
from functools import partial
from pathlib import Path

from test_store import event

from sads_jax.serving.recorder import Recorder, Spool
from sads_jax.serving.store import open_store

if __name__ == '__main__':
    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    store = partial(open_store, f'sqlite:///{folder}/i.db', f'{folder}/photographs')
    recorder = Recorder(store, Spool(folder/'spool'))
    print('ready', flush=True)
    for i in range(first, first + 100_000):
        recorder.judged(event(i))
        print(i, flush=True)
