"""A large photograph judged tile by tile: what is found, whatever the offset, and what it costs.

    python benchmarks/tiling.py [--bundle DIR] [--side 4096] [--offsets 6] [--growth]

A synthetic surface with twenty 12 px pits at random places, which are shifted together by `--offsets`
random offsets below a tile; the first pit always lies in a corner of the photograph and the second on a
corner of four tiles. Without --bundle a stand-in finds what is dark, through the very same cascade and
seams; with it a trained model does. `--growth` takes sides of 256 to 4096 px, each in a process of its
own, and prints seconds and memory of each.
"""
import argparse
import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sads_jax.core.params import DecisionSpec, SyntheticSpec, TileSpec
from sads_jax.data.images import tile_windows
from sads_jax.data.synthetic import render_part
from sads_jax.domains.surface.pipeline import SADSPipeline
from sads_jax.domains.surface.postprocessor import SADSPostprocessor
from sads_jax.domains.surface.tiling import TiledPredictor

SIDES, PITS, PIT = (256, 512, 1024, 2048, 4096), 20, 12


def surface(side, kind, seed=0):
    "uint8 [side, side, 3]: a piece of a good synthetic part, mirrored as often as it takes"
    piece, _, _ = render_part(
        SyntheticSpec(n_parts=1, exposures=1, defective=0, size=1024, surfaces=(kind,)), 0, 0, seed
    )
    piece = piece[256:768, 256:768]  # without the edge and the fixture behind it
    n = -(-side // 512)
    rows = np.concatenate([piece[::-1] if i % 2 else piece for i in range(n)])
    return np.concatenate([rows[:, ::-1] if i % 2 else rows for i in range(n)], 1)[:side, :side].copy()


def with_pits(clean, windows, count, offset, seed=0):
    "The surface with dark round pits, and the box of each"
    rng, (side, _) = np.random.default_rng(seed), clean.shape[:2]
    corner = windows[-1]
    places = [(side - PIT, side - PIT), (min(corner.left, side - PIT - 1), min(corner.top, side - PIT - 1))]
    while len(places) < count:
        x, y = (int(v) for v in (rng.integers(0, side - PIT, 2) + offset) % (side - PIT))
        if all(max(abs(x - u), abs(y - v)) > 3 * PIT for u, v in places):
            places.append((x, y))
    r = np.hypot(*np.mgrid[-PIT / 2 + 0.5 : PIT / 2, -PIT / 2 + 0.5 : PIT / 2])
    gain = 1 - 0.75 * np.clip(PIT / 2 + 0.5 - r, 0, 1)[..., None]
    photo = clean.copy()
    for x, y in places[:count]:
        view = photo[y : y + PIT, x : x + PIT]
        view[:] = np.round(view * gain)
    return photo, [(x, y, x + PIT, y + PIT) for x, y in places[:count]]


def dark_pipeline(tile, side=192):
    "The real cascade with a detector and a segmenter that answer how dark a pixel is"
    import jax
    import jax.numpy as jnp
    from jax import lax

    from sads_jax.core.types import Detections
    from sads_jax.domains.surface.orchestrator import SADSInferenceOrchestrator
    from sads_jax.inference.predictor import CVPredictor
    from sads_jax.ops.regions import components, region_properties

    dark = lambda x: jnp.clip(1.5 - 4 * x.mean(-1), 0, 1)

    def detect(params, images):
        d = dark(images)
        r = region_properties(components(d[0] > 0.5), 16)
        return Detections(r.bbox[None], jnp.where(r.valid, 0.9, 0)[None], r.valid[None]), lax.reduce_window(
            d, -jnp.inf, lax.max, (1, 4, 4), (1, 4, 4), "VALID"
        )

    cascade = SADSInferenceOrchestrator(
        detect,
        lambda p, crops, boxes, canvas: jnp.ones((len(crops), 1)),
        lambda p, crops: dark(crops),
        ("dark",),
        classifier_crop=32,
        classifier_context=1.5,
        segmenter_crop=64,
        segmenter_context=1.5,
    )
    predictor = CVPredictor(jax.jit(cascade), {}, [(side, side)], batch_sizes=(1, 8))
    return SADSPipeline(
        TiledPredictor(predictor, tile), SADSPostprocessor(("dark",), DecisionSpec(), 0.5), "stand-in", "none"
    )


def load(args):
    if not args.bundle: return dark_pipeline(TileSpec(overlap=args.overlap))
    from dataclasses import replace

    from sads_jax.registry.bundle import load_pipeline
    pipeline = load_pipeline(args.bundle)
    if isinstance(pipeline.predictor, TiledPredictor): return pipeline
    return replace(
        pipeline, predictor=TiledPredictor(pipeline.predictor, TileSpec(overlap=args.overlap))
    )  # trained without tiles


def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def meets(a, b): return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def measure(args):
    "One line of JSON for each offset"
    pipeline = load(args)
    predictor = pipeline.predictor
    windows = tile_windows(args.side, args.side, predictor.buckets, predictor.tile)
    clean = surface(args.side, args.surface)
    before = len(pipeline.process_request(clean).defects)
    pipeline.process_request(clean[:512, :512] if args.side > 512 else clean)  # compiled by now
    start, rng, rows = megabytes(), np.random.default_rng(1), []
    for k in range(args.offsets):
        photo, truth = with_pits(clean, windows, args.pits, rng.integers(0, 4096, 2) if k else np.zeros(2, int), seed=k)
        png = io.BytesIO()
        Image.fromarray(photo).save(png, "PNG", compress_level=1)
        began = time.perf_counter()
        report = pipeline.process_request(png.getvalue())
        seconds = time.perf_counter() - began
        hits = [[d for d in report.defects if meets(d.box, t)] for t in truth]
        rows.append(
            dict(side=args.side, tiles=len(windows), found=sum(len(h) > 0 for h in hits), of=len(truth),
                twice=sum(len(h) > 1 for h in hits),
                false_alarms=sum(not any(meets(d.box, t) for t in truth) for d in report.defects),
                on_the_clean_surface=before,
                area=float(np.median([h[0].area_px for h in hits if h])) if any(hits) else None,
                seconds=round(seconds, 2), read=report.timings_ms["read"], predict=report.timings_ms["predict"],
                decide=report.timings_ms["decide"], rss_mb_before=round(start), rss_mb=round(megabytes()),
                compiles=predictor.compiles)
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def growth(args):
    "Seconds and memory by side, each in its own process"
    print("side   Mpx    tiles  seconds  ms/tile  found    peak RSS [MB]")
    for side in SIDES:
        command = [sys.executable, __file__, "--side", str(side), "--offsets", "3", "--pits",
            str(max(2, PITS * side // 4096)), "--surface", args.surface, "--overlap", str(args.overlap)]
        out = subprocess.run(
            command + (["--bundle", args.bundle] if args.bundle else []), check=True, capture_output=True, text=True
        ).stdout
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        s, r = float(np.median([r["seconds"] for r in rows])), rows[-1]
        print(
            f"{side:<6} {side**2 / 1e6:<6.1f} {r['tiles']:<6} {s:<8.2f} {1e3 * s / r['tiles']:<8.1f} "
            f"{sum(r['found'] for r in rows)}/{sum(r['of'] for r in rows):<6} {r['rss_mb']}",
            flush=True,
        )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    (p.add_argument("--bundle"), p.add_argument("--side", type=int, default=4096),
        p.add_argument("--offsets", type=int, default=6))
    (p.add_argument("--pits", type=int, default=PITS), p.add_argument("--surface", default="tile"),
        p.add_argument("--overlap", type=int, default=48))
    p.add_argument("--growth", action="store_true")
    args = p.parse_args()
    if args.bundle: args.bundle = str(Path(args.bundle).absolute())
    growth(args) if args.growth else measure(args)


if __name__ == "__main__":
    main()
