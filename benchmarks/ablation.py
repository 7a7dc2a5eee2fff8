"""What each ingredient of a recipe gives: a finished run, and the same run without one of them.

    python benchmarks/ablation.py RUN --work DIR [--only NAME ...] [--set data.root=DIR ...]

RUN is a finished working folder; it is copied, its parameters are changed, and only what depends on them is done
again, with the same split and the same seeds. Rows that are finished in DIR are kept.
"""
import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

ALL = ("train --task detector", "train --task segmenter", "train --task classifier", "anomaly", "calibrate", "evaluate")
VARIANTS = {  # name -> changed parameters, stages from which on it differs
    "the recipe": ([], ()),
    "backbone thinned to half": (["detector.trainer.keep=0.5"], ALL),
    "backbone frozen": (["detector.trainer.unfreeze_steps=0", "segmenter.trainer.unfreeze_steps=0"], ALL),
    "detector from scratch": (["detector.trainer={kind: cnn, steps: 1500, batch_size: 8, eval_every: 500}"], ALL),
    "no pasted defects": (["detector.paste=0"], ALL),
    "validation's parts not learnt from": (["split.refit=false"], ("split", *ALL)),
    "names by a network": (["classifier.trainer={kind: finetune, steps: 300, batch_size: 32, views: 6}"], ALL[2:]),
    "detector alone in the image score": (["anomaly.share=0"], ALL[3:]),
    "no mirrored views": (["detector.flips=1"], ALL[4:]),
    "boxes as the map has them": (["detector.fit=false"], ALL[4:]),
}
FIGURES = {"image AUROC": "images.auroc", "caught at 5 % overkill": "images.pb5", "pixel AP": "pixels.ap",
    "mAP@0.5, agnostic": "detection.map50", "mAP@0.5, aware": "detection.cascade_map50", "Dice": "masks.dice",
    "crop accuracy": "crops.true_box_accuracy"}


def figure(metrics, path):
    for step in path.split("."): metrics = metrics[step]
    return np.nan if metrics is None else metrics


def done(base, name, folder, more):
    "Metrics of one variant, and its minutes"
    changes, stages = VARIANTS[name]
    if not stages: return json.loads((base / "reports/metrics.json").read_text()), None
    kept = folder / "ablation.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(
            base, folder, ignore=shutil.ignore_patterns("reports", "checkpoints", "params.yaml")
        )  # the run writes its own
        began = time.time()
        for stage in stages:
            subprocess.run(
                ["sads", "stage", *stage.split(), "--params", base / "params.yaml", "--workdir", folder,
                    *(a for s in (*more, *changes) for a in ("-S", s))],
                check=True,
            )
        kept.write_text(json.dumps({"minutes": (time.time() - began) / 60}) + "\n")
    return json.loads((folder / "reports/metrics.json").read_text()), json.loads(kept.read_text())["minutes"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    p.add_argument("--set", nargs="*", default=[], help="parameters for all, e.g. data.root=DIR")
    args = p.parse_args()
    print("| | " + " | ".join(FIGURES) + " | minutes |\n|---" + "|---" * (len(FIGURES) + 1) + "|")
    for name in args.only:
        metrics, minutes = done(args.run, name, args.work / name.replace(" ", "-").replace("'", ""), args.set)
        print(
            f"| {name} | "
            + " | ".join(f"{figure(metrics, f):.3f}" for f in FIGURES.values())
            + f" | {'-' if minutes is None else f'{minutes:.1f}'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
