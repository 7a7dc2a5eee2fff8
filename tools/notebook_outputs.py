"""Run notebooks and keep what their display cells show, small and the same in every run

python tools/notebook_outputs.py [notebook or folder ...]           runs them and writes their outputs
python tools/notebook_outputs.py --again [notebook or folder ...]   runs them, writes nothing, names what differs
python tools/notebook_outputs.py --check [notebook or folder ...]   runs nothing, names what is missing or too large

A display cell prints, plots with `plt`, calls `display`, or ends in an expression. These do not count: cells that
are exported, hidden (`#| hide`) or not run; an expression that a `;` ends; a call of `test_eq` and its kin, or of
a command in COMMANDS. What teaches nothing is assigned or ends in `;`, and then keeps no output.
"""
import argparse
import ast
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
import tokenize
from pathlib import Path

from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.test import nb_test_cells
from PIL import Image
from test_notebooks import in_own_processes, notebooks

PICTURE_BYTES = 60_000  # of a picture, or of HTML
TEXT_LINES, TEXT_CHARACTERS = 40, 4_000
COMMANDS = {'print', 'expect_fail', 'cleanup', 'close', 'unlink', 'mkdir', 'rmtree', 'write_text', 'write_bytes',
            'append', 'extend', 'update', 'clear'}  # names of calls whose value nobody reads
TIMES = re.compile(r'\d+(?:\.\d+)? ?(?:ns|µs|ms|s|min|seconds|minutes|[a-z]+/s)\b')


# -- Which cells show something

def executed(node:ast.AST):
    "The nodes below `node` that run when it runs: not the bodies of functions and classes"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda): continue
        yield child
        yield from executed(child)

def called(node:ast.AST) -> str:
    "Dotted name of what a call calls, '' for anything else"
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ''

def silenced(source:str) -> bool:
    "Whether the last token before comments is a semicolon"
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skip]
    return bool(tokens) and tokens[-1].string == ';'

def shows(source:str) -> bool:
    "Whether a cell prints, plots or ends in an expression whose value is worth seeing"
    tree = ast.parse(source)
    calls = [node for node in executed(tree) if isinstance(node, ast.Call)]
    names = [called(node) for node in calls]
    prints = [c for c in calls if called(c) == 'print' and not any(k.arg == 'file' for k in c.keywords)]
    if prints or 'display' in names: return True
    if any(n.startswith('plt.') for n in names) and 'plt.close' not in names: return True
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or silenced(source): return False
    name = called(last.value).rpartition('.')[2]
    return not (name.startswith('test_') or name in COMMANDS or isinstance(last.value, ast.Constant))

def display_cells(path:Path) -> list[str]:
    "Ids of the cells of a notebook that run and show something"
    quiet = ('export', 'exports', 'exporti', 'hide', 'default_exp')
    cells = nb_test_cells(path, get_config().tst_flags)
    return [c.id for c in cells if not any(c.has_directive(d) for d in quiet) and shows(c.source)]


# -- Outputs, small and without what changes from run to run

def encoded(picture:Image.Image, kind:str, scale:float, colours:int|None) -> bytes:
    "A picture as a file of this kind, resized, with at most so many colours"
    size = max(1, round(picture.width*scale)), max(1, round(picture.height*scale))
    if scale != 1: picture = picture.resize(size, Image.Resampling.LANCZOS)
    if colours: picture = picture.quantize(colours, dither=Image.Dither.NONE)
    out = io.BytesIO()
    if kind == 'image/jpeg': picture.save(out, 'JPEG', quality=80)
    else: picture.save(out, 'PNG', optimize=True)
    return out.getvalue()

def small_picture(data:bytes, kind:str) -> bytes:
    "The picture in at most PICTURE_BYTES: fewer colours first, then fewer pixels; no note on what program made it"
    if kind == 'image/jpeg' and len(data) <= PICTURE_BYTES: return data
    picture = Image.open(io.BytesIO(data)).convert('RGB')
    few = None if kind == 'image/jpeg' else 256
    for scale, colours in ((1, None), (1, few), (.8, few), (.64, few), (.5, few), (.35, few), (.2, few)):
        small = encoded(picture, kind, scale, colours)
        if len(small) <= PICTURE_BYTES: break
    return small

def short_text(text:str) -> str:
    "At most TEXT_LINES lines and TEXT_CHARACTERS characters, and how much was left out"
    lines, kept = text.splitlines(), []
    for line in lines[:TEXT_LINES - 1]:
        if sum(map(len, kept)) + len(line) > TEXT_CHARACTERS - 100: break
        kept.append(line)
    if len(lines) <= TEXT_LINES and len(text) <= TEXT_CHARACTERS: return text
    return '\n'.join([*kept, f'… {len(lines) - len(kept)} more lines'])

def nameless(text:str, places:dict[str, str]) -> str:
    "Text without addresses of objects and folders of this machine"
    for place, name in places.items(): text = re.sub(re.escape(place) + r'(/tmp\w{8})?/?', name, text)
    return re.sub(r' at 0x[0-9a-fA-F]+', '', text)

def tidy_output(output:dict, places:dict[str, str]) -> dict|None:
    "An output as it is kept; None for standard error and for what may not be kept"
    text_of = lambda t: nameless(t if isinstance(t, str) else ''.join(t), places)
    if output['output_type'] == 'stream':
        if output['name'] != 'stdout': return None
        return {'name': 'stdout', 'output_type': 'stream', 'text': short_text(text_of(output['text'])).splitlines(True)}
    data = {}
    for kind, value in output.get('data', {}).items():
        if kind in ('image/png', 'image/jpeg'):
            small = small_picture(base64.b64decode(''.join(value)), kind)
            data[kind] = base64.b64encode(small).decode()
        elif kind in ('text/html', 'image/svg+xml'):
            text = text_of(value)
            if len(text.encode()) <= PICTURE_BYTES: data[kind] = text.splitlines(True)
        elif kind in ('text/plain', 'text/markdown'): data[kind] = short_text(text_of(value)).splitlines(True)
    kept = {'data': data, 'metadata': {}, 'output_type': output['output_type']}
    return kept | ({'execution_count': None} if output['output_type'] == 'execute_result' else {})

def tidy(outputs:list[dict], places:dict[str, str]) -> list[dict]:
    "The outputs of a cell as they are kept"
    return [t for o in outputs if o['output_type'] != 'error' and (t := tidy_output(o, places))]

def alike(old:list, new:list) -> bool:
    "Whether two outputs differ in nothing but times"
    masked = lambda outputs: TIMES.sub('·', json.dumps(outputs, sort_keys=True, ensure_ascii=False))
    return masked(old) == masked(new)


# -- Running a notebook

def shown(path:Path) -> dict[str, list]:
    "Outputs of each display cell, by id; RuntimeError with the traceback where a cell fails"
    cfg = get_config()
    runs, displays = {c.id for c in nb_test_cells(path, cfg.tst_flags)}, display_cells(path)
    notebook = NBProcessor(path, rm_directives=False, process=True).nb
    os.environ['IN_TEST'] = '1'
    with tempfile.TemporaryDirectory() as place, working_directory(path.parent):
        os.environ['TMPDIR'] = tempfile.tempdir = place
        places = {place: 'tmp/', str(cfg.config_path): '', str(Path.home()): '~/'}
        shell = CaptureShell(path, mpl_format='png', profile=False)
        try: shell.run_all(notebook, exc_stop=True, preproc=lambda cell: cell.id not in runs, cell_timeout=600)
        except Exception as e: raise RuntimeError(shell.prettytb(fname=path) or str(e)) from e
    return {c.id: tidy(json.loads(json.dumps(c.outputs)), places) for c in notebook.cells if c.id in displays}

def renew(path:Path) -> tuple[float, dict[str, list], str]:
    "Seconds that a notebook took, what its display cells show now where that is new, and how it failed"
    start = time.time()
    sys.path.insert(0, str(get_config().config_path))
    try: found = shown(path)
    except RuntimeError as e: return time.time() - start, {}, str(e)
    return time.time() - start, {id: outs for id, outs in found.items() if not alike(kept(path)[id], outs)}, ''

def kept(path:Path) -> dict[str, list]:
    "Outputs that each code cell of a notebook has now, by id"
    return {c['id']: c['outputs'] for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code'}

def write(path:Path, new:dict[str, list]) -> bool:
    "Put new outputs into a notebook and take them from cells that display nothing; whether that changed it"
    text, displays = path.read_text(), display_cells(path)
    tree = json.loads(text)
    for cell in tree['cells']:
        if cell['cell_type'] != 'code': continue
        cell['outputs'] = new.get(cell['id'], cell['outputs']) if cell['id'] in displays else []
    changed = json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
    if changed != text: path.write_text(changed)
    return changed != text


# -- Checking

def too_large(output:dict) -> str:
    "What is wrong with the size or the kind of an output; '' for nothing"
    if output['output_type'] == 'error': return 'is an error'
    if output['output_type'] == 'stream' and output['name'] != 'stdout': return 'is of standard error'
    texts = {'text': output['text']} if 'text' in output else output['data']
    for kind, value in texts.items():
        text = value if isinstance(value, str) else ''.join(value)
        if kind in ('image/png', 'image/jpeg'): size, most = len(base64.b64decode(text)), PICTURE_BYTES
        elif kind in ('text/html', 'image/svg+xml'): size, most = len(text.encode()), PICTURE_BYTES
        else: size, most = max(len(text), len(text.splitlines())*TEXT_CHARACTERS//TEXT_LINES), TEXT_CHARACTERS
        if size > most: return f'is too large ({kind}: {size} of {most})'
    return ''

def problems(path:Path) -> list[str]:
    "Each display cell without output, each output elsewhere, each output over the limit"
    outputs, displays, found = kept(path), display_cells(path), []
    for id, outs in outputs.items():
        if id in displays and not outs: found.append(f'{id}: a display cell without output')
        if id not in displays and outs: found.append(f'{id}: an output of a cell that displays nothing')
        found += [f'{id}: an output {wrong}' for o in outs if (wrong := too_large(o))]
    return found

def check(files:list[Path]) -> int:
    "Print what is wrong with the kept outputs; the number of problems"
    root, number = get_config().nbs_path, 0
    for path in files:
        for text in problems(path):
            number += 1
            print(f'{path.relative_to(root)}:{text}')
    print(f'{len(files)} notebooks, {number} problems with their outputs')
    return number

def refresh(files:list[Path], again:bool) -> int:
    "Run notebooks; write what is new, or with `again` only name it; the number of problems"
    root, number = get_config().nbs_path, 0
    for path, (seconds, new, failure) in in_own_processes(renew, files):
        name = path.relative_to(root)
        if failure: print(f'FAILED {seconds:4.0f} s  {name}\n{failure}', file=sys.stderr)
        elif again: print(f'{len(new):2} new outputs {seconds:4.0f} s  {name}', *sorted(new), flush=True)
        else: print(f'{"wrote" if write(path, new) else "as it was"} {seconds:4.0f} s  {name}', flush=True)
        number += bool(failure) or again*len(new)
    return number if again else number + check(files)

def main(args:list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*')
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--again', action='store_true')
    given = parser.parse_args(args)
    os.environ |= {'PYTHONHASHSEED': '0', 'COLUMNS': '100'}  # the order of sets and the width of tables
    files = notebooks(given.notebooks)
    return min(1, check(files) if given.check else refresh(files, given.again))

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
