"""Our side of the benchmark, as jobs to be timed in turn with the rivals'.

    python ours.py detector MODELS HEIGHT WIDTH FOLDER    writes weights.npz and expected.npz there for the others
    python ours.py operations
    python ours.py cascade BUNDLE LISTS.json CACHE        LISTS: name -> photographs
"""
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from answer import answer
from inputs import NMS, REGIONS, boxes_and_scores, masks


def detector(models, height, width, folder):
    import jax

    from sads_jax.models.store import load_model
    apply, params, _ = load_model(Path(models) / "detector")
    one_by_one = lambda params, images: jax.lax.map(
        lambda x: apply(params, x[None])[0], images
    )  # as the cascade does: the maps of one photograph stay in the processor's cache
    run, params = jax.jit(one_by_one), {k: jax.device_put(v) for k, v in params.items()}
    images = np.random.default_rng(0).integers(0, 256, (4, int(height), int(width), 3)).astype(np.float32) / 255
    np.savez(Path(folder) / "weights.npz", **{k: np.asarray(v) for k, v in params.items()})
    np.savez(Path(folder) / "expected.npz", images=images, map=np.asarray(run(params, images)))
    batch = {b: np.resize(images, (b, *images.shape[1:])) for b in (1, 8, 32)}
    jobs = {str(b): lambda x=x: np.asarray(run(params, x)) for b, x in batch.items()}
    for f in jobs.values(): f()
    answer(jobs)


def greedy(boxes, scores, iou=.5):
    "The usual numpy loop: best first, strike out what overlaps"
    area, left, kept = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.argsort(-scores, kind="stable"), []
    while len(left):
        i, left = left[0], left[1:]
        kept.append(i)
        side = np.minimum(boxes[i, 2:], boxes[left, 2:]) - np.maximum(boxes[i, :2], boxes[left, :2])
        inter = side.clip(0).prod(1)
        left = left[inter / (area[i] + area[left] - inter) <= iou]
    return kept


def operations():
    import jax

    from sads_jax.ops.host import host_components
    from sads_jax.ops.nms import batched_nms
    from sads_jax.ops.regions import components
    survivors = lambda boxes, scores, valid, n: jax.block_until_ready(
        batched_nms(boxes, scores, valid, iou=0.5, max_out=n)
    )
    jobs, agree = {}, {}
    for n, b in NMS:
        boxes, scores = boxes_and_scores(n, b)
        run = partial(survivors, *jax.device_put((boxes, scores, np.ones((b, n), bool))), n)
        jobs[f"nms {n} {b}"], jobs[f"numpy nms {n} {b}"] = (
            run,
            lambda x=boxes, s=scores: [greedy(*p) for p in zip(x, s)],
        )
        agree[f"{n} {b}"] = (
            all(
                i[k].tolist() == [int(g) for g in greedy(x, s)]
                for i, k, x, s in zip(*map(np.asarray, run()), boxes, scores)
            )
            if n < 5000
            else None
        )
    for side, b in REGIONS:
        drawn = masks(side, b)
        jobs[f"components {side} {b}"] = lambda m=drawn: [host_components(x) for x in m]
        jobs[f"jitted components {side} {b}"] = partial(
            lambda f, m: jax.block_until_ready(f(m)), jax.jit(jax.vmap(components)), drawn
        )
    for name, f in jobs.items():
        if "numpy" not in name: f()
    answer(jobs, agree=agree, kept=np.asarray(jobs["nms 300 8"]()[1]).sum(1).tolist(),
        regions=[n for _, n in jobs["components 256 32"]()])


def cascade(bundle, lists, cache):
    from sads_jax.registry.bundle import load_pipeline
    pipeline, lists, jobs = (load_pipeline(bundle, cache_dir=cache, every_box=False),
        json.loads(Path(lists).read_text()), {})
    for name, files in lists.items():
        for b in (8, 32): jobs[f"{name} batch {b}"] = partial(pipeline.run_inference, files, batch_size=b)
        for i, f in enumerate(files): jobs[f"{name} {i}"] = partial(pipeline.run_inference, [f], batch_size=1)
    for _ in range(2):
        for name in lists:
            for b in (1, 8, 32): pipeline.run_inference(lists[name], batch_size=b)
    answer(
        jobs,
        found={
            name: float(np.mean([len(r.defects) for r in pipeline.run_inference(files)]))
            for name, files in lists.items()
        },
    )


if __name__ == "__main__":
    {"detector": detector, "operations": operations, "cascade": cascade}[sys.argv[1]](*sys.argv[2:])
