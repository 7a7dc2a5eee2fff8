"""How many labels does each trainer need? Crop accuracy against the share of labelled training parts.

    python benchmarks/learning_curves.py [-S data.kind=magnetic_tile -S data.root=DIR] [--seeds 0 1 2] [--work DIR]

Every training part keeps its photographs; only the given share of the defective ones keeps its labels, dealt out
class by class and the same for all trainers, a larger share containing the smaller. `cnn`, `finetune` and
`discriminant` can use those alone, `contrastive` looks at the other photographs too. Judged is the name given to true
boxes of the test parts, which no photograph of a training part shows. A seed means another split, other labels and
other weights.

Writes RESULTS.md's table between its marks, and the plot beside it; runs that are in --work/rows.jsonl are not
repeated. Small photographs and few steps: all of it in minutes on two cores.
"""
import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sads_jax.core.params import load_params, parse_params
from sads_jax.data import splits
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.records import read_coco
from sads_jax.data.twins import near_duplicates, read_thumbnails
from sads_jax.inference.predictor import use_compilation_cache

HERE = Path(__file__).parent
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
KINDS = ("cnn", "finetune", "discriminant", "contrastive")
HALVES = ("pretraining alone", "pull alone")  # of `contrastive`, at TOLD only
TOLD = 0.1
SMALL = ["data.kind=synthetic", "data.n_parts=300", "data.exposures=1", "data.size=96", "data.defective=0.9",
    "image.buckets=[[96, 96]]", "split.train=0.5", "split.val=0.05", "split.calibration=0.05", "split.test=0.4"]
COMMON = {"steps": 100, "batch_size": 24, "learning_rate": 0.003, "warmup": 15, "ema": 0.95, "eval_every": 100}
PRETRAIN = 200
OWN = {"cnn": {"kind": "cnn"}, "finetune": {"kind": "finetune", "views": 4},
    "discriminant": {"kind": "discriminant", "views": 4},
    "contrastive": {"kind": "contrastive", "pretrain_steps": PRETRAIN},
    "pretraining alone": {"kind": "contrastive", "pretrain_steps": PRETRAIN, "pull": 0.0},
    "pull alone": {"kind": "contrastive", "pretrain_steps": 0}}
BEGIN, END = "<!-- written by benchmarks/learning_curves.py: begin -->", "<!-- end of learning curves -->"


def some_labels(data, train, share, seed):
    """The data with labels on `share` of the defective training parts of each class (at least one), and on all others
    none"""
    rng, by_class = np.random.default_rng(seed), {}
    for i in train:
        r = data.by_id[i]
        if r.annotations:
            by_class.setdefault(r.annotations[0].category, {}).setdefault(r.part_id, []).append(i)
    kept, parts = set(), 0
    for _, found in sorted(by_class.items()):
        order = [sorted(found)[k] for k in rng.permutation(len(found))][: max(1, round(share * len(found)))]
        kept |= {i for p in order for i in found[p]}
        parts += len(order)
    hide = set(train) - kept
    images = tuple(replace(r, defective=None, classes=(), annotations=()) if r.id in hide else r for r in data.images)
    return replace(data, images=images), parts


def accuracy(folder, data, ids, params):
    "Share of the true boxes of `ids` that are named right, and how many there are"
    import jax
    import jax.numpy as jnp

    from sads_jax.data.dataset import CVDataset
    from sads_jax.models.classifier import box_geometry
    from sads_jax.models.store import load_model
    from sads_jax.ops.boxes import square_context
    from sads_jax.ops.crops import crop_and_resize

    apply, weights, facts = load_model(folder)

    @jax.jit
    def name(images, boxes, which):
        crops = crop_and_resize(images.astype(jnp.float32) / 255,
            square_context(boxes, facts["context"], facts["least"]), which, facts["crop"])
        return apply(weights, crops, box_geometry(boxes, *images.shape[1:3])).argmax(-1)

    right = total = 0
    for batch in CVDataset(data, ids, params.image.buckets).batches(8):
        row, col = np.nonzero(batch["valid"])
        n = batch["valid"].size  # one shape, one program
        boxes, which = np.zeros((n, 4), np.float32), np.zeros(n, np.int32)
        boxes[: len(row)], which[: len(row)] = batch["boxes"][row, col], row
        said = np.asarray(name(batch["images"], boxes, which))[: len(row)]
        right, total = right + int((said == batch["labels"][row, col]).sum()), total + len(row)
    return right / total, total


def measure(args, params, work, told=print):
    "All rows, measured or as measured earlier"
    from sads_jax.training.trainers import train_task

    path = work / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not (work / "data/annotations.json").exists():
        ingest(ConnectorFactory(params.data, seed=params.seed), work / "data")
    data = read_coco(work / "data")
    twins = near_duplicates(data, params.split.near_duplicate, thumbnails=read_thumbnails(data))
    split_of = {seed: splits.split_parts(data, params.split, seed, twins) for seed in args.seeds}
    for share in args.shares:
        for seed, kind in ((s, k) for s in args.seeds for k in (*args.kinds, *(HALVES if share == TOLD else ()))):
            if any((r["kind"], r["share"], r["seed"]) == (kind, share, seed) for r in rows):
                continue
            split = split_of[seed]
            few, parts = some_labels(data, split["train"], share, seed)
            steps = {} if kind == "discriminant" else COMMON | {"steps": args.steps}
            p = parse_params(
                params.model_dump(mode="json")
                | {"seed": seed, "classifier": {"crop": args.crop, "trainer": steps | OWN[kind]}}
            )
            checkpoints, kept = work / "checkpoints", work / f"pretrained-{seed}.safetensors"
            shutil.rmtree(checkpoints, ignore_errors=True)
            checkpoints.mkdir()
            if kept.exists() and OWN[kind].get("pretrain_steps"):
                shutil.copy(
                    kept, checkpoints / "pretrained.safetensors"
                )  # learnt of the same photographs, whatever the share
            def keep(what, done, total, row, kept=kept, made=checkpoints / "pretrained.safetensors"):
                if made.exists() and not kept.exists():
                    shutil.copy(made, kept)
            wall, cpu = time.perf_counter(), time.process_time()
            train_task("classifier", few, {"train": split["train"], "val": []}, p, work / "model",
                checkpoints=checkpoints.absolute(), progress=keep)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            right, boxes = accuracy(work / "model", data, split["test"], p)
            rows.append(
                {"kind": kind, "share": share, "seed": seed, "parts": parts, "accuracy": right, "boxes": boxes,
                    "wall_s": wall, "cpu_s": cpu}
            )
            with path.open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
            told(
                f"{kind:18s} {share:5.0%} seed {seed}: {right:.3f} of {boxes} boxes, {parts} labelled parts, "
                f"{wall:.0f} s wall, {cpu:.0f} s CPU",
                flush=True,
            )
    return rows


def verdict(rows, share=TOLD):
    "Does contrastive beat cnn at this share by more than the spread? In sentences"
    of = {
        k: {r["seed"]: r["accuracy"] for r in rows if r["kind"] == k and r["share"] == share}
        for k in ("cnn", "contrastive")
    }
    seeds = sorted(of["cnn"].keys() & of["contrastive"].keys())
    if len(seeds) < 2:
        return "Too few seeds for a verdict."
    a, b = (np.array([of[k][s] for s in seeds]) for k in ("contrastive", "cnn"))
    margin, spread = a.mean() - b.mean(), max(a.std(ddof=1), b.std(ddof=1))
    says = "beats" if margin > spread else "does not beat"
    halves = {h: [r["accuracy"] for r in rows if r["kind"] == h] for h in HALVES}
    alone = "".join(f" {h[0].upper() + h[1:]}: {np.mean(v):.3f}." for h, v in halves.items() if v)
    return (
        f"At {share:.0%} of the labels `contrastive` {says} `cnn` by more than the spread: {a.mean():.3f} against "
        f"{b.mean():.3f}, margin {margin:+.3f}, "
        f"larger of the two standard deviations over seeds {spread:.3f}; margins seed by seed "
        f"{', '.join(f'{d:+.3f}' for d in a - b)}.{alone}"
    )


def table(rows, kinds):
    "Markdown: mean and standard deviation over seeds"
    lines = ["| labelled parts | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for share in sorted({r["share"] for r in rows}):
        parts = [r["parts"] for r in rows if r["share"] == share]
        cells = []
        for k in kinds:
            got = [r["accuracy"] for r in rows if (r["kind"], r["share"]) == (k, share)]
            cells.append(
                f"{np.mean(got):.3f} ± {np.std(got, ddof=1):.3f}" if len(got) > 1 else f"{got[0]:.3f}" if got else "-"
            )
        lines.append(f"| {share:.0%} ({min(parts)} to {max(parts)}) | " + " | ".join(cells) + " |")
    cost = [np.mean([r["cpu_s"] for r in rows if r["kind"] == k] or [0]) for k in kinds]
    return "\n".join([*lines, "| CPU seconds of a training, mean | " + " | ".join(f"{c:.0f}" for c in cost) + " |"])


def plot(rows, kinds, path):
    "Mean over seeds, a band from the worst to the best, a dot a run"
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4))
    shares = sorted({r["share"] for r in rows})
    for kind in kinds:
        by = [[r["accuracy"] for r in rows if (r["kind"], r["share"]) == (kind, s)] for s in shares]
        x = [100 * s for s, got in zip(shares, by) if got]
        by = [got for got in by if got]
        line, = ax.plot(x, [np.mean(b) for b in by], label=kind)
        ax.fill_between(x, [min(b) for b in by], [max(b) for b in by], color=line.get_color(), alpha=0.2)
        ax.plot([v for v, b in zip(x, by) for _ in b], [v for b in by for v in b], ".", color=line.get_color())
    ax.set(xscale="log", xlabel="labelled training parts, %", ylabel="crop accuracy, true boxes of test parts",
        xticks=[100 * s for s in shares])
    ax.set_xticklabels([f"{100*s:g}" for s in shares])
    ax.legend(), ax.grid(alpha=0.3), fig.tight_layout(), fig.savefig(path, dpi=110)


def page(rows, args, params, name):
    "The section of RESULTS.md"
    seeds, boxes = sorted({r["seed"] for r in rows}), [r["boxes"] for r in rows]
    return f"""{BEGIN}

## How many labels does each trainer need?

Crop accuracy on true boxes, {params.data.kind}, part-grouped splits, {len(seeds)} seeds (another split, other labels, other weights), {min(boxes)} to {max(boxes)} test boxes; mean ± standard deviation. Crops of {args.crop} px, {args.steps} steps of {COMMON['batch_size']} crops for all that take steps; `contrastive` first takes {PRETRAIN} steps on all training photographs without labels (once a seed, whatever the share). Labels are dealt out class by class, the same to all; in brackets, how many parts have them.

{table(rows, args.kinds)}

{verdict(rows)}

![Learning curves]({name})

`python benchmarks/learning_curves.py`; machine shared with other work, so that seconds of CPU tell more than wall time would.
{END}
"""  # noqa: E501


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("-S", dest="assignments", action="append", default=[],
        help="as for sads run; by default small synthetic photographs")
    (args.add_argument("--params", default=HERE.parent / "params.yaml", type=Path),
        args.add_argument("--work", type=Path))
    (args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2]),
        args.add_argument("--shares", type=float, nargs="+", default=list(SHARES)))
    (args.add_argument("--kinds", nargs="+", default=list(KINDS)),
        args.add_argument("--steps", type=int, default=COMMON["steps"]))
    (args.add_argument("--crop", type=int, default=64),
        args.add_argument("--out", type=Path, help="a page of its own, instead of RESULTS.md"))
    args = args.parse_args()
    params = load_params(args.params, SMALL + args.assignments)
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    use_compilation_cache(work / "cache")
    rows = [
        r
        for r in measure(args, params, work)
        if r["kind"] in (*args.kinds, *HALVES) and r["share"] in args.shares and r["seed"] in args.seeds
    ]
    out = args.out or HERE / "RESULTS.md"
    picture = out.with_name("learning_curves.png")
    plot(rows, args.kinds, picture)
    text, old = page(rows, args, params, picture.name), out.read_text() if out.exists() else ""
    head, mark, rest = old.partition(BEGIN)
    out.write_text(head + text + rest.partition(END)[2].lstrip("\n") if mark else old.rstrip("\n") + "\n\n" + text)
    print(table(rows, args.kinds), verdict(rows), sep="\n\n")


if __name__ == "__main__":
    main()
