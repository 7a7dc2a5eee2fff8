"Adapters, export and predictor against independent truth: scipy, other processes, JAX's own compile events."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_cascade as F
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from sads_jax.core.errors import BundleError, SADSError
from sads_jax.core.types import Findings
from sads_jax.inference.adapters import DetectionAdapter, RegionAdapter, photographed, regions_at
from sads_jax.inference.export import export_program, load_program, save_weights
from sads_jax.inference.predictor import CVPredictor, batch_plan, use_compilation_cache
from sads_jax.inference.vetting import load_weights

ROOT = Path(__file__).parents[1]


def python(code, *args, cwd=ROOT, **env):
    "Standard output of a fresh interpreter; a variable that is None is taken from its environment"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')]), **env}
    env = {k: v for k, v in env.items() if v is not None}
    done = subprocess.run([sys.executable, '-c', code, *args], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout

def same_bits(a, b): jax.tree.map(np.testing.assert_array_equal, a, b)

@pytest.fixture(scope='module')
def params(): return F.random_params()

@pytest.fixture(scope='module')
def programs(params): return {b: export_program(F.random_cascade(), params, b, platforms=('cpu',)) for b in F.BUCKETS}

@pytest.fixture(scope='module')
def loaded(programs, params):
    "A predictor of exported programs"
    return CVPredictor(
        {b: load_program(d, Findings) for b, d in programs.items()}, params, F.BUCKETS, batch_sizes=(1, 3, 8)
    )

@pytest.fixture(scope='module')
def fresh(params):
    "A predictor of the cascade itself"
    return CVPredictor(F.random_cascade(), params, F.BUCKETS, batch_sizes=(8,))

@pytest.fixture(scope='module')
def photos():
    rng = np.random.default_rng(1)
    return [F.noise_image(rng, int(h), int(w)) for h, w in rng.integers(40, 130, (200, 2))]


# -- Adapters

def test_regions_are_those_of_scipy():
    rng, regions = np.random.default_rng(0), jax.jit(lambda p, level: regions_at(p, level, 40))
    for level in .2, .5, .8:
        p = ndimage.gaussian_filter(rng.random((24, 20)), 1.2)
        p = ((p - p.min())/np.ptp(p)).astype(np.float32)
        boxes, cells, scores = regions(p, level)
        labels, n = ndimage.label(p >= level, np.ones((3, 3)))
        truth = []
        for i, (y, x) in enumerate(ndimage.find_objects(labels), 1):
            v = p[labels == i]
            truth.append((np.sqrt(v.mean()*v.max())*(1 - np.exp(-v.size/2)), (x.start, y.start, x.stop, y.stop)))
        truth.sort(key=lambda t: -t[0])
        assert (np.asarray(scores) > 0).sum() == n
        np.testing.assert_allclose(scores[:n], [t[0] for t in truth], atol=2e-4)
        np.testing.assert_array_equal(cells[:n], [t[1] for t in truth])
        assert np.abs(np.asarray(boxes - cells)[:n]).max() <= .91  # the border lies between the last cell and the next

def test_more_regions_than_rows_keeps_the_best():
    p = np.zeros((16, 16), np.float32)
    p[::4, ::4] = np.linspace(.3, .9, 16).reshape(4, 4)
    _, cells, scores = jax.jit(lambda p: regions_at(p, .2, 3))(p)
    np.testing.assert_allclose(scores, np.array([.9, .86, .82])*(1 - np.exp(-1/2)), atol=1e-3)  # one cell each
    np.testing.assert_array_equal(cells[0], [12, 12, 13, 13])

def test_one_blob_is_one_box_whatever_the_levels():
    p = np.full((1, 16, 16), .01, np.float32)
    p[0, 4:9, 5:11] = .97
    found, _ = jax.jit(RegionAdapter(k=8))(jnp.log(p/(1 - p)))
    assert int(found.valid.sum()) == 1
    np.testing.assert_allclose(found.boxes[0, 0], [20, 16, 44, 36], atol=.2)

def test_padding_is_not_photograph():
    x = np.full((3, 32, 48, 3), 127, np.uint8)
    x[0, :, 8:40] = 200
    x[1, 4:28] = 90
    got = np.asarray(photographed(x/np.float32(255)))
    assert got[0].all(0).tolist() == [False]*2 + [True]*8 + [False]*2 and got[0].any(0).sum() == 8
    assert got[1].all(1).tolist() == [False] + [True]*6 + [False]
    assert got[2].all()  # an all-grey photograph is a photograph

def test_nothing_infinite_is_ever_detected():
    boxes = jnp.array([[[0, 0, 9, 9], [20, 0, jnp.nan, 9], [40, 0, 49, 9.]]])
    found, _ = DetectionAdapter(k=3)(jnp.zeros((1, 4, 4)), boxes, jnp.array([[.5, .9, jnp.nan]]))
    assert found.valid.tolist() == [[True, False, False]] and bool(jnp.isfinite(found.boxes).all())
    found, dense = jax.jit(RegionAdapter(k=2))(jnp.full((1, 8, 8), jnp.nan))
    assert bool(jnp.isfinite(found.boxes).all()) and bool(jnp.isnan(dense).all())  # whoever joins networks must see it


# -- Export

EXPORT = '''
import sys, hashlib
{pad}
import jax, numpy as np
import fake_cascade as F
from sads_jax.inference.export import export_program
if "warm" in sys.argv: jax.jit(F.random_cascade())(F.random_params(), np.zeros((2, 64, 64, 3), np.uint8))
data = export_program(F.random_cascade(), F.random_params(), (64, 64))
print(hashlib.sha256(data).hexdigest(), b"fake_cascade" in data, b"/tmp" in data or b"site-packages" in data)
'''

def test_bytes_depend_on_nothing_but_the_function(tmp_path):
    "Another process, working directory, checkout and hash seed; after other tracing; the same bytes without paths"
    copy = tmp_path/'another place'
    shutil.copytree(ROOT/'sads_jax', copy/'sads_jax')
    (copy/'tests').mkdir()
    moved = '\n\n\n"moved down"\n' + (ROOT/'tests'/'fake_cascade.py').read_text()
    (copy/'tests'/'fake_cascade.py').write_text(moved)
    here = python(EXPORT.format(pad=''))
    there = python(EXPORT.format(pad='\n' * 7), 'warm', cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(copy), str(copy / 'tests')]), PYTHONHASHSEED='7')
    assert here == there
    assert here.split()[1:] == ['False', 'False']

def test_export_again_in_the_same_process(programs, params):
    assert (
        export_program(F.random_cascade(), dict(reversed(params.items())), F.BUCKETS[0], platforms=('cpu',))
        == programs[F.BUCKETS[0]]
    )

@pytest.mark.slow
def test_loaded_program_gives_the_bits_of_the_jitted_function(fresh, loaded, photos):
    a, b = fresh.predict(photos[:24]), loaded.predict(photos[:24])
    assert isinstance(b[0][0], Findings) and sum(int(f.valid.sum()) for f, _ in b) > 24
    same_bits(a, b)

def test_an_exported_program_refuses_what_it_cannot_run(programs):
    with pytest.raises(BundleError, match='not an exported program'): load_program(programs[F.BUCKETS[0]][:100])
    with pytest.raises(BundleError, match='weights lack'):
        load_program(programs[F.BUCKETS[0]])({}, np.zeros((1, 64, 64, 3), np.uint8))
    tpu = export_program(F.dark_cascade(), {}, (64, 64), platforms=('tpu',))
    with pytest.raises(BundleError, match='exported for tpu, but this machine has'): load_program(tpu)

def test_weights_round_trip_and_name_their_faults(tmp_path, params):
    save_weights(tmp_path/'a', params)
    save_weights(tmp_path/'b', dict(reversed(params.items())))
    assert (tmp_path/'a').read_bytes() == (tmp_path/'b').read_bytes()
    back = load_weights(tmp_path/'a')
    assert sorted(back) == sorted(params)
    for k in params: np.testing.assert_array_equal(back[k], params[k]); assert back[k].shape == params[k].shape
    (tmp_path/'a').write_bytes(b'\xff'*40)
    with pytest.raises(BundleError, match='not a weights file'): load_weights(tmp_path/'a')


# -- Predictor

@given(st.integers(0, 200), st.sets(st.sampled_from([1, 2, 4, 8, 32]), min_size=1))
def test_a_plan_covers_all_and_pads_only_below_the_smallest(n, sizes):
    plan = batch_plan(n, tuple(sizes))
    assert sum(plan) >= n and sum(plan) - n < min(sizes) and plan == sorted(plan, reverse=True)

def test_bits_do_not_depend_on_company(loaded, photos):
    "Alone, in threes, in eights, in another order: the same findings"
    alone = [loaded.predict([x])[0] for x in photos[:24]]
    same_bits(loaded.predict(photos[:24]), alone)
    same_bits(loaded.predict(photos[:24][::-1])[::-1], alone)
    same_bits([f for i in range(0, 24, 3) for f in loaded.predict(photos[i:i+3])], alone)

def test_bits_do_not_depend_on_company_one_crop_at_a_time(params, photos):
    p = CVPredictor(F.random_cascade(1), params, F.BUCKETS[:1], batch_sizes=(1, 8))
    same_bits(p.predict(photos[:16]), [p.predict([x])[0] for x in photos[:16]])

def test_compilations_over_200_sizes(photos):
    "At most buckets x batch sizes, by JAX's own count"
    assert len({x.shape for x in photos}) >= 190
    mean = lambda params, images: images.astype(jnp.float32).mean((1, 2, 3))
    p = CVPredictor(
        {b: load_program(export_program(mean, {}, b)) for b in F.BUCKETS}, {}, F.BUCKETS, batch_sizes=(1, 8)
    )
    p.predict(photos[:1])
    before, events = p.compiles, []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if name.endswith('backend_compile_duration') else None
    )
    for i in range(0, 200, 7): p.predict(photos[i:i+7])
    p.predict(photos)
    assert p.compiles <= len(F.BUCKETS)*2
    assert len(events) == p.compiles - before

def test_a_predictor_needs_sensible_arguments():
    with pytest.raises(SADSError, match='batch sizes must be positive'):
        CVPredictor(lambda p, x: x, {}, F.BUCKETS, batch_sizes=())
    with pytest.raises(SADSError, match='cannot be made'): use_compilation_cache('/dev/null/x')

CACHED = '''
import sys, jax, numpy as np
import sads_jax.inference.predictor as P
assert jax.config.jax_compilation_cache_dir is None
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
jax.jit(lambda x: x + 1)(1)
p = P.CVPredictor(lambda params, images: images.astype("float32").mean((1, 2, 3)) + params["a"], {"a": np.float32(1)}, [(64, 64)], (1,), cache_dir=sys.argv[1])
p.predict([np.zeros((50, 60, 3), np.uint8)])
print(sum(n.endswith("compilation_cache/cache_hits") for n in seen))
'''  # noqa: E501

def test_the_compilation_cache_is_used_where_asked_for(tmp_path):
    hits = lambda: int(python(CACHED, str(tmp_path/'cache'), JAX_COMPILATION_CACHE_DIR=None))
    assert hits() == 0
    assert any((tmp_path/'cache').iterdir())
    assert hits() > 0

LIGHT = '''
import sys, hashlib
import numpy as np
from sads_jax.core.types import Findings
from sads_jax.inference.export import load_program
from sads_jax.inference.vetting import load_weights
from sads_jax.inference.predictor import CVPredictor
import sads_jax.domains.surface.pipeline
program = load_program(open(sys.argv[1], "rb").read(), Findings)
p = CVPredictor({(64, 64): program}, load_weights(sys.argv[2]), [(64, 64)], (1,))
(found, _), = p.predict([np.zeros((50, 60, 3), np.uint8)])
print(*sorted({m.partition(".")[0] for m in sys.modules} & {"flax", "optax", "orbax", "sklearn", "matplotlib", "dvc", "fake_cascade", "cv2", "pandas"}))
'''  # noqa: E501

def test_serving_needs_no_training_library_and_no_model_code(programs, params, tmp_path):
    (tmp_path/'p').write_bytes(programs[F.BUCKETS[0]])
    save_weights(tmp_path/'w', params)
    assert python(LIGHT, str(tmp_path/'p'), str(tmp_path/'w')).split() == []


# -- Threads

def test_bits_do_not_depend_on_threads(loaded, programs, params, photos):
    "Side by side or one after the other"
    three = CVPredictor(
        {b: load_program(d, Findings) for b, d in programs.items()}, params, F.BUCKETS, batch_sizes=(1, 8), threads=3
    )
    assert three.threads == 3
    same_bits(three.predict(photos[:20]), [loaded.predict([x])[0] for x in photos[:20]])

@given(st.integers(1, 100), st.integers(1, 5))
def test_no_thread_is_idle_while_another_has_two_batches_worth(n, threads):
    plan = batch_plan(n, (1, 8, 32), threads)
    assert sum(plan) == n and len(plan) >= min(n, threads)
