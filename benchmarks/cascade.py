"""Time a finished bundle: compile, throughput on clean and on defective parts, recompiles, first verdict.

    python benchmarks/cascade.py BUNDLE DATASET [--repeats 5]

DATASET is a folder as `sads ingest` writes it (data/dataset). Medians are printed; the two
kinds of parts and the three batch sizes are timed in one run, interleaved.
"""
import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sads_jax.data.images import read_image
from sads_jax.data.records import read_coco
from sads_jax.registry.bundle import load_pipeline

BATCHES = (1, 8, 32)


def first_verdict(bundle, photo):
    "Seconds from process start to one verdict, with an empty cache of compiled programs and with a full one"
    with tempfile.TemporaryDirectory() as d:
        shutil.copy(photo, Path(d) / Path(photo).name)
        (Path(d) / "settings.ini").write_text("[sads]\ncache_dir = cache\n")
        command = [Path(sys.executable).parent / "sads", "predict", Path(photo).name, "--bundle",
            Path(bundle).absolute()]
        took = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(command, cwd=d, check=True, capture_output=True)
            took.append(time.perf_counter() - start)
        return took[0], min(took[1:])


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bundle"), args.add_argument("dataset"), args.add_argument("--repeats", type=int, default=5)
    args = args.parse_args()
    data = read_coco(args.dataset)
    chosen = {
        kind: [data.path(r) for r in data.images if r.defective is flag][:32]
        for kind, flag in (("clean", False), ("defective", True))
    }

    cold, warm = first_verdict(args.bundle, chosen["defective"][0])
    print(f"process start to first verdict: {cold:.1f} s cold, {warm:.1f} s with the compiled program cached")

    predictor = load_pipeline(args.bundle).predictor
    photos = {kind: [read_image(p) for p in paths] for kind, paths in chosen.items()}
    start = time.perf_counter()
    predictor.predict(photos["clean"][:1])
    print(f"compile of one bucket at batch 1: {time.perf_counter() - start:.1f} s")
    for kind in photos:
        for b in BATCHES:
            for at in range(0, 32, b):
                predictor.predict(photos[kind][at:at + b])

    took = {(kind, b): [] for kind in photos for b in BATCHES}
    found = {kind: np.mean([f.valid.sum() for f, _ in predictor.predict(p)]) for kind, p in photos.items()}
    for _ in range(args.repeats):
        for kind, b in took:
            start = time.perf_counter()
            for at in range(0, 32, b):
                predictor.predict(photos[kind][at:at + b])
            took[kind, b].append(time.perf_counter() - start)
    print(
        f"\nimages/s, median of {args.repeats} (detections an image: "
        f"{', '.join(f'{k} {v:.1f}' for k, v in found.items())})"
    )
    print("             " + "".join(f"batch {b:<6}" for b in BATCHES))
    for kind in photos:
        print(
            f"{kind:12} " + "".join(f"{len(photos[kind]) / statistics.median(took[kind, b]):<12.1f}" for b in BATCHES)
        )

    predictor = load_pipeline(args.bundle).predictor
    rng, sizes = np.random.default_rng(0), set()
    while len(sizes) < 200:
        sizes.add(tuple(int(n) for n in rng.integers(64, 700, 2)))
    for h, w in sorted(sizes):
        predictor.predict([rng.integers(0, 255, (h, w, 3), np.uint8)])
    print(
        f"\ncompilations over {len(sizes)} photographs of {len(sizes)} sizes: {predictor.compiles} (buckets: "
        f"{len(predictor.buckets)})"
    )


if __name__ == "__main__":
    main()
