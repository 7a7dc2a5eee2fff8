"""Run notebooks as tests, two at a time, and say how many cells that were

python tools/test_notebooks.py [notebook or folder ...]

`nbdev-test` lets a worker run one notebook after another; here each gets a process of its own, so that
none passes or fails because of what another imported, registered or configured.
"""
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from kept_programs import keep_programs
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells, test_nb

PRELOADED = ['nbdev.test', 'matplotlib.pyplot', 'jax', 'flax.nnx']  # imported, not initialised: no threads yet

def notebooks(
    args:list[str], # Notebooks and folders; none means all
) -> list[Path]: # Absolute, in order
    "The notebooks that a command line names"
    found = []
    for place in map(Path, args or [get_config().nbs_path]):
        found += [place] if place.is_file() else sorted(nbglob(place, as_path=True))
    return [f.absolute() for f in found]

def in_own_processes(
    work:Callable[[Path], Any], # Of a module, so that another process can import it
    files:list[Path],
) -> Iterator[tuple[Path, Any]]: # Notebook and what `work` gave, as they end
    "Call `work` on each notebook in a process of its own, two at a time"
    keep_programs()
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(work, f): f for f in files}
        for job in as_completed(jobs): yield jobs[job], job.result()

def run(path:Path) -> tuple[bool, int, float]:
    "Whether the notebook passed, how many cells it has to run, and seconds"
    cfg, start = get_config(), time.time()
    n = len(nb_test_cells(path, cfg.tst_flags))
    passed = n == 0 or test_nb(path, skip_flags=cfg.tst_flags, basepath=cfg.config_path, cell_timeout=600)[0]
    return passed, n, time.time() - start

def main(args:list[str]) -> int:
    start, cells, number, failed = time.time(), 0, 0, []
    for path, (passed, n, seconds) in in_own_processes(run, notebooks(args)):
        if not n: continue
        name = path.relative_to(get_config().nbs_path)
        number, cells = number + 1, cells + n
        print(f'{"passed" if passed else "FAILED"} {n:3} cells {seconds:5.0f} s  {name}', flush=True)
        if not passed: failed.append(str(name))
    told = f'{number - len(failed)} of {number} notebooks passed, {cells} cells, {time.time() - start:.0f} s'
    print(f'notebook tests: {told}', flush=True)
    if failed: print('failed:', *failed, file=sys.stderr)
    return 1 if failed or not number else 0

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
