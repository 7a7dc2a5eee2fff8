"Contracts between rooms: specs and builders, protocols and who keeps them, fixed numbers, names of stored weights."
import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

from sads_jax.core.canvas import CELL, MAP, PAD, STRIDE
from sads_jax.core.errors import BundleError
from sads_jax.core.params import AnomalySpec, DataSpec, NameTrainerSpec, SyntheticSpec, TileSpec, TrainerSpec
from sads_jax.core.point import Preprocess, read_record
from sads_jax.data.connectors import ConnectorFactory
from sads_jax.data.images import letterbox
from sads_jax.domains.surface.tiling import TiledPredictor
from sads_jax.evaluation.metrics import MetricFactory
from sads_jax.inference.adapters import OutputAdapterFactory
from sads_jax.inference.onnx import OnnxPredictor
from sads_jax.inference.predictor import BaseCVPredictor, CVPredictor
from sads_jax.models.backbone import Statistic, to_flat
from sads_jax.models.detector import Detector, frozen_names
from sads_jax.models.store import MODELS
from sads_jax.ops.boxes import area
from sads_jax.training.anomaly import AnomalyFactory
from sads_jax.training.contrastive import nt_xent
from sads_jax.training.loop import Schedule, optimiser
from sads_jax.training.losses import map_loss
from sads_jax.training.trainers import Trainer, TrainerFactory

# -- Specs and builders

BUILT = [  # Factory, union of its specs, what the caller adds
    (ConnectorFactory, DataSpec, {'seed'}),
    (TrainerFactory, TrainerSpec, set()),
    (TrainerFactory, NameTrainerSpec, set()),
    (AnomalyFactory, AnomalySpec, {'good'}),
]
KINDS = sorted({(factory.name, spec, tuple(deps)) for factory, union, deps in BUILT
                for spec in typing.get_args(typing.get_args(union)[0])}, key=str)
FACTORIES = {f.name: f for f in (ConnectorFactory, TrainerFactory, AnomalyFactory, OutputAdapterFactory, MetricFactory)}

@pytest.mark.parametrize('name, spec, deps', KINDS, ids=lambda v: getattr(v, '__name__', None))
def test_a_builder_takes_the_fields_of_its_spec_and_no_others(name, spec, deps):
    takes = inspect.signature(FACTORIES[name][spec.model_fields['kind'].default]).parameters
    fields = set(spec.model_fields) - {'kind'}
    if spec is SyntheticSpec: # its builder hands all fields to the spec again, which refuses what it does not know
        assert set(takes) == {'seed', 'fields'}
        return
    assert fields <= set(takes) and set(takes) - fields <= set(deps)

@pytest.mark.parametrize('factory', FACTORIES.values(), ids=FACTORIES)
def test_no_builder_swallows_what_it_does_not_know(factory):
    greedy = {
        k for k, fn in factory.items() for p in inspect.signature(fn).parameters.values() if p.kind == p.VAR_KEYWORD
    }
    assert greedy <= {'synthetic'} # see above

@pytest.mark.parametrize('spec', typing.get_args(typing.get_args(NameTrainerSpec)[0]))
def test_trainers_are_made_from_a_section_alone(spec):
    trainer = TrainerFactory(spec())
    assert isinstance(trainer, Trainer) and trainer == TrainerFactory(spec())
    assert [*inspect.signature(trainer).parameters] == ['job']  # the same for all kinds
    assert {f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer)} == spec().model_dump(
        exclude={'kind'}
    )

# -- Predictors

def program(params, images): return {'mean': images.mean((1, 2, 3))}

@pytest.mark.parametrize('make', [lambda: CVPredictor(program, {}, [(64, 64)], (1,)),
    lambda: TiledPredictor(CVPredictor(program, {}, [(64, 64)], (1,)), TileSpec(overlap=16))])
def test_predictors_keep_the_protocol(make):
    predictor, photo = make(), np.full((40, 50, 3), 9, np.uint8)
    assert isinstance(predictor, BaseCVPredictor)
    (canvas, place), = predictor.place([photo])
    assert canvas.shape == (64, 64, 3) and (place.original_height, place.original_width) == (40, 50)

def test_the_onnx_predictor_has_every_member_of_the_protocol():
    wanted = {*typing.get_type_hints(BaseCVPredictor), 'place', 'predict', 'warm_up'}
    assert wanted <= {*dir(OnnxPredictor), 'buckets'}  # buckets are set when it is made

# -- One canvas

def test_padding_and_strides_are_the_same_everywhere():
    canvas, p = letterbox(np.zeros((32, 64, 3), np.uint8), [(64, 64)])
    assert (canvas[:p.top] == PAD).all() and p.top > 0
    detector = Detector('plain', 8, 8, boxes=True, rngs=nnx.Rngs(0))
    dense, cells, features = detector.outputs(jnp.zeros((1, 2*STRIDE, 3*STRIDE, 3)))
    assert dense.shape == (1, 2*STRIDE//MAP, 3*STRIDE//MAP) and cells.shape[1:3] == (2*STRIDE//CELL, 3*STRIDE//CELL)
    assert features[-1].shape[1:3] == (2, 3)

@pytest.mark.parametrize('change', [{'pad': 0}, {'pad': 128}, {'buckets': [[STRIDE + 1, STRIDE]]}])
def test_a_bundle_with_another_canvas_is_refused(change):
    right = {'buckets': [[STRIDE, STRIDE]], 'pad': PAD, 'batch_sizes': [1]}
    assert read_record(Preprocess, right, 'preprocess.json').pad == PAD
    with pytest.raises(BundleError, match='pad|multiples'): read_record(Preprocess, right | change, 'preprocess.json')

# -- Stored weights

HEAD = ['head/mix/bias', 'head/mix/kernel', 'head/out/bias', 'head/out/kernel', *(f'head/pyramid/{a}' for a in (
    'fine/bias', 'fine/kernel', *(f'lateral/{i}/{b}' for i in range(4) for b in ('bias', 'kernel')),
    *(f'smooth/{i}/{b}' for i in range(3) for b in ('bias', 'kernel')))),
    *(f'head/standardise/{s}/{i}' for s in ('gain', 'mean') for i in range(4))]

def test_weights_keep_the_names_they_were_stored_under():
    "A bundle or model of an earlier release must find its weights"
    names = to_flat(Detector(width=8, rngs=nnx.Rngs(0)))
    assert [n for n in names if n.startswith('head/')] == HEAD
    assert {'backbone/stem', 'backbone/stem_bias', 'backbone/blocks/0/depthwise',
        'backbone/blocks/15/project_bias'} <= names.keys()
    assert [*to_flat(MODELS['anomaly']((4, 4)))] == ['mean', 'whiten']
    plain = to_flat(MODELS['segmenter']('plain', 8, 8, rngs=nnx.Rngs(0)))
    assert {'backbone/stages/0/a', 'backbone/stages/3/skip', 'backbone/stages/0/scale_b'} <= plain.keys()

@pytest.mark.parametrize('task', ['detector', 'segmenter'])
def test_no_gradient_moves_a_statistic(task):
    model = MODELS[task]('plain', 8, 8, rngs=nnx.Rngs(0))
    assert (
        set(to_flat(model, Statistic))
        == frozen_names(model, False)
        == {n for n in to_flat(model) if 'standardise' in n}
    )

# -- Beside other people's code

def test_the_focal_term_is_that_of_optax():
    logits, target = jax.random.normal(jax.random.key(0), (2, 8, 8))*4, jnp.zeros((2, 8, 8)).at[0, 2:4, 3:6].set(1.)
    ours = (map_loss(logits, target, 1.) - map_loss(logits, target, 0.))
    np.testing.assert_allclose(ours, optax.sigmoid_focal_loss(logits, target).mean(), rtol=1e-4)

def test_the_loss_of_two_views_is_that_of_optax():
    a, b = jax.random.normal(jax.random.key(0), (2, 12, 16))
    labels = jnp.tile(jnp.arange(12), 2)
    np.testing.assert_allclose(nt_xent(a, b, .3), optax.losses.ntxent(jnp.concatenate([a, b]), labels, .3), rtol=1e-4)

def test_rates_scale_the_step_of_their_weights_alone():
    plan = Schedule(steps=9, batch_size=1, learning_rate=0.1, weight_decay=0.01, warmup=0, clip=9.0, ema=0.0,
        eval_every=9, patience=0)
    w, grad = {k: jnp.float32(2) for k in 'abc'}, {k: jnp.float32(.5) for k in 'abc'}
    step = lambda opt: opt.update(grad, opt.init(w), w)[0]
    whole, scaled = step(optimiser(plan)), step(optimiser(plan, {'b': .2, 'c': 0.}))
    assert scaled['a'] == whole['a'] and scaled['b'] == whole['b']*jnp.float32(.2) and scaled['c'] == 0

# -- Shapes are checked

def test_shapes_are_checked_while_tests_run():
    "Under `--jaxtyping-packages` (pyproject.toml); a wrong shape is named instead of broadcast"
    with pytest.raises(jaxtyping.TypeCheckError, match='boxes'): area(jnp.zeros((3, 5)))
