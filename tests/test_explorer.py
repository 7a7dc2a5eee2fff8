"""The explorer in a real, headless Chromium: the slider moved as a person would, the numbers read back and counted
again"""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sads_jax.core.types import InspectionReport
from sads_jax.data.records import ImageRecord, InspectionData
from sads_jax.evaluation import explorer
from sads_jax.evaluation.evaluate import Evaluation
from sads_jax.evaluation.metrics import Judged

FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync')
CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (('chromium', 'chromium-browser'), ('chromedriver',))
)
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason='no Chromium with its driver here (Debian: chromium, chromium-driver)'
)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for f in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}', '--window-size=1200,900'):
        options.add_argument(f)
    b = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield b
    b.quit()

def evaluation(folder, n_parts=15, seed=0, threshold=.5):
    """Parts with two photographs; a third of the parts is defective, on one or both of them; one photograph nobody
    labelled"""
    rng, rows, records = np.random.default_rng(seed), [], []
    for i in range(2*n_parts + 1):
        bad = None if i == 2*n_parts else i//2 % 3 == 0 and (i % 2 == 0 or i//2 % 2 == 0)
        score = round(float(np.clip(rng.normal(.65 if bad else .35, .2), 0, 1)), 2) # with ties
        Image.fromarray(rng.integers(90, 200, (30, 40, 3), np.uint8)).save(folder/f'{i}.png')
        records.append(
            ImageRecord(i, f'{i}.png', 40, 30, f'<part> {i // 2}', defective=bad, classes=('pit',) if bad else ())
        )
        rows.append(
            Judged(
                records[-1],
                InspectionReport(verdict='PASS', reasons=[], defects=[], image_score=score, image_sha256='0' * 64,
                    image_size=(40, 30), model_version='m', rules_version='r'),
                None,
                None,
            )
        )
    return Evaluation(InspectionData(folder, ('pit',), tuple(records)), ('pit',), tuple(rows), (), {},
        dict(threshold=threshold, model_version='m'))

def truth(e, t):
    "The four counts at threshold t, by numpy"
    rows = [
        (r.report.image_score, r.record.defective, r.record.part_id) for r in e.rows if r.record.defective is not None
    ]
    s, bad, part = (np.array(c) for c in zip(*rows))
    bad_parts = set(part[bad])
    good = np.array([p not in bad_parts for p in part])
    return dict(escape_image=((bad & (s < t)).sum(), bad.sum()), overkill_image=((~bad & (s >= t)).sum(), (~bad).sum()),
        escape_part=(len(set(part[bad & (s < t)])), len(bad_parts)),
        overkill_part=(len(set(part[good & (s >= t)])), len(set(part[good]))))

def read(browser):
    "Threshold, counts with intervals, and the photographs on show, group by group"
    at = browser.find_element
    shown = {
        g: [
            int(f.get_attribute('id')[1:])
            for f in browser.find_elements(By.CSS_SELECTOR, f'#{g} figure')
            if f.is_displayed()
        ]
        for g, _ in explorer._GROUPS
    }
    number = lambda k: SimpleNamespace(count=int(at(By.ID, k).get_attribute('data-count')), text=at(By.ID, k).text,
        low=float(at(By.ID, f'{k}_interval').get_attribute('data-low')),
        high=float(at(By.ID, f'{k}_interval').get_attribute('data-high')))
    return (float(at(By.ID, 'threshold').text),
        {k: number(k) for k in ('escape_image', 'overkill_image', 'escape_part', 'overkill_part')}, shown)


@needs_chromium
def test_the_slider_moves_and_the_numbers_are_right(browser, tmp_path):
    e = evaluation(tmp_path)
    page = explorer.write_explorer(e, tmp_path/'out', pictures=20)
    browser.get(page.as_uri())
    slider, cuts = browser.find_element(By.ID, 'slider'), explorer.explorer_numbers(e)['thresholds']
    rows = [r for r in e.rows if r.record.defective is not None]
    own = int(slider.get_attribute('value'))
    assert 'This is the threshold in use' in browser.find_element(By.ID, 'changed').text
    seen = []
    for keys in ([], [Keys.ARROW_RIGHT], [Keys.ARROW_RIGHT]*3, [Keys.ARROW_LEFT]*6, [Keys.HOME], [Keys.END]):
        if keys: slider.send_keys(*keys)
        i = int(slider.get_attribute('value'))
        t, figures, shown = read(browser)
        seen.append(i)
        assert t == pytest.approx(cuts[i], abs=1e-4)
        for k, (count, of) in truth(e, cuts[i]).items():
            ci = binomtest(int(count), int(of)).proportion_ci(method='exact')
            assert (figures[k].count, figures[k].text) == (count, f'{count} of {of}'), (k, i)
            assert (figures[k].low, figures[k].high) == pytest.approx((ci.low, ci.high), abs=1e-6)
        now, before = ([r.report.image_score >= cuts[j] for r in rows] for j in (i, own))
        want = {g: set() for g in shown}
        for j, r in enumerate(rows):
            bad = r.record.defective
            if now[j] != before[j]:
                want[('caught' if now[j] else 'new_escape') if bad else ('new_overkill' if now[j] else 'spared')].add(j)
            elif bad != now[j]:
                want['escape' if bad else 'overkill'].add(j)
        assert {g: set(v) for g, v in shown.items()} == want, i
        assert int(browser.find_element(By.ID, 'changed').get_attribute('data-count')) == sum(
            a != b for a, b in zip(now, before)
        )
    assert seen == [own, own + 1, own + 4, own - 2, 0, len(cuts) - 1]
    browser.find_element(By.ID, 'own').click()
    assert int(slider.get_attribute('value')) == own
    assert not browser.execute_script(
        'return performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).map(r => r.name)'
    )  # nothing was fetched
    assert not [m for m in browser.get_log('browser') if m['level'] == 'SEVERE']


@needs_chromium
def test_a_typed_threshold_and_the_cheapest_one(browser, tmp_path):
    e = evaluation(tmp_path, seed=3)
    browser.get(explorer.write_explorer(e, tmp_path/'out').as_uri())
    field = browser.find_element(By.ID, 'exact')
    field.send_keys('0.3217', Keys.TAB)
    _, figures, _ = read(browser)
    assert {k: v.count for k, v in figures.items()} == {
        k: c for k, (c, _) in truth(e, 0.3217).items()
    }  # between two cuts: the same sides
    for price in (0, 1, 20):
        browser.execute_script('document.getElementById("price").value = arguments[0]', price)
        browser.find_element(By.ID, 'cheapest').click()
        _, figures, _ = read(browser)
        cost = lambda c, price=price: price*c['escape_part'] + c['overkill_part']
        every = [cost({k: n for k, (n, _) in truth(e, t).items()}) for t in explorer.explorer_numbers(e)['thresholds']]
        assert cost({k: v.count for k, v in figures.items()}) == min(every)


def test_what_is_written_cannot_break_out_of_the_page(tmp_path):
    e = evaluation(tmp_path)
    page = explorer.write_explorer(e, tmp_path/'out').read_text()
    assert '<part>' not in page and '&lt;part&gt;' in page
    assert page.count('</script>') == 2 and 'http' not in page.replace('http-equiv', '')
