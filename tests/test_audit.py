"The chain finds what was done to it, and a head that was kept elsewhere shows what was cut."
import json
import random
import sqlite3

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from sads_jax.cli.main import app
from sads_jax.core.chain import EMPTY, ChainError, Head, Link, canonical, chain, chain_hash, head_of, link, verify_chain
from sads_jax.core.errors import SADSError
from sads_jax.serving.audit import append
from sads_jax.serving.tables import migrate, open_engine, writing


def placed(rows): return [r._replace(place=i) for i, r in enumerate(rows, 1)]

def altered(row): return row._replace(text=row.text.replace('0.', '0.9'))

def hashed(row): return row._replace(hash=chain_hash(row.previous, row.text))

def swapped(rows, k):
    rows[k:k + 2] = rows[k + 1], rows[k]
    return placed(rows)

def moved(rows, k, j):
    rows.insert(j, rows.pop(k))
    return placed(rows)

def inserted(rows, k, row): return placed(rows[:k] + [row] + rows[k:])

FORGERIES = {  # rows, index, random numbers -> forged rows, what must be said: (row, kind), a row of None is any
    'altered': lambda rows, k, rng: (rows[:k] + [altered(rows[k])] + rows[k+1:], (k + 1, 'altered')),
    'hashed anew': lambda rows, k, rng: (rows[:k] + [hashed(altered(rows[k]))] + rows[k+1:], (k + 1, 'altered')),
    'deleted': lambda rows, k, rng: (rows[:k] + rows[k+1:], (k + 1, 'missing')),
    'deleted, the rest renumbered': lambda rows, k, rng: (placed(rows[:k] + rows[k+1:]), (k + 1, 'missing')),
    'inserted': lambda rows, k, rng: (inserted(rows, k, link(Head(k, rows[k].previous), {'x': 2})),
        (k + 1, 'inserted')),
    'inserted, made up': lambda rows, k, rng: (inserted(rows, k, Link(0, 'f'*64,
        canonical({'seq': rng.randint(1, 80)}), 'e'*64)), (None, 'inserted')),
    'exchanged': lambda rows, k, rng: (swapped(rows, min(k, len(rows) - 2)), (None, 'reordered')),
    'moved': lambda rows, k, rng: (moved(rows, k, (k + len(rows)//2) % len(rows)), (k + 1, 'reordered')),
    'cut off': lambda rows, k, rng: (rows[:k], (k + 1, 'missing')),
    'begun otherwise': lambda rows, k, rng: ([rows[0]._replace(previous='1'*64)] + rows[1:], (1, 'altered')),
}

@pytest.mark.parametrize('forgery', FORGERIES)
def test_a_forged_row_is_named_and_no_other(forgery):
    rng = random.Random(forgery)
    for _ in range(150):
        rows = list(chain({'x': rng.random()} for _ in range(rng.randint(5, 40))))
        kept, k = head_of(rows[-1]), rng.randrange(len(rows))
        assert verify_chain(rows, [kept]) == (kept, [])
        forged, (seq, kind) = FORGERIES[forgery](list(rows), k, rng)
        faults = verify_chain(forged, [kept]).faults
        assert len(faults) == 1 and faults[0].kind == kind and seq in (None, faults[0].seq), (k + 1, faults)

def test_a_chain_written_anew_is_found_by_a_kept_head_alone():
    rows = list(chain({'x': i} for i in range(20)))
    kept = [head_of(rows[9]), head_of(rows[19])]
    forged = rows[:4] + list(chain(({'x': -i} for i in range(4, 20)), head_of(rows[3])))
    assert verify_chain(forged).faults == []
    assert [(f.seq, f.kind) for f in verify_chain(forged, kept).faults] == [(10, 'altered'), (20, 'altered')]
    assert [(f.seq, f.kind) for f in verify_chain(rows[:15], kept).faults] == [(16, 'missing')]
    assert [(f.seq, f.kind) for f in verify_chain([], kept).faults] == [(1, 'missing'), (1, 'missing')]

def test_a_fault_that_shows_late_is_named_where_it_is():
    rows = list(chain({'x': i} for i in range(60)))
    false = list(chain(({'y': i} for i in range(30)), head_of(rows[9])))  # thirty rows that follow one another
    faults = verify_chain(placed(rows[:10] + false + rows[10:])).faults
    assert {f.kind for f in faults} == {'inserted'} and {f.seq for f in faults} == set(range(11, 41))

def test_rows_that_are_no_rows_are_named_not_a_crash():
    rows = list(chain({'x': i} for i in range(6)))
    for text in ('', '[]', '{"seq":true}', '{"seq":"3"}', 'null', '\x00'):
        faults = verify_chain(rows[:2] + [rows[2]._replace(text=text)] + rows[3:]).faults
        assert {f.seq for f in faults} == {3}, (text, faults)

def test_the_hash_is_what_the_page_says():
    import hashlib
    row = link(EMPTY, {'b': 'Ø', 'a': [1, 2.5, None]})
    text = '{"a":[1,2.5,null],"b":"Ø","seq":1}'
    assert row.text == text and json.loads(text)['seq'] == 1
    assert row.hash == hashlib.sha256(('0'*64 + '\n' + text).encode()).hexdigest()
    with pytest.raises(ChainError): link(EMPTY, {'seq': 7})

# ---------------------------------------------------------------- at the command line

@pytest.fixture
def plant(tmp_path):
    "A workdir with nine audit rows, a pair of keys, and what runs `sads`"
    write_pair(tmp_path/'plant'), write_pair(tmp_path/'stranger')
    engine = open_engine(f'sqlite:///{tmp_path}/.sads/inspections.db')
    migrate(engine)
    at = '2026-11-02T06:0{}:00.000000Z'.format
    rows = [dict(kind='ran', at=at(0), station='line-3', model='3f9a', rules='r1', threshold=.41)]
    rows += [dict(kind='inspection', at=at(i), station='line-3', part=f'A{i}', verdict='FAIL') for i in range(1, 9)]
    with writing(engine) as con: append(con, rows)
    engine.dispose()
    def sads(*args):
        done = CliRunner().invoke(app, ['audit', *map(str, args), '--workdir', str(tmp_path)])
        return done.exit_code, done.output + (str(done.exception) if isinstance(done.exception, SADSError) else '')
    return tmp_path, sads

def write_pair(path):
    key, kinds = Ed25519PrivateKey.generate(), serialization
    path.with_suffix('.pem').write_bytes(key.private_bytes(kinds.Encoding.PEM, kinds.PrivateFormat.PKCS8,
        kinds.NoEncryption()))
    path.with_suffix('.pub').write_bytes(key.public_key().public_bytes(kinds.Encoding.PEM,
        kinds.PublicFormat.SubjectPublicKeyInfo))

def forge(folder, statement):
    with sqlite3.connect(folder/'.sads'/'inspections.db') as con: con.execute(statement)
    con.close()

def test_a_signed_head_finds_what_was_cut_off(plant):
    folder, sads = plant
    head = folder/'head.json'
    assert sads('head', '--out', head, '--key', folder/'plant.pem') == (0, f'{head}: row 9\n')
    fits = ['verify', '--head', head, '--key', folder/'plant.pub']
    assert sads(*fits) == (0, '9 rows, whole; every kept head fits (1)\n')
    forge(folder, 'DELETE FROM audit WHERE place > 7')
    assert sads('verify') == (0, '7 rows, whole\n')
    assert sads(*fits) == (1, 'rows 8 to 9 were cut off at the end\n')

def test_a_head_that_somebody_else_wrote_is_refused(plant):
    folder, sads = plant
    head = folder/'head.json'
    for key in ([], ['--key', folder/'stranger.pem']):
        sads('head', '--out', head, *key)
        code, said = sads('verify', '--head', head, '--key', folder/'plant.pub')
        assert code == 1 and 'is not signed with key' in said
    sads('head', '--out', head, '--key', folder/'plant.pem')
    head.write_text(head.read_text().replace('"seq": 9', '"seq": 7'))
    assert 'was altered since' in sads('verify', '--head', head, '--key', folder/'plant.pub')[1]
    for text in ('', '{}', '[]', '{"seq":"x","hash":"y"}', 'null'):
        head.write_text(text)
        code, said = sads('verify', '--head', head)
        assert code == 1 and 'is no head of a chain' in said, text

def test_every_forged_row_is_named_at_the_command_line(plant):
    folder, sads = plant
    forge(folder, "UPDATE audit SET text = replace(text, 'FAIL', 'PASS') WHERE place = 4")
    forge(folder, 'DELETE FROM audit WHERE place = 7')
    code, said = sads('verify')
    assert code == 1 and said.splitlines() == ['row 4 was altered: its hash is of another text', 'row 7 is missing']

def test_what_ran_at_the_command_line(plant):
    _, sads = plant
    assert '3f9a' in sads('what-ran', '--at', '2026-11-02T06:05+00:00')[1]
    assert 'nothing had run' in sads('what-ran', '--at', '2026-11-02T05:59+00:00')[1]
    code, said = sads('what-ran', '--at', 'yesterday')
    assert code == 1 and 'is no time' in said
