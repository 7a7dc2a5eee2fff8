"Photographs labelled as a whole: which model takes them, and a detector that never saw a mask"
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from sads_jax.core.errors import DataError
from sads_jax.core.params import Params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.dataset import CVDataset
from sads_jax.data.records import annotate_mask
from sads_jax.models.store import load_model
from sads_jax.training.losses import detection_loss, map_loss
from sads_jax.training.samples import make_samples
from sads_jax.training.trainers import make_task, train_task
from sads_jax.training.weak import UNKNOWN, somewhere, with_weak

N = 18 # photographs of each folder


def photograph(rng, kind):
    "Noise of some brightness; `scratch`: a thin bright line, `pit`: a dark disc. And where"
    y, x = np.mgrid[:64, :64]
    image, on = rng.normal(rng.uniform(90, 150), 8, (64, 64)), np.zeros((64, 64), bool)
    cx, cy = rng.uniform(16, 48, 2)
    if kind == 'pit': on = (x - cx)**2 + (y - cy)**2 < 20
    if kind == 'scratch': on = (np.abs(y - cy - rng.uniform(-.5, .5)*(x - cx)) < 1) & (np.abs(x - cx) < 12)
    image[on] += 70 if kind == 'scratch' else -60
    return np.clip(image, 0, 255).astype(np.uint8), on

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A folder for each class, no masks; the second half of each is held out. And the masks, for those who may know them"
    root, rng, masks = tmp_path_factory.mktemp('folders'), np.random.default_rng(0), {}
    for kind in ('good', 'pit', 'scratch'):
        (root/'photos'/kind).mkdir(parents=True)
        for i in range(N):
            image, masks[f'{kind}/{i:02d}'] = photograph(rng, kind)
            Image.fromarray(image).save(root/f'photos/{kind}/{i:02d}.png')
    data = ingest(
        ConnectorFactory(
            {'kind': 'folder', 'root': root / 'photos', 'good': ('good',), 'part_id_pattern': None}, seed=0
        ),
        root / 'data',
    )
    key = lambda r: '/'.join(r.file_name.removesuffix('.png').split('/')[-2:])
    train = [r.id for r in data.images if int(key(r)[-2:]) < N//2]
    return (data, {'train': train, 'val': []}, [r.id for r in data.images if r.id not in train],
        {r.id: masks[key(r)] for r in data.images})

PARAMS = Params.model_validate(
    {
        'image': {'buckets': [[64, 64]]},
        'classifier': {'crop': 32},
        'detector': {
            'width': 16,
            'trainer': {'kind': 'finetune', 'views': 2, 'steps': 60, 'warmup': 5, 'eval_every': 60,
                'learning_rate': 4e-3, 'ema': 0.9},
        },
    }
)

def with_masks(data, masks, ids):
    "The data, where somebody did draw the defects of `ids`"
    return replace(
        data,
        images=tuple(
            replace(r, annotations=annotate_mask(masks[r.id], r.classes[0])) if r.id in ids else r for r in data.images
        ),
    )

def auroc(data, split, held, out):
    "Of the most defective place of held-out photographs, after training on the split"
    train_task('detector', data, split, PARAMS, out)
    apply, weights, _ = load_model(out)
    images = jnp.asarray(
        np.stack([e.canvas for e in map(CVDataset(data, held, PARAMS.image.buckets).__getitem__, range(len(held)))])
        / 255,
        jnp.float32,
    )
    return roc_auc_score(
        [data.by_id[i].defective for i in held], np.asarray(jax.jit(apply)(weights, images)).max((1, 2))
    )


def test_who_takes_what(folders):
    data, split, _, masks = folders
    drawn = with_masks(data, masks, [next(r.id for r in data.images if r.classes == ('pit',))])
    of = lambda name, data: make_samples(
        make_task(name, PARAMS, data.categories), data, split['train'], PARAMS.image.buckets, 0
    )
    half = N//2
    s = of('detector', drawn)
    assert len(s.item) == 3*half and (s.label >= 0).sum() == 2*half
    assert sorted((e.class_map == UNKNOWN).all() for e in s.dataset) == [False]*(half + 1) + [True]*(2*half - 1)
    assert (
        sorted(of('classifier', drawn).label.tolist()) == [0] + [1] * half
    )  # a pit that is drawn; scratches, of which none is
    assert sorted(of('classifier', data).label.tolist()) == [0]*half + [1]*half
    assert (of('segmenter', drawn).label >= 0).sum() == 1
    with pytest.raises(DataError, match='no image of this split has a defect'): of('segmenter', data)

def test_an_unknown_photograph_has_a_loss_of_its_own_only():
    rng = np.random.default_rng(0)
    logits, cells = (jnp.asarray(rng.normal(size=(3, 16, 16)), jnp.float32),
        jnp.asarray(rng.uniform(1, 9, (3, 8, 8, 5)), jnp.float32))
    target, boxes = (jnp.zeros((3, 16, 16)).at[0, 2:6, 2:6].set(1.0),
        jnp.zeros((3, 2, 4)).at[0, 0].set(jnp.array([8.0, 8, 24, 24])))
    unknown = target.at[2].set(-1.)
    # two known photographs count as they would beside one that is surely, and rightly, found good; and the good one of
    # them is asked for its best place too
    sure = logits.at[2].set(-30.)
    best = np.logaddexp(0, -np.asarray(logits[2]).max()) + np.logaddexp(0, np.asarray(logits[1]).max())
    assert float(with_weak(map_loss)(logits, unknown)) == pytest.approx(float(map_loss(sure, target)) + best, rel=1e-5)
    quiet = cells.at[2, ..., 4].set(-30.)
    assert float(with_weak(detection_loss)((logits, cells), (unknown, boxes))) == pytest.approx(
        float(detection_loss((sure, quiet), (target, boxes))) + best, rel=1e-5
    )
    assert float(somewhere(logits, target)) == 0

@pytest.mark.slow
def test_a_detector_that_never_saw_a_mask_finds_defective_photographs(folders, tmp_path):
    data, split, held, masks = folders
    assert all(r.weak for r in data.images if r.defective) and len({data.by_id[i].classes for i in held}) == 3
    assert auroc(data, split, held, tmp_path/'none') > .8
