"""Rules as data: never milder for more, the same again from a stored report, fast; zones and scale against other
libraries"""
import time

import fake_cascade as F
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from typer.testing import CliRunner

from sads_jax.core.errors import ParamsError, SADSError
from sads_jax.core.params import BorderZone, DecisionSpec, HysteresisSpec, PolygonZone, RuleSpec, WholeZone
from sads_jax.core.types import RLE, Defect, Verdict
from sads_jax.domains.surface import cases as C
from sads_jax.domains.surface import lint as L
from sads_jax.domains.surface import rules as R
from sads_jax.domains.surface.zones import zone_window

CLASSES, ZONES = ('crack', 'pit', 'stain'), ('face', 'rim', 'off')
score = st.integers(0, 10).map(lambda i: i/10)
size = st.integers(0, 12).map(float)

@st.composite
def rule(draw, i):
    low = draw(st.none() | score)
    at = draw(score)
    return RuleSpec(name=f'r{i}', label=draw(st.sampled_from(['*', *CLASSES])),
        severity=draw(st.sampled_from([None, None, 'critical', 'minor'])),
        zone=draw(st.sampled_from(['*', '*', 'face', 'rim'])), max_area_px=draw(st.none() | size),
        max_length_mm=draw(st.none() | size), max_area_mm2=draw(st.none() | size),
        max_count=draw(st.none() | st.integers(0, 3)), min_score=at,
        hysteresis=None if low is None else HysteresisSpec(low=low * at, reach_px=draw(size)), review_below=draw(score),
        min_contrast=draw(st.sampled_from([0.0, 0.3])), verdict=draw(st.sampled_from(['FAIL', 'REVIEW'])))

@st.composite
def decisions(draw):
    zones = tuple(WholeZone(name=z, ignore=z == 'off') for z in ZONES)
    return DecisionSpec(mm_per_px=0.5, severity={'stain': 'minor'}, zones=zones, min_area_px=4.0,
        rules=tuple(draw(rule(i)) for i in range(draw(st.integers(1, 4)))))

@st.composite
def defects(draw):
    "None smaller than min_area_px: the postprocessor hands in no specks"
    area, x, y = draw(st.integers(4, 30)), draw(st.integers(0, 20)), draw(st.integers(0, 20))
    inside = {z: float(min(area, draw(st.integers(0, 30)))) for z in ZONES if draw(st.booleans())}
    return build(draw(st.sampled_from(CLASSES)), area, draw(size), draw(score),
        (x, y, x + 1 + draw(size), y + 1 + draw(size)), draw(st.none() | st.sampled_from([-0.5, -0.1, 0.2])), inside)

def build(label, area, length, sure, box, contrast, zones):
    return Defect(box=box, label=label, label_score=1, score=sure, area_px=area, length_px=length, area_mm2=area / 4,
        length_mm=length / 2, contrast=contrast, zones={k: v for k, v in zones.items() if v},
        mask=RLE(size=(1, 1), counts='01'))

MILD = {Verdict.FAIL: 0, Verdict.REVIEW: 1, Verdict.PASS: 2}

@settings(max_examples=400, deadline=None)
@given(decisions(), st.lists(defects(), max_size=5), defects(), st.data())
def test_more_or_larger_is_never_milder(decision, found, new, data):
    before = R.judge(found, .5, None, decision)[0]
    at = data.draw(st.integers(0, len(found)))
    assert MILD[R.judge([*found[:at], new, *found[at:]], .5, None, decision)[0]] <= MILD[before]
    if not found: return
    i, more, long = data.draw(st.integers(0, len(found) - 1)), data.draw(st.integers(0, 20)), data.draw(size)
    d = found[i]
    grown = {z: d.zones.get(z, 0) + min(more, data.draw(st.integers(0, 20))) for z in ZONES}
    larger = build(d.label, d.area_px + more, d.length_px + long, d.score,
        (d.box[0] - long, d.box[1], d.box[2], d.box[3] + more), d.contrast, grown)
    assert MILD[R.judge([*found[:i], larger, *found[i+1:]], .5, None, decision)[0]] <= MILD[before]

@settings(max_examples=200, deadline=None)
@given(decisions(), st.lists(defects(), max_size=4))
def test_a_rule_called_unreachable_changes_no_verdict(decision, found):
    lint = [f for f in L.lint_rules(decision, CLASSES) if f.text.startswith('unreachable')]
    verdict = R.judge(found, .5, None, decision)[0]
    for f in lint:
        less = decision.model_copy(
            update={'rules': tuple(r for r in decision.rules if f"rule {r.name!r}" != f.where.split(', ')[1])}
        )
        assert len(less.rules) == len(decision.rules) - 1 and R.judge(found, .5, None, less)[0] == verdict

def test_hysteresis_by_hand():
    rule = RuleSpec(name='c', label='crack', min_score=0.5, review_below=0.7, max_count=2,
        hysteresis=HysteresisSpec(low=0.2, reach_mm=2.5))
    at = lambda x, s: build('crack', 5, 5, s, (x, 0, x + 10, 4), None, {})
    d = DecisionSpec(mm_per_px=.5, rules=(rule,))
    assert (
        R.judge([at(0, 0.9), at(15, 0.3), at(30, 0.2)], 1.0, None, d)[0] == 'FAIL'
    )  # a chain with gaps of 5 px, believed as its surest
    assert R.judge([at(0, .6), at(15, .3), at(30, .2)], 1., None, d)[0] == 'REVIEW'
    assert R.judge([at(0, .9), at(15.5, .3), at(30, .2)], 1., None, d)[0] == 'PASS'  # 5.5 px is too far
    assert R.judge([at(0, .4), at(15, .3), at(30, .2)], 1., None, d)[0] == 'PASS'

def test_the_lint_by_hand():
    zones = (BorderZone(name='rim', width=1, unit='mm'), BorderZone(name='off', width=20, ignore=True),
        WholeZone(name='lost'), BorderZone(name='near', width=5))
    bad = DecisionSpec(
        severity={'rust': 'minor', 'pit': 'minor'},
        zones=zones,
        rules=(RuleSpec(name='a', label='dirt'), RuleSpec(name='b', zone='hub'), RuleSpec(name='c', zone='off'),
            RuleSpec(name='unknown', label='pit', severity='major'), RuleSpec(name='e', max_area_mm2=1, zone='rim'),
            RuleSpec(name='f', label='pit', min_score=0.5, review_below=0.5, hysteresis=HysteresisSpec(low=0.5)),
            RuleSpec(name='g', severity='major'), RuleSpec(name='h', label='pit', verdict='REVIEW', min_contrast=0.1),
            RuleSpec(name='i', zone='near')),
    )
    said = [(f.level, f.where.rpartition(' ')[2].strip("'"), f.text) for f in L.lint_rules(bad, ('crack', 'pit'))]
    for want in [
        ('error', 'decision.severity', "no defect class 'rust'"), ('error', 'rim', 'a width in mm'),
        ('warning', 'lost', 'no rule names it'),
        ('warning', 'near', "all of it lies in zone 'off', where defects are ignored, so rule 'i'"),
        ('error', 'a', "no defect class 'dirt'"), ('error', 'b', "no zone 'hub'"),
        ('error', 'c', 'contradictory: what lies'), ('error', 'unknown', 'the name is taken'),
        ('error', 'unknown', 'contradictory: pit is minor'), ('error', 'e', 'max_area_mm2 needs'),
        ('error', 'f', 'contradictory: hysteresis'), ('warning', 'f', 'review_below'),
        ('warning', 'g', 'no class is major'), ('warning', 'h', 'it says REVIEW anyway')
    ]:
        assert any(l == want[0] and w == want[1] and t.startswith(want[2]) for l, w, t in said), (want, said)
    assert [l for l, _, _ in said] == sorted((l for l, _, _ in said)) and said[0][0] == 'error'
    with pytest.raises(ParamsError): L.check_decision(bad, ('crack', 'pit'))
    assert {f.at for f in L.lint_rules(bad, ('crack', 'pit')) if f.level == 'error'} == {
        ('decision', *x)
        for x in [('severity', 'rust'), ('zones', 0, 'unit'), ('rules', 0, 'label'), ('rules', 1, 'zone'),
            ('rules', 2, 'zone'), ('rules', 3, 'name'), ('rules', 3, 'severity'), ('rules', 4, 'max_area_mm2'),
            ('rules', 5, 'hysteresis', 'low')]
    }

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=3, max_size=7), st.integers(0, 10),
    st.integers(0, 15))
def test_polygons_are_shapelys(points, top, left):
    ring = shapely.Polygon(points)
    if not ring.is_valid: return
    y, x = np.mgrid[top:top + 20, left:left + 25] + .5
    got = zone_window(PolygonZone(name='p', points=points, unit='px'), (top, left, 20, 25), (30, 40))
    sure = shapely.distance(shapely.points(x.ravel(), y.ravel()), ring.exterior).reshape(x.shape) > 1e-9
    assert (got == shapely.contains_xy(ring, x, y))[sure].all()

def test_a_pipeline_measures_zones_and_contrast_and_a_stored_report_is_judged_alike():
    """The dark square of 20 px: its zones by counting, its contrast by the two greys, and the same verdict again from
    the report"""
    from sads_jax.domains.surface.pipeline import SADSPipeline
    from sads_jax.domains.surface.postprocessor import SADSPostprocessor
    from sads_jax.inference.predictor import CVPredictor
    decision = DecisionSpec(mm_per_px=0.1,
        zones=(BorderZone(name='rim', width=15), PolygonZone(name='left', points=((0, 0), (0.5, 0), (0.5, 1), (0, 1)))),
        rules=(RuleSpec(name='rim', zone='rim', max_area_mm2=0.9), RuleSpec(name='left', zone='left')))
    pipeline = SADSPipeline(CVPredictor(F.dark_cascade(), {}, F.BUCKETS, batch_sizes=(1,)),
        SADSPostprocessor(F.CATEGORIES, decision, 0.5), model_version='m', rules_version='r')
    photo = F.bright(60, 80, (40, 10, 20))
    r = pipeline.process_request(photo)
    d, = r.defects
    mask = coco.decode(d.mask.model_dump()).astype(bool)
    rim = np.ones((60, 80), bool); rim[15:-15, 15:-15] = False
    assert d.zones == {'rim': float((mask & rim).sum())} and 'left' not in d.zones
    inside, outside = photo[15:25, 45:55].mean()/255, photo[40:, :20].mean()/255
    assert d.contrast == pytest.approx(inside - outside, abs=.05)
    assert (
        r.reasons[0].text
        == f"FAIL: crack {R.number_text(round(d.zones['rim'] / 100, 4))} mm² > 0.9 mm² in zone rim (rim)"
        and r.reasons[0].zone == 'rim'
    )
    assert R.rejudge(r, decision) == (r.verdict, r.reasons)
    bare = r.model_copy(update={'defects': [d.model_copy(update={'zones': {}, 'area_mm2': None})]})
    assert R.rejudge(bare, decision) == (r.verdict, r.reasons)  # measured anew from the stored mask
    assert R.rejudge(r, DecisionSpec(rules=(RuleSpec(name='huge', max_area_px=1e6),)))[0] == 'PASS'

def test_ten_thousand_reports_in_a_second():
    rng = np.random.default_rng(0)
    many = [
        [
            build(CLASSES[int(rng.integers(3))], float(rng.integers(30)), float(rng.integers(12)), float(rng.random()),
                (0, 0, 5, 5), 0.2, {'face': 3.0})
            for _ in range(int(rng.integers(0, 4)))
        ]
        for _ in range(10_000)
    ]
    d = DecisionSpec(
        mm_per_px=0.5,
        zones=tuple(WholeZone(name=z) for z in ZONES[:2]),
        rules=(RuleSpec(name='a', label='crack', max_area_mm2=2),
            RuleSpec(name='b', zone='face', max_length_mm=3, review_below=0.5),
            RuleSpec(name='c', max_count=2, min_score=0.3)),
    )
    start = time.process_time()
    for found in many: R.judge(found, .5, None, d)
    took = time.process_time() - start
    print(f'10,000 reports under 3 rules: {took:.2f} s')
    assert took < 2  # the goal is 1 s on a quiet machine

def test_tables_that_cannot_be_read_say_where(tmp_path):
    d = DecisionSpec(zones=(WholeZone(name='rim'),))
    for text, said in [
        ('', 'no case'), ('case,expect\n', 'no case'),
        ('case,expect,colour\na,PASS,red\n', "line 1: unknown column 'colour'"),
        ('case,label\na,pit\n', "line 1: no column 'expect'"), ('case,expect\n,PASS\n', 'line 2: column case: empty'),
        ('case,expect\na,GOOD\n', "line 2: column expect: 'GOOD'"),
        ('case,expect,label,zones\na,PASS,pit,hub\n', "line 2: column zones: no zone 'hub', only rim"),
        ('case,expect,label,area_mm2\na,PASS,pit,3\n', 'line 2: column area_mm2: needs decision.mm_per_px'),
        ('case,expect,label,box\na,PASS,pit,1 2\n', 'line 2: column box: a box is'),
        ('case,expect,label,box\na,PASS,pit,a b c d\n', 'line 2: column box: a box is'),
        ('case,expect\na,PASS\na,FAIL\n', "case 'a' expects FAIL and PASS"),
        ('case,expect,label,area_px\n"a\nb",PASS,pit,3\nc,PASS,pit,nan\n', 'line 4: column area_px: nan is not a size'),
        ('case,expect,label,score\na,PASS,pit,2\n', 'column score: 2 is not between 0 and 1'),
        ('case,expect,label,length_px\na,PASS,pit,-1\n', 'column length_px: -1'),
        ('case,expect,label\na,PASS,pit,3\n', 'line 2: it has more fields'),
        ('case,expect,label,count\na,PASS,pit,1.5\n', 'column count'),
        ('case,expect,label\na,PASS,pti\n', "line 2: column label: no defect class 'pti', only pit"),
        ('case,expect,rule\na,PASS,big\n', "line 2: column rule: no rule 'big', only any defect"),
        ('case,expect,label,area_px,zones\na,PASS,pit,3,rim=4\n', 'column zones: 4 is not between 0 and 3'),
        ('case,expect,rule\na,FAIL,any defect\na,,no defect\n', "case 'a' expects any defect and no defect")
    ]:
        (tmp_path/'c.csv').write_text(text)
        with pytest.raises(SADSError) as e: C.read_cases(tmp_path/'c.csv', d, ('pit',))
        assert said in str(e.value) and 'c.csv' in str(e.value)
    (tmp_path/'c.csv').write_bytes('case,expect\nK\u00f6rper,PASS\n'.encode('cp1252'))
    with pytest.raises(SADSError, match='not a CSV in UTF-8'): C.read_cases(tmp_path/'c.csv', d)
    with pytest.raises(SADSError, match='no such file'): C.read_cases(tmp_path/'none.csv', d)

def test_a_table_says_what_lies_where_and_how_often(tmp_path):
    "As a spreadsheet saves it; a count is so many lines, a share of the area lies in a zone, in the unit of the line"
    d = DecisionSpec(mm_per_px=0.1, zones=(WholeZone(name='rim'), WholeZone(name='off', ignore=True)),
        rules=(RuleSpec(name='rim', zone='rim', max_area_mm2=0.5), RuleSpec(name='few', max_count=2, verdict='REVIEW')))
    (tmp_path/'c.csv').write_text('''case,expect,label,area_mm2,area_px,zones,count,rule
at the limit,PASS,pit,2,,rim=0.5,,
above it,FAIL,pit,2,,rim=0.51,,rim
above it in px,FAIL,pit,,200,rim=51,,rim
three,REVIEW,pit,,,,3,few
two,PASS,pit,,,,2,
mostly off,FAIL,pit,2,,off=1.9|rim,,rim
off,PASS,pit,2,,off|rim,,ignored
''', encoding='utf-8-sig')
    cases = C.read_cases(tmp_path/'c.csv', d)
    assert [(c.name, len(c.defects)) for c in cases][:5] == [('at the limit', 1), ('above it', 1),
        ('above it in px', 1), ('three', 3), ('two', 2)]
    assert [C.run_case(c, d)[0] for c in cases] == [True]*7, [C.run_case(c, d) for c in cases]

def test_commands_exit_as_a_script_needs_it(tmp_path):
    from sads_jax.cli.main import app
    run = lambda *a: CliRunner().invoke(app, [str(x) for x in a])
    (tmp_path/'good.yaml').write_text('decision:\n  rules: [{name: any}]\n')
    (tmp_path/'bad.yaml').write_text('decision:\n  rules: [{name: any, label: crak}]\n')
    assert run('rules', 'check', tmp_path/'good.yaml', '--labels', 'crack').exit_code == 0
    bad = run('rules', 'check', tmp_path/'bad.yaml', '--labels', 'crack')
    assert (
        bad.exit_code == 1
        and f"error: {tmp_path / 'bad.yaml'}, line 2: decision.rules, rule 'any': no defect class 'crak'" in bad.output
    )
    (tmp_path/'c.csv').write_text('case,expect,label\nclean,PASS,\nany,FAIL,crack\n')
    assert run('rules', 'test', tmp_path/'good.yaml', tmp_path/'c.csv').exit_code == 0
    typo = run('rules', 'test', tmp_path/'good.yaml', tmp_path/'c.csv', '--labels', 'pit')
    assert typo.exit_code != 0 and "line 3: column label: no defect class 'crack'" in str(typo.exception)
    (tmp_path/'wrong.csv').write_text('case,expect,label\nany,PASS,crack\n')
    wrong = run('rules', 'test', tmp_path/'good.yaml', tmp_path/'wrong.csv')
    assert wrong.exit_code == 1 and 'WRONG  any' in wrong.output and '0 of 1 cases as expected' in wrong.output
    (tmp_path/'empty.jsonl').write_text('{"file": "a.png", "error": {}}\n')
    (tmp_path/'fine.yaml').write_text('decision:\n  min_area_px: 9\n  rules: [{name: any}]\n')
    other = run('rules', 'replay', tmp_path/'empty.jsonl', '--old', tmp_path/'good.yaml', '--new', tmp_path/'fine.yaml')
    assert (
        other.exit_code == 0
        and '0 reports, 0 change' in other.output
        and 'not replayed: min_area_px differ' in other.output
    )
    (tmp_path/'r.jsonl').write_text('{"report": 3}\n')
    broken = run('rules', 'replay', tmp_path/'r.jsonl', '--old', tmp_path/'good.yaml', '--new', tmp_path/'good.yaml')
    assert broken.exit_code != 0 and 'r.jsonl, line 1: not a stored report' in str(broken.exception)

def test_the_scale_of_a_known_board_turned_and_tilted():
    cv2 = pytest.importorskip('cv2')
    from sads_jax.domains.surface.scale import chessboard_scale
    flat = np.pad(np.kron(np.indices((7, 10)).sum(0) % 2, np.ones((40, 40))) * 255, 80, constant_values=255).astype(
        np.uint8
    )
    h, w = flat.shape
    for angle, zoom in (0, .5), (30, .6), (90, .45):
        m = cv2.getRotationMatrix2D((w/2, h/2), angle, zoom)
        photo = np.repeat(cv2.warpAffine(flat, m, (w, h), borderValue=255, flags=cv2.INTER_AREA)[..., None], 3, -1)
        s = chessboard_scale(photo, 4.)
        assert s.mm_per_px == pytest.approx(4/(40*zoom), rel=2e-3) and not s.warnings
    squeezed = np.repeat(cv2.resize(flat, (w, int(h*.9)), interpolation=cv2.INTER_AREA)[..., None], 3, -1)
    assert any('tilted, or its squares' in x for x in chessboard_scale(squeezed, 4.).warnings)
    m = cv2.getPerspectiveTransform(
        np.float32([[0, 0], [w, 0], [w, h], [0, h]]), np.float32([[60, 40], [w - 60, 40], [w, h], [0, h]])
    )
    tilted = chessboard_scale(np.repeat(cv2.warpPerspective(flat, m, (w, h), borderValue=255)[..., None], 3, -1), 4.)
    corners = cv2.perspectiveTransform((120 + 40 * np.mgrid[:9, :6].T.reshape(1, -1, 2)).astype(float), m).reshape(
        6, 9, 2
    )  # where the homography puts them
    sides = np.concatenate([np.linalg.norm(np.diff(corners, axis=k), axis=-1).ravel() for k in (0, 1)])
    assert tilted.mm_per_px == pytest.approx(4 / sides.mean(), rel=2e-3) and tilted.spread == pytest.approx(
        sides.std() / sides.mean(), abs=2e-3
    )
    assert (
        len(tilted.warnings) >= 1
        and tilted.uncertainty > 10 * chessboard_scale(np.repeat(flat[..., None], 3, -1), 4.0).uncertainty
    )
    with pytest.raises(SADSError, match='At least 3 x 3'): chessboard_scale(squeezed, 4., (2, 6))

def test_a_zone_drawn_as_a_picture(tmp_path):
    "A PNG named in a rule file: read once, kept with the rules, stretched over any photograph"
    from PIL import Image

    from sads_jax.core.params import load_params
    from sads_jax.domains.surface.zones import zone_areas
    Image.fromarray(np.kron([[0, 255], [0, 0]], np.ones((10, 10))).astype(np.uint8)).save(tmp_path/'label.png')
    (tmp_path / 'p.yaml').write_text(
        f"decision:\n  zones:\n  - {{kind: mask, name: label, path: {tmp_path / 'label.png'}}}\n  rules:\n  - "
        f"{{name: label, zone: label}}\n"
    )
    d = load_params(tmp_path/'p.yaml').decision
    assert zone_areas(d.zones, np.ones((60, 80), bool), (0, 0), (60, 80)) == {'label': 30 * 40} and zone_areas(
        d.zones, np.ones((5, 5), bool), (27, 38), (60, 80)
    ) == {'label': 9}
    (tmp_path/'label.png').unlink()
    with pytest.raises(ParamsError, match='cannot be read'): load_params(tmp_path/'p.yaml')
    assert DecisionSpec.model_validate_json(d.model_dump_json()) == d  # the picture is no longer needed
