"""Write README.md from nbs/index.ipynb and stage the notebooks for smalldocs, without Quarto

python tools/site_build.py --readme           # README.md alone
python tools/site_build.py && smalldocs render _proc      # the site, in _proc/_docs
"""
import inspect
import re
import sys
from pathlib import Path

import yaml
from fastcore import basics, docments
from fastcore.nbio import mk_cell, new_nb, read_nb, render_text, write_nb
from nbdev import processors
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

RESULTS = 'results.ipynb'  # the page of benchmarks/RESULTS.md


def cell_markdown(cell) -> str:
    "A cell of the index as Markdown: prose as it is, code in a fence with its output in another; '' if it is hidden"
    if cell.cell_type == 'markdown': return re.sub(r'\A(#\|.*\n)+', '', cell.source)
    if cell.has_directive('hide') or cell.has_directive('export') or not cell.source.strip(): return ''
    out = render_text(cell.get('outputs') or []).strip()
    blocks = [f'```python\n{cell.source}\n```'] + ([f'```\n{out}\n```'] if out else [])
    return '\n\n'.join(blocks)

def readme(cfg) -> str:
    "README.md as the index notebook has it"
    cells = read_nb(cfg.nbs_path/cfg.readme_nb).cells
    text = '\n\n'.join(filter(None, map(cell_markdown, cells))) + '\n'
    return re.sub(r'\]\((?!\w+:|#|/)', f']({cfg.nbs_path.name}/', text)  # links are relative to nbs/

def page(path:Path) -> Path:
    "`08_registry/10_bundle.ipynb` -> `08_registry/bundle.ipynb`, the name that links between pages expect"
    return path.with_name(nbpath2html(Path(path.name)).with_suffix('.ipynb').name)

def sidebar(cfg) -> dict:
    "The site's contents: single pages, the tutorials, a section for each room, in the order of the folders' numbers"
    files = sorted(f.relative_to(cfg.nbs_path) for f in nbglob(cfg.nbs_path, as_path=True))
    folders = sorted({f.parent for f in files if f.parent.name}, key=lambda d: (d.name != 'tutorials', d))
    title = lambda folder: ' / '.join(re.sub(r'^\d+_', '', part) for part in folder.parts)
    sections = [
        {'section': title(d), 'contents': [page(f).as_posix() for f in files if f.parent == d]} for d in folders
    ]
    single = [f.as_posix() for f in files if not f.parent.name and f.name != cfg.readme_nb]
    return {'website': {'sidebar': {'contents': [cfg.readme_nb, *single, RESULTS, *sections]}}}

def needed(cell) -> bool:
    "Whether a page's signatures need this cell to run: only what it exports, not tests beside an import"
    if cell.cell_type != 'code' or (cell.directives_.get('eval') or '').lower() == 'false': return False
    return bool({'export', 'exports', 'exporti', 'exec_doc'} & cell.directives_.keys() or 'show_doc(' in cell.source)

def signature(obj, *, eval_str:bool=False, **kw) -> inspect.Signature:
    "As `inspect` gives it; annotations stay as written where they name what only a type checker has imported"
    try: return inspect.signature(obj, eval_str=eval_str, **kw)
    except NameError: return inspect.signature(obj, **kw)

class fresh_show_docs(processors.exec_show_docs):
    "Runs the exported cells of each notebook beside modules that no notebook before it has touched"
    def begin(self):
        lib = get_config().lib_name
        for name in [m for m in sys.modules if m.partition('.')[0] == lib]: del sys.modules[name]
        super().begin()

def stage(cfg):
    "Fill `_proc` with processed notebooks under their pages' names, with a sidebar"
    refresh_quarto_yml()
    (cfg.nbs_path/'sidebar.yml').write_text(yaml.safe_dump(sidebar(cfg), sort_keys=False))
    processors._do_eval, processors.exec_show_docs = needed, fresh_show_docs
    docments.signature = basics.signature = signature
    staged = proc_nbs(force=True, n_workers=0)  # in this process: it has the lines above, and imports JAX once
    write_nb(new_nb([mk_cell((cfg.config_path/'benchmarks'/'RESULTS.md').read_text(), 'markdown')]), staged/RESULTS)
    link = re.compile(r'(?<=\]\()[^):"]+\.ipynb')  # in prose
    for path in sorted(staged.rglob('*.ipynb')):
        path.write_text(link.sub(lambda m: page(Path(m[0])).as_posix(), path.read_text()))
        path.rename(page(path))

if __name__ == '__main__':
    cfg = get_config()
    (cfg.config_path/'README.md').write_text(readme(cfg))
    if '--readme' not in sys.argv[1:]: stage(cfg)
