"Good parts alone: tasks that are left out, the cascade without them, thresholds by rank, banks that grow."
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.spatial.distance import cdist

from sads_jax.core.errors import DataError
from sads_jax.core.params import DecisionSpec, OverkillThreshold, Params, SyntheticSpec
from sads_jax.core.progress import Progress
from sads_jax.core.settings import Settings
from sads_jax.core.types import ANOMALY, Verdict
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.plan import plan, warnings
from sads_jax.data.recognise import Layout, fingerprint
from sads_jax.domains.surface.assembly import absent_tasks, assemble
from sads_jax.evaluation.evaluate import summary
from sads_jax.evaluation.first_defects import choose_kind, line_between
from sads_jax.evaluation.operating import choose_by_good_parts
from sads_jax.models.absent import Absent, read_absent, save_absent
from sads_jax.models.anomaly import places, pooled, wide_places
from sads_jax.models.backbone import pure, to_flat
from sads_jax.models.patch_bank import PatchBank, coreset, grow
from sads_jax.models.store import save_model
from sads_jax.orchestrators.training import compose_training
from sads_jax.training.trainers import train_task

rng = np.random.default_rng(0)

@pytest.fixture(scope='module')
def good_only(tmp_path_factory):
    "Eight good parts, ingested"
    folder = tmp_path_factory.mktemp('good')
    return ingest(ConnectorFactory(SyntheticSpec(n_parts=8, exposures=1, size=64, defective=0), seed=0), folder/'data')

# ---------------------------------------------------------------- a task that has nothing to learn

@pytest.mark.parametrize('task', ['detector', 'segmenter', 'classifier'])
def test_good_parts_teach_no_task_and_that_is_written_down(task, good_only, tmp_path):
    ids = [r.id for r in good_only.images]
    assert train_task(task, good_only, {'train': ids, 'val': []}, Params(), tmp_path/task) == []
    told = read_absent(tmp_path/task)
    assert told.task == task and 'nothing to learn' in told.why
    assert sorted(p.name for p in (tmp_path/task).iterdir() if not p.name.startswith('.')) == ['absent.json']

def test_one_class_needs_no_classifier(tmp_path):
    spec = SyntheticSpec(n_parts=6, exposures=1, size=64, defects=('pit',))
    data = ingest(ConnectorFactory(spec, seed=0), tmp_path/'data')
    ids = [r.id for r in data.images]
    assert train_task('classifier', data, {'train': ids, 'val': []}, Params(), tmp_path/'classifier') == []
    assert read_absent(tmp_path/'classifier').label == 'pit'

# ---------------------------------------------------------------- the cascade without them

def models_of_good_parts(folder, bank, more):
    "A patch bank on a small random backbone, and nothing else"
    for task in ('detector', 'segmenter', 'classifier'): save_absent(folder/task, Absent(task, 'no defect was seen'))
    build = {'channels': [16, 32, 64, 64], 'size': len(bank), 'wide': 4, 'backbone': 'plain'}
    model = PatchBank(**build, rngs=nnx.Rngs(0))
    save_model(folder/'anomaly', 'patch_bank', build, to_flat(model) | {'bank': bank} | more, [], share=.9)
    return model

@pytest.fixture(scope='module')
def cascade(tmp_path_factory):
    "Knows one bright surface"
    folder = tmp_path_factory.mktemp('models')
    bright = np.full((1, 64, 64, 3), 230, np.uint8)
    model = models_of_good_parts(folder, np.zeros((1, 96), np.float32), {})
    maps = model.backbone(jnp.asarray(bright/np.float32(255)))
    known = np.asarray(places(maps)).reshape(-1, 96)
    wide, whole = np.asarray(wide_places(maps)).reshape(-1, 64), pooled(maps[2:], np.ones((1, 16, 16)))[0]
    models_of_good_parts(folder, np.unique(known.round(5), axis=0).astype(np.float32)[:64],
        {'wide_bank': wide, 'wide_limit': np.float32([.01]), 'whole_mean': whole,
         'whole_whiten': 100*np.eye(len(whole), dtype=np.float32)})
    return folder, assemble(folder, Params(image={'buckets': [(64, 64)]}), ('pit',))

def test_labels_and_reasons_of_a_cascade_without_a_detector(cascade):
    folder, built = cascade
    assert built.labels == ('pit', ANOMALY) and not built.anomaly
    assert sorted(built.absent) == sorted(absent_tasks(folder)) == ['classifier', 'detector', 'segmenter']
    assert {k.partition('/')[0] for k in built.weights} == {'anomaly', 'cascade'}
    again = assemble(folder, Params(image={'buckets': [(64, 64)]}), built.labels)
    assert again.labels == built.labels

def test_what_is_unlike_good_parts_is_found_named_and_outlined(cascade):
    program, built = jax.jit(cascade[1].apply), cascade[1]
    good, odd = np.full((64, 64, 3), 230, np.uint8), np.full((64, 64, 3), 230, np.uint8)
    odd[24:48, 16:40] = 20
    f = jax.device_get(program(built.weights, np.stack([good, odd])))
    assert f.finite.all() and f.image_scores[0] < .1 < .9 < f.image_scores[1]
    assert not f.valid[0].any() and f.valid[1].any()
    x0, y0, x1, y1 = f.boxes[1, 0]
    assert x0 < 28 < x1 and y0 < 36 < y1
    assert (f.label_scores[1, f.valid[1]].argmax(-1) == 1).all()
    assert f.masks[1, 0].max() == 1 and f.masks[1, 0].shape == (48, 48)

def test_one_by_one_and_together_give_the_same_bits(cascade):
    program, built = jax.jit(cascade[1].apply), cascade[1]
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    together = jax.device_get(program(built.weights, images))
    for i in range(3):
        alone = jax.device_get(program(built.weights, images[i:i+1]))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together)): np.testing.assert_array_equal(a[0], b[i])

# ---------------------------------------------------------------- the bank

def test_greedy_k_centre_is_within_twice_of_the_best_choice():
    from itertools import combinations
    x = rng.normal(size=(14, 2)).astype(np.float32)
    chosen, radius = coreset(x, 3)
    far = cdist(x, x)
    assert radius == pytest.approx(far[:, chosen].min(1).max(), abs=1e-5)
    assert radius <= 2*min(far[:, list(c)].min(1).max() for c in combinations(range(14), 3)) + 1e-5

def bank_of(channels, seed=0):
    "A `PatchBank` with a random bank, its weights, and four random maps of a 128 x 128 px canvas"
    draw = np.random.default_rng(seed)
    model = PatchBank(channels, 5, 6)
    weights = to_flat(model) | {'wide_bank': jnp.asarray(draw.normal(size=(6, channels[3])), jnp.float32)}
    maps = [jnp.asarray(draw.normal(size=(1, 32 >> k, 32 >> k, c)), jnp.float32) for k, c in enumerate(channels)]
    return pure(model), weights, maps

@pytest.mark.parametrize('rows, counted', [(32, 4), (30, 4), (28, 3), (8, 1), (3, 1)])
def test_wide_places_count_where_they_are_photograph(rows, counted):
    said, weights, maps = bank_of((1, 2, 3, 4))
    inside = np.zeros((1, 32, 32), bool)
    inside[:, :rows] = True
    padded = np.pad(np.asarray(maps[3][0], np.float64), ((1, 1), (1, 1), (0, 0)), mode='edge')
    around = np.array([[padded[i:i + 3, j:j + 3].mean((0, 1)) for j in range(4)] for i in range(4)])
    wide = cdist(around[:counted].reshape(-1, 4), np.asarray(weights['wide_bank'])).min(1).max()
    vector = []
    for m in maps[2:]:
        shares = inside[0].reshape(m.shape[1], 32//m.shape[1], m.shape[2], -1).mean((1, 3)).ravel()
        x = np.asarray(m[0], np.float64).reshape(len(shares), -1)
        mean = np.average(x, axis=0, weights=shares)
        vector += [mean, np.sqrt(np.average((x - mean)**2, axis=0, weights=shares))]
    whole = np.sqrt(np.square(np.concatenate(vector)).mean())
    assert said(weights, maps, jnp.asarray(inside))[0] == pytest.approx(np.sqrt(wide*whole), rel=1e-4)

def test_a_bank_grows_within_its_memory():
    old, new = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(8, 1, (30, 3)).astype(np.float32)
    bank = grow(old, new, 40)
    assert bank.shape == (40, 3)
    assert cdist(new, bank).min(1).max() < cdist(new, old).min()
    assert {tuple(r) for r in bank} <= {tuple(r) for r in np.concatenate([old, new])}

# ---------------------------------------------------------------- thresholds

@pytest.mark.parametrize('share, n', [(.05, 19), (.1, 40), (.3, 12)])
def test_good_parts_are_stopped_no_more_often_than_promised(share, n):
    spec, stopped = DecisionSpec(threshold=OverkillThreshold(max_overkill=share)), 0
    for row in rng.beta(2, 6, (1500, n + 1)).round(4):
        threshold, told = choose_by_good_parts(spec, row[:-1], range(n))
        stopped += row[-1] >= spec.review_from(threshold)
        assert told['promise']['overkill'] <= share + 1e-9 or threshold == 1
    assert stopped/1500 <= share + 3*(share/1500)**.5

def test_too_few_parts_promise_what_they_can():
    threshold, told = choose_by_good_parts(DecisionSpec(), [.1, .2, .15], ['a', 'b', 'c'])
    assert told['promise']['overkill'] == .25 and 'takes 49 parts' in told['text']
    assert threshold*.8 > .2

def test_a_handful_of_defects_moves_the_line_up_only_where_there_is_room():
    good = np.linspace(.1, .5, 40)
    assert line_between(good, np.array([.9, .8]), .05) == pytest.approx((.5 - .4/39 + .8)/2, abs=1e-6)
    assert line_between(good, np.array([.2]), .05) == pytest.approx(.5 - .4/39, abs=1e-3)
    with pytest.raises(DataError, match='good and defective'): choose_kind({'a': good}, [False]*40, range(40))

# ---------------------------------------------------------------- what is said

def test_init_promises_a_model_of_good_parts(good_only, tmp_path):
    seen = fingerprint(ConnectorFactory(SyntheticSpec(n_parts=8, exposures=1, size=64, defective=0), seed=0))
    layout = Layout('synthetic', {}, 'made')
    choices = plan(seen, layout, [])
    told = ' '.join(warnings(seen, layout, choices))
    assert 'model of good parts is trained; escapes cannot be measured' in told and 'refuse' not in told
    assert [c.value[0]['verdict'] for c in choices if c.key == 'decision.rules'] == ['REVIEW']

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['gaussian', 'patch_bank', 'synthetic'])
def test_a_whole_run_of_good_parts(kind, tmp_path):
    params = Params(data=SyntheticSpec(n_parts=30, exposures=1, size=64, defective=0), image={'buckets': [(64, 64)]},
        anomaly={'kind': kind}, evaluate={'golden': 2})
    settings = Settings(registry_uri=f'sqlite:///{tmp_path}/r.db', registry_artifacts=tmp_path/'a', tracking='disabled')
    compose_training(params, settings, tmp_path, progress=Progress('none')).run()
    metrics = json.loads((tmp_path/'reports/metrics.json').read_text())
    assert metrics['rates']['image']['escape']['of'] == 0 < metrics['rates']['image']['overkill']['of']
    assert any('no defective part' in why for _, why in summary(metrics))
    assert 'No detector' in (tmp_path/'bundle/card.md').read_text()
    lines = [json.loads(x)['report'] for x in (tmp_path/'reports/predictions.jsonl').read_text().splitlines()]
    assert {x['verdict'] for x in lines} <= {v.value for v in Verdict}
    assert json.loads((tmp_path/'reports/parity.json').read_text())
