#!/usr/bin/env python3
"""Search for better params.yaml values on the VALIDATION split; the test split stays unseen.

    pip install 'sads_jax[search]'
    python scripts/search.py search.yaml --trials 20 [--workdir search] [--params params.yaml] [-S field=value]

search.yaml names the fields, where they may lie, and what is to be best:

    metric: images.ap          # as in metrics.json; of the validation split
    direction: maximize
    fields:
      detector.trainer.learning_rate: {low: 0.0005, high: 0.01, log: true}
      detector.trainer.steps: {low: 100, high: 600, step: 100}
      detector.paste: [0, 0.2, 0.4]

Each trial is a `sads run` up to the bundle, in a folder of its own that begins with what the trials have in common:
data and split, and the models whose part of params.yaml no field touches. Trials never learn from the validation
split, whatever split.refit says; the run that follows the search may. All trials lie in search.db (Optuna, SQLite);
the same command again goes on until there are --trials of them, also after it was killed. At the end: search.md (a
table) and search.png. """
import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import yaml

from sads_jax.core.errors import ParamsError, SADSError
from sads_jax.core.params import dump_params, load_params
from sads_jax.core.settings import load_settings
from sads_jax.data.records import read_coco
from sads_jax.data.splits import read_split
from sads_jax.orchestrators.project import make_runnable, reproduce, seen_from, stage_graph
from sads_jax.orchestrators.training import compose_training


def read_space(path):
    "Fields, metric and direction; `ParamsError` where something is missing or of the wrong form"
    try:
        space = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as e:
        raise ParamsError(f"cannot be read: {e}", where=path) from e
    if (
        not isinstance(space, dict)
        or not isinstance(space.get("fields"), dict)
        or not space["fields"]
        or "metric" not in space
    ):
        raise ParamsError("needs `metric` and `fields`", where=path, remedy="See python scripts/search.py --help")
    for name, given in space["fields"].items():
        if not (
            isinstance(given, list)
            and given
            or isinstance(given, dict)
            and {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}
        ):
            raise ParamsError(
                "is neither a list of choices nor {low, high, log or step}", where=f"{path}, fields.{name}"
            )
    if (direction := space.setdefault("direction", "maximize")) not in ("maximize", "minimize"):
        raise ParamsError(f"direction {direction!r} is neither maximize nor minimize", where=path)
    return space


def suggest(trial, name, given):
    "A value for one field"
    if isinstance(given, list):
        return trial.suggest_categorical(name, given)
    whole = isinstance(given["low"], int) and isinstance(given["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, **given)


def shared_stages(fields):
    "Stages of dvc.yaml that no field touches, nor any stage they need: the same for all trials"
    graph, mine = stage_graph(), []
    written = {output: name for name, stage in graph.items() for output in outputs(stage)}
    for name, stage in graph.items():
        touched = any(
            f == p or f.startswith(p + ".") or p.startswith(f + ".") for f in fields for p in stage.get("params", [])
        )
        needs = {written[d] for d in stage.get("deps", [])} - {"code"}
        if not touched and needs <= set(mine) and name not in ("code", "calibrate", "evaluate", "register"):
            mine.append(name)
    return mine


def outputs(stage):
    "What a stage of dvc.yaml writes"
    return [next(iter(o)) for o in stage.get("outs", []) + stage.get("metrics", [])]


def trial_params(path, assignments):
    "As params.yaml and the command line have them, but what is judged on the validation split has not learnt from it"
    return load_params(path, [*assignments, "split.refit=false"])


def run_common(folder, params, stages, env):
    "The shared stages, in a DVC project of their own: a search that goes on does none of them again"
    folder.mkdir(parents=True, exist_ok=True)
    params = seen_from(folder, params)
    (folder / "params.yaml").write_text(dump_params(params))
    make_runnable(folder, getattr(params.data, "root", None))
    if stages:
        reproduce(folder, stages, env=env)


def copy_common(common, folder, stages):
    "Outputs of the shared stages"
    for out in (o for name in stages for o in outputs(stage_graph()[name])):
        shutil.copytree(common / out, folder / out, dirs_exist_ok=True)


def run_rest(line, shared):
    "The stages up to the bundle that are not shared; their names"
    names = [n for n in stage_graph() if n not in (*shared, "code", "evaluate", "register")]
    for name in names:
        stage, _, task = name.partition("-")
        line.stage(stage, task or None)
    return names


def of_validation(at, params, settings):
    "Figures of the bundle on the validation split, as metrics.json has them; the test split is not read"
    from sads_jax.evaluation.evaluate import METRICS, EvaluationOrchestrator
    from sads_jax.registry.bundle import load_pipeline

    data, ids = read_coco(at.dataset), read_split(at.split / "split.json")["val"]
    if len({bool(data.by_id[i].defective) for i in ids}) < 2:
        raise SADSError("the validation split has no good or no defective photographs", remedy="Enlarge split.val")
    pipeline = load_pipeline(at.bundle, settings=settings, cache_dir=settings.cache_dir)
    metrics = EvaluationOrchestrator(pipeline, METRICS, batch_size=params.evaluate.batch_size).run(data, ids).metrics
    (at.workdir / "val_metrics.json").write_text(json.dumps(metrics, indent=1, default=float))
    return metrics


def pick(metrics, path):
    "A figure by its dotted name"
    value = metrics
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            raise SADSError(f"the figures of the validation split have no {path!r}",
                remedy=f"At this place they have {', '.join(value) if isinstance(value, dict) else 'a number'}")
        value = value[step]
    if not isinstance(value, (int, float)):
        raise SADSError(f"{path!r} is no number",
            remedy="Name one of its parts" if isinstance(value, dict) else "Not measured on this split")
    return float(value)


def table(study, space):
    "Markdown, best first"
    done = sorted((t for t in study.trials if t.value is not None), key=lambda t: t.value,
        reverse=space["direction"] == "maximize")
    heads = ["trial", space["metric"], "minutes", *space["fields"]]
    text = lambda v: f"{v:.4g}" if isinstance(v, float) else str(v)
    rows = [
        [t.number, t.value, t.user_attrs.get("minutes", "-"), *(t.params[f] for f in space["fields"])] for t in done
    ]
    lines = ["| " + " | ".join(map(text, r)) + " |" for r in [heads, *rows]]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def plot(study, space, path):
    "The best so far, and the metric over each field"
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    done = [t for t in study.trials if t.value is not None]
    fig, axes = plt.subplots(
        1, 1 + len(space["fields"]), figsize=(3.2 * (1 + len(space["fields"])), 3), sharey=True, squeeze=False
    )
    best = (np.maximum if space["direction"] == "maximize" else np.minimum).accumulate([t.value for t in done])
    axes[0, 0].plot([t.number for t in done], [t.value for t in done], "o", [t.number for t in done], best, "-")
    axes[0, 0].set(xlabel="trial (line: best so far)", ylabel=f"{space['metric']}, validation")
    for ax, (name, given) in zip(axes[0, 1:], space["fields"].items()):
        x = [t.params[name] for t in done]
        if isinstance(given, list):
            x = [str(v) for v in x]
        ax.scatter(x, [t.value for t in done], c=[t.number for t in done], cmap="viridis")
        ax.set(xlabel=name, xscale="log" if isinstance(given, dict) and given.get("log") else ax.get_xscale())
    fig.tight_layout(), fig.savefig(path, dpi=110), plt.close(fig)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("space", type=Path), args.add_argument("--trials", type=int, default=20)
    (args.add_argument("--workdir", type=Path, default=Path("search")),
        args.add_argument("--params", type=Path, default=Path("params.yaml")))
    (
        args.add_argument(
            "-S", dest="assignments", action="append", default=[], help="as for sads run, for all trials"
        ),
        args.add_argument("--seed", type=int, default=0),
    )
    args = args.parse_args()
    try:
        import optuna
    except ImportError as e:
        raise SADSError("Optuna is not installed", remedy="pip install 'sads_jax[search]'") from e
    space, settings = read_space(args.space), load_settings()
    args.workdir.mkdir(parents=True, exist_ok=True)
    settings = settings.model_copy(
        update={"cache_dir": (args.workdir / "cache").absolute()}
    )  # programs are compiled once for all trials
    shared, common = shared_stages(space["fields"]), args.workdir / "common"
    env = {"SADS_CACHE_DIR": str(settings.cache_dir)}
    run_common(common, trial_params(args.params, args.assignments), shared, env)

    def objective(trial):
        values = [f"{name}={json.dumps(suggest(trial, name, given))}" for name, given in space["fields"].items()]
        folder, began = args.workdir / f"trial-{trial.number:04d}", time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        copy_common(common, folder, shared)
        params = trial_params(args.params, [*args.assignments, *values])
        line = compose_training(params, settings, folder)
        ran = run_rest(line, shared)
        found = pick(of_validation(line.at, params, settings), space["metric"])
        trial.set_user_attr("minutes", round((time.perf_counter() - began) / 60, 2)), trial.set_user_attr("ran", ran)
        shutil.rmtree(folder / "data")  # as in `common`
        return found

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The number of trials before enters the seed, so that a search that goes on doesn't draw the first values again.
    study = optuna.create_study(storage=f"sqlite:///{args.workdir / 'search.db'}", study_name=space["metric"],
        direction=space["direction"], load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
    left = args.trials - sum(t.value is not None for t in study.trials)
    if left > 0:
        study.optimize(objective, n_trials=left,
            callbacks=[lambda s, t: print(f"trial {t.number}: {space['metric']} {t.value:.4f} {t.params}", flush=True)])
    (args.workdir / "search.md").write_text(table(study, space) + "\n")
    plot(study, space, args.workdir / "search.png")
    print(table(study, space))
    print("\nBest: " + " ".join(f"-S {k}={v}" for k, v in study.best_params.items()))


if __name__ == "__main__":
    try:
        main()
    except SADSError as e:
        sys.exit(str(e))
