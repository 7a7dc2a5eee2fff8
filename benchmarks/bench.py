"""Ours against what people would pick instead: finished working folders, one machine, one run.

    make bench WORKDIR=tiles [STEEL=steel] [ARGS='--also parts --minutes 5 --fresh']

WORKDIR is where `sads run` has finished; `--also` names another, for its speed and start alone. The peers get an
environment of their own below `.bench/` and are run as programs; nothing of theirs is imported here. Every step's
result is kept in `.bench/`, so a run that was stopped goes on where it was; `--fresh` measures again. The tables go
to benchmarks/RESULTS.md, between two marks: text around them stays.
"""
import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS, RESULTS = HERE / "peers", HERE / "RESULTS.md"
MARKS = "<!-- written by benchmarks/bench.py: begin -->", "<!-- end -->"
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "true",
    "COLUMNS": "200"}
ROWS = (("image AUROC (best box of the image)", "auroc"), ("class-agnostic mAP@0.5", "map50"),
    ("class-agnostic mAP@0.5:0.95", "map50_95"), ("class-aware mAP@0.5", "aware50"),
    ("class-aware mAP@0.5:0.95", "aware50_95"), ("pixel AP", "pixel_ap"))
SIZES, WARM = (1, 8, 32), 8  # batch sizes of graphs; photographs that a rival's program gets to warm up
BRIEF = .5  # minutes a peer is trained for a folder where speed alone counts


def say(text): print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


def median(x): return statistics.median(x)


def digest(*files):
    h = hashlib.sha256()
    for f in files: h.update(Path(f).read_bytes())
    return h.hexdigest()[:16]


class Steps:
    "Results of finished steps, by name and by what they were made from"
    def __init__(self, folder, fresh):
        self.folder, self.fresh = folder, fresh
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, made_from, work):
        path, made_from = self.folder / f"{name}.json", json.loads(json.dumps(made_from))
        if path.exists() and not self.fresh:
            kept = json.loads(path.read_text())
            if kept["made_from"] == made_from:
                say(f"{name}: kept from {kept['date']}")
                return kept["result"]
        say(name)
        result = work()
        path.write_text(
            json.dumps({"made_from": made_from, "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "result": result},
                indent=1)
            + "\n"
        )
        return json.loads(path.read_text())["result"]


# ---- programs

def install(home):
    "The peers' environment; its interpreter"
    wanted, mark, python = PEERS / "requirements.txt", home / "installed", home / "venv/bin/python"
    if mark.exists() and mark.read_text() == digest(wanted, PEERS / "cpu_torchvision.py"): return python
    say("install peers (minutes)")
    shutil.rmtree(home / "venv", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", wanted], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(
        [*pip, "--no-deps", *re.findall(r"^#: (\S+)", wanted.read_text(), re.M)], check=True, stderr=subprocess.DEVNULL
    )
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True, env=ENV).returncode:
        subprocess.run([python, PEERS / "cpu_torchvision.py", home / "stubs"], check=True)
    subprocess.run([python, "-c", "import torchvision"], check=True, env=ENV | paths(home))
    mark.write_text(digest(wanted, PEERS / "cpu_torchvision.py"))
    return python


def paths(home):
    return {"YOLO_CONFIG_DIR": str(home / "config"),
        "LD_LIBRARY_PATH": f"{home / 'stubs'}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


@contextlib.contextmanager
def asked(python, script, *args, env=ENV):
    "A function (job, times) -> seconds of a worker, and the facts it told first"
    log = tempfile.TemporaryFile("w+")
    p = subprocess.Popen([str(python), str(PEERS / script), *map(str, args)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=log, text=True, env=env)

    def read():
        for line in p.stdout:
            if line[:1] in "[{": return json.loads(line)
        log.seek(0)
        raise SystemExit(f"{script}: {log.read()[-2000:]}")

    def ask(job, times=1):
        p.stdin.write(f"{job} {times}\n")
        p.stdin.flush()
        return read()
    try: yield ask, read()
    finally:
        p.kill()
        p.wait()


class Peak(threading.Thread):
    """Looks at a program's greatest memory [MB] until told to stop (`ru_maxrss` would begin with that of the program
    that started it)"""
    def __init__(self, pid):
        super().__init__(daemon=True)
        self.status, self.mb, self.over = Path(f"/proc/{pid}/status"), 0, threading.Event()

    def run(self):
        while not self.over.wait(.02):
            with contextlib.suppress(OSError):  # it has just ended
                if found := re.search(r"VmHWM:\s+(\d+) kB", self.status.read_text()): self.mb = int(found[1]) / 1024


def watched(command, env, cwd=None):
    """Run a program: (seconds at which each line of output came, line), its greatest memory [MB], seconds in all and of
    processor time"""
    start = time.perf_counter()
    p = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=env | {"PYTHONUNBUFFERED": "1"}, cwd=cwd)
    peak = Peak(p.pid)
    peak.start()
    lines = [(time.perf_counter() - start, line.decode(errors="replace").rstrip()) for line in p.stdout]
    _, status, usage = os.wait4(p.pid, 0)
    peak.over.set()
    if status: raise SystemExit(f"{Path(command[0]).name} failed:\n" + "\n".join(line for _, line in lines[-30:]))
    return lines, peak.mb, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


# ---- one working folder

class Run:
    """A finished working folder and what is asked of it; peers are trained for as many `minutes` as ours unless told
    otherwise"""
    def __init__(self, workdir, args, home, minutes=None):
        from sads_jax.data.records import read_coco
        from sads_jax.data.splits import read_split
        from sads_jax.registry.bundle import bundle_version, read_bundle
        self.workdir, self.bundle, self.dataset = workdir, workdir / "bundle", workdir / "data/dataset"
        self.split_file = workdir / "data/split/split.json"
        self.data, self.split, self.version = (read_coco(self.dataset), read_split(self.split_file),
            bundle_version(self.bundle))
        info = read_bundle(self.bundle)
        self.buckets, self.forms = (list(info.preprocess.buckets),
            {"ours": "float32"} | ({"ours, onnx form": "onnx"} if "onnx" in info.params.export.artefacts else {}))
        self.size = args.size or round(median([(h * w)**.5 for h, w in self.buckets]) / 32) * 32
        self.title = (
            f"{info.params.data.kind.replace('_', ' ')}, {' or '.join(f'{h} x {w}' for h, w in self.buckets)} px"
        )
        self.minutes = minutes or training_minutes(workdir)
        self.home, self.args, self.env = home, args, ENV | paths(home)
        self.folder = home / workdir.resolve().name
        self.steps = Steps(self.folder, args.fresh)
        self.python, self.yolo = home / "venv/bin/python", home / "venv/bin/yolo"
        self.peers = args.peers.split(",")
        self.about = {"split": digest(self.split_file), "size": self.size, "minutes": round(self.minutes, 2)}
        self.photos = self.folder / "yolo" / f"data-{self.about['split']}"  # as the peers read them

    def task(self, peer): return "segment" if peer.endswith("-seg") else "detect"

    def weights(self, peer): return self.folder / "yolo" / peer / "weights/best.pt"

    def lists(self):
        "Photographs of good parts, and of parts with one defect"
        kinds = {"clean": lambda r: r.defective is False, "one defect": lambda r: len(r.annotations) == 1}
        order = [i for side in ("test", "calibration", "val", "train") for i in self.split[side]]
        return {
            k: [str(self.data.path(self.data.by_id[i]).absolute()) for i in order if f(self.data.by_id[i])][:32]
            for k, f in kinds.items()
        }


def training_minutes(workdir):
    "Wall time from the finished split to the last finished model, as `sads run` left it"
    began, models = (workdir / "data/split/split.json",
        [workdir / "models" / t / "model.json" for t in ("detector", "segmenter", "classifier")])
    if not all(p.exists() for p in (began, *models)):
        raise SystemExit(f"{workdir} does not say how long its training took: give --minutes")
    return max((max(p.stat().st_mtime for p in models) - began.stat().st_mtime) / 60, .1)


def train(run, peer):
    "Train a YOLO for as long as ours was trained; what it says of it"
    if not (run.photos / "data.yaml").exists() or run.args.fresh:
        subprocess.run(
            [run.python, PEERS / "export_yolo.py", run.dataset, run.split_file, run.photos], check=True, env=run.env
        )
    shutil.rmtree(run.folder / "yolo" / peer, ignore_errors=True)
    lines, rss, seconds, cpu = watched(
        [run.yolo, run.task(peer), "train", f"model={peer}.yaml", f"data={run.photos / 'data.yaml'}",
            f"imgsz={run.size}", f"time={run.minutes / 60}", "device=cpu", "workers=2", "cache=ram", "plots=False",
            "pretrained=False", f"project={run.folder / 'yolo'}", f"name={peer}", "exist_ok=True"],
        run.env,
        run.folder,
    )
    rows = (run.folder / "yolo" / peer / "results.csv").read_text().strip().splitlines()
    return {"minutes": seconds / 60, "cpu_minutes": cpu / 60, "epochs": len(rows) - 1, "rss_mb": rss,
        "weights": digest(run.weights(peer))}


def score_peer(run, peer):
    "The same figures as ours, from the boxes and masks that the peer's own validation writes"
    from pycocotools import mask as rle

    from sads_jax.evaluation.evaluate import true_boxes, true_map
    from sads_jax.evaluation.metrics import auroc, detection_map, histogram_ap, make_boxes, pixel_histogram
    out = run.folder / "yolo" / f"{peer}-test"
    watched(
        [run.yolo, run.task(peer), "val", f"model={run.weights(peer)}", f"data={run.photos / 'data.yaml'}",
            "split=test", f"imgsz={run.size}", "device=cpu", "workers=0", "save_json=True", "plots=False",
            f"project={out.parent}", f"name={out.name}", "exist_ok=True"],
        run.env,
        run.folder,
    )
    found = {}
    for p in json.loads((out / "predictions.json").read_text()): found.setdefault(int(p["image_id"]), []).append(p)
    names, truth, named, alone, y, best, pixels = (run.data.categories, [], [], [], [], [],
        np.zeros((1 + len(run.data.categories), 65536), np.int64))
    for i in run.split["test"]:
        record, mine = run.data.by_id[i], sorted(found.get(i, ()), key=lambda p: -p["score"])
        if record.defective is not None:
            y.append(record.defective)
            best.append(mine[0]["score"] if mine else 0)
        boxes = np.array([p["bbox"] for p in mine], float).reshape(-1, 4)
        if (true := true_boxes(record, names)) is not None:
            free = []  # for the class-agnostic figure one box of those that differ by name alone
            overlap = rle.iou(boxes, boxes, [0] * len(boxes)) if len(boxes) else []
            for k in range(len(mine)):
                if all(overlap[k][j] <= .5 for j in free): free.append(k)
            xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            labels, scores = np.array([p["category_id"] - 1 for p in mine], int), np.array([p["score"] for p in mine])
            truth.append(true)
            named.append(make_boxes(xyxy, labels, scores))
            alone.append(make_boxes(xyxy[free], labels[free], scores[free]))
        if run.task(peer) == "segment" and (classes := true_map(record, names)) is not None:
            heat = np.zeros(classes.shape, np.float32)
            for p in mine: heat = np.maximum(heat, rle.decode(p["segmentation"]) * np.float32(p["score"]))
            pixels += pixel_histogram(heat, classes, len(names))
    a, b = (detection_map(truth, f, len(names), class_aware=aware) for f, aware in ((alone, False), (named, True)))
    return {"auroc": auroc(y, best), "map50": a["map50"], "map50_95": a["map50_95"], "aware50": b["map50"],
        "aware50_95": b["map50_95"], "pixel_ap": histogram_ap(pixels[1:].sum(0), pixels[0])}


def score_ours(run):
    from sads_jax.evaluation.evaluate import EvaluationOrchestrator
    from sads_jax.registry.bundle import load_pipeline
    m = (
        EvaluationOrchestrator(load_pipeline(run.bundle, cache_dir=run.folder / "programs"))
        .run(run.data, run.split["test"])
        .metrics
    )
    d = m["detection"]
    return {"auroc": m["images"]["auroc"], "map50": d["map50"], "map50_95": d["map50_95"],
        "aware50": d["cascade_map50"], "aware50_95": d["cascade_map50_95"], "pixel_ap": m["pixels"]["ap"]}


def yolo_times(run, model, task, files, batch):
    "Seconds of each photograph, from the moments at which the program names them; the first ones warm up"
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "list.txt").write_text("\n".join(files[:WARM] + files) + "\n")
        lines, *_ = watched(
            [run.yolo, task, "predict", f"model={model}", f"source={d}/list.txt", f"imgsz={run.size}", f"batch={batch}",
                "device=cpu", "save=False", f"project={d}", "exist_ok=True"],
            run.env,
            d,
        )
    at = [t for t, line in lines if re.match(r"image \d+/\d+ ", line)]
    if len(at) != WARM + len(files):
        raise SystemExit(
            f"yolo named {len(at)} of {WARM + len(files)} photographs:\n" + "\n".join(line for _, line in lines[-15:])
        )
    return np.diff(at[WARM - 1:]).tolist()


def runtimes(run):
    "Name -> (model file, task): each peer with torch and, exported by its own program, with onnxruntime"
    out = {}
    for peer in run.peers:
        onnx = run.weights(peer).with_suffix(".onnx")
        if not onnx.exists() or onnx.stat().st_mtime < run.weights(peer).stat().st_mtime:
            watched(
                [run.yolo, "export", f"model={run.weights(peer)}", "format=onnx", f"imgsz={run.size}", "device=cpu",
                    "simplify=False"],
                run.env,
                run.folder,
            )
        out |= {f"{peer}, torch": (run.weights(peer), run.task(peer)), f"{peer}, onnxruntime": (onnx, run.task(peer))}
    return out


def speed(run):
    "Images/s and latency of whole programs, each in turn, `repeats` times"
    lists, models = run.lists(), runtimes(run)
    lists = {k: v for k, v in lists.items() if v}
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "lists.json").write_text(json.dumps(lists))
        with asked(
            sys.executable, "ours.py", "cascade", run.bundle.absolute(), f"{d}/lists.json", run.folder / "programs"
        ) as (ask, facts):
            took = {}
            for r in range(run.args.repeats):
                say(f"speed: {r + 1} of {run.args.repeats}")
                for kind, files in lists.items():
                    mine = took.setdefault("ours", {}).setdefault(kind, {"one": [], "batch": []})
                    mine["one"].append([ask(f"{kind} {i}")[0] for i in range(len(files))])
                    mine["batch"].append(min(ask(f"{kind} batch {b}")[0] for b in (8, 32)) / len(files))
                    for name, (model, task) in models.items():
                        its = took.setdefault(name, {}).setdefault(kind, {"one": [], "batch": []})
                        its["one"].append(yolo_times(run, model, task, files, 1))
                        if name.endswith("torch"):
                            its["batch"].append(sum(yolo_times(run, model, task, files, 8)) / len(files))
    out = {}
    for name, kinds in took.items():
        out[name] = {}
        for kind, t in kinds.items():
            every = np.array(t["one"])
            out[name][kind] = {"one": 1 / median(every.mean(1).tolist()),
                "batch": 1 / median(t["batch"]) if t["batch"] else None,
                "p50": median(np.percentile(every, 50, 1).tolist()) * 1e3,
                "p95": median(np.percentile(every, 95, 1).tolist()) * 1e3}
    return {"images": {k: len(v) for k, v in lists.items()}, "found": facts["found"], "times": out}


def start(run):
    "Seconds from process start to the first verdict, and the greatest memory over 32 photographs, each in turn"
    files, models = next(v for k, v in sorted(run.lists().items(), reverse=True) if v), runtimes(run)
    sads, took, memory, cold = Path(sys.executable).parent / "sads", {}, {}, None
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "settings.ini").write_text("[sads]\ncache_dir = cache\n")
        (Path(d) / "list.txt").write_text("\n".join(files) + "\n")

        def ours(photos, form="float32"):
            lines, rss, *_ = watched(
                [sads, "predict", *photos, "--bundle", run.bundle.absolute(), "--artefact", form, "--out", "-", "-q"],
                ENV, d)
            return next(t for t, line in lines if line.startswith("{")), rss

        def theirs(model, task, source):
            lines, rss, *_ = watched(
                [run.yolo, task, "predict", f"model={model}", f"source={source}", f"imgsz={run.size}", "device=cpu",
                    "save=False", f"project={d}", "exist_ok=True"],
                run.env,
                d,
            )
            return next(t for t, line in lines if re.match(r"image \d+/\d+ ", line)), rss
        cold = ours(files[:1])[0]
        for r in range(run.args.repeats):
            say(f"start: {r + 1} of {run.args.repeats}")
            for name, form in run.forms.items(): took.setdefault(name, []).append(ours(files[:1], form)[0])
            for name, model in models.items(): took.setdefault(name, []).append(theirs(*model, files[0])[0])
        for name, form in run.forms.items(): memory[name] = ours(files, form)[1]
        for name, model in models.items(): memory[name] = theirs(*model, f"{d}/list.txt")[1]
    return {"cold": cold, "photos": len(files), "first": {k: median(v) for k, v in took.items()}, "rss_mb": memory}


def graph(run):
    "Our detector alone in three runtimes; milliseconds by batch size"
    h, w = run.buckets[0]
    with (
        tempfile.TemporaryDirectory() as d,
        asked(sys.executable, "ours.py", "detector", run.workdir / "models", h, w, d) as (ours, _),
        asked(run.python, "detector.py", "torch", f"{d}/weights.npz", f"{d}/expected.npz", d, env=run.env) as (torch,
            torch_facts),
        asked(run.python, "detector.py", "onnx", f"{d}/weights.npz", f"{d}/expected.npz", d, env=run.env) as (onnx,
            onnx_facts),
    ):
        took = {}
        for r in range(run.args.repeats + 1):
            for b in SIZES:
                for name, ask in (("ours", ours), ("onnxruntime", onnx), ("torch", torch)):
                    t = ask(str(b), max(1, 16 // b))
                    if r: took.setdefault(name, {}).setdefault(str(b), []).append(median(t) * 1e3)
    return {"bucket": [h, w], "worst": {"torch": torch_facts["worst"], "onnxruntime": onnx_facts["worst"]},
        "ms": {k: {b: median(v) for b, v in t.items()} for k, t in took.items()}}


def operations(home, repeats):
    "NMS and components in milliseconds, by job"
    with (
        asked(sys.executable, "ours.py", "operations") as (ours, mine),
        asked(home / "venv/bin/python", "operations.py", env=ENV | paths(home)) as (theirs, other)
    ):
        sys.path.insert(0, str(PEERS))
        from inputs import NMS, REGIONS
        if mine["kept"] != other["kept"] or mine["regions"] != other["regions"]:
            raise SystemExit(f"the answers differ: {mine}, {other}")
        took = {}
        for _ in range(repeats):
            for n, b in NMS:
                for name, ask, job in (
                    ("ours", ours, "nms"), ("torchvision", theirs, "nms"),
                    *((("numpy", ours, "numpy nms"),) if n < 5000 else ())
                ):
                    took.setdefault(f"nms {n} {b}", {}).setdefault(name, []).append(ask(f"{job} {n} {b}")[0] * 1e3)
            for side, b in REGIONS:
                for name, ask, job in (
                    ("host (scipy)", ours, "components"), ("jitted", ours, "jitted components"),
                    ("OpenCV", theirs, "components")
                ):
                    took.setdefault(f"components {side} {b}", {}).setdefault(name, []).append(
                        ask(f"{job} {side} {b}")[0] * 1e3
                    )
    return {"exact": all(v for v in mine["agree"].values() if v is not None),
        "ms": {job: {k: median(v) for k, v in t.items()} for job, t in took.items()}}


# ---- the page

def num(v, digits=3): return "-" if v is None else f"{v:.{digits}f}" if digits else f"{v:.0f}"


def ratio(a, b): return "-" if a is None or b is None else f"{a / b:.2f}x" if b > .005 else "theirs is near 0"


def table(heads, rows):
    return (
        "\n".join(
            ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
                *("| " + " | ".join(map(str, r)) + " |" for r in rows)]
        )
        + "\n"
    )


def machine(home):
    "Versions and the machine, as far as they matter to a reader"
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    of = lambda python, *names: json.loads(
        subprocess.run([python, "-c", ask, *names], check=True, capture_output=True, text=True).stdout
    )
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.+)$", cpu, re.M)
    wide = next((n for n in ("avx512f", "avx2") if n in cpu.split()), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    code = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    versions = of(sys.executable, "jax", "numpy", "flax") | of(
        home / "venv/bin/python", "torch", "torchvision", "ultralytics", "onnxruntime", "opencv-python-headless"
    )
    return {"cores": len(os.sched_getaffinity(0)), "model": model[1] if model else "unknown", "vectors": wide,
        "memory_gib": round(memory), "python": platform.python_version(), "code": code, "versions": versions}


def quality_section(run, r):
    defective = sum(bool(run.data.by_id[i].defective) for i in run.split["test"])
    models = {"ours": {"minutes": run.minutes}} | {p: r["train"][p] for p in run.peers}
    rows = [["training, minutes (wall)", *(num(m["minutes"], 1) for m in models.values()), *("" for _ in run.peers)],
        ["of processor time", "", *(num(r["train"][p]["cpu_minutes"], 1) for p in run.peers), *("" for _ in run.peers)],
        ["epochs", "", *(r["train"][p]["epochs"] for p in run.peers), *("" for _ in run.peers)]]
    for title, key in ROWS:
        mine = r["quality"]["ours"][key]
        rows.append(
            [title, num(mine), *(num(r["quality"][p][key]) for p in run.peers),
                *(ratio(mine, r["quality"][p][key]) for p in run.peers)]
        )
    return (f"""## Quality at equal minutes

{run.title}: {len(run.data)} photographs, {len(run.data.categories)} classes; the same part-grouped split for all; {len(run.split['test'])} test photographs, {defective} of them defective. Side of the peers' input: """  # noqa: E501
            f"""{run.size} px. Both by the same code (pycocotools for boxes). The peers start from their yaml: no pretrained weights of theirs """  # noqa: E501
            """could be had here, while ours starts from an ImageNet backbone that comes as a package. For the class-agnostic figures their boxes that differ by name alone count once.\n\n"""  # noqa: E501
            + table(["", *models, *(f"ours / {p}" for p in run.peers)], rows))


def speed_section(run, s):
    out = [f"### {run.title}"]
    for kind, n in s["images"].items():
        rows = []
        for name, t in s["times"].items():
            mine, its = s["times"]["ours"][kind], t[kind]
            rows.append(
                [
                    name,
                    num(its["one"], 1),
                    num(its["batch"], 1),
                    num(its["p50"], 1),
                    num(its["p95"], 1),
                    *(
                        ["", "", ""]
                        if name == "ours"
                        else [ratio(mine["one"], its["one"]), ratio(mine["batch"], its["batch"]),
                            ratio(mine["p50"], its["p50"])]
                    ),
                ]
            )
        out.append(
            f"**{kind}**, {n} photographs, {s['found'][kind]:.1f} defects reported on each by ours\n\n"
            + table(
                ["", "images/s, one by one", "images/s, batches", "p50 ms", "p95 ms", "images/s ratio", "in batches",
                    "p50 ratio"],
                rows,
            )
        )
    return "\n\n".join(out)


def start_section(run, b):
    return (
        f"### {run.title}\n\nThe very first start, which compiles, took {b['cold']:.1f} s; memory over {b['photos']} "
        "photographs.\n\n"
        + table(
            ["", "first verdict s", "memory MB", "ours / this, first verdict", "memory"],
            [
                [
                    n,
                    num(t, 2),
                    num(b["rss_mb"][n], 0),
                    *(
                        ["", ""]
                        if n in run.forms
                        else [
                            " / ".join(ratio(b[what][o], b[what][n]) for o in run.forms) for what in ("first", "rss_mb")
                        ]
                    ),
                ]
                for n, t in b["first"].items()
            ],
        )
    )


def graph_section(run, g):
    return (
        f"### {run.title.split(',')[0]}, {g['bucket'][0]} x {g['bucket'][1]} px\n\nLargest difference to ours "
        f"(logits): torch {g['worst']['torch']:.1e}, onnxruntime {g['worst']['onnxruntime']:.1e}.\n\n"
        + table(
            ["batch", *g["ms"], "ours / onnxruntime", "ours / torch"],
            [
                [n, *(num(g["ms"][k][n], 1) for k in g["ms"]), ratio(g["ms"]["ours"][n], g["ms"]["onnxruntime"][n]),
                    ratio(g["ms"]["ours"][n], g["ms"]["torch"][n])]
                for n in map(str, SIZES)
            ],
        )
    )


def operations_section(o):
    return (
        "## NMS and components\n\nMilliseconds a call, random boxes, IoU 0.5, every survivor wanted; "
        f"{'the same boxes survive' if o['exact'] else 'NOT the same boxes survive'} as in the numpy loop.\n\n"
        + table(
            ["boxes x batch", "ours", "torchvision", "numpy", "ours / torchvision"],
            [
                [" x ".join(job.split()[1:]), num(t["ours"], 2), num(t["torchvision"], 2), num(t.get("numpy"), 1),
                    ratio(t["ours"], t["torchvision"])]
                for job, t in o["ms"].items()
                if job.startswith("nms")
            ],
        )
        + "\n"
        + table(
            ["masks, side x batch", *next(t for j, t in o["ms"].items() if j.startswith("comp"))],
            [
                [" x ".join(job.split()[1:]), *(num(v, 1) for v in t.values())]
                for job, t in o["ms"].items()
                if job.startswith("comp")
            ],
        )
    )


def page(runs, results, facts, repeats, steel):
    "Markdown. The first run has all steps, the others speed, start and graph."
    each = lambda section, step: [section(run, r[step]) for run, r in zip(runs, results)]
    return "\n\n".join([
        f"""Measured {datetime.date.today()} on {facts['cores']} cores ({facts['model']}, {facts['vectors']}), {facts['memory_gib']} GiB, Python {facts['python']}, code {facts['code']}. """  # noqa: E501
        f"""{', '.join(f'{k} {v}' for k, v in facts['versions'].items())}. """
        f"""Every figure of time is the median of {repeats} rounds in which the rivals took turns. Ratios are ours over theirs. All run in the same environment, glibc's malloc told to keep what it has.""",  # noqa: E501
        quality_section(runs[0], results[0]),
        "## Speed of the whole program\n\nFrom files on disk to verdicts, photographs decoded in the same time. The "
        "peers are timed by the moments at which their own `predict` names each photograph "
        f"(after {WARM} to warm up); ours takes what its report takes, masks and rules included. Batches: ours the "
        "better of 8 and 32, theirs 8.",
        *each(speed_section, "speed"),
        "## Start and memory\n\nFrom process start to the first verdict, and the most memory over many photographs in "
        "one process. Ours with its compiled programs kept from an earlier start.",
        *each(start_section, "start"),
        "## The detector's graph alone\n\nMilliseconds a batch. Ours takes a batch as the cascade does, one photograph "
        "after the other. The others get depthwise layers as convolutions, as their users would write them.",
        *each(graph_section, "graph"),
        operations_section(results[0]["operations"]),
        *([steel_section(steel)] if steel else []),
        """## Not measured, and why

- anomalib's PaDiM and PatchCore: their backbones' weights are downloads, and none come inside a package.
- The peers with pretrained weights: these are downloads too. With them their quality would be better than here.
- A GPU: these figures are for a CPU."""]) + "\n"


def steel_section(workdir):
    m = json.loads((workdir / "reports/metrics.json").read_text())
    d, audit = m["detection"], json.loads((workdir / "data/split/audit.json").read_text())
    return (
        f"## Hot-rolled steel (NEU-DET)\n\n`recipes/neu_steel.yaml`: {training_minutes(workdir):.1f} minutes of "
        f"training; {m['data']['images']} test photographs, {d['boxes']} boxes; the split keeps near twins together "
        f"({audit['twins_across_parts']} pairs). All photographs are defective, so nothing can be said of overkill.\n\n"
        + table(
            ["", "mAP@0.5", "mAP@0.5:0.95"],
            [["class-aware", num(d["cascade_map50"]), num(d["cascade_map50_95"])],
                ["class-agnostic", num(d["map50"]), num(d["map50_95"])]],
        )
        + "\n"
        + table(["class", "AP@0.5", "boxes"], [[c, num(v["ap50"]), v["defects"]] for c, v in m["classes"].items()])
    )


def write(text):
    old = RESULTS.read_text() if RESULTS.exists() else f"# Results\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, after = old.split(MARKS[0])[0], old.split(MARKS[1])[1]
    RESULTS.write_text(before + MARKS[0] + "\n" + text + MARKS[1] + after)


def measure(run, wanted):
    "Results by step, kept ones where they are of the same bundle, weights and rounds"
    r, step, repeats = {"train": {}, "quality": {}}, run.steps, run.args.repeats
    for peer in run.peers if wanted & {"train", "quality", "speed", "start"} else ():
        r["train"][peer] = step(f"train-{peer}", run.about, lambda peer=peer: train(run, peer))
        if "quality" in wanted:
            r["quality"][peer] = step(
                f"quality-{peer}", [run.about, r["train"][peer]["weights"]], lambda peer=peer: score_peer(run, peer)
            )
    bundle = [run.version, [t["weights"] for t in r["train"].values()], repeats]
    if "quality" in wanted: r["quality"]["ours"] = step("quality-ours", run.version, lambda: score_ours(run))
    if "speed" in wanted: r["speed"] = step("speed", bundle, lambda: speed(run))
    if "start" in wanted: r["start"] = step("start", bundle, lambda: start(run))
    if "graph" in wanted: r["graph"] = step("graph", [run.version, repeats], lambda: graph(run))
    if "operations" in wanted:
        r["operations"] = step("operations",
            [repeats, digest(ROOT / "sads_jax/ops/nms.py", ROOT / "sads_jax/ops/regions.py")],
            lambda: operations(run.home, repeats))
    return r


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("workdir", type=Path)
    p.add_argument(
        "--steel", type=Path, help="a finished working folder of recipes/neu_steel.yaml, for a section of its own"
    )
    p.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="WORKDIR",
        help=f"another finished working folder, for speed, start and graph (its peers are trained {BRIEF} minutes); "
            "may be repeated",
    )
    p.add_argument("--minutes", type=float, help="training time of the peers; default: what ours took")
    p.add_argument("--size", type=int, help="their input size [px]; default: as many pixels as ours")
    p.add_argument("--peers", default="yolo11n-seg,yolo26n", help="yaml names, comma-separated")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--only", help="steps to run: train, quality, speed, start, graph, operations; the page needs all")
    p.add_argument("--fresh", action="store_true", help="measure again what was measured")
    p.add_argument("--home", type=Path, default=ROOT / ".bench", help="where the peers and results live")
    args = p.parse_args()
    names = [w.resolve().name for w in (args.workdir, *args.also)]
    if len(set(names)) < len(names):
        p.error(
            "results are kept by the name of a working folder, and "
            f"{', '.join(sorted({n for n in names if names.count(n) > 1}))} is given twice: rename one"
        )
    home = args.home.absolute()
    home.mkdir(exist_ok=True)
    install(home)
    runs = [Run(args.workdir, args, home, args.minutes), *(Run(w, args, home, BRIEF) for w in args.also)]
    wanted = set((args.only or "train,quality,speed,start,graph,operations").split(","))
    results = [measure(run, wanted if run is runs[0] else wanted & {"speed", "start", "graph"}) for run in runs]
    if not args.only:
        write(page(runs, results, machine(home), args.repeats, args.steel))
        say(f"{RESULTS.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
