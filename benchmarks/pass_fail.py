"""What does a run without a single mask lose? Whole runs on the same parts, with masks and with pass/fail labels only.

    python benchmarks/pass_fail.py DIR [--sets magnetic_tile castings] [--seeds 0 1 2] [--ways none few all] \\
        [--light] [--work DIR] [--json FILE]

DIR holds the folder magnetic_tile; `castings` needs no files: a synthetic line of --castings photographs of one
drawing. Defects are of one class, `defective`. none: the labels say good or defective, nothing else. few: masks of
--few defective parts drawn by the seed, the other labels as in none. all: all masks. The part-grouped split of a seed
is the same in the three. --light: fewer and smaller steps, for a processor. Runs on any device that JAX finds.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sads_jax.core.params import load_params
from sads_jax.data.connectors import ConnectorFactory, ingest

TILES = ["image.buckets=[[320, 320], [224, 448], [448, 224]]", "split.train=0.62", "split.val=0.05",
    "split.calibration=0.13", "split.test=0.2", "split.refit=true", "detector.trainer.unfreeze_steps=500",
    "detector.flips=4", "segmenter.trainer.unfreeze_steps=300"]
CASTINGS = ["data.kind=synthetic", "data.exposures=1", "data.size=96", "data.surfaces=[casting]",
    "data.defects=[scratch, crack, pit, stain, dent]", "image.buckets=[[96, 96]]", "segmenter.crop=48"]
LIGHT = ["detector.trainer.steps=150", "detector.trainer.views=1", "detector.trainer.unfreeze_steps=0",
    "detector.trainer.keep=1", "detector.flips=1", "segmenter.trainer.steps=60", "segmenter.trainer.views=1",
    "segmenter.trainer.unfreeze_steps=0"]
LIGHT_TILES = ["image.buckets=[[224, 224]]"]
FIGURES = {"image AUROC": "images.auroc", "escape": "rates.image.escape", "overkill": "rates.image.overkill",
    "pixel AP": "pixels.ap"}


def prepared(kind, root, castings, light):
    "Parameters of a set, as assignments"
    if kind == "castings":
        return [*CASTINGS, f"data.n_parts={castings}", *(LIGHT if light else [])]
    tiles = ["data.kind=magnetic_tile", f"data.root={root / 'magnetic_tile'}", *TILES]
    return [*tiles, *(LIGHT + LIGHT_TILES if light else [])]


def labelled(tree, way, few, seed):
    "The COCO tree with one class, and with the masks of `way`"
    drawn = sorted({r["part_id"] for r in tree["images"] if r["defective"]})
    drawn = set(np.random.default_rng(seed).permutation(drawn)[:few]) if way == "few" else set(drawn)
    shown = {r["id"] for r in tree["images"] if way != "none" and r["part_id"] in drawn}
    images = [{**r, "classes": ["defective"] if r["defective"] else []} for r in tree["images"]]
    marks = [{**a, "category_id": 1} for a in tree["annotations"] if a["image_id"] in shown]
    return {**tree, "images": images, "annotations": marks, "categories": [{"id": 1, "name": "defective"}]}


def get(metrics, path):
    "A figure by its path; the rate of a count; None where there is none"
    for step in path.split("."):
        metrics = (metrics or {}).get(step)
    return metrics.get("rate") if isinstance(metrics, dict) else metrics


def one(data, way, seed, few, assignments, work):
    "Figures of a whole run"
    tree = json.loads((data / "annotations.json").read_text())
    root, run = work / f"{way}-{seed}-data", work / f"{way}-{seed}"
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "images").exists(): (root / "images").symlink_to((data / "images").absolute())
    (root / "annotations.json").write_text(json.dumps(labelled(tree, way, few, seed)))
    kept = [a for a in assignments if not a.startswith("data.")]
    given = [*kept, "data.kind=coco", f"data.root={root.absolute()}", f"split.seed_offset={seed}"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "sads_jax.cli.main", "run", "--workdir", str(run)]
    subprocess.run([*command, *(x for a in given for x in ("-S", a))], check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((run / "reports/metrics.json").read_text())
    split = {k: len(v) for k, v in json.loads((run / "data/split/split.json").read_text())["splits"].items()}
    total = sum(split.values())
    return {"minutes": (time.perf_counter() - began) / 60, "split": {k: n / total for k, n in split.items()},
        **{name: get(metrics, path) for name, path in FIGURES.items()}}


def table(rows):
    "Mean and spread over seeds, one row a set and way"
    names = [*FIGURES, "minutes"]
    print("| set | masks | seeds | " + " | ".join(names) + " |\n|---" + "|---" * (len(names) + 2) + "|")
    for key in dict.fromkeys((r["set"], r["way"]) for r in rows):
        found = [r for r in rows if (r["set"], r["way"]) == key]
        cells = []
        for name in names:
            values = [r[name] for r in found if r[name] is not None]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "-")
        print(f"| {key[0]} | {key[1]} | {len(found)} | " + " | ".join(cells) + " |")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("root", type=Path)
    args.add_argument("--sets", nargs="+", default=["magnetic_tile", "castings"])
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--ways", nargs="+", choices=["none", "few", "all"], default=["none", "few", "all"])
    args.add_argument("--few", type=int, default=5)
    args.add_argument("--castings", type=int, default=5000)
    args.add_argument("--light", action="store_true")
    args.add_argument("--params", default="params.yaml", type=Path)
    args.add_argument("--work", type=Path)
    args.add_argument("--json", type=Path)
    args = args.parse_args()
    work, rows = args.work or Path(tempfile.mkdtemp()), []
    for kind in args.sets:
        assignments = prepared(kind, args.root, args.castings, args.light)
        params, data = load_params(args.params, assignments), work / kind / "data"
        if not (data / "annotations.json").exists(): ingest(ConnectorFactory(params.data, seed=params.seed), data)
        for seed in args.seeds:
            for way in args.ways:
                rows.append({"set": kind, "way": way, "seed": seed,
                    **one(data, way, seed, args.few, assignments, work / kind)})
                print(json.dumps(rows[-1]), flush=True)
                if args.json: args.json.write_text(json.dumps(rows, indent=1) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
