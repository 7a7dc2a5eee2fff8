"""Time the array operations of the cascade against plain numpy and scipy.

    python benchmarks/ops.py [--repeats 9]

Prints a table of medians in milliseconds; the answers are compared before anything is timed.
Compilation isn't counted (its time is printed apart).
"""
import argparse
import statistics
import time
from functools import partial

import jax
import numpy as np
from scipy.ndimage import map_coordinates

from sads_jax.ops.crops import crop_and_resize, paste_mask
from sads_jax.ops.host import host_components, host_paste_mask
from sads_jax.ops.nms import batched_nms
from sads_jax.ops.regions import components


def overlaps(box, boxes):
    "IoU in float32 numpy, one box with many"
    w = np.minimum(box[2], boxes[:,2]) - np.maximum(box[0], boxes[:,0])
    h = np.minimum(box[3], boxes[:,3]) - np.maximum(box[1], boxes[:,1])
    inter = np.where((w > 0) & (h > 0), w*h, np.float32(0))
    return inter/((box[2] - box[0])*(box[3] - box[1]) + (boxes[:,2] - boxes[:,0])*(boxes[:,3] - boxes[:,1]) - inter)

def greedy(boxes, scores, iou, most):
    "The usual numpy loop: best first, strike out what overlaps"
    left, kept = np.argsort(-scores, kind='stable'), []
    while len(left) and len(kept) < most:
        kept.append(left[0])
        left = left[1:][overlaps(boxes[left[0]], boxes[left[1:]]) <= np.float32(iou)]
    return kept

def greedy_batch(boxes, scores, iou, most): return [greedy(b, s, iou, most) for b, s in zip(boxes, scores)]

def crop_batch(images, boxes, size):
    grid, out = (np.arange(size) + .5)/size, []
    for image, (x1, y1, x2, y2) in zip(images, boxes):
        at = np.meshgrid(y1 + (y2 - y1)*grid - .5, x1 + (x2 - x1)*grid - .5, indexing='ij')
        out.append(
            np.stack([map_coordinates(image[..., c], at, order=1, mode='nearest') for c in range(image.shape[-1])], -1)
        )
    return out

def label_batch(masks): return [host_components(m)[0] for m in masks]

def median_ms(f, repeats):
    "Median of `repeats` calls [ms], and the first call [ms] (which compiles)"
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(f())
        times.append((time.perf_counter() - start)*1e3)
    return statistics.median(times[1:]), times[0]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=9, help='calls to take the median of, at least 5')
    repeats = max(5, parser.parse_args().repeats)
    rng, rows = np.random.default_rng(0), []

    def row(name, ours, other, what):
        (a, first), (b, _) = median_ms(ours, repeats), median_ms(other, repeats)
        rows.append((name, a, b, what, b/a, first))

    for n, batch, most in ((100, 32, 20), (300, 1, 20), (300, 32, 20), (300, 32, 100), (300, 32, 300), (1000, 32, 100)):
        corner = rng.uniform(0, 300, (batch, n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (batch, n, 2))], -1).astype(np.float32)
        scores, valid = rng.random((batch, n)).astype(np.float32), np.ones((batch, n), bool)
        on = jax.device_put((boxes, scores, valid))
        ours, other = partial(batched_nms, *on, iou=.5, max_out=most), partial(greedy_batch, boxes, scores, .5, most)
        for index, keep, want in zip(*map(np.asarray, ours()), other()): assert index[keep].tolist() == want
        jax.clear_caches()
        row(f'NMS {batch} x {n}, keep <= {most}', ours, other, 'numpy greedy loop')

    images = jax.device_put(rng.random((32, 256, 256, 3)).astype(np.float32))
    corner = rng.uniform(0, 150, (32, 2))
    boxes, which = np.concatenate([corner, corner + 96], 1).astype(np.float32), np.arange(32)
    row('crop 32 boxes to 64 x 64', lambda: crop_and_resize(images, boxes, which, 64),
        partial(crop_batch, np.asarray(images), boxes, 64), 'scipy map_coordinates')
    mask = rng.random((28, 28)).astype(np.float32)
    row('paste a mask into 1024 x 1024', lambda: paste_mask(mask, boxes[0], 1024, 1024),
        lambda: host_paste_mask(mask, boxes[0], 1024, 1024), 'host_paste_mask')
    for side in (32, 128):
        masks = rng.random((32, side, side)) < .4
        row(f'components of 32 masks {side} x {side}', partial(jax.jit(jax.vmap(components)), masks),
            partial(label_batch, masks), 'host_components (scipy)')

    print(f'{jax.devices()[0].device_kind}, median of {repeats} [ms]\n')
    print(f"{'':<36}{'ours':>9}{'other':>9}{'ratio':>8}{'first call':>12}  other is")
    for name, a, b, what, ratio, first in rows:
        print(f'{name:<36}{a:>9.2f}{b:>9.2f}{ratio:>7.1f}x{first:>12.0f}  {what}')

if __name__ == '__main__': main()
