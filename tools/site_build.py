"""Write README.md from nbs/index.ipynb and stage the notebooks for smalldocs, without Quarto

python tools/site.py --readme           # README.md alone
python tools/site.py && smalldocs render _proc      # the site, in _proc/_docs
"""
import re
import sys

from fastcore.nbio import read_nb, render_text
from nbdev.config import get_config, nbpath2html
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs


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

def page(path):
    "`10_metrics.ipynb` -> `metrics.ipynb`, the name that links between pages expect"
    return nbpath2html(path).with_suffix('.ipynb')

def stage(cfg):
    "Fill `_proc` with processed notebooks under their pages' names, and point the sidebar at them"
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    staged = proc_nbs(force=True)
    for path in sorted(staged.rglob('*.ipynb')): path.rename(page(path))
    sidebar = staged/'sidebar.yml'
    sidebar.write_text(re.sub(r'\S+\.ipynb', lambda m: page(m[0]).as_posix(), sidebar.read_text()))

if __name__ == '__main__':
    cfg = get_config()
    (cfg.config_path/'README.md').write_text(readme(cfg))
    if '--readme' not in sys.argv[1:]: stage(cfg)
