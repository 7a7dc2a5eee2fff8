"Contrastive losses against loops over the papers' formulas; the trainer on a small set with few labels"
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sads_jax.core.params import CnnSpec, Params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.dataset import Example
from sads_jax.data.images import Placement
from sads_jax.models.store import load_model
from sads_jax.training.contrastive import draw_squares, nt_xent, pretrain, project, projection, supcon
from sads_jax.training.trainers import TrainerFactory, train_task


def by_the_book(z, labels, temperature):
    "L_out of Khosla et al. 2020, equation 2, term by term"
    z = z/np.linalg.norm(z, axis=1, keepdims=True)
    total, anchors = 0., 0
    for i in range(len(z)):
        like = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not like: continue
        below = sum(np.exp(z[i] @ z[a]/temperature) for a in range(len(z)) if a != i)
        total += -sum(np.log(np.exp(z[i] @ z[p]/temperature)/below) for p in like)/len(like)
        anchors += 1
    return total/max(anchors, 1)

@pytest.mark.parametrize('temperature', [.1, .5, 2.])
def test_supcon_is_the_papers(temperature):
    rng = np.random.default_rng(0)
    for n, classes in ((2, 1), (7, 3), (12, 4), (9, 20)):
        z, labels = rng.standard_normal((n, 5)), rng.integers(0, classes, n)
        assert float(supcon(jnp.asarray(z, jnp.float32), jnp.asarray(labels), temperature)) == pytest.approx(
            by_the_book(z, labels, temperature), rel=2e-4, abs=1e-5
        )

def test_nt_xent_is_simclrs():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 6, 4))
    z = np.concatenate([a, b])/np.linalg.norm(np.concatenate([a, b]), axis=1, keepdims=True)
    s = np.exp(z @ z.T/.5)
    truth = np.mean([-np.log(s[i, (i + 6) % 12]/(s[i].sum() - s[i, i])) for i in range(12)])
    assert float(nt_xent(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), 0.5)) == pytest.approx(
        truth, rel=1e-4
    )

def test_gradients_are_numbers_even_of_zeros_and_lonely_rows():
    for z in (jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.eye(4)*1e6):
        for labels in (jnp.arange(4), jnp.zeros(4, int)):
            assert jnp.isfinite(jax.grad(lambda z, labels=labels: supcon(z, labels, .05))(z)).all()

def test_squares_fit_a_small_photograph():
    squares = draw_squares(np.random.default_rng(0), (10, 0, 40, 200), 50)
    assert (
        (squares[:, 0] >= 10).all()
        and (squares[:, 2] <= 40.001).all()
        and (squares[:, 1] >= 0).all()
        and (squares[:, 3] <= 200.001).all()
    )

def test_a_projection_keeps_the_scale_of_its_input():
    x = jax.random.normal(jax.random.key(0), (64, 100))
    assert .5 < float(project(projection(jax.random.key(1), 100), x).std()) < 2


def test_what_was_learnt_without_labels_is_kept_for_a_run_that_is_killed_later(tmp_path):
    "And nothing of a second run's weights is needed to find it"
    class Photographs(list):
        def bucket(self, i): return 0
    canvas = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    photographs = Photographs(
        [Example(canvas, None, None, None, None, Placement(0, 1.0, 0, 0, 32, 32, 32, 32), None, None)] * 3
    )
    maps = lambda w, x: (x[:, ::4, ::4] @ w['mix'],)
    plan = TrainerFactory(CnnSpec(warmup=0, ema=0.))
    how = dict(side=8, schedule=plan, steps=2, temperature=.2, seed=0, checkpoints=tmp_path/'c')
    learn = lambda start: pretrain(maps, {'mix': start}, photographs, **how)
    first = learn(jnp.eye(3))
    assert np.abs(first['mix'] - np.eye(3)).max() > 1e-4 and first.keys() == {'mix'}
    np.testing.assert_array_equal(learn(jnp.zeros((3, 3)))['mix'], first['mix'])

@pytest.mark.slow
def test_few_labels_and_all_photographs(tmp_path):
    "Twelve parts, of which four are labelled"
    params = Params.model_validate(
        {
            'data': {'kind': 'synthetic', 'n_parts': 12, 'exposures': 1, 'size': 64, 'defective': 0.9},
            'image': {'buckets': [[64, 64]]},
            'classifier': {
                'crop': 32,
                'trainer': {'kind': 'contrastive', 'steps': 2, 'pretrain_steps': 2, 'batch_size': 4, 'width': 4,
                    'warmup': 0, 'eval_every': 1},
            },
        }
    )
    data = ingest(ConnectorFactory(params.data, seed=0), tmp_path/'data')
    known = [r.id for r in data.images if r.annotations][:4]
    data = replace(
        data,
        images=tuple(
            r if r.id in known else replace(r, defective=None, classes=(), annotations=()) for r in data.images
        ),
    )
    told = set()
    history = train_task(
        'classifier',
        data,
        {'train': [r.id for r in data.images], 'val': []},
        params,
        tmp_path / 'model',
        progress=lambda what, done, total, row: told.add((what, total)),
    )
    assert told == {('classifier features', 2), ('classifier', 2)} and all(np.isfinite(h['loss']) for h in history)
    apply, weights, facts = load_model(tmp_path/'model')
    assert not any(k.startswith('projection') for k in weights) and facts['build']['backbone'] == 'plain'
    logits = apply(weights, jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 4)))
    assert logits.shape == (2, len(data.categories)) and bool(jnp.isfinite(logits).all())
