"Pasted training samples: how often they are drawn, and from whom they are made"
import numpy as np
import pytest

from sads_jax.core.params import Params
from sads_jax.data.dataset import Example
from sads_jax.data.images import Placement, Window
from sads_jax.training.samples import Sampler, Samples, with_pasted
from sads_jax.training.trainers import make_task


def photograph(level, defect):
    "A flat surface, with a darker square where `defect` is"
    canvas, instances = np.full((64, 64, 3), level, np.uint8), np.zeros((64, 64), np.uint16)
    if defect:
        canvas[30:40, 20:30] = level//2
        instances[30:40, 20:30] = 1
    boxes = np.array([(20, 30, 30, 40)]*defect, np.float32).reshape(-1, 4)
    return Example(canvas, (instances > 0).astype(np.uint8), instances, boxes, np.zeros(defect, np.int32),
        Placement(0, 1.0, 0, 0, 64, 64, 64, 64), None, Window(0, 0, 64, 64))

@pytest.fixture
def samples():
    photos = [photograph(100, 1) for _ in range(3)] + [photograph(200, 0) for _ in range(9)]
    label = np.array([0]*3 + [-1]*9, np.int32)
    return Samples(photos, np.arange(12, dtype=np.int32), np.tile(np.float32([0, 0, 64, 64]), (12, 1)), label,
        np.zeros(12, np.int32), np.zeros(12, bool))

def test_two_for_each_defective_photograph_on_good_ones(samples):
    more = with_pasted(samples, .2, seed=0)
    assert len(more.item) == 12 + 2*3 and more.pasted.sum() == 6 and not samples.pasted.any()
    for e in more.dataset[12:]:
        assert (e.class_map > 0).sum() == 100
        assert (
            abs(np.median(e.canvas[e.class_map > 0]) - 100) < 8
        )  # half of 200: as dark beside its new surface as beside its old one
        assert np.median(e.canvas) == 200

def test_share_of_draws(samples):
    more = with_pasted(samples, .2, seed=0)
    draw = Sampler(more, make_task('detector', Params(), ('pit',)), 8, seed=0)
    rows = np.concatenate([draw(step) for step in range(1500)])
    defective = more.label[rows] >= 0
    assert abs(defective.mean() - 5/8) < 1e-9
    n = defective.sum()
    assert abs(more.pasted[rows][defective].mean() - .2) < 4*(.2*.8/n)**.5

def test_without_good_photographs_nothing_changes(samples):
    bad = Samples(samples.dataset[:3], *(getattr(samples, k)[:3] for k in ('item', 'box', 'label', 'bucket', 'pasted')))
    assert with_pasted(bad, .2, seed=0) is bad
