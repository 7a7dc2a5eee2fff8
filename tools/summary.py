"The figures of reports/metrics.json that a person asks for first, and where the report is."
import json
from pathlib import Path

from sads_jax.evaluation.evaluate import summary

REPORTS = Path('reports')

def rows() -> list[tuple[str, str]]:
    "Name and value, from what the last run wrote"
    return summary(json.loads((REPORTS/'metrics.json').read_text()))

if __name__ == '__main__':
    table = rows()
    registered = REPORTS/'registered.json'
    if registered.exists():
        entry = json.loads(registered.read_text())
        table += [(f'registered {k}', str(v)) for k, v in sorted(entry.items()) if isinstance(v, str | int)]
    table += [('report', str(REPORTS/'report.html'))]
    width = max(len(name) for name, _ in table)
    print()
    for name, value in table: print(f'{name:{width}}  {value}')
