"A cascade with random weights and one that finds dark squares: networks small enough to compile in a second"
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sads_jax.core.types import Detections
from sads_jax.domains.surface.orchestrator import SADSInferenceOrchestrator
from sads_jax.inference.adapters import ClassificationAdapter, RegionAdapter, SegmentationAdapter, bind
from sads_jax.ops.regions import components, region_properties

CATEGORIES = ('crack', 'pit', 'stain')
BUCKETS = ((64, 64), (64, 96))


def random_params(seed=0):
    "Weights of three little convolutional networks"
    rng, out = np.random.default_rng(seed), {}
    for name, last in ('detector', 1), ('classifier', 3), ('segmenter', 1):
        for i, (a, b) in enumerate([(3, 8), (8, 16), (16, last)]):
            out[f'{name}/c{i}/kernel'] = (rng.normal(size=(3, 3, a, b))*np.sqrt(2/9/a)).astype(np.float32)
    out['detector/bias'] = np.float32(-1)
    return out

def _net(p, x):
    x = (x - jnp.array([.4, .5, .6]))/jnp.array([.2, .25, .3])
    for i in range(3):
        x = lax.conv_general_dilated(
            x, p[f'c{i}/kernel'], (2, 2) if i < 2 else (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        if i < 2: x = jax.nn.relu(x)
    return x

def random_cascade(chunk=4, k=6):
    "Convolutions, components, NMS, crops: every operation a real cascade has"
    detect = bind(lambda p, x: _net(p, x)[..., 0]*2 + p['bias'], RegionAdapter(k, floor=.3), 'detector', show=True)
    classify = bind(lambda p, x, g: _net(p, x).mean((1, 2)) + g*1e-3, ClassificationAdapter(), 'classifier',
        inputs=lambda crops, boxes, canvas: (crops, boxes[:, :3]/canvas[0]))
    segment = bind(lambda p, x: _net(p, x)[..., 0], SegmentationAdapter(), 'segmenter')
    return SADSInferenceOrchestrator(
        detect, classify, segment, CATEGORIES, 32, 1.5, 32, 1.5, classifier_least=16.0, chunk=chunk
    )

def noise_image(rng, h, w):
    "Coarse coloured noise: enough for a random network to find something in"
    x = rng.integers(0, 256, (h//8 + 2, w//8 + 2, 3), np.uint8)
    return np.ascontiguousarray(x.repeat(8, 0).repeat(8, 1)[:h, :w])

def darkness(x): return jnp.clip(1.5 - 2.5*x.max(-1), 0, 1)  # black 1, the grey of padding 0.25, bright 0

def dark_cascade(chunk=1, k=8, ran=None):
    "Finds the dark regions of a canvas, exactly; calls `ran` whenever the classifier runs"
    def detect(params, images):
        dark = darkness(images)
        r = region_properties(components(dark[0] > .5), k)
        dense = lax.reduce_window(dark, -jnp.inf, lax.max, (1, 4, 4), (1, 4, 4), 'VALID')
        return Detections(r.bbox[None], jnp.where(r.valid, .9, 0)[None], r.valid[None]), dense
    def classify(params, crops, boxes, canvas):
        if ran is not None: jax.debug.callback(ran)
        return jnp.tile(jnp.array([[.8, .1, .1]]), (len(crops), 1))
    return SADSInferenceOrchestrator(
        detect, classify, lambda p, crops: darkness(crops), CATEGORIES, 16, 1.5, 96, 1.5, chunk=chunk
    )

def bright(h, w, *squares):
    "A bright photograph with black squares: left, top, side"
    x = np.full((h, w, 3), 235, np.uint8)
    for left, top, side in squares: x[top:top+side, left:left+side] = 5
    return x
