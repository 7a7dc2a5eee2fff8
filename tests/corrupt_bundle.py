"""Damage a bundle in random ways, and see that it is refused or judges as before, and that nothing crashes

    python tests/corrupt_bundle.py 10000

Each child process takes 250; one that ends otherwise than with 0 is a crash, one that is silent for minutes a hang.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HOW = 'flip', 'truncate', 'append', 'overwrite', 'swap', 'delete', 'duplicate'
SEALED = (
    'as it is',
    'sealed',
    'bound',
)  # bound: the golden answers are told of the new files, too, as only an adversary would
SHARE = .6, .3, .1
SILENT_S = 300


def files_of(folder): return sorted(p for p in folder.rglob('*') if p.is_file() and p.name != 'manifest.json')

def pick(rng, folder):
    "A file; programs, weights and decisions are as likely as photographs"
    kinds = {}
    for p in files_of(folder): kinds.setdefault((p.parent.name, p.suffix), []).append(p)
    group = kinds[sorted(kinds)[rng.integers(len(kinds))]]
    return group[rng.integers(len(group))]

def damage(folder, rng) -> tuple[str, str, str]:
    "One damage: what was done, to which file, and what was sealed again"
    how, sealed, path = HOW[rng.integers(len(HOW))], str(rng.choice(SEALED, p=SHARE)), pick(rng, folder)
    if sealed == 'as it is' and rng.random() < .1: path = folder/'manifest.json'
    data = bytearray(path.read_bytes())
    if how == 'flip':
        for _ in range(rng.integers(1, 9)): data[rng.integers(max(len(data), 1))] ^= 1 << int(rng.integers(8))
    elif how == 'truncate': data = data[:rng.integers(len(data))]
    elif how == 'append': data += rng.bytes(int(rng.integers(1, 64)))
    elif how == 'overwrite':
        at = int(rng.integers(len(data)))
        data[at:at+16] = rng.bytes(16)
    if how in ('flip', 'truncate', 'append', 'overwrite'): path.write_bytes(data)
    elif how == 'delete': path.unlink()
    else:
        other = pick(rng, folder)
        theirs = other.read_bytes()
        if how == 'swap': path.write_bytes(theirs)
        else: other = path.with_name(f'copy-{path.name}') if rng.random() < .5 else other
        other.write_bytes(data)
    reseal(folder, sealed)
    return how, path.relative_to(folder).as_posix(), sealed

def reseal(folder, sealed):
    "As somebody would who knows the format"
    from sads_jax.registry import bundle as B
    if sealed == 'as it is': return
    if sealed == 'bound' and (folder/'golden').is_dir():
        files = {k: B._entry(p) for k, p in B.bundle_files(folder).items() if k not in ('manifest.json', *B._ATTACHED)}
        (folder/'golden'/'answered.json').write_text(B.manifest_text({'by': B.answering(files)}))
    B.seal_bundle(folder)

def outcome(folder, settings) -> str:
    from sads_jax.core.errors import GoldenError, SADSError
    from sads_jax.registry.golden import prove_bundle
    try: prove_bundle(folder, settings)
    except GoldenError: return 'refused, judged otherwise'
    except SADSError as e: return 'refused' if e.remedy and '\n' not in str(e) else f'a poor error: {e}'[:500]
    except Exception as e: return f'traceback: {type(e).__name__}: {e}'[:500]
    return 'identical'

def child(base, first, last, seed):
    "Damage and judge copies number `first` to `last`, one line of JSON each"
    from sads_jax.core.settings import Settings
    settings = Settings(cache_dir=Path(base).parent/'cache')
    for i in range(first, last):
        with tempfile.TemporaryDirectory(prefix='corrupt-') as d:
            folder = Path(shutil.copytree(base, Path(d)/'bundle'))
            print(json.dumps([i, *damage(folder, np.random.default_rng([seed, i]))]), flush=True)
            print(json.dumps([i, outcome(folder, settings)]), flush=True)

def run(base, n, seed=0, each=250) -> Counter:
    "(what was sealed, what was done, what came out) -> how often"
    found, i, crashes = Counter(), 0, []
    while i < n:
        last = min(i + each, n)
        try:
            done = subprocess.run([sys.executable, __file__, 'child', str(base), str(i), str(last), str(seed)],
                capture_output=True, text=True, timeout=SILENT_S + each)
        except subprocess.TimeoutExpired as e:
            done = subprocess.CompletedProcess([], 'hang', (e.stdout or b'').decode(), '')
        what = {}
        for line in done.stdout.splitlines():
            k, *rest = json.loads(line)
            if len(rest) == 3: what, i = {k: rest}, k
            else:
                how, path, sealed = what.pop(k)
                found[sealed, how, rest[0]] += 1
                if rest[0] not in ('refused', 'refused, judged otherwise', 'identical'):
                    crashes.append((k, how, path, sealed, rest[0]))
                i = k + 1
        if what or done.returncode:
            (how, path, sealed), = what.values() or [('start', '', '')]
            found[sealed, how, f'crash {done.returncode}'] += 1
            crashes.append((i, how, path, sealed, f'ended with {done.returncode}', done.stderr[-600:]))
            i += 1
        else: i = last
    for c in crashes: print(*c)
    return found

def make(folder):
    "A small real bundle with golden answers of all kinds"
    sys.path.insert(0, str(HERE))
    import dark_cascade as dark

    from sads_jax.core.settings import Settings
    from sads_jax.registry import bundle as B
    folder = Path(folder)
    dark.bundle(folder, dark.params('evaluate.golden=3'))
    settings = Settings(cache_dir=folder.parent/'cache')
    pipeline = B.load_pipeline(folder, settings=settings, cache_dir=settings.cache_dir/'programs')
    B.write_golden(
        folder,
        pipeline,
        [dark.photo(folder.parent / 'bad.png'), dark.photo(folder.parent / 'good.png', dark=False),
            dark.photo(folder.parent / 'wide.png', size=(120, 50))],
    )
    B.attach_metrics(folder, {'images': {'auroc': .9}})
    return folder

def table(found) -> str:
    lines = []
    for sealed in SEALED:
        for how in HOW:
            said = {k[2]: n for k, n in sorted(found.items()) if k[:2] == (sealed, how)}
            lines.append(
                f"{sealed:9} {how:10} {sum(said.values()):6}   " + ', '.join(f'{k} {n}' for k, n in said.items())
            )
    total = Counter()
    for (_, _, said), n in found.items(): total[said] += n
    return '\n'.join([*lines, f'all {sum(total.values())}: ' + ', '.join(f'{k} {n}' for k, n in sorted(total.items()))])

if __name__ == '__main__':
    if sys.argv[1] == 'child': child(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        with tempfile.TemporaryDirectory() as d:
            found = run(make(Path(d)/'bundle'), int(sys.argv[1]), int(os.environ.get('SEED', 0)))
            print(table(found))
