"""Station qualification: kappas and variances against scikit-learn, statsmodels and scipy; the checks' verdicts by
hand; a PDF that Chromium printed"""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.formula.api import ols
from statsmodels.stats import inter_rater

from sads_jax.cli.main import main
from sads_jax.core.errors import DataError, ImageError, SADSError
from sads_jax.core.types import InspectionReport
from sads_jax.evaluation import qualification as q

few = settings(max_examples=60, deadline=None)


# ---------------------------------------------------------------- agreement

@few
@given(st.lists(st.tuples(st.sampled_from('PFR'), st.sampled_from('PFR')), min_size=2, max_size=40))
def test_cohens_kappa_equals_sklearn_and_its_interval_statsmodels(pairs):
    a, b = zip(*pairs)
    k, low, high = q.cohen_kappa(a, b)
    if len(set(a) | set(b)) < 2:
        assert k is None
        return
    assert k == pytest.approx(cohen_kappa_score(a, b), abs=1e-6)
    names = sorted(set(a) | set(b))
    table = np.zeros((len(names), len(names)))
    for x, y in pairs: table[names.index(x), names.index(y)] += 1
    deviation = np.sqrt(
        max(inter_rater.cohens_kappa(table, return_results=True).var_kappa, 0)
    )  # a rounded 0 may come out below
    assert (k - low)/1.96 == pytest.approx(deviation, abs=1e-6)
    assert high == pytest.approx(min(k + 1.96*deviation, 1), abs=1e-6)

@few
@given(
    st.integers(2, 5).flatmap(
        lambda r: st.lists(st.lists(st.sampled_from('PFR'), min_size=r, max_size=r), min_size=1, max_size=30)
    )
)
def test_fleiss_kappa_equals_statsmodels(table):
    k = q.fleiss_kappa(table)
    if len({v for row in table for v in row}) < 2: assert k is None
    else:
        assert k == pytest.approx(inter_rater.fleiss_kappa(inter_rater.aggregate_raters(np.array(table))[0]), abs=1e-6)

def ratings_file(folder, lines, head='part,rater,verdict'):
    path = folder/'ratings.csv'
    path.write_text('\n'.join([head, *lines]) + '\n', encoding='utf-8-sig') # as spreadsheets write it
    return path

def test_agreement_by_hand(tmp_path):
    "Four parts; Ada looks twice and changes her mind on p4; Ben passes a defective one"
    lines = [f'{p},truth,{v}' for p, v in zip(('p1', 'p2', 'p3', 'p4'), ('bad', 'bad', 'good', 'good'))]
    lines += [
        f'{p},Ada,{v}'
        for p, v in zip(('p1', 'p2', 'p3', 'p4', 'p1', 'p2', 'p3', 'p4'),
            ('FAIL', 'REVIEW', 'ok', 'OK', 'fail', 'NOK', 'pass', 'reject'))
    ]
    lines += [f'{p},Ben,{v}' for p, v in zip(('p1', 'p2', 'p3'), ('fail', 'pass', 'pass'))]
    ratings = q.read_ratings(ratings_file(tmp_path, lines))
    ratings['model'] = q.model_ratings(
        {'p1': [('PASS', 0.1), ('FAIL', 0.9)], 'p2': [('REVIEW', 0.5)], 'p3': [('PASS', 0.1)], 'p9': [('FAIL', 1.0)]}
    )
    a = q.agreement(ratings)
    assert a.raters == ('Ada', 'Ben', 'model') and a.everybody['parts'] == 3
    counts = {(p['a'], p['b']): (p['same'], p['parts']) for p in a.pairs}
    assert counts == {('Ada', 'Ben'): (2, 3), ('Ada', 'model'): (3, 3), ('Ada', 'truth'): (4, 4),
        ('Ben', 'model'): (2, 3), ('Ben', 'truth'): (2, 3), ('model', 'truth'): (3, 3)}
    oneself = lambda r: [(a.alone[r][k]['count'], a.alone[r][k]['of']) for k in ('oneself', 'escape', 'overkill')]
    assert oneself('Ada') == [(3, 4), (0, 2), (0, 2)] and oneself('Ben') == [(0, 0), (1, 2), (0, 1)]
    c = q.agreement_check(ratings)
    assert not c.passed and 'Ben and truth fall short' in c.text
    assert q.agreement_check({k: v for k, v in ratings.items() if k != 'Ben'}).passed

def test_words_that_are_no_verdict_are_named_with_their_line(tmp_path):
    with pytest.raises(DataError, match="line 3: 'maybe' is no verdict"):
        q.read_ratings(ratings_file(tmp_path, ['p1,Ada,ok', 'p2,Ada,maybe']))
    with pytest.raises(DataError, match='no column rater'):
        q.read_ratings(ratings_file(tmp_path, ['p1,ok'], 'part,verdict'))
    with pytest.raises(DataError, match='no such file'): q.read_ratings(tmp_path/'none.csv')
    with pytest.raises(DataError, match='no two raters'):
        q.agreement({'Ada': {'p1': ['PASS']}, 'Ben': {'p2': ['PASS']}})


# ---------------------------------------------------------------- repeatability and golden samples

def test_within_part_deviation_is_that_of_a_one_way_analysis_of_variance():
    rng = np.random.default_rng(0)
    shots = {f'p{i}': [('PASS', float(s)) for s in rng.normal(rng.random(), .1, rng.integers(2, 5))] for i in range(12)}
    rows = [(p, s) for p, v in shots.items() for _, s in v]
    fit = ols('y ~ C(part)', pd.DataFrame(rows, columns=['part', 'y'])).fit()
    r = q.repeatability(shots | {'once': [('FAIL', 1.)]})
    assert r['sd_within'] == pytest.approx(np.sqrt(fit.mse_resid), abs=1e-9)
    assert (r['parts'], r['photographs'], r['unanimous']['count']) == (12, len(rows), 12)

def report(verdict='PASS', score=0.1):
    return InspectionReport(verdict=verdict, reasons=[], defects=[], image_score=score, image_sha256='0' * 64,
        image_size=(8, 8), model_version='m', rules_version='r')

def test_golden_samples_catch_a_verdict_a_score_a_defect_and_a_file_that_is_gone(tmp_path):
    want = dict(verdict='PASS', image_score=.1, defects=[])
    def broken(_): raise ImageError('the file is empty', where='a.png')
    for expected, inspect, passed, words in (
        (want, lambda _: report(), True, 'as expected'), (want, lambda _: report('REVIEW'), False, 'another verdict'),
        (want, lambda _: report(score=0.12), False, 'score moved by 0.0200'),
        (want | {'defects': [{'label': 'pit'}]}, lambda _: report(), False, 'other defects'),
        (want, broken, False, 'the file is empty'),
        (dict(verdict='PASS'), lambda _: report(score=0.9), True, 'as expected')
    ):
        c = q.golden_check({tmp_path/'a.png': expected}, inspect)
        assert c.passed == passed and words in c.rows[0][-1], c
    (tmp_path/'shots.csv').write_text('file,verdict\ntoday/a.png,fail\n')
    assert q.read_shots_table(tmp_path/'shots.csv') == {tmp_path/'today'/'a.png': {'verdict': 'FAIL'}}
    (tmp_path/'shots.csv').write_text('file,verdict\na.png,fine\n')
    with pytest.raises(DataError, match="line 2: no verdict 'fine'"): q.read_shots_table(tmp_path/'shots.csv')
    with pytest.raises(DataError, match='no golden set'): q.read_golden(tmp_path)


# ---------------------------------------------------------------- on paper and on the command line

CHECKS = [q.Check('Golden <samples>', True, 'all & well', ('a', 'b'), (('1', '<2>'),)),
    q.Check('Other', False, 'not well', (), ())]

def test_the_page_escapes_what_it_shows_and_sums_up(tmp_path):
    page = q.write_qualification(CHECKS, tmp_path/'q.html', facts={'station': 'line-3 <b>'}).read_text()
    assert (
        'Golden &lt;samples&gt;' in page
        and '&lt;2&gt;' in page
        and 'line-3 &lt;b&gt;' in page
        and page.count('>not passed<') == 2
    )

@pytest.mark.skipif(not any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
    reason='no Chromium here to print with')
def test_chromium_prints_it(tmp_path):
    pdf = q.write_qualification(CHECKS, tmp_path/'q.pdf')
    assert pdf.read_bytes()[:5] == b'%PDF-' and len(pdf.read_bytes()) > 5000

def test_without_a_chromium_a_pdf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SADSError, match='no Chromium'): q.write_qualification(CHECKS, tmp_path/'q.pdf')

def test_the_commands_speak_and_exit(tmp_path, capsys):
    lines = [
        dict(file_name=f'{i}.png', part_id=f'p{i // 2}', report=dict(verdict='PASS', image_score=0.1 * i))
        for i in range(4)
    ]
    (tmp_path/'predictions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    def run(*args):
        with pytest.raises(SystemExit) as e: main(list(map(str, args)))
        return e.value.code, capsys.readouterr()
    code, text = run('qualify', 'repeatability', '--report', tmp_path, '--out', tmp_path/'q.html')
    assert code == 0 and '2 of 2 parts got the same verdict' in text.out and (tmp_path/'q.html').exists()
    ratings = ratings_file(tmp_path, ['p0,truth,bad', 'p1,truth,good', 'p0,Ada,bad', 'p1,Ada,good'])
    code, text = run('qualify', 'agreement', ratings, '--report', tmp_path)
    assert code == 1 and 'model and truth fall short' in text.out
    assert run('qualify', 'agreement', ratings)[0] == 0
    code, text = run('qualify', 'golden', '--bundle', tmp_path/'none')
    assert code == 1 and text.err.startswith('error: ')
