"""Do photographs that are only labelled as a whole help the detector? Image AUROC of three ways to label the same
parts.

    python benchmarks/weak.py [-S data.kind=magnetic_tile -S data.root=DIR] [--seeds 0 1 2] [--few 2] [--work DIR]

none: a folder for each class, not one mask. few: masks for --few defective training parts of each class, the other
defective ones left out. few + whole: the same, and the others labelled as a whole. all: masks for all, the most one
can hope for. The good training parts are the same each time. Judged is the most defective place of each test
photograph; `all` photographs of a test part are in no other split. """
import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from sads_jax.core.params import load_params
from sads_jax.data import splits
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.dataset import CVDataset
from sads_jax.data.records import read_coco
from sads_jax.data.twins import near_duplicates, read_thumbnails
from sads_jax.inference.predictor import use_compilation_cache
from sads_jax.models.store import load_model
from sads_jax.training.trainers import train_task

SMALL = ["data.kind=synthetic", "data.n_parts=200", "data.exposures=1", "data.size=96", "image.buckets=[[96, 96]]",
    "detector.trainer.steps=150", "detector.trainer.views=2", "detector.trainer.eval_every=150",
    "detector.trainer.keep=1", "detector.trainer.unfreeze_steps=0", "detector.width=32"]
WAYS = ("none", "few", "few + whole", "all")


def labelled(data, train, few, seed, way):
    "The data as labelled `way`, and the training photographs to use"
    rng, drawn = np.random.default_rng(seed), set()
    parts = {}
    for r in (data.by_id[i] for i in train):
        if r.annotations:
            parts.setdefault(r.annotations[0].category, {}).setdefault(r.part_id, []).append(r.id)
    for _, found in sorted(parts.items()):
        for k in rng.permutation(len(found))[:few]:
            drawn |= set(found[sorted(found)[k]])
    bare = set() if way == "all" else set(train) - (drawn if way != "none" else set())
    images = tuple(replace(r, annotations=()) if r.id in bare and r.defective else r for r in data.images)
    used = [i for i in train if way != "few" or i in drawn or not data.by_id[i].defective]
    return replace(data, images=images), used


def auroc(folder, data, ids, buckets):
    "Of the highest logit of the map"
    apply, weights, _ = load_model(folder)
    look = jax.jit(lambda images: apply(weights, images.astype(jnp.float32) / 255).max((1, 2)))
    dataset, score = CVDataset(data, ids, buckets), {}
    for batch in dataset.batches(8):
        for i, s in zip(batch["index"], np.asarray(look(batch["images"]))):
            if i >= 0:
                score[dataset.image_ids[i]] = float(s)
    return roc_auc_score([bool(data.by_id[i].defective) for i in ids], [score[i] for i in ids])


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    (args.add_argument("-S", dest="assignments", action="append", default=[]),
        args.add_argument("--params", default="params.yaml", type=Path))
    (args.add_argument("--work", type=Path), args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2]),
        args.add_argument("--few", type=int, default=2))
    args = args.parse_args()
    params, work = load_params(args.params, SMALL + args.assignments), args.work or Path(tempfile.mkdtemp())
    use_compilation_cache(work / "cache")
    if not (work / "data/annotations.json").exists():
        ingest(ConnectorFactory(params.data, seed=params.seed), work / "data")
    data, rows = read_coco(work / "data"), []
    twins = near_duplicates(data, params.split.near_duplicate, thumbnails=read_thumbnails(data))
    for seed in args.seeds:
        split = splits.split_parts(data, params.split, seed, twins)
        test = [i for i in split["test"] if data.by_id[i].defective is not None]
        row = []
        for way in WAYS:
            began = time.process_time()
            as_labelled, used = labelled(data, split["train"], args.few, seed, way)
            train_task("detector", as_labelled, {"train": used, "val": []}, params.model_copy(update={"seed": seed}),
                work / "model")
            row.append(auroc(work / "model", data, test, params.image.buckets))
            print(
                f"seed {seed} {way}: {row[-1]:.3f}, {len(used)} training and {len(test)} test photographs, "
                f"{time.process_time() - began:.0f} s CPU",
                flush=True,
            )
        rows.append(row)
    print(
        "| masks | "
        + " | ".join(f"seed {s}" for s in args.seeds)
        + " | mean | spread |\n|---"
        + "|---" * (len(args.seeds) + 2)
        + "|"
    )
    for way, values in zip(WAYS, np.array(rows).T):
        print(
            f"| {way} | "
            + " | ".join(f"{v:.3f}" for v in values)
            + f" | {values.mean():.3f} | {values.std(ddof=1) if len(values) > 1 else 0:.3f} |"
        )


if __name__ == "__main__":
    main()
