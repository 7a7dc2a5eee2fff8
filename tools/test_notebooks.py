"""Run notebooks as tests, two at a time, and say how many cells that were

python tools/test_notebooks.py [notebook or folder ...]

`nbdev-test` lets a worker run one notebook after another; here each gets a process of its own, so that
none passes or fails because of what another imported, registered or configured.
"""
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells, test_nb


def run(path:Path, skip:list[str], root:Path) -> tuple[bool, int, float]:
    "Whether the notebook passed, how many cells it has to run, and seconds"
    start = time.time()
    n = len(nb_test_cells(path, skip))
    passed = n == 0 or test_nb(path, skip_flags=skip, basepath=root, cell_timeout=600)[0]
    return passed, n, time.time() - start

def main(args:list[str]) -> int:
    cfg, start = get_config(), time.time()
    files = [f.absolute() for a in args or [cfg.nbs_path] for f in ([Path(a)] if Path(a).is_file() else sorted(nbglob(a, as_path=True)))]
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['nbdev.test', 'matplotlib.pyplot', 'jax', 'flax.nnx'])  # imported, not initialised: no threads yet
    cells, notebooks, failed = 0, 0, []
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(run, f, cfg.tst_flags, cfg.config_path): f for f in files}
        for job in as_completed(jobs):
            name = jobs[job].relative_to(cfg.nbs_path)
            passed, n, seconds = job.result()
            if not n: continue
            notebooks, cells = notebooks + 1, cells + n
            print(f'{"passed" if passed else "FAILED"} {n:3} cells {seconds:5.0f} s  {name}', flush=True)
            if not passed: failed.append(str(name))
    print(f'notebook tests: {notebooks - len(failed)} of {notebooks} notebooks passed, {cells} cells, {time.time() - start:.0f} s', flush=True)
    if failed: print('failed:', *failed, file=sys.stderr)
    return 1 if failed or not notebooks else 0

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
