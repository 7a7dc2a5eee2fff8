"Run every notebook as a test, two at a time, and say how many cells that were."
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells, nbdev_test

if __name__ == '__main__':
    flags = get_config().tst_flags
    files = nbglob(as_path=True)
    cells = [len(nb_test_cells(f, flags)) for f in files]
    nbdev_test(n_workers=2, timing=True)  # exits with 1 after the first failure report
    print(f'notebook tests: {sum(map(bool, cells))} notebooks, {sum(cells)} cells passed', flush=True)
