"The shape of the package: floors, cycles, light imports, docstrings, and modules that are what their notebooks say."
import ast
import filecmp
import graphlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'sads_jax'
FLOOR = {'core': 0, 'ops': 1, 'data': 1, 'models': 1, 'training': 2, 'inference': 2, 'domains': 3,
         'evaluation': 4, 'registry': 4, 'serving': 5, 'deployment': 5, 'orchestrators': 6, 'cli': 7, 'api': 8,
         'client': 1}

# What serving must live without (pyproject's base + `serve` extra has none of it)
TRAINING_STACK = {'flax', 'optax', 'orbax', 'sklearn', 'matplotlib', 'dvc', 'wandb', 'nbdev'}


def name_of(path:Path) -> str:
    "Dotted name of a module file"
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)

FILES = {name_of(p): p for p in sorted(PACKAGE.rglob('*.py')) if p.name != '_modidx.py'}
MODULES = {name: ast.parse(p.read_text()) for name, p in FILES.items()}

def imports(name:str, tree=None) -> set[str]:
    "Modules of this package that `name` imports, at its top or inside a function"
    found = set()
    package = name if FILES[name].name == '__init__.py' else name.rpartition('.')[0]
    for node in ast.walk(tree or MODULES[name]):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split('.')
            base = (
                '.'.join(up[: len(up) - node.level + 1] + ([node.module] if node.module else []))
                if node.level
                else node.module
            )
            found |= {base} | {f'{base}.{a.name}' for a in node.names}
    return {m for m in found if m in FILES and m != 'sads_jax' and m != name}

def room(name:str) -> str: return (name.split('.') + [''])[1]

GRAPH = {name: imports(name) for name in FILES}


# -- Floors

def test_every_room_has_a_floor():
    assert {room(m) for m in FILES} - {''} <= set(FLOOR)

def test_no_cycle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # CycleError names the cycle

def test_imports_go_down_or_stay_in_the_room():
    wrong = [f'{a} -> {b}' for a, bs in GRAPH.items() for b in sorted(bs)
             if room(a) and room(a) != room(b) and FLOOR[room(b)] >= FLOOR[room(a)]]
    assert not wrong, wrong

def test_the_check_itself_sees_upward_and_lazy_imports():
    tree = ast.parse(
        'def f():\n    from ..cli import main\n    import sads_jax.core.types\n    from sads_jax.core import errors'
    )
    assert imports('sads_jax.core.params', tree) >= {'sads_jax.core.types', 'sads_jax.core.errors'}
    assert ('sads_jax.cli.main' in imports('sads_jax.core.params', tree)) == ('sads_jax.cli.main' in FILES)

def test_modules_are_a_sitting_long():
    "Statements are counted, not lines: packing several into one line pays nothing"
    sizes = {m: sum(isinstance(n, ast.stmt) for n in ast.walk(MODULES[m])) for m in FILES}
    long = {m: n for m, n in sizes.items() if n > 550}
    assert not long, long

def test_functions_fit_a_screen():
    long = [f'{m}.{n.name}: {n.end_lineno - n.lineno + 1} lines' for m, tree in MODULES.items() for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.end_lineno - n.lineno >= 60]
    assert not long, long

def cells():
    "(notebook, cell, source) of the code of every notebook"
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for c in json.loads(path.read_text())['cells']:
            if c['cell_type'] == 'code': yield path.relative_to(ROOT/'nbs').as_posix(), c['id'], ''.join(c['source'])

def test_lines_of_notebooks_fit_a_screen():
    "ruff looks at the rest; in a module it would also meet what nbdev writes"
    wide = [f'{path} {cell}: {line[:60]}' for path, cell, text in cells() for line in text.splitlines()
        if len(line) > 120]
    assert not wide, wide

def test_cells_fit_a_screen():
    "Sixty lines; a class stands in one cell, however long its protocol makes it"
    tall = [f'{path} {cell}' for path, cell, text in cells() if len(text.splitlines()) > 60
        and not any(isinstance(n, ast.ClassDef) and n.end_lineno - n.lineno > 40 for n in ast.parse(text).body)]
    assert not tall, tall

def test_no_private_name_crosses_modules():
    ours = lambda n: n.level or (n.module or '').startswith('sads_jax')
    seen = [f'{m}: {a.name}' for m, tree in MODULES.items() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
        and ours(n) for a in n.names if a.name.startswith('_') and not a.name.startswith('__')]
    assert not seen, seen

DOMAIN_FREE = 'registry', 'serving', 'evaluation', 'orchestrators'

def test_shared_rooms_know_no_domain_by_name():
    seen = [f'{m} -> {b}' for m, bs in GRAPH.items() if room(m) in DOMAIN_FREE for b in bs
        if room(b) == 'domains' and b not in ('sads_jax.domains', 'sads_jax.domains.base')]
    assert not seen, seen


# -- What an import costs

def loaded_by(module:str) -> set[str]:
    "Top-level packages in `sys.modules` of a fresh interpreter after `import module`"
    code = f'import {module}, sys; print(*{{m.partition(".")[0] for m in sys.modules}})'
    return set(
        subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
    )

def test_sads_jax_itself_is_light():
    assert not loaded_by('sads_jax') & (TRAINING_STACK | {'jax', 'numpy', 'pydantic'})

LIGHT = [
    m
    for m in FILES
    if room(m) == 'core' or m == 'sads_jax.cli.main' or m in ('sads_jax.data.images', 'sads_jax.data.records')
]

def test_core_cli_and_reading_images_do_not_import_jax():
    heavy = loaded_by(', '.join(LIGHT)) & (TRAINING_STACK | {'jax'})
    assert not heavy, heavy

def test_judging_with_another_runtime_does_not_import_jax():
    heavy = loaded_by(
        'sads_jax.inference.onnx, sads_jax.domains.surface.pipeline, sads_jax.domains.surface.tiling, '
        'sads_jax.registry.bundle'
    ) & (TRAINING_STACK | {'jax'})
    assert not heavy, heavy

def test_serving_does_without_the_training_stack():
    served = [
        m
        for m in FILES
        if room(m) in ('ops', 'inference', 'domains', 'serving')
        and FILES[m].name != '__init__.py'
        or m in ('sads_jax.registry.bundle', 'sads_jax.data.images')
    ]
    heavy = loaded_by(', '.join(served)) & TRAINING_STACK
    assert not heavy, heavy


# -- Every public name explains itself

def public(name:str):
    "The functions and classes in the module's `__all__`, and the public methods of those classes"
    tree = MODULES[name]
    exported = next((ast.literal_eval(n.value) for n in tree.body
                     if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name not in exported: continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for m in node.body:
                if isinstance(m, ast.FunctionDef) and not m.name.startswith('_'): yield f'{node.name}.{m.name}', m

def spoken(name:str, node) -> str:
    "What a reader is told of a function: its signature with the comments beside it, and the docstring"
    lines = FILES[name].read_text().splitlines()
    first_statement = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return '\n'.join(lines[node.lineno - 1:max(first_statement.lineno, node.lineno + 1)])

def overloaded(node) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr == 'setter' for d in node.decorator_list)

@pytest.mark.parametrize('name', [m for m in FILES if FILES[m].name != '__init__.py'])
def test_public_names_have_docstrings(name):
    missing = [n for n, node in public(name) if not ast.get_docstring(node) and not overloaded(node)]
    assert not missing, missing

ARRAYS = re.compile(r'\b(ndarray|Array|jnp|np)\b')
SHAPE = re.compile(r'\[[^\]]*[A-Z0-9.*][^\]]*\]|scalar|same shape|""|" b', re.I)

@pytest.mark.parametrize('name',
    [m for m in FILES if room(m) in ('ops', 'models', 'inference')] + ['sads_jax.data.images', 'sads_jax.data.augment'])
def test_array_functions_name_their_shapes(name):
    silent = []
    for n, node in public(name):
        if not isinstance(node, ast.FunctionDef): continue
        hints = (
            ' '.join(ast.unparse(a.annotation) for a in node.args.args + node.args.kwonlyargs if a.annotation)
            + ' '
            + (ast.unparse(node.returns) if node.returns else '')
        )
        if ARRAYS.search(hints) and not SHAPE.search(spoken(name, node)): silent.append(n)
    assert not silent, silent


# -- Notebooks are the source

def test_modules_are_what_the_notebooks_say(tmp_path):
    copy = tmp_path/'repo'
    copy.mkdir()
    for d in ('nbs', 'sads_jax'):
        shutil.copytree(ROOT / d, copy / d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.sads'))
    for f in ('pyproject.toml', 'README.md'): shutil.copy(ROOT/f, copy/f)
    for p in copy.glob('sads_jax/**/*.py'):
        if '# AUTOGENERATED!' in p.read_text(): p.unlink()
    subprocess.run([Path(sys.executable).parent / 'nbdev-export'], cwd=copy, check=True, capture_output=True,
        env=os.environ | {'PYTHONPATH': str(copy)})
    ours, theirs = ({p.relative_to(r/'sads_jax') for p in (r/'sads_jax').rglob('*.py')} for r in (ROOT, copy))
    assert ours == theirs
    stale = [str(p) for p in sorted(ours) if not filecmp.cmp(PACKAGE/p, copy/'sads_jax'/p, shallow=False)]
    assert not stale, f'{stale}: run `make prepare`'


def test_conventions_written_in_a_notebook_reach_the_docstring():
    "A markdown cell that has lost the first sign of its mark would stay on the page and leave the module silent"
    lost = [
        str(p.relative_to(ROOT))
        for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))
        if re.search(r'^ *"\| export', p.read_text(), re.M)
    ]
    assert not lost, lost


# -- params.yaml and the factories know the same kinds

def kinds(union) -> set[str]:
    return {m.model_fields['kind'].default for m in typing.get_args(typing.get_args(union)[0])}

def test_every_kind_in_the_schema_has_a_builder():
    from sads_jax.core.params import AnomalySpec, DataSpec, NameTrainerSpec
    from sads_jax.data.connectors import ConnectorFactory
    from sads_jax.training.anomaly import AnomalyFactory
    from sads_jax.training.trainers import TrainerFactory
    assert set(ConnectorFactory) == kinds(DataSpec)
    assert set(TrainerFactory) == kinds(NameTrainerSpec)
    assert set(AnomalyFactory) == kinds(AnomalySpec)
