"""How many labels does active labelling save? Score against labels, chosen by `data.active` or at random.

    python benchmarks/active.py --data DIR [--seeds 0 1 2 3 4] [--step 20] [--most 400]

DIR is an ingested data set (`data/dataset` of a run). A frozen pretrained network describes every photograph once; a
linear classifier learns good from defective, and the classes, from the labels bought so far. A seed means another
grouped split (half of the parts are judged on, none of them can be bought) and another random start. Judged are
average precision of defective photographs and the mean recall of all classes. "Full" is the classifier that has all
labels; reported is the first number of labels at which 90 % of its score is reached and kept on average to the end.

With --rare 0.05 most defective photographs are taken out of what can be bought, as on a line that runs well.

Writes active.svg beside this file (or --plot) and prints the table for RESULTS.md.
"""
import argparse
import json
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from sads_jax.data.active import Mix, choose_next, unlike_good
from sads_jax.data.records import read_coco
from sads_jax.training.features import features_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
WAYS = {"random": Mix(0, 0, 1), "defect": Mix(1, 0, 0), "diverse": Mix(0, 1, 0), "mixed": Mix()}
START, ENOUGH = 20, 0.9
FIGURES = {"ap": "average precision", "recall": "mean class recall", "auroc": "image AUROC"}


def vectors_of(data, kept):
    "Features of all photographs, read again where they were kept"
    if kept.exists(): return np.load(kept)
    x = np.stack([f.vector for f in features_of(data.photograph(r) for r in data.images)])
    np.save(kept, x)
    return x


def reduced(x, pool, size=100):
    "Principal components of all features, learnt without labels from photographs that can be bought"
    z = (x - x[pool].mean(0)) / (x[pool].std(0) + 1e-6)
    return z @ np.linalg.svd(z[pool], full_matrices=False)[2][:size].T


def probe(x, y):
    "A linear classifier on standardised features, or None where there is but one class"
    if len(set(y)) < 2: return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=0.01, max_iter=300, class_weight="balanced").fit(x, y)


def judge(x, bad, kind, bought, held):
    "Figures of a classifier that knows the labels `bought`; chance where they hold one class only"
    names = sorted(set(kind[held]))
    binary = probe(x[bought], bad[bought])
    if binary is None: return {"ap": float(bad[held].mean()), "recall": 1 / len(names), "auroc": 0.5}, None
    said, named = binary.decision_function(x[held]), probe(x[bought], kind[bought])
    return {"ap": float(average_precision_score(bad[held], said)),
        "recall": float(balanced_accuracy_score(kind[held], named.predict(x[held]))),
        "auroc": float(roc_auc_score(bad[held], said))}, binary


def thinned(bad, pool, share, seed):
    "Photographs that can be bought, with defective ones left out at random until they are this share"
    good, rest = pool[~bad[pool]], pool[bad[pool]]
    few = np.random.default_rng(seed).permutation(rest)[: max(2, round(len(good) * share / (1 - share)))]
    return np.sort(np.concatenate([good, few]))


def run(x, bad, kind, parts, way, seed, step, most, rare=None):
    "One seed of one way: rows of labels bought and figures"
    folds = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
    pool, held = next(folds.split(x, kind, parts))
    if rare: pool = thinned(bad, pool, rare, seed)
    z = reduced(x, pool)
    full, _ = judge(z, bad, kind, pool, held)
    bought = np.random.default_rng(seed).choice(pool, START, replace=False)
    rows = []
    while True:
        figures, binary = judge(z, bad, kind, bought, held)
        rows.append({"way": way, "seed": seed, "labels": len(bought), "full": full, **figures})
        if len(bought) >= min(most, len(pool)): return rows
        known = np.isin(pool, bought)
        good = np.flatnonzero(known & ~bad[pool])
        score = binary.decision_function(z[pool]) if binary is not None else unlike_good(z[pool], good)
        picks = choose_next(z[pool], score, known, parts[pool].tolist(), step, WAYS[way], seed + len(bought))
        bought = np.concatenate([bought, pool[[p.row for p in picks]]])


def reached(rows, figure):
    "Labels of one seed from which the score stays at 90 % of the full one or more, or None"
    ok = [r[figure] >= ENOUGH * r["full"][figure] for r in rows]
    if not ok[-1]: return None
    return next(r["labels"] for i, r in enumerate(rows) if all(ok[i:]))


def table(all_rows, seeds, most):
    "Labels needed, by way and figure"
    print("| way | " + " | ".join(f"labels to 90 % of full {n} (seeds)" for n in FIGURES.values()) + " |")
    print("|---" * (len(FIGURES) + 1) + "|")
    for way in WAYS:
        cells = []
        for figure in FIGURES:
            got = [reached([r for r in all_rows if r["way"] == way and r["seed"] == s], figure) for s in seeds]
            found = [most + 1 if g is None else g for g in got]
            shown = ", ".join("-" if g is None else str(g) for g in got)
            median = float(np.median(found))
            cells.append(f"{'more than ' + str(most) if median > most else f'{median:.0f}'} ({shown})")
        print(f"| {way} | " + " | ".join(cells) + " |")


def plot(all_rows, path):
    "Mean score against labels, a line for each way"
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, figure in zip(axes, ("ap", "recall")):
        for way in WAYS:
            mine = [r for r in all_rows if r["way"] == way]
            labels = sorted({r["labels"] for r in mine})
            ax.plot(labels, [np.mean([r[figure] for r in mine if r["labels"] == n]) for n in labels], label=way)
        ax.axhline(ENOUGH * np.mean([r["full"][figure] for r in all_rows]), ls=":", c="grey")
        ax.set(xlabel="labels", ylabel=FIGURES[figure])
    axes[0].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args.add_argument("--step", type=int, default=20)
    args.add_argument("--most", type=int, default=400)
    args.add_argument("--features", type=Path, help="A .npy file that keeps the features between runs")
    args.add_argument("--plot", type=Path, default=HERE / "active.svg")
    args.add_argument("--rare", type=float, help="Share of defective photographs among those that can be bought")
    args = args.parse_args()
    began, data = time.time(), read_coco(args.data)
    x = vectors_of(data, args.features or args.data / "features.npy")
    bad = np.array([bool(r.defective) for r in data.images])
    kind = np.array(["+".join(r.classes) or "good" for r in data.images])
    parts = np.array([r.part_id for r in data.images])
    rows = []
    for way in WAYS:
        for seed in args.seeds:
            rows += run(x, bad, kind, parts, way, seed, args.step, args.most, args.rare)
            print(json.dumps({k: v for k, v in rows[-1].items()}), flush=True)
    table(rows, args.seeds, args.most)
    plot(rows, args.plot)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
