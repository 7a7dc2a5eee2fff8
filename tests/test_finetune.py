"Heads first, then the backbone with them: what learns, and that a killed run ends with the same bits"
import numpy as np
import pytest

from sads_jax.core.params import Params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.models.backbone import hidden_channels
from sads_jax.models.classifier import box_geometry
from sads_jax.models.pretrained import LITE0_BLOCKS, lite0_weights
from sads_jax.models.store import load_model
from sads_jax.ops.boxes import square_context
from sads_jax.ops.crops import crop_and_resize
from sads_jax.training.samples import make_samples
from sads_jax.training.trainers import make_task, train_task

TRAINER = {'kind': 'finetune', 'views': 1, 'steps': 8, 'warmup': 2, 'batch_size': 4, 'eval_every': 4,
    'unfreeze_steps': 8, 'unfreeze_from': 9}


class Killed(BaseException): pass


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    params = Params.model_validate({'data': {'kind': 'synthetic', 'n_parts': 16, 'exposures': 1, 'size': 64}})
    data = ingest(ConnectorFactory(params.data, seed=0), tmp_path_factory.mktemp('data')/'data')
    ids = [r.id for r in data.images]
    return data, {'train': ids[4:], 'val': ids[:4]}


def trained(photographs, out, task='detector', start_from=None, checkpoints=None, progress=lambda *a: None, **changes):
    params = Params.model_validate(
        {'image': {'buckets': [[64, 64]]}, 'detector': {'width': 8, 'trainer': TRAINER | changes},
            'classifier': {'crop': 32, 'trainer': TRAINER | changes},
            'segmenter': {'crop': 32, 'width': 8, 'trainer': TRAINER | changes}}
    )
    rows = train_task(
        task, *photographs, params, out, start_from=start_from, checkpoints=checkpoints, progress=progress
    )
    return load_model(out)[1], rows


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('whole')


@pytest.fixture(scope='module')
def whole(photographs, folder): return trained(photographs, folder)


@pytest.mark.slow
def test_the_late_pointwise_weights_learn_and_nothing_else_of_the_backbone(photographs, whole, tmp_path):
    heads, rows = trained(photographs, tmp_path, unfreeze_steps=0)
    weights, more = whole
    assert [r['step'] for r in rows] == [4, 8] and [r['step'] for r in more] == [4, 8, 12, 16]
    assert rows == more[:2]  # the heads' part is the same
    changed = {k for k in weights if not np.array_equal(weights[k], heads[k])}
    backbone = {k for k in changed if k.startswith('backbone/')}
    assert backbone == {
        k
        for k in weights
        if k.startswith('backbone/blocks/') and int(k.split('/')[2]) >= 9 and not k.endswith('/depthwise')
    }
    assert {k for k in weights if k.startswith('head/') and 'standardise' not in k} == changed - backbone


@pytest.mark.slow
@pytest.mark.parametrize('at, again', [(6, 5), (14, 13)])
def test_a_run_killed_in_either_part_ends_with_the_same_bits(photographs, whole, tmp_path, at, again):
    seen, lives = [], [at]
    def die(what, done, total, row):
        if what != 'detector': return
        seen.append((done, total))
        if done in lives:
            lives.clear()
            raise Killed
    with pytest.raises(Killed): trained(photographs, tmp_path/'out', checkpoints=tmp_path/'kept', progress=die)
    assert seen[-1] == (at, 16)
    seen.clear()
    weights, rows = trained(photographs, tmp_path/'out', checkpoints=tmp_path/'kept', progress=die)
    assert seen[0] == (again, 16)
    for k in weights: assert weights[k].tobytes() == whole[0][k].tobytes(), k
    assert rows == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classifier', 'segmenter'])
def test_models_of_crops_thaw_too(photographs, tmp_path, task):
    frozen, _ = trained(photographs, tmp_path/'a', task, unfreeze_steps=0)
    thawed, rows = trained(photographs, tmp_path/'b', task)
    name = 'backbone/blocks/12/project'
    assert not np.array_equal(frozen[name], thawed[name]) and all(np.isfinite(r['loss']) for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classifier', 'segmenter'])
def test_models_of_crops_start_with_anothers_backbone(photographs, whole, folder, tmp_path, task):
    weights, _ = trained(photographs, tmp_path/'a', task, start_from=folder, unfreeze_steps=0)
    shared = [k for k in weights if k.startswith('backbone/')]
    assert len(shared) > 50 and all(np.array_equal(weights[k], whole[0][k]) for k in shared)
    thawed, _ = trained(photographs, tmp_path/'b', task, start_from=folder)
    moved = {k for k in shared if not np.array_equal(thawed[k], whole[0][k])}
    assert moved and all(int(k.split('/')[2]) >= 9 for k in moved)


@pytest.mark.slow
def test_a_thinned_backbone_is_smaller_learns_and_is_handed_on(photographs, tmp_path):
    told = []
    weights, rows = trained(
        photographs, tmp_path / 'a', keep=0.4, progress=lambda what, done, total, row: told.append((what, done, total))
    )
    assert ('detector thinning', 32, 32) in told and all(np.isfinite(r['loss']) for r in rows)
    apply, _, facts = load_model(tmp_path/'a')
    whole, slim = np.array(hidden_channels(lite0_weights())), np.array(facts['build']['hidden'])
    assert (slim <= whole).all() and not (slim % 8).any()
    c_in, c_out = (np.array([b[3] for b in LITE0_BLOCKS[a:][:15]]) for a in (0, 1))
    side = 16/np.cumprod([b[2] for b in LITE0_BLOCKS[1:]])*2  # of what comes into a block, of 64 px
    stride, k = (np.array([b[a] for b in LITE0_BLOCKS[1:]]) for a in (2, 1))
    cost = (side*stride)**2*c_in + side**2*(k**2 + c_out)
    assert .36 < (slim*cost).sum()/(whole*cost).sum() < .44
    assert apply(weights, np.zeros((1, 64, 64, 3), np.float32)).shape == (1, 16, 16)
    names, _ = trained(
        photographs, tmp_path / 'b', 'classifier', start_from=tmp_path / 'a', unfreeze_steps=0
    )  # whose own `keep` is 1
    assert load_model(tmp_path/'b')[2]['build']['hidden'] == facts['build']['hidden']
    for k, v in weights.items():
        if k.startswith('backbone/'): np.testing.assert_array_equal(names[k], v)


@pytest.mark.slow
def test_a_discriminant_needs_no_steps_and_names_what_it_has_seen(photographs, folder, whole, tmp_path):
    params = Params.model_validate(
        {'image': {'buckets': [[64, 64]]},
            'classifier': {'crop': 32, 'trainer': {'kind': 'discriminant', 'views': 2, 'shrinkage': 0.3}}}
    )
    told = []
    rows = train_task(
        'classifier', *photographs, params, tmp_path, start_from=folder, progress=lambda *a: told.append(a[:3])
    )
    assert [sorted(r) for r in rows] == [['loss', 'score', 'step']] and ('classifier', 1, 1) in told
    apply, weights, facts = load_model(tmp_path)
    assert facts['build']['width'] == 0 and not any('hidden' in k for k in weights)
    for k, v in whole[0].items():
        if k.startswith('backbone/'): np.testing.assert_array_equal(weights[k], v)
    data, split = photographs
    task = make_task('classifier', params, data.categories)
    samples = make_samples(task, data, split['train'], params.image.buckets, 0)
    right = []
    for item, box, label in zip(samples.item, samples.box, samples.label):
        e = samples.dataset[int(item)]
        crop = crop_and_resize(e.canvas[None].astype(np.float32) / 255,
            square_context(box[None], facts['context'], facts['least']), np.zeros(1, np.int32), facts['crop'])
        right.append(int(apply(weights, crop, box_geometry(box[None], 64, 64))[0].argmax()) == label)
    assert len(set(samples.label.tolist())) > 2 and np.mean(right) > .95


def test_only_names_have_a_discriminant():
    with pytest.raises(ValueError, match='detector.trainer'):
        Params.model_validate({'detector': {'trainer': {'kind': 'discriminant'}}})


def test_a_class_without_example_is_never_named(photographs, tmp_path):
    data, split = photographs
    crops = np.random.default_rng(0).random((64, 32, 32, 3), np.float32)  # nothing like any class
    gone = next(c for r in data.images if r.id in split['train'] for c in r.classes)
    few = {'train': [i for i in split['train'] if gone not in data.by_id[i].classes], 'val': []}
    params = Params.model_validate(
        {'image': {'buckets': [[64, 64]]}, 'classifier': {'crop': 32, 'trainer': {'kind': 'discriminant', 'views': 1}}}
    )
    train_task('classifier', data, few, params, tmp_path)
    apply, weights, _ = load_model(tmp_path)
    logits = np.asarray(apply(weights, crops, np.zeros((64, 4), np.float32)))
    assert np.isfinite(logits).all() and (logits.argmax(1) != data.categories.index(gone)).all()
