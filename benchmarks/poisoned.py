"""Every array of a finished run's weights in turn with one number that is none: is it refused, and if it were not,
would anything PASS?

python benchmarks/poisoned.py WORKDIR [--photographs 4]

First what loading says of such weights. Then the program is run with them all the same, on good and defective test
photographs."""
import argparse
from pathlib import Path

import jax
import numpy as np

from sads_jax.core.errors import BundleError
from sads_jax.core.settings import Settings
from sads_jax.core.types import Findings
from sads_jax.data.images import read_image
from sads_jax.data.records import read_coco
from sads_jax.data.splits import read_split
from sads_jax.inference.export import load_program
from sads_jax.inference.vetting import load_weights, vet_weights
from sads_jax.registry.bundle import load_pipeline


def poisoned(weights, name, x):
    "A copy with one number replaced"
    a = np.array(weights[name])
    a.reshape(-1)[a.size//2] = x
    return weights | {name: a}

def refused(weights):
    "Whether loading refuses them"
    try: vet_weights(weights, 'weights.safetensors')
    except BundleError: return True
    return False

def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('workdir', type=Path)
    args.add_argument('--photographs', type=int, default=4)
    args = args.parse_args()
    data, split = read_coco(args.workdir/'data'/'dataset'), read_split(args.workdir/'data'/'split'/'split.json')
    test = [data.by_id[i] for i in split['test']]
    spread = lambda rs: rs[::max(1, len(rs)*2//args.photographs)][:args.photographs//2]
    records = spread([r for r in test if r.defective]) + spread([r for r in test if r.defective is False])
    photos = [read_image(data.path(r)) for r in records]
    pipeline, bundle = load_pipeline(args.workdir/'bundle', settings=Settings()), args.workdir/'bundle'
    (height, width), = pipeline.predictor.buckets
    path = bundle/'programs'/f'{height}x{width}.jaxexport'
    program, weights = (jax.jit(load_program(path.read_bytes(), Findings, where=path)),
        load_weights(bundle / 'weights.safetensors'))
    placed = pipeline.predictor.place(photos)
    canvases = np.stack([c for c, _ in placed])

    def verdicts(weights):
        found = jax.device_get(program(weights, canvases))
        return [
            pipeline.postprocessor(jax.tree.map(lambda a, i=i: a[i], found), placed[i][1], photos[i])[1:3]
            for i in range(len(photos))
        ]

    clean = verdicts(weights)
    print(f'{len(weights)} arrays; untouched: {", ".join(v for v, _ in clean)}')
    for x in (np.nan, np.inf, -np.inf):
        at_load, passed, not_inspected, unchanged, other = 0, 0, 0, 0, 0
        for name in weights:
            bad = poisoned(weights, name, x)
            at_load += refused(bad)
            for (verdict, why), (before, _) in zip(verdicts(bad), clean):
                not_inspected += why[0].rule == 'not inspected'
                unchanged += why[0].rule != 'not inspected' and verdict == before
                other += why[0].rule != 'not inspected' and verdict != before
                passed += verdict == 'PASS' and before != 'PASS'
        print(
            f'{x:4}: {at_load} of {len(weights)} refused when loaded; run all the same, of '
            f'{len(weights) * len(photos)} verdicts {not_inspected} not inspected, '
            f'{unchanged} as before (the array was not asked), {other} another, {passed} of defective parts PASS',
            flush=True,
        )

if __name__ == '__main__': main()
