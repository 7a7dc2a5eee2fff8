"""Mean and spread over finished runs, one working folder a split seed.

    python benchmarks/magnetic_tile.py RUN RUN RUN [--leaky RUN] [--parts]

--parts: a row for each defective test part instead, worst first: what was passed, found and named.
"""
import argparse
import json
from pathlib import Path

import numpy as np

ROWS = [("image AUROC", "images.auroc"), ("  95 % interval by part", "intervals.auroc"),
    ("  on size-matched pairs", "images.size_matched_auroc"),
    ("  trivial baseline (size, mean, std)", "baseline.auroc"), ("image AP", "images.ap"),
    ("  95 % interval by part", "intervals.ap"), ("defective photographs caught at 5 % overkill", "images.pb5"),
    ("pixel AP", "pixels.ap"), ("  95 % interval by part", "intervals.pixel_ap"),
    ("class-agnostic mAP@0.5", "detection.map50"), ("class-agnostic mAP@0.5:0.95", "detection.map50_95"),
    ("class-aware mAP@0.5", "detection.cascade_map50"), ("class-aware mAP@0.5:0.95", "detection.cascade_map50_95"),
    ("crop accuracy, true boxes", "crops.true_box_accuracy"), ("crop accuracy, found boxes", "crops.accuracy"),
    ("Dice at the operating point, all classes", "masks.dice"), ("Dice, mean of classes", "masks.mean_dice"),
    ("IoU, mean of classes", "masks.mean_iou"), ("escape, images", "rates.image.escape"),
    ("overkill, images", "rates.image.overkill"), ("escape, parts", "rates.part.escape"),
    ("overkill, parts", "rates.part.overkill")]


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


def overlap(a, b):
    "IoU of two boxes x1, y1, x2, y2"
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def parts(run):
    """Rows of the defective test parts of a run: photographs, passed, true boxes, met at IoU 0.1 and 0.5, named right
    of those met"""
    labelled = json.loads((run / "data/dataset/annotations.json").read_text())
    name, true = {c["id"]: c["name"] for c in labelled["categories"]}, {}
    for a in labelled["annotations"]:
        x, y, w, h = a["bbox"]
        true.setdefault(a["image_id"], []).append((name[a["category_id"]], (x, y, x + w, y + h)))
    rows = {}
    for said in map(json.loads, (run / "reports/predictions.jsonl").read_text().splitlines()):
        if not said["defective"]: continue
        row = rows.setdefault(said["part_id"],
            {"classes": set(), "photographs": 0, "passed": 0, "boxes": 0, "met": 0, "met50": 0, "named": 0})
        row["classes"] |= set(said["classes"])
        row["photographs"] += 1
        row["passed"] += said["report"]["verdict"] == "PASS"
        for label, box in true.get(said["image_id"], ()):
            best = max(said["report"]["defects"], key=lambda d: overlap(d["box"], box), default=None)
            iou = overlap(best["box"], box) if best else 0
            row["boxes"] += 1
            row["met"] += iou > 0.1
            row["met50"] += iou >= 0.5
            row["named"] += iou > 0.1 and best["label"] == label
    return dict(sorted(rows.items(), key=lambda r: (-r[1]["passed"], r[1]["met50"] / max(r[1]["boxes"], 1))))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    (args.add_argument("runs", nargs="+", type=Path), args.add_argument("--leaky", type=Path),
        args.add_argument("--parts", action="store_true"))
    args = args.parse_args()
    if args.parts:
        print(
            "| run | part | classes | photographs | passed | true boxes | met (IoU > .1) | met (IoU .5) | named right "
            "|\n|---"
            + "|---" * 8
            + "|"
        )
        for run in args.runs:
            for part, r in parts(run).items():
                print(
                    f"| {run.name} | {part} | {', '.join(sorted(r['classes']))} | {r['photographs']} | {r['passed']} | "
                    f"{r['boxes']} | {r['met']} | {r['met50']} | {r['named']} of {r['met']} |"
                )
        return
    read = lambda folder: json.loads((folder / "reports/metrics.json").read_text())
    runs, leaky = [read(r) for r in args.runs], read(args.leaky) if args.leaky else None
    classes = sorted(set().union(*(r["classes"] for r in runs)))
    rows = ROWS + [
        (f"{what}, {c}", f"classes.{c}.{key}")
        for what, key in (("Dice", "dice"), ("IoU", "iou"), ("pixel AP", "pixel_ap"), ("class-aware AP@0.5", "ap50"))
        for c in classes
    ]
    heads = [r.name for r in args.runs] + ["mean", "spread"] + (["LEAKY (image split)"] if leaky else [])
    print("| |" + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for name, path in rows:
        values = [get(r, path) for r in runs]
        numbers = [v.get("rate") if isinstance(v, dict) else v for v in values]
        numbers = [v for v in numbers if isinstance(v, (int, float))]
        summary = (
            [f"{np.mean(numbers):.3f}", f"{np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else "-"]
            if numbers
            else ["-", "-"]
        )
        print(
            f"| {name} | "
            + " | ".join([text(v) for v in values] + summary + ([text(get(leaky, path))] if leaky else []))
            + " |"
        )


if __name__ == "__main__":
    main()
