"""Kill the stages at random moments, and see what is left

    git clone . /tmp/kill
    python tests/kill_stages.py /tmp/kill --times 200

In the clone the networks are stood in for by those of fake_line.py, so that a stage takes seconds; reading,
splitting, the training loop with its checkpoints, export, bundle, judging, reports and registry are the real ones.
With --real the networks are too: then first `python tools/small_params.py > p; mv p params.yaml; dvc repro` in the
clone.

Every trial runs one stage, with parameters other than those of the finished folder, and sends it kill -9: at a random
time, or at a random one of its operations on files. Each output must then be the old one or the new one, whole; where
it is gone, the old one must be back after a sweep. `dvc repro` must end with the hashes that the folder began with,
and the registry must hold one version, whole, that is the champion. """
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import dark_cascade
import fake_line

import sads_jax.evaluation.explorer  # noqa: F401, and below: imported before the forks, so that no trial waits for it
import sads_jax.inference.export  # noqa: F401
import sads_jax.inference.parity  # noqa: F401
import sads_jax.training.loop  # noqa: F401
from sads_jax.core.files import sweep
from sads_jax.core.params import dump_params, load_params
from sads_jax.core.settings import load_settings
from sads_jax.orchestrators import training
from sads_jax.orchestrators.project import stage_graph
from sads_jax.registry.bundle import verify_bundle
from sads_jax.registry.registries import MLflowRegistry

OTHER = {'ingest': 'data.n_parts=20', 'split': 'split.seed_offset=1',
    'train-detector': 'detector.trainer.learning_rate=0.002',
    'train-segmenter': 'segmenter.trainer.learning_rate=0.002', 'train-classifier': 'classifier.context=1.6',
    'anomaly': 'anomaly.shrinkage=0.3', 'calibrate': 'decision.review_margin=0.4', 'evaluate': 'evaluate.gallery=2',
    'register': 'seed=0'}

def outputs(s) -> list[str]:
    "What a stage of dvc.yaml writes"
    return [next(iter(o)) for o in s.get('outs', []) + s.get('metrics', [])]

OUTS = {name: outputs(s) for name, s in stage_graph().items() if name != 'code'}

def look(place:Path) -> str|None:
    "Hash of a file, or of all names and contents of a folder; None if there is none"
    if not place.exists(): return None
    files = [place] if place.is_file() else sorted(p for p in place.rglob('*') if p.is_file())
    return hashlib.sha256(
        b''.join(str(p.relative_to(place)).encode() + hashlib.sha256(p.read_bytes()).digest() for p in files)
    ).hexdigest()[:12]

def looks(stage=None) -> dict[str, str|None]:
    "Hashes of the outputs of one stage, or of all"
    return {o: look(Path(o)) for name, outs in OUTS.items() if stage in (None, name) for o in outs}

def forked(work) -> int:
    "Run `work` in a process group of its own; its process id"
    pid = os.fork()
    if pid: return pid
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        work()
        os._exit(0)
    except BaseException as e:
        print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
        os._exit(1)

def ended(pid) -> int: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def on_operation(do):
    "Call `do` before every operation on files that changes something"
    changes = 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree'
    def heard(event, args):
        if event in changes or event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            do()
    sys.addaudithook(heard)

def run_stage(name):
    "One stage with other parameters"
    settings = load_settings().model_copy(update={'progress': 'none', 'tracking': 'disabled'})
    stage, _, task = name.partition('-')
    training.compose_training(load_params('params.yaml', [OTHER[name]]), settings).stage(stage, task or None)

def counted(name) -> tuple[int, float]:
    "Operations on files and seconds that a stage takes"
    note, begun, seen = Path('.sads/operations'), time.monotonic(), []
    def work():
        on_operation(lambda: seen.append(1))
        run_stage(name)
        note.write_text(str(len(seen)))
    assert ended(forked(work)) == 0, f'{name} does not run'
    return int(note.read_text()), time.monotonic() - begun

def killed(name, after_s=None, at=None) -> int:
    "Run a stage and kill it, after some time or at an operation on files; its exit code, 0 if it was faster"
    left = iter(range(at or 0))
    def work():
        if at is not None: on_operation(lambda: next(left, None) is not None or os.kill(os.getpid(), signal.SIGKILL))
        run_stage(name)
    pid = forked(work)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    return ended(pid)

def repro() -> None:
    "dvc repro, in a process of its own"
    def work():
        from dvc.cli import main
        os._exit(main(['repro', '-q']))
    assert ended(forked(work)) == 0, 'dvc repro failed'

def registry() -> list[tuple]:
    "What the registry holds, every bundle verified"
    entries = MLflowRegistry().list()
    for e in entries: verify_bundle(f'.sads/registry/{e.bundle_version}')
    return [(e.version, e.bundle_version, e.aliases) for e in entries]

def check_outputs(name, begin, new) -> str:
    "What a killed stage left, in words; AssertionError if that is neither the old nor the new"
    found = looks(name)
    gone = [o for o, h in found.items() if h is None]
    for place in {Path(o).parent for o in gone}: sweep(place)
    after = looks(name)
    assert not (bad := [o for o, h in after.items() if h not in (begin[o], new[o])]), f'neither old nor new: {bad}'
    assert not (touched := [o for o, h in looks().items() if o not in after and h != begin[o]]), f'touched {touched}'
    old = {o: begin[o] for o in after}
    return 'back after a sweep' if gone else 'old' if after == old else 'new' if after == new else 'some old, some new'

def check_registry(version) -> None:
    "One version, whole, the champion, once the stage has run again"
    assert ended(forked(lambda: run_stage('register'))) == 0
    assert ended(forked(lambda: Path('.sads/entries').write_text(json.dumps(registry())))) == 0
    found = json.loads(Path('.sads/entries').read_text())
    assert found == [[1, version, ['champion']]], f'the registry: {found}'

def prepare(workdir) -> None:
    "Stand-ins here, and in the `sads` that DVC calls in this folder; a finished run of them"
    fake_line.install()
    home = Path(__file__).parent.absolute()
    stub = workdir.absolute()/'bin'/'sads'
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(
        f'#!/bin/sh\nPYTHONPATH={workdir.absolute()}:{home} exec {sys.executable} {home}/fake_line.py "$@"\n'
    )
    stub.chmod(0o755)
    os.environ['PATH'] = f'{stub.parent}{os.pathsep}{os.environ["PATH"]}'
    (workdir/'params.yaml').write_text(dump_params(dark_cascade.params()))

def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('workdir', type=Path)
    args.add_argument('--times', type=int, default=200)
    args.add_argument('--seed', type=int, default=0)
    args.add_argument('--stages', default=','.join(OUTS), help='only these')
    args.add_argument('--real', action='store_true', help='real networks, in a folder where `dvc repro` has run')
    args = args.parse_args()
    if not args.real: prepare(args.workdir)
    os.chdir(args.workdir)
    if not args.real: repro()
    rng, names, seen = random.Random(args.seed), args.stages.split(','), Counter()
    begin, version = looks(), json.loads(Path('reports/registered.json').read_text())['bundle']
    assert None not in begin.values(), 'run `dvc repro` there first'
    facts = {}
    for name in names:
        facts[name] = *counted(name), looks(name)
        print(f'{name}: {facts[name][0]} operations on files, {facts[name][1]:.0f} s', flush=True)
        repro()
        assert looks() == begin, f'dvc repro after {name} ended otherwise'
    for trial in range(args.times):
        name = rng.choice(names)
        operations, seconds, new = facts[name]
        if name == 'register' and rng.random() < .5:  # from a registry that is not there yet
            shutil.rmtree('.sads/registry')
            Path('.sads/registry.db').unlink()
        how = {'after_s': rng.uniform(.01, seconds)} if rng.random() < .5 else {'at': rng.randrange(operations)}
        code = killed(name, **how)
        state = check_outputs(name, begin, new)
        repro()
        assert looks() == begin, 'dvc repro ended otherwise'
        if name == 'register': check_registry(version)
        seen[state] += 1
        seen['killed' if code == -signal.SIGKILL else 'faster'] += 1
        print(f'{trial + 1}: {name} {how}, exit {code}: {state}', flush=True)
    left = [str(p) for p in Path('.').rglob('.sads-part-*')]
    print(f'{args.times} kills: {dict(seen)}; parts left over: {left or "none"}')

if __name__ == '__main__': main()
