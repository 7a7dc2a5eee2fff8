"""Good parts alone: how well does each kind of model of them tell defective parts, and does its promise hold?

    python benchmarks/cold_start.py DATA [--kinds gaussian patch_bank synthetic] [--seeds 0 1 2] [--sets magnetic_tile]
        [--out cold_start.json] [--work DIR]

DATA is a folder with `magnetic_tile`. `synthetic_line` needs no files. Parts are split by part; the training split
keeps its good photographs only, so nothing is learnt from a defect. The line is drawn by the good photographs of the
calibration split alone, for 5 % overkill. Everything is judged by the cascade that would be exported.

Columns: image AUROC, pixel AUROC, AUPRO, minutes to learn, ms an image (one by one, compiled), MB of the model without
its backbone, overkill promised and realised (by part). AUPRO of each class is in the JSON. """
import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from sads_jax.core.params import DecisionSpec, OverkillThreshold, load_params, override, parse_params
from sads_jax.data import splits
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.dataset import CVDataset
from sads_jax.data.records import read_coco
from sads_jax.data.twins import near_duplicates, read_thumbnails
from sads_jax.domains.surface.assembly import TASKS, assemble
from sads_jax.evaluation.localisation import LocalisationMetric
from sads_jax.evaluation.operating import choose_by_good_parts, rate
from sads_jax.inference.adapters import photographed
from sads_jax.inference.predictor import use_compilation_cache
from sads_jax.models.absent import Absent, save_absent
from sads_jax.training.anomaly import train_anomaly

ROOT = Path(__file__).resolve().parent.parent
LINE = ["data.kind=synthetic", "data.n_parts=150", "data.exposures=2", "data.size=192", "image.buckets=[[192, 192]]"]
PROMISE = DecisionSpec(threshold=OverkillThreshold(max_overkill=.05), review_margin=0)


def prepared(name, root, work):
    "Parameters, data and near twins of a set"
    if name == "magnetic_tile":
        params = load_params(ROOT/"recipes/magnetic_tile.yaml", [f"data.root={root/name}"])
    else:
        params = parse_params(override(load_params(ROOT/"params.yaml").model_dump(mode="json"), LINE))
    folder = work/name
    if not (folder/"annotations.json").exists(): ingest(ConnectorFactory(params.data, seed=0), folder)
    data = read_coco(folder)
    return params, data, near_duplicates(data, params.split.near_duplicate, thumbnails=read_thumbnails(data))


def judged(data, ids, params, cascade):
    "Image score, map and true map at 4 px a cell of each photograph; ms an image"
    dataset = CVDataset(data, ids, params.image.buckets, cache=False)
    run, look = jax.jit(cascade.apply), jax.jit(lambda images: photographed(images.astype("float32")/255))
    weights, out, spent = jax.device_put(dict(cascade.weights)), {}, []
    for batch in dataset.batches(1):
        start = time.perf_counter()
        found = jax.device_get(run(weights, batch["images"]))
        spent.append(time.perf_counter() - start)
        inside, h, w = np.asarray(look(batch["images"]))[0], *found.defect_map.shape[1:]
        truth = batch["class_map"][0].reshape(h, 4, w, 4).max((1, 3))
        out[dataset.image_ids[batch["index"][0]]] = float(found.image_scores[0]), found.defect_map[0], truth, inside
    return out, float(np.median(spent))*1e3


def pixel_figures(found, data):
    "Pixel AUROC, AUPRO of all defects and of each class"
    metric, truth, said = LocalisationMetric(categories=data.categories), [], []
    for i, (_, score_map, classes, inside) in found.items():
        if data.by_id[i].weak: continue
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        window = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        metric.update(SimpleNamespace(class_map=classes[window], score_map=score_map[window], record=data.by_id[i]))
        truth.append(classes[window].ravel() > 0)
        said.append(score_map[window].ravel())
    figures = metric.result()
    classes = {c: v["aupro"] for c, v in figures["classes"].items()}
    auroc = float(roc_auc_score(np.concatenate(truth), np.concatenate(said)))
    return dict(pixel_auroc=auroc, aupro=figures["aupro"], classes=classes)


def one(kind, seed, params, data, twins, work):
    "All figures of a kind on one split"
    tree = params.model_dump(mode="json") | {"anomaly": {"kind": kind}}
    params, models = parse_params(tree), work/f"{kind}-{seed}"
    split = splits.split_parts(data, params.split, seed, twins)
    good = [i for i in split["train"] if data.by_id[i].defective is False]
    for task in TASKS: save_absent(models/task, Absent(task, "no defect of the training split was looked at"))
    start = time.perf_counter()
    n = train_anomaly(data, {"train": good}, params, models/"detector", models/"anomaly", inside=photographed)
    minutes = (time.perf_counter() - start)/60
    cascade = assemble(models, params, ())
    mb = sum(v.nbytes for k, v in cascade.weights.items() if "/backbone/" not in k)/1e6
    held = [i for i in split["calibration"] if data.by_id[i].defective is False]
    calibrated, _ = judged(data, held, params, cascade)
    scores = [round(s, 4) for s, *_ in calibrated.values()]
    threshold, told = choose_by_good_parts(PROMISE, scores, [data.by_id[i].part_id for i in calibrated])
    test = [i for i in split["test"] if data.by_id[i].defective is not None]
    found, ms = judged(data, test, params, cascade)
    bad = np.array([data.by_id[i].defective for i in found])
    score = np.array([s for s, *_ in found.values()])
    stopped, parts = {}, [data.by_id[i].part_id for i in found]
    for p, s, b in zip(parts, score, bad):
        if not b: stopped[p] = stopped.get(p, False) or round(float(s), 4) >= threshold
    real = rate(sum(stopped.values()), len(stopped))
    return dict(kind=kind, seed=seed, learnt_from=n, image_auroc=float(roc_auc_score(bad, score)),
        **pixel_figures(found, data), minutes=minutes, ms=ms, mb=mb, promised=told["promise"]["overkill"],
        realised=real["rate"], realised_low=real["low"], realised_high=real["high"],
        escape=float((score[bad] < threshold).mean()))


def main():
    "The table, and the JSON"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="folder with magnetic_tile")
    p.add_argument("--kinds", nargs="+", default=["gaussian", "patch_bank", "synthetic"])
    p.add_argument("--sets", nargs="+", default=["magnetic_tile", "synthetic_line"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=Path("cold_start.json"))
    p.add_argument("--work", type=Path)
    args, rows = p.parse_args(), []
    use_compilation_cache(ROOT/".sads/compiled")
    columns = "image_auroc", "pixel_auroc", "aupro", "minutes", "ms", "mb", "promised", "realised", "escape"
    print(f"{'set':16}{'kind':12}{'seed':>4} " + "".join(f"{c:>12}" for c in columns))
    with tempfile.TemporaryDirectory() as d:
        work = args.work or Path(d)
        for name in args.sets:
            params, data, twins = prepared(name, args.data, work)
            for kind in args.kinds:
                for seed in args.seeds:
                    row = dict(set=name) | one(kind, seed, params, data, twins, work/f"{name}-models")
                    rows.append(row)
                    print(f"{name:16}{kind:12}{seed:4} " + "".join(f"{row[c]:12.3f}" for c in columns), flush=True)
                    args.out.write_text(json.dumps(dict(device=str(jax.devices()[0]), rows=rows), indent=1) + "\n")
    for name in args.sets:
        for kind in args.kinds:
            mine = [r for r in rows if (r["set"], r["kind"]) == (name, kind)]
            print(f"{name:16}{kind:12} all " + "".join(f"{np.mean([r[c] for r in mine]):12.3f}" for c in columns))


if __name__ == "__main__":
    main()
