"""Defects of a kind that nobody had labelled: does the anomaly score stop them?

    python benchmarks/unknown.py [-S data.root=DIR] [--params recipes/magnetic_tile.yaml] [--seeds 0 1 2] [--work DIR]

Each defect class in turn is left out of training and calibration; then its photographs, of parts that were
not trained on, are judged. Without the anomaly score the threshold alone may stop 5 % of the good calibration
photographs. With it, as the cascade has it, the image score heeds the distance from good parts, the threshold may
stop 3 %, and 2 % more may go to REVIEW for looking like nothing seen. Both are also compared at exactly 5 % of the
good TEST photographs, which leaves the calibration's luck out.

A cheap path: detector heads on cached features, --views of each photograph and --steps, no early stopping;
no classifier and no segmenter, since a photograph passes or not by its image score alone.
"""
import argparse
import copy
import json
import os
import tempfile
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sads_jax.core.params import OverkillThreshold, load_params
from sads_jax.data import splits
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.dataset import CVDataset
from sads_jax.data.records import read_coco
from sads_jax.data.twins import near_duplicates, read_thumbnails
from sads_jax.domains.surface.orchestrator import opinion, sure
from sads_jax.evaluation.metrics import roc_points
from sads_jax.evaluation.operating import choose_limit, choose_threshold, rate
from sads_jax.inference.adapters import flip_averaged, photographed
from sads_jax.inference.predictor import use_compilation_cache
from sads_jax.models.backbone import pure, to_flat
from sads_jax.models.detector import Detector, frozen_names
from sads_jax.models.store import load_model, save_model
from sads_jax.training.anomaly import train_anomaly
from sads_jax.training.bank import FeatureBank
from sads_jax.training.loop import fit
from sads_jax.training.samples import Sampler, make_samples
from sads_jax.training.trainers import TrainerFactory, make_task

BUDGET, SHARE = 0.05, 0.02  # overkill in all; of it, for what looks like nothing seen


def prepared(params, work):
    "The ingested data, and which photographs look like the same part"
    if not (work / "data/annotations.json").exists():
        ingest(ConnectorFactory(params.data, seed=params.seed), work / "data")
    data = read_coco(work / "data")
    return data, near_duplicates(data, params.split.near_duplicate, thumbnails=read_thumbnails(data))


def head_weights(bank, samples, keep, model, task, spec, seed):
    "All weights of a detector whose head saw the samples `keep` alone"
    mine = copy.copy(bank)
    mine.rows = {int(s): bank.rows[int(s)] for s in keep}
    params = to_flat(model)
    for level, (mean, gain) in enumerate(mine.statistics()):
        params |= {f"head/standardise/mean/{level}": jnp.asarray(mean),
            f"head/standardise/gain/{level}": jnp.asarray(gain)}
    frozen = {k: v for k, v in params.items() if k in frozen_names(model, True)}
    head = pure(model, lambda m, f, key: m.head(f, key))
    draw = Sampler(
        replace(samples, **{f: getattr(samples, f)[keep] for f in ("item", "box", "label", "bucket", "pasted")}), task,
        spec.batch_size, seed)
    take = lambda step: bank.take(keep[draw(step)], np.random.default_rng((seed, step, 1)))
    loss = lambda p, batch, key: task.loss(head(p | frozen, batch[0], key), batch[1])
    learnt, _ = fit(
        {k: v for k, v in params.items() if k not in frozen}, loss, take, schedule=TrainerFactory(spec), seed=seed
    )
    return params | learnt


def judged(data, ids, params, heads, model, good):
    "Image score under each head and distance from good parts, by photograph: {id: {name: float}}"
    dataset = CVDataset(data, ids, params.image.buckets, cache=False)
    apply, anomaly, out = pure(model, lambda m, x: m.outputs(x)), good[0], {}

    @partial(jax.jit, static_argnames="flips")
    def one(heads, weights, backbone, images, flips):
        x = images.astype(jnp.float32) / 255
        inside = photographed(x)
        def look(head):
            logits, features = flip_averaged(apply, flips)(
                backbone | head, x
            )  # XLA computes the features, which are the same, once
            return jnp.where(inside, jax.nn.sigmoid(logits), 0), features
        maps = {k: look(h) for k, h in heads.items()}
        scores = {k: jax.vmap(lambda m: sure(m, None))(m) for k, (m, _) in maps.items()}
        return scores | {"anomaly": anomaly(weights, next(iter(maps.values()))[1], inside)}

    backbone = {k: v for k, v in next(iter(heads.values())).items() if k.startswith("backbone/")}
    heads = {k: {n: v for n, v in w.items() if n not in backbone} for k, w in heads.items()}
    for batch in dataset.batches(4):
        found = jax.device_get(one(heads, good[1], backbone, batch["images"], params.detector.flips))
        for row, i in enumerate(batch["index"]):
            if i >= 0:
                out[dataset.image_ids[i]] = {k: float(v[row]) for k, v in found.items()}
    return out


def at_budget(good, bad, share):
    """Share of `bad` [N, 2] stopped when exactly BUDGET of `good` is: the strangest `share` of the good, then the
    highest image scores"""
    n = round(share * len(good))
    limit = np.sort(good[:, 1])[::-1][n] if share else np.inf
    left = np.sort(good[good[:, 1] <= limit, 0])[::-1]
    threshold = left[round(BUDGET * len(good)) - (len(good) - len(left))]
    return float(((bad[:, 0] > threshold) | (bad[:, 1] > limit)).mean())


def one_class(data, split, scores, name, unseen, share):
    "Figures for one class left out (or none)"
    of = data.by_id
    known = [i for i in split["calibration"] if name not in of[i].classes]
    column = lambda ids, key: np.array([scores[i][key] for i in ids])
    good = [i for i in split["test"] if not of[i].defective]
    bad = unseen if unseen is not None else [i for i in split["test"] if of[i].defective]
    sound = [i for i in known if not of[i].defective]
    head = name or "nothing"
    alone = lambda ids: column(ids, head)
    both = lambda ids: np.asarray(jax.vmap(lambda s, d: opinion(s, d, share))(alone(ids), column(ids, "anomaly")))

    def at(budget, with_anomaly):
        "Chosen on calibration, told of test"
        score = both if with_anomaly else alone
        threshold, _ = choose_threshold(
            OverkillThreshold(max_overkill=budget), score(known), [bool(of[i].defective) for i in known]
        )
        limit, why = choose_limit(
            SHARE, column(sound, "anomaly"), [of[i].part_id for i in sound], score(sound) < threshold
        )
        stops = lambda ids: (score(ids) >= threshold) | (with_anomaly & (column(ids, "anomaly") > limit))
        by_part = {}
        for i, stopped in zip(bad, stops(bad)):
            by_part.setdefault(of[i].part_id, []).append(stopped)
        return dict(stopped=rate(int(stops(bad).sum()), len(bad)), overkill=rate(int(stops(good).sum()), len(good)),
            parts=rate(sum(map(any, by_part.values())), len(by_part)),
            parts_every=rate(sum(map(all, by_part.values())), len(by_part)), threshold=threshold, limit=limit,
            how=why["how"], limit_parts=why["parts"])

    out = {"without": at(BUDGET, False), "with": at(BUDGET - SHARE, True)}
    pairs = lambda ids, score: np.stack([score(ids), column(ids, "anomaly")], 1)
    out["equal"] = {
        w: at_budget(pairs(good, score), pairs(bad, score), odd)
        for w, score, odd in (("without", alone, 0), ("with", both, SHARE))
    }
    def auroc(score):
        fpr, tpr, _ = roc_points(
            np.array([True] * len(bad) + [False] * len(good)), np.concatenate([score(bad), score(good)])
        )
        return float(np.trapezoid(tpr, fpr))
    return out | {
        "auroc": {"detector": auroc(alone), "anomaly": auroc(lambda ids: column(ids, "anomaly")), "both": auroc(both)}
    }


def run(params, data, twins, seed, work, steps, views):
    "All classes of one split: {class left out: figures}; scores are kept in `work`, and judged again if they are there"
    began, kept = time.time(), work / f"scores-{seed}-{steps}-{views}.json"
    spec = params.split.model_copy(update={"seed_offset": seed})
    split = splits.split_parts(data, spec, params.seed, twins)
    out_of_training = [i for k in ("val", "calibration", "test") for i in split[k]]
    shown = lambda name: [i for i in out_of_training if name in data.by_id[i].classes]
    if not kept.exists():
        kept.write_text(json.dumps(scored(params, data, split, seed, work, steps, views, out_of_training)) + "\n")
    scores = {int(i): v for i, v in json.loads(kept.read_text()).items()}
    print(f"seed {seed}: done, {time.time() - began:.0f} s", flush=True)
    return {
        name or "nothing": one_class(
            data, split, scores, name, None if name is None else shown(name), params.anomaly.share
        )
        for name in (None, *data.categories)
    }


def scored(params, data, split, seed, work, steps, views, ids):
    "Image scores of a detector for each class left out (and for none), and distances from good parts"
    began = time.time()
    trainer = params.detector.trainer.model_copy(update={"steps": steps, "eval_every": steps})
    task, seed_of = make_task("detector", params, data.categories), params.seed + seed + zlib.crc32(b"detector") % 1000
    model = Detector(**task.build, rngs=nnx.Rngs(seed_of))
    save_model(work / "detector", "detector", task.build, to_flat(model), [])
    n = train_anomaly(data, split, params, work / "detector", work / "anomaly", inside=photographed)
    good = load_model(work / "anomaly")
    print(f"seed {seed}: {n} good photographs learnt, {time.time() - began:.0f} s", flush=True)
    samples = make_samples(task, data, split["train"], params.image.buckets, seed_of)
    bank = FeatureBank(task, pure(model, lambda m, *x: m.features(*x)), to_flat(model), samples, views, seed_of)
    print(f"seed {seed}: features of {len(samples.item)} photographs, {time.time() - began:.0f} s", flush=True)
    shows = np.array([",".join(samples.dataset[int(i)].record.classes) for i in samples.item])
    heads = {}
    for name in (None, *data.categories):
        keep = np.flatnonzero([name is None or name not in s.split(",") for s in shows])
        heads[name or "nothing"] = head_weights(bank, samples, keep, model, task, trainer, seed_of)
        print(
            f"seed {seed}: without {name or 'nothing'} {len(keep)} photographs, {time.time() - began:.0f} s", flush=True
        )
    del bank
    return judged(data, ids, params, heads, model, good)


def table(runs):
    "Markdown: a row for each class, pooled over seeds"
    text = lambda rs: (
        f"{sum(r['count'] for r in rs) / sum(r['of'] for r in rs):.0%} "
        f"({sum(r['count'] for r in rs)}/{sum(r['of'] for r in rs)})"
    )
    head = ["left out of training", "stopped without", "stopped with", "parts without", "parts with",
        "good stopped without", "good stopped with", "at 5 % of good: without", "with", "AUROC of the detector alone",
        "of anomaly", "of both"]
    def row(name):
        rows = [r[name] for r in runs]
        mean = lambda *path: f"{np.mean([r[path[0]][path[1]] for r in rows]):.2f}"
        cells = [
            text([r[w][what] for r in rows]) for what in ("stopped", "parts", "overkill") for w in ("without", "with")
        ]
        return (
            " | ".join(
                ["| " + name, *cells, mean("equal", "without"), mean("equal", "with"), mean("auroc", "detector"),
                    mean("auroc", "anomaly"), mean("auroc", "both")]
            )
            + " |"
        )

    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(row(name) for name in runs[0])]
    return "\n".join(lines)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    (args.add_argument("-S", dest="set", action="append", default=[]),
        args.add_argument("--params", default="recipes/magnetic_tile.yaml"))
    args.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2]), args.add_argument("--work", type=Path)
    args.add_argument("--steps", type=int, default=250), args.add_argument("--views", type=int, default=2)
    args = args.parse_args()
    root = Path(os.environ.get("SADS_SHARED", "../shared")) / "data/magnetic_tile"
    given = args.set if any(s.startswith("data.") for s in args.set) else [*args.set, f"data.root={root}"]
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    params = load_params(args.params, given)
    use_compilation_cache(work / "cache")
    data, twins = prepared(params, work)
    runs = []
    for seed in args.seeds:
        runs.append(run(params, data, twins, seed, work, args.steps, args.views))
        (work / f"unknown-{seed}.json").write_text(json.dumps(runs[-1], indent=1) + "\n")
        print(table(runs), flush=True)


if __name__ == "__main__":
    main()
