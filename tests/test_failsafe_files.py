"Outputs appear whole or not at all, and what is not ours is never removed."
import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sads_jax.cli import main as cli
from sads_jax.cli.places import keep_params, own_file
from sads_jax.core import files
from sads_jax.core.errors import BundleError, ParamsError, RegistryError, SADSError
from sads_jax.core.params import Params, SyntheticSpec, dump_params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.domains.surface.rules import rules_version
from sads_jax.models.store import save_model
from sads_jax.orchestrators import stages
from sads_jax.registry.bundle import is_bundle, set_threshold, verify_bundle, write_bundle
from sads_jax.registry.registries import MLflowRegistry, RegistryEntry

PACKAGE = Path(files.__file__).parents[1]

def toy_bundle(folder, threshold=.5):
    write_bundle(folder, weights={'detector/w': np.zeros(3, np.float32)}, programs={(192, 192): b'not run here'},
        labels=['crack'], threshold=threshold, rules_version=rules_version(Params().decision), params=Params(),
        data={'kind': 'synthetic'}, code={})
    return folder

def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob('*'))
    }

# ---------------------------------------------------------------- every place that removes or replaces is known

REMOVES = {'rmtree', 'unlink', 'rmdir', 'removedirs', 'remove', 'rename', 'renames', 'move'}
KNOWN = {  # (module, function, call) -> what keeps it from what is not ours
    ('core.files', '_end', 'shutil.rmtree'): 'a part, made and locked by this very call',
    ('core.files', '_move_in', 'place.rename'): 'moved aside; refused before by whole_folder, stages and reports',
    ('core.files', '_move_in', 'new.replace'): 'of what was built in a part',
    ('core.files', '_put_back', 'old.rename'): 'only to an empty place',
    ('core.files', 'remove', 'folder.rename'): 'refuse_foreign before',
    ('core.files', 'sweep', 'part.unlink'): 'a part by its name, that no process holds',
    ('core.files', 'sweep', 'shutil.rmtree'): 'a part by its name, that no process holds',
    ('core.files', 'write_whole', 'os.replace'): 'one file, named by its writer',
    ('core.files', 'write_whole', 'part.unlink'): 'a part, made and locked by this very call',
    ('data.connectors', '_one_scale', '(out / r.file_name).unlink'): 'in the part that whole_folder builds',
    ('data.sources', 'unused_files', 'folders.remove'): 'from a list, not from the disk',
    ('orchestrators.stages', 'evaluate_bundle', 'remove'): 'core.files.remove, in .sads/judged',
    ('orchestrators.stages', 'train', 'remove'): 'core.files.remove, in .sads/checkpoints',
    ('registry.registries', '_fetch', 'got.rename'): 'from a download, in a part, to a name in a part',
    ('serving.recorder', '_claim', 'p.rename'): 'a decision of the spool, from a folder whose lock is ours',
    ('serving.recorder', 'done', 'path.rename'): 'a decision of our spool that the store refuses, set aside',
    ('serving.recorder', 'done', 'path.unlink'): 'a decision of our spool that the store has',
    ('serving.recorder', 'done', 'self._waiting.remove'): 'from a list, not from the disk',
    ('serving.watch', '_file', 'shutil.move'): 'with --move: the photograph just judged, to a name that is free',
    ('training.loop', 'fit', 'remove'): 'core.files.remove, marked at the start'}

def removals():
    "Every call in the package that can remove, rename or replace a file or folder"
    for path in sorted(PACKAGE.rglob('*.py')):
        module = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        todo = [(ast.parse(path.read_text()), '')]
        while todo:
            node, function = todo.pop()
            for child in ast.iter_child_nodes(node):
                inside = child.name if isinstance(child, ast.FunctionDef) else function
                if isinstance(child, ast.Call):
                    said = ast.unparse(child.func)
                    name = said.rpartition('.')[2]
                    if (
                        name in REMOVES
                        or said == 'os.replace'
                        or name == 'replace'
                        and len(child.args) == 1
                        and not child.keywords
                    ):
                        yield module, inside, said
                todo.append((child, inside))

def test_every_removal_in_the_package_has_been_considered():
    found = {r for r in removals() if r[0] not in ('models.backbone', '_modidx')}  # nnx variables have a `replace` too
    assert found == set(KNOWN), found ^ set(KNOWN)

# ---------------------------------------------------------------- each of them, and each writer, with a foreign folder

def judged():
    return SimpleNamespace(metrics={}, rows=(), context={})

def fit_in(folder):
    from sads_jax.training.loop import Schedule, fit
    plan = Schedule(steps=2, batch_size=1, learning_rate=0.1, weight_decay=0.0, warmup=1, clip=1.0, ema=0.0,
        eval_every=1, patience=0)
    square, batch = lambda p, b, k: p['w']**2, {'x': np.zeros(1, np.float32)}
    fit({'w': np.zeros(())}, square, lambda step: batch, schedule=plan, seed=0, checkpoints=folder)

def reports_in(folder):
    from sads_jax.evaluation.evaluate import write_evaluation
    write_evaluation(judged(), folder)

def plots_in(folder):
    "reports/ is ours, but reports/plots is not"
    files.mark(folder.parent/'ours')
    folder.rename(folder.parent/'ours'/'plots')
    try: reports_in(folder.parent/'ours')
    finally: (folder.parent/'ours'/'plots').rename(folder)

def explorer_in(folder):
    from sads_jax.evaluation.explorer import write_explorer
    write_explorer(judged(), folder)

def report_in(folder):
    from sads_jax.evaluation.report import write_report
    write_report(judged(), folder)

WRITERS = {'remove': files.remove, 'mark': files.mark, 'whole_folder': lambda f: files.whole_folder(f).__enter__(),
    'ingest': lambda f: ingest(ConnectorFactory(SyntheticSpec(n_parts=1, size=64)), f), 'write_bundle': toy_bundle,
    'save_model': lambda f: save_model(f, 'segmenter', {}, {}, []), 'fit': fit_in, 'reports': reports_in,
    'plots': plots_in, 'explorer': explorer_in, 'report': report_in}

@pytest.mark.parametrize('name', WRITERS)
def test_a_foreign_folder_is_refused_by_name_and_left_as_it_is(tmp_path, name):
    foreign = tmp_path/'foreign'
    (foreign/'images').mkdir(parents=True)
    for f in ('images/my.png', 'ingest.json', 'manifest.json', 'metrics.json', 'model.json', '3'):
        (foreign / f).write_text('months of work')
    before = tree(tmp_path)
    with pytest.raises(SADSError, match='(foreign|plots): holds files that sads_jax did not write.*Move them away'):
        WRITERS[name](foreign)
    after = tree(tmp_path)
    assert {k: v for k, v in after.items() if k.startswith('foreign')} == before

def test_set_threshold_changes_no_folder_that_is_no_bundle(tmp_path):
    (tmp_path/'manifest.json').write_text('{"name": "my extension"}')
    with pytest.raises(BundleError): set_threshold(tmp_path, .3, {})
    assert tree(tmp_path) == {'manifest.json': b'{"name": "my extension"}'}

def test_a_sweep_takes_only_parts_that_nobody_holds(tmp_path):
    (tmp_path/'.sads-partner').mkdir()
    for name in ('.sads-part-0123abcd', '.sads-part-list'): (tmp_path/name).mkdir()
    (tmp_path/'.sads-part-abcd0123').symlink_to(tmp_path/'.sads-partner')
    with files.whole_folder(tmp_path/'alive') as new:
        assert files.sweep(tmp_path) == ['.sads-part-0123abcd'] and new.is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {'alive', '.sads-partner', '.sads-part-list', '.sads-part-abcd0123'}

def test_what_a_link_leads_to_is_not_removed_with_it(tmp_path):
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'a.png').write_text('x')
    ours = files.mark(tmp_path/'ours')
    (ours/'photos').symlink_to(tmp_path/'photos')
    files.remove(ours)
    assert not ours.exists() and (tmp_path/'photos'/'a.png').read_text() == 'x'

# ---------------------------------------------------------------- --workdir on somebody's project

THEIRS = ('data/split/folds.csv', 'data/dataset/images/1.png', 'models/detector/yolo.pt', 'bundle/main.js',
    'reports/plots/year.csv', 'reports/thesis.tex', 'params.yaml')

@pytest.mark.parametrize('theirs', THEIRS)
@pytest.mark.parametrize('command', [('run', '--until', 'split'), ('stage', 'split')], ids=' '.join)
def test_a_workdir_that_holds_somebodys_work_is_refused_before_any_work(tmp_path, monkeypatch, capsys, theirs, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('SADS_DEBUG', raising=False)
    Path('mine.yaml').write_text('data: {kind: synthetic, n_parts: 3, size: 64}\n')
    (tmp_path/'x'/theirs).parent.mkdir(parents=True)
    (tmp_path/'x'/theirs).write_text('months: of work\n')
    before = tree(tmp_path/'x')
    with pytest.raises(SystemExit) as e: cli.main([*command, '--params', 'mine.yaml', '--workdir', 'x'])
    said = capsys.readouterr().err
    named = (
        'params.yaml'
        if theirs == 'params.yaml'
        else 'reports'
        if theirs.startswith('reports')
        else '/'.join(theirs.split('/')[: 2 if theirs[0] in 'dm' else 1])
    )
    assert e.value.code == 1 and f'x/{named}: ' in said, said
    assert tree(tmp_path/'x') == before

def test_params_yaml_is_overwritten_only_as_we_wrote_it(tmp_path):
    keep_params(Params(), tmp_path)
    keep_params(Params(seed=1), tmp_path)
    assert (tmp_path/'params.yaml').read_text() == dump_params(Params(seed=1))
    (tmp_path/'params.yaml').write_text('seed: 1 # agreed\n')
    keep_params(Params(seed=1), tmp_path)
    with pytest.raises(ParamsError, match='not as sads_jax wrote it.*--params'): keep_params(Params(), tmp_path)
    assert (tmp_path/'params.yaml').read_text() == 'seed: 1 # agreed\n'

def test_out_never_costs_a_photograph(tmp_path):
    photo = tmp_path/'part.png'
    photo.write_bytes(b'\x89PNG\r\n')
    with pytest.raises(SADSError, match='part.png: is a file that this command did not write'):
        own_file(photo, r'\{"(error|file)"')
    with pytest.raises(SADSError, match='is a folder'): files.write_whole(tmp_path, 'x')

# ---------------------------------------------------------------- killed at each operation on files in turn

DIES = '''
import os, shutil, signal, sys
from pathlib import Path
from sads_jax.core import files
home = Path(sys.argv[1])
place = home/'place'

def folder(text):
    with files.whole_folder(place) as new:
        (new/'deep').mkdir()
        for name in ('a', 'deep/b'): (new/name).write_text(text)

def several(text):
    with files.whole_files(place) as new:
        (new/'deep').mkdir()
        (new/'deep'/'b').write_text(text)

def one(text): files.write_whole(place, text)

def read(): return None if not place.exists() else place.read_text() if place.is_file() else {p.name: p.read_text() for p in place.rglob('*') if p.is_file() and '.sads-part-' not in str(p)}

for what, write in (('whole_folder', folder), ('whole_files', several), ('write_whole', one), ('remove', lambda text: files.remove(place))):
    killed = bare = 0
    while True:
        shutil.rmtree(home)
        home.mkdir()
        (folder if what == 'remove' else write)('old')
        old, pid = read(), os.fork()
        if not pid:
            left = [killed]
            def die(event, args):
                if event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir') or event == 'open':
                    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
            sys.addaudithook(die)
            write('new')
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = read()
        bare += found in (None, {}) and what != 'remove'
        for folder_ in (home, place): files.sweep(folder_)
        after, new = read(), None if what == 'remove' else 'new' if what == 'write_whole' else {k: v if k == files.MARKER else 'new' for k, v in old.items()}
        assert found in (old, new, None, {}), (what, killed, found)
        assert after in (old, new), (what, killed, after)
        assert not list(home.rglob('.sads-part-*')), (what, killed)
        write('again')  # whatever it was, it can be gone on from
        if code == 0: break
        killed += 1
    print(what, killed, bare)
'''  # noqa: E501

def test_killed_at_any_operation_the_old_or_the_new_is_there(tmp_path):
    (tmp_path/'home').mkdir()
    done = subprocess.run([sys.executable, '-c', DIES, tmp_path/'home'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {k: (int(n), int(bare)) for k, n, bare in map(str.split, done.stdout.splitlines())}
    assert said.keys() == {'whole_folder', 'whole_files', 'write_whole', 'remove'} and all(
        n >= 4 for n, _ in said.values()
    )
    assert said['write_whole'][1] == 0 and all(
        bare <= 2 for _, bare in said.values()
    )  # a file is never gone; a folder only between two moves

def test_a_bundle_half_made_is_never_met(tmp_path, monkeypatch):
    bundle = toy_bundle(tmp_path/'bundle')
    first = verify_bundle(bundle)
    monkeypatch.setattr('sads_jax.registry.bundle._card', lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): toy_bundle(bundle, .7)
    with pytest.raises(ZeroDivisionError): set_threshold(bundle, .7, {})
    assert verify_bundle(bundle) == first and [p.name for p in tmp_path.iterdir()] == ['bundle']

def test_calibrate_leaves_the_old_bundle_until_the_new_one_is_finished():
    "Every step of it works on a bundle elsewhere"
    import inspect
    source = inspect.getsource(stages.calibrate)
    assert 'whole_folder(at.bundle' in source and source.count('at.bundle') == 1

# ---------------------------------------------------------------- the registry

def test_only_a_bundle_version_becomes_a_path(tmp_path, monkeypatch):
    r = MLflowRegistry(f'sqlite:///{tmp_path}/registry.db', tmp_path/'registry')
    outside = toy_bundle(tmp_path/'escaped')
    for said in ('../escaped', str(outside), '', 'C0FFEE00C0FFEE00', '0123456789abcdef/..'):
        monkeypatch.setattr(r, 'entry', lambda ref, said=said: RegistryEntry('sads', 1, said))
        with pytest.raises(RegistryError, match='is no bundle version'): r.get()

def test_a_bundle_taken_in_twice_is_the_oldest(tmp_path, monkeypatch):
    r, v = MLflowRegistry(f'sqlite:///{tmp_path}/registry.db', tmp_path/'registry'), '0123456789abcdef'
    monkeypatch.setattr(
        r,
        'list',
        lambda: [RegistryEntry('sads', 2, v), RegistryEntry('sads', 3, v),
            RegistryEntry('sads', 4, '0123ffffffffffff')],
    )
    assert r.entry(v).version == 2 and r.entry('3').version == 3
    with pytest.raises(RegistryError, match='could be any of 3'): r.entry('0123')

def test_a_server_that_sends_another_bundle_is_refused(tmp_path, monkeypatch):
    r, version = MLflowRegistry('http://localhost:1', tmp_path/'registry'), verify_bundle(toy_bundle(tmp_path/'a'))
    def call(method, *args, **kw):
        return SimpleNamespace(run_id='1') if method == 'get_model_version' else toy_bundle(Path(args[2]) / 'bundle')
    monkeypatch.setattr(r, '_call', call)
    monkeypatch.setattr(r, 'entry', lambda ref: RegistryEntry('sads', 1, 'f'*16))
    with pytest.raises(RegistryError, match=f'sent bundle {version}, but version 1 is f'): r.get()
    assert list((tmp_path/'registry').iterdir()) == []
    monkeypatch.setattr(r, 'entry', lambda ref: RegistryEntry('sads', 1, version))
    assert verify_bundle(r.get()) == version and [p.name for p in (tmp_path/'registry').iterdir()] == [version]

REGISTERS = '''
import sys
from sads_jax.registry.registries import MLflowRegistry
home, bundle = sys.argv[1:]
r = MLflowRegistry(f'sqlite:///{home}/registry.db', f'{home}/registry')
r._client.__class__  # both have loaded MLflow, and opened the database, before either goes on
e = r.register(bundle, alias='champion', metrics={'auroc': .9})
print(e.version, len(r.list()), *e.aliases)
'''

def test_two_registrations_at_once_on_a_fresh_database_are_one_version(tmp_path):
    bundle = toy_bundle(tmp_path/'bundle')
    both = [
        subprocess.Popen([sys.executable, '-c', REGISTERS, tmp_path / 'new', bundle], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for p in both:
        out, err = p.communicate()
        assert p.returncode == 0 and out.split() == ['1', '1', 'champion'], err
    r = MLflowRegistry(f'sqlite:///{tmp_path}/new/registry.db', tmp_path/'new'/'registry')
    assert r.verify('champion').version == 1 and is_bundle(r.get('champion'))
    assert json.loads((r.get('champion')/'metrics.json').read_text()) == {'auroc': .9}
