"""What the audit chain costs: rows written a second, time to verify them all, time to say what ran

python benchmarks/audit.py [ROWS [URL]]     URL: sqlite:///FILE or postgresql://USER@HOST/NAME; else SQLite

Rows are those of inspections as the store writes them, a hundred in a transaction, over forty models and four stations.
"""
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import islice

from sqlalchemy import func, select

from sads_jax.serving.audit import append, last_head, stamp, verify, what_ran
from sads_jax.serving.tables import AUDIT, migrate, open_engine, reading, writing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

def rows(n):
    "Audit rows of a plant: each station changes its model now and then"
    for i in range(n):
        station, model = f'line-{i % 4}', f'{i*40//n:016x}'
        at = stamp(BEGIN + timedelta(seconds=i))
        judged = dict(at=at, station=station, model=model, rules='9c1e', threshold=.41)
        if i*40 % n < 160: yield judged | dict(kind='ran')
        else:
            why = dict(rule='any defect', verdict='FAIL', measured=61.5, limit=4., unit='px²', zone=None)
            yield judged | dict(kind='inspection', key=f'{i:032x}@{at}#0', source='http', caller=None, part=f'A{i//3}',
                lot=f'L{i//5000}', sha256=f'{i:064x}', score=.73, verdict='FAIL', decided=[why])

def main(n, url):
    engine = open_engine(url)
    migrate(engine)
    start, slowest = time.perf_counter(), 0.
    todo = rows(n)
    while some := list(islice(todo, 100)):
        one = time.perf_counter()
        with writing(engine) as con: append(con, some)
        slowest = max(slowest, time.perf_counter() - one)
    took = time.perf_counter() - start
    print(f'{engine.dialect.name}: {n} rows written in {took:.1f} s, {n/took:.0f} rows/s; '
        f'slowest transaction {slowest*1e3:.0f} ms')
    with reading(engine) as con:
        start = time.perf_counter()
        checked = verify(con, [last_head(con)])
        took = time.perf_counter() - start
        print(f'verified in {took:.1f} s, {n/took:.0f} rows/s; {len(checked.faults)} faults')
        times = []
        for k in range(1, 21):
            start = time.perf_counter()
            found = what_ran(con, BEGIN + timedelta(seconds=n*k//21))
            times.append(time.perf_counter() - start)
            assert len(found) == 4
        median, longest = sorted(times)[10]*1e3, max(times)*1e3
        print(f'what ran: {len(found)} stations, median {median:.2f} ms, longest {longest:.2f} ms')
        size = con.execute(select(func.sum(func.length(AUDIT.c.text)))).scalar()
        print(f'text of the rows: {size/1e6:.0f} MB')
    engine.dispose()

if __name__ == '__main__':
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as d: main(n, sys.argv[2] if len(sys.argv) > 2 else f'sqlite:///{d}/audit.db')
