"""Mean and spread over finished runs, one working folder a split seed.

    python benchmarks/magnetic_tile.py RUN RUN RUN [--leaky RUN]
"""
import argparse
import json
from pathlib import Path

import numpy as np

ROWS = [("image AUROC", "images.auroc"), ("  95 % interval by part", "intervals.auroc"), ("  on size-matched pairs", "images.size_matched_auroc"), ("  trivial baseline (size, mean, std)", "baseline.auroc"),
        ("image AP", "images.ap"), ("  95 % interval by part", "intervals.ap"), ("defective photographs caught at 5 % overkill", "images.pb5"),
        ("pixel AP", "pixels.ap"), ("  95 % interval by part", "intervals.pixel_ap"), ("class-agnostic mAP@0.5", "detection.map50"), ("class-agnostic mAP@0.5:0.95", "detection.map50_95"),
        ("class-aware mAP@0.5", "detection.cascade_map50"), ("class-aware mAP@0.5:0.95", "detection.cascade_map50_95"), ("crop accuracy, true boxes", "crops.true_box_accuracy"), ("crop accuracy, found boxes", "crops.accuracy"),
        ("Dice at the operating point, all classes", "masks.dice"), ("Dice, mean of classes", "masks.mean_dice"), ("IoU, mean of classes", "masks.mean_iou"), ("escape, images", "rates.image.escape"), ("overkill, images", "rates.image.overkill"),
        ("escape, parts", "rates.part.escape"), ("overkill, parts", "rates.part.overkill")]


def get(metrics, path):
    for step in path.split("."):
        metrics = metrics.get(step, {})
    return metrics


def text(value):
    if isinstance(value, dict) and "count" not in value:
        return f"[{value['low']:.3f}, {value['high']:.3f}]" if value else "-"
    if isinstance(value, dict):
        return f"{value['count']}/{value['of']} [{value['low']:.2f}, {value['high']:.2f}]" if value else "-"
    return "-" if value is None else f"{value:.3f}"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("runs", nargs="+", type=Path), args.add_argument("--leaky", type=Path)
    args = args.parse_args()
    read = lambda folder: json.loads((folder / "reports/metrics.json").read_text())
    runs, leaky = [read(r) for r in args.runs], read(args.leaky) if args.leaky else None
    classes = sorted(set().union(*(r["classes"] for r in runs)))
    rows = ROWS + [(f"{what}, {c}", f"classes.{c}.{key}") for what, key in (("Dice", "dice"), ("IoU", "iou"), ("pixel AP", "pixel_ap"), ("class-aware AP@0.5", "ap50")) for c in classes]
    heads = [r.name for r in args.runs] + ["mean", "spread"] + (["LEAKY (image split)"] if leaky else [])
    print("| |" + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for name, path in rows:
        values = [get(r, path) for r in runs]
        numbers = [v.get("rate") if isinstance(v, dict) else v for v in values]
        numbers = [v for v in numbers if isinstance(v, (int, float))]
        summary = [f"{np.mean(numbers):.3f}", f"{np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else "-"] if numbers else ["-", "-"]
        print(f"| {name} | " + " | ".join([text(v) for v in values] + summary + ([text(get(leaky, path))] if leaky else [])) + " |")


if __name__ == "__main__":
    main()
