"The anomaly score from the cascade's program to the verdict, against hand-made cases and plain numpy."
import dark_cascade as dark
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from sads_jax.core.types import Findings, Verdict
from sads_jax.domains.surface.rules import rules_version
from sads_jax.evaluation.operating import choose_limit
from sads_jax.inference.adapters import photographed
from sads_jax.inference.export import export_program, load_program
from sads_jax.models.anomaly import LEVELS, Anomaly, fit_gaussian, pooled
from sads_jax.models.backbone import pure
from sads_jax.registry.bundle import load_pipeline, set_threshold, verify_bundle, write_bundle

rng = np.random.default_rng(0)

# ---------------------------------------------------------------- the model

def test_pooling_is_a_weighted_mean_and_deviation():
    maps = [rng.normal(size=(3, 4, 6, 5)), rng.normal(size=(3, 2, 3, 2))]
    inside = rng.random((3, 8, 12)) > .4
    want = []
    for b in range(3):
        row = []
        for m in maps:
            k = 8//m.shape[1]
            w = inside[b].reshape(m.shape[1], k, m.shape[2], k).mean((1, 3)).ravel()
            x = m[b].reshape(-1, m.shape[-1])
            mean = np.average(x, 0, w)
            row += [mean, np.average((x - mean)**2, 0, w)**.5]
        want.append(np.concatenate(row))
    np.testing.assert_allclose(pooled([jnp.asarray(m, jnp.float32) for m in maps], inside), want, atol=1e-5)

def test_padding_does_not_matter():
    image = np.full((1, 64, 64, 3), 127, np.float32)
    image[:, :32, :48] = rng.integers(0, 100, (1, 32, 48, 3))
    inside, f = photographed(jnp.asarray(image/255)), rng.normal(size=(1, 4, 4, 7)).astype(np.float32)
    other = f.copy()
    other[:, 2:], other[:, :, 3:] = 9, -9
    np.testing.assert_array_equal(pooled([f], inside), pooled([other], inside))

def test_the_score_is_the_mahalanobis_distance_of_the_shrunken_covariance():
    x = rng.normal(size=(50, 12))*np.arange(1, 13) + 3
    mean, whiten = fit_gaussian(x, .3)
    s = x.std(0) + 1e-3
    covariance = (.7*np.cov((x/s).T, ddof=0) + .3*np.eye(12))*np.outer(s, s)
    maps = [np.zeros((1, 1, 1, 0), np.float32)] * 2 + [rng.normal(size=(1, 4, 4, 3)).astype(np.float32),
        rng.normal(size=(1, 2, 2, 3)).astype(np.float32)]
    inside = np.ones((1, 8, 8), bool)
    got = pure(Anomaly((3, 3)))(
        {'mean': jnp.asarray(mean), 'whiten': jnp.asarray(whiten)}, [jnp.asarray(m) for m in maps], inside
    )
    v = np.asarray(pooled([maps[l] for l in LEVELS], inside))[0]
    np.testing.assert_allclose(got[0]*12**.5, mahalanobis(v, x.mean(0), np.linalg.inv(covariance)), rtol=1e-3)

def test_fewer_parts_than_numbers_still_make_a_model():
    mean, whiten = fit_gaussian(rng.normal(size=(3, 40)), .1)
    assert np.isfinite(mean).all() and np.isfinite(whiten).all() and np.linalg.matrix_rank(whiten) == 40

# ---------------------------------------------------------------- the limit

def test_a_part_counts_by_its_worst_photograph_that_would_pass():
    parts, far, clean = list('aabbcc'), [1, 5, 2, 9, 3, 4], [True, True, True, False, True, True]
    assert choose_limit(.5, far, parts, clean)[0] == 4  # 5, 2 and 4; one of four may lie beyond: half, with the new one
    limit, why = choose_limit(.01, far, parts, clean)
    assert limit > 5 and why['beyond']['count'] == 0 and '3 good' in why['text']

@pytest.mark.parametrize('share', [.02, .1, .3])
def test_a_smaller_share_never_lowers_the_limit(share):
    far, parts = rng.gamma(4, size=30), [str(i) for i in range(30)]
    assert choose_limit(share, far, parts, [True]*30)[0] >= choose_limit(share + .2, far, parts, [True]*30)[0]

# ---------------------------------------------------------------- through program, bundle and pipeline

def strange_cascade():
    "The dark cascade, which also finds everything strange that is red"
    from dataclasses import replace
    plain = dark.cascade()
    detect = lambda p, images: (*plain.detect(p, images), images[..., 0] - images[..., 2])
    return replace(plain, detect=detect, anomaly=lambda p, images, redness: redness.max((1, 2))*p['anomaly/gain'])

WEIGHTS = dark.WEIGHTS | {'anomaly/gain': np.float32(10)}

def canvas(colour):
    x = np.full((dark.SIDE, dark.SIDE, 3), 240, np.uint8)
    x[20:30, 20:40] = colour
    return x

def test_each_image_has_its_own_score_bit_for_bit():
    images = np.stack([canvas((240, 200, 140)), canvas((240, 240, 240)), canvas((240, 240, 77)), canvas((10, 10, 10))])
    program = jax.jit(strange_cascade())
    together = np.asarray(program(WEIGHTS, images).anomaly)
    np.testing.assert_allclose(together, 10*np.array([100, 0, 163, 0])/255, rtol=1e-5, atol=1e-6)
    for i in range(4):
        assert (np.asarray(program(WEIGHTS, images[i:i+1]).anomaly) == together[i]).all()
        assert (np.asarray(program(WEIGHTS, images[[3, 2, 1, i]]).anomaly)[-1] == together[i]).all()

def test_the_image_score_heeds_the_distance_and_boxes_do_not():
    from dataclasses import replace
    grey = canvas((40, 20, 20))  # darkness 1 - 40/255, redness 20/255
    plain, both = (
        jax.device_get(jax.jit(c)(WEIGHTS, grey[None]))
        for c in (strange_cascade(), replace(strange_cascade(), anomaly_share=0.25))
    )
    odds = lambda p: p/(1 - p)
    distance = 10*20/255
    assert odds(both.image_scores[0]) == pytest.approx(odds(plain.image_scores[0])**.75*distance**(4*.25), rel=1e-4)
    np.testing.assert_array_equal(both.scores, plain.scores)
    np.testing.assert_array_equal(both.defect_map, plain.defect_map)

def test_exported_with_and_without_a_model_of_good_parts():
    images = canvas((240, 200, 140))[None]
    for cascade, weights, want in (strange_cascade(), WEIGHTS, 10*100/255), (dark.cascade(), dark.WEIGHTS, None):
        found = load_program(export_program(cascade, weights, (dark.SIDE, dark.SIDE), platforms=('cpu',)), Findings)(
            weights, images
        )
        assert found.anomaly is None if want is None else abs(float(found.anomaly[0]) - want) < 1e-4

def test_clean_but_strange_is_for_a_person(tmp_path):
    params = dark.params()
    programs = {b: export_program(strange_cascade(), WEIGHTS, b, platforms=('cpu',)) for b in params.image.buckets}
    write = lambda limit: write_bundle(tmp_path / 'b', weights=WEIGHTS, programs=programs, labels=dark.LABELS,
        threshold=0.5, anomaly_limit=limit, code={}, batch_sizes=(1,), rules_version=rules_version(params.decision),
        params=params, data={'kind': 'test', 'fingerprint': 'f' * 64, 'splits': {}})
    ask = lambda: load_pipeline(tmp_path/'b', cache_dir=tmp_path/'cache').process_request
    red, paler, black = (240, 200, 140), (240, 220, 190), (10, 10, 10)
    version, judge = write(3.), ask()
    report, pale, dark_one = (judge(canvas(c)) for c in (red, paler, black))
    assert (report.verdict, report.reasons[0].rule, report.defects) == (Verdict.REVIEW, 'unknown', [])
    assert (
        report.anomaly_score == pytest.approx(10 * 100 / 255 / 3, abs=1e-3)
        and 'unlike any good part' in report.reasons[0].text
    )
    assert (pale.verdict, pale.anomaly_score) == (Verdict.PASS, pytest.approx(10*50/255/3, abs=1e-3))
    assert dark_one.verdict == Verdict.FAIL and [r.rule for r in dark_one.reasons] == ['any defect']
    assert (
        set_threshold(tmp_path / 'b', 0.5, {'anomaly': {'text': 'A limit.'}}, 5.0)
        == verify_bundle(tmp_path / 'b')
        != version
    )
    assert ask()(canvas(red)).verdict == Verdict.PASS and 'A limit.' in (tmp_path/'b/card.md').read_text()
    write(None)
    report = ask()(canvas(red))
    assert report.verdict == Verdict.PASS and report.anomaly_score is None
