"""What a finished run makes of photographs that a camera, a light or a cable spoiled, with and without its gate

python benchmarks/camera_failures.py WORKDIR [--parts 20]

Twelve failures at three strengths on good and defective test parts; prints one line each: the share that PASS."""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from sads_jax.core.settings import Settings
from sads_jax.data.failures import FAILURES, spoiled
from sads_jax.data.images import read_image
from sads_jax.data.records import read_coco
from sads_jax.data.splits import read_split
from sads_jax.registry.bundle import load_pipeline


def passing(pipeline, photos):
    "How many of them PASS"
    return sum(r.verdict == 'PASS' for r in pipeline.run_inference(photos))

def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('workdir', type=Path)
    args.add_argument('--parts', type=int, default=20, help='photographs of good parts, and of defective ones')
    args = args.parse_args()
    data, split = read_coco(args.workdir/'data'/'dataset'), read_split(args.workdir/'data'/'split'/'split.json')
    test = [data.by_id[i] for i in split['test']]
    after = load_pipeline(args.workdir/'bundle', settings=Settings(), every_box=False)
    before = replace(after, gate=None)
    kinds = {'good': [r for r in test if r.defective is False], 'defective': [r for r in test if r.defective]}
    photos = {k: [read_image(data.path(r)) for r in rs] for k, rs in kinds.items()}
    parts = {k: len({r.part_id for r in rs}) for k, rs in kinds.items()}
    for k, mine in photos.items():
        was, now = passing(before, mine), passing(after, mine)
        print(f'untouched {k}: {len(mine)} photographs of {parts[k]} parts; PASS {was} without, {now} with the gate')
    photos = {k: p[:args.parts] for k, p in photos.items()}
    print(f'promised: {after_text(args.workdir)}')
    print(f'{"failure":18} strength   good PASS before, after   defective PASS before, after')
    rng, total = np.random.default_rng(0), np.zeros((2, 2), int)
    for failure in FAILURES:
        for strength in range(3):
            bad = {k: [spoiled(p, failure, strength, rng) for p in mine] for k, mine in photos.items()}
            count = np.array([[passing(p, bad[k]) for p in (before, after)] for k in photos])
            total += count
            print(
                f'{failure:18} {strength}          {count[0, 0]:3} {count[0, 1]:3} of {len(bad["good"])}             '
                f'{count[1, 0]:3} {count[1, 1]:3} of {len(bad["defective"])}',
                flush=True,
            )
    n = 3*len(FAILURES)
    print(
        f'all                            {total[0, 0]:3} {total[0, 1]:3} of {n * len(photos["good"])}             '
        f'{total[1, 0]:3} {total[1, 1]:3} of {n * len(photos["defective"])}'
    )

def after_text(workdir):
    "What calibration promised of the gate"
    from sads_jax.registry.bundle import read_bundle
    return read_bundle(workdir/'bundle').decision.chosen.get('gate', {}).get('text', 'there is no gate')

if __name__ == '__main__': main()
