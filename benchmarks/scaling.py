"""How time and memory grow with the number of photographs and with their size.

    python benchmarks/scaling.py BUNDLE [--numbers 1000 10000 100000] [--sides 256 512 1024 2048 4096] [--out FOLDER]

Each row is `sads predict` in a process of its own, so its peak memory is its own. Numbers: one photograph of 64 px in
many copies (hard links), judged by a bundle whose networks are three lines of arithmetic (that of the tests), so that
what is measured is everything around them: finding, decoding, batching, judging, writing. Sides: four photographs of
noise by BUNDLE itself. Writes numbers.svg and sides.svg, and prints the two tables in Markdown. """
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ASK = """import sys
from sads_jax.cli.main import main
try: main(sys.argv[1:])
except SystemExit as e: code = e.code or 0
else: code = 0
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)  # ru_maxrss would begin with that of the program that started this one
sys.exit(code)"""  # noqa: E501


def predict(folder, bundle, work):
    "Seconds and peak memory [MiB] of one process"
    start = time.perf_counter()
    r = subprocess.run(
        [sys.executable, '-c', ASK, 'predict', str(folder), '--bundle', str(bundle), '--workdir', str(work), '--out',
            str(work / 'out.jsonl'), '-q'],
        capture_output=True,
        text=True,
    )
    took = time.perf_counter() - start
    if r.returncode: raise SystemExit(r.stderr)
    assert sum(1 for _ in open(work/'out.jsonl')) == sum(1 for _ in folder.iterdir())
    return took, int(r.stderr.splitlines()[-1])/1024


def small_bundle(folder):
    sys.path.insert(0, str(ROOT/'tests'))
    import dark_cascade
    dark_cascade.bundle(folder)


def draw(rows, x, path):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, k, y in zip(axes, (1, 2), ('seconds', 'peak memory [MiB]')):
        ax.plot([r[0] for r in rows], [r[k] for r in rows], 'o-')
        ax.set(
            xlabel=x, ylabel=y, xscale='log', yscale='log' if k == 1 else 'linear', ylim=None if k == 1 else (0, None)
        )
        ax.grid(alpha=.3)
    fig.tight_layout()
    fig.savefig(path)


def table(rows, first, each):
    print(f'| {first} | seconds | {each} | peak memory [MiB] |\n|---|---|---|---|')
    for n, t, m, per in rows: print(f'| {n:,} | {t:.1f} | {per:.2f} | {m:.0f} |')
    print()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('bundle', type=Path)
    p.add_argument('--numbers', type=int, nargs='*', default=[1000, 10_000, 100_000])
    p.add_argument('--sides', type=int, nargs='*', default=[256, 512, 1024, 2048, 4096])
    p.add_argument('--out', type=Path, default=Path('.'))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        small_bundle(d/'small')
        rows = []
        Image.fromarray(rng.integers(200, 250, (64, 64, 3)).astype(np.uint8)).save(d/'one.png')
        for n in (10, *args.numbers):  # the first fills the cache of compiled programs
            folder = d/f'n{n}'
            folder.mkdir()
            for i in range(n):
                if i % 30_000 == 0:
                    (source := d / f'source-{n}-{i}.png').write_bytes(
                        (d / 'one.png').read_bytes()
                    )  # file systems limit links to one file
                os.link(source, folder/f'{i:06d}.png')
            t, m = predict(folder, d/'small', d)
            if n > 10: rows.append((n, t, m, t/n*1e3))
            print(f'{n} photographs: {t:.1f} s, {m:.0f} MiB', file=sys.stderr)
        if rows:
            table(rows, 'photographs', 'ms each')
            draw(rows, 'photographs', args.out/'numbers.svg')
        rows = []
        for side in (args.sides[:1] + args.sides if args.sides else []):
            folder = d/f's{side}'
            if not folder.exists():
                folder.mkdir()
                for i in range(4):
                    Image.fromarray(rng.integers(90, 160, (side, side, 3)).astype(np.uint8)).save(folder / f'{i}.png')
            t, m = predict(folder, args.bundle.absolute(), d)
            rows.append((side, t, m, t/4/side**2*1e9))
            print(f'{side} px: {t:.1f} s, {m:.0f} MiB', file=sys.stderr)
        if rows:
            table(rows[1:], 'side [px]', 'ns a pixel')
            draw(rows[1:], 'side of four photographs [px]', args.out/'sides.svg')


if __name__ == '__main__': main()
