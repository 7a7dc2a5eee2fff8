"A cascade without networks: what is dark is a defect. Everything around the networks is the real thing."
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sads_jax.core.params import Params, SyntheticSpec, override, parse_params
from sads_jax.core.types import Detections
from sads_jax.domains.surface.orchestrator import SADSInferenceOrchestrator
from sads_jax.domains.surface.rules import rules_version
from sads_jax.inference.export import export_program
from sads_jax.registry.bundle import write_bundle

SIDE = 64
LABELS = ('crack', 'pit')

def params(*assignments, **data) -> Params:
    base = Params(
        data=SyntheticSpec(**{'n_parts': 24, 'exposures': 2, 'size': 72, 'defects': LABELS, **data})
    ).model_dump(mode='json')
    return parse_params(
        override(base, [f'image.buckets=[[{SIDE}, {SIDE}]]', 'evaluate.golden=3', 'evaluate.gallery=3', *assignments])
    )

def cascade(labels=LABELS):
    def detect(p, images):
        dark = jnp.clip(1 - 1.5*p['detector/gain']*images.max(-1), 0, 1)  # the padding's 127 becomes .25
        hit = dark[0] > .5
        edge = lambda on: (on.argmax(), on.shape[0] - on[::-1].argmax())
        (x1, x2), (y1, y2) = edge(hit.any(0)), edge(hit.any(1))
        box = jnp.array([[[x1, y1, x2, y2]]], jnp.float32)
        h, w = dark.shape[1:]
        return Detections(box, dark.max((1, 2))[:, None], hit.any()[None, None]), dark.reshape(
            1, h // 4, 4, w // 4, 4
        ).mean((2, 4))
    def classify(p, crops, boxes, canvas): return jnp.zeros((len(crops), len(labels))).at[:, 0].set(1.)
    def segment(p, crops): return 1 - crops.max(-1)
    return SADSInferenceOrchestrator(detect, classify, segment, tuple(labels), classifier_crop=32,
        classifier_context=1.5, segmenter_crop=32, segmenter_context=1.5)

WEIGHTS = {'detector/gain': np.float32([1.0])[0:1].reshape(()), 'classifier/none': np.zeros(2, np.float32),
    'segmenter/none': np.zeros((2, 3), np.float32)}

def bundle(folder, params=None, threshold=.5, labels=LABELS, **more):
    params = params or globals()['params']('evaluate.golden=0')  # a golden set is written by whoever wants one
    programs = {b: export_program(cascade(labels), WEIGHTS, b, platforms=('cpu',)) for b in params.image.buckets}
    return write_bundle(folder, weights=WEIGHTS, programs=programs, labels=labels, threshold=threshold,
        rules_version=rules_version(params.decision), params=params,
        data={'kind': 'test', 'fingerprint': 'f' * 64, 'splits': {'train': 3}}, code={'package': '0'},
        batch_sizes=(1, 4), **more)

def photo(path, dark=True, size=(80, 60)):
    x = np.full((size[1], size[0], 3), 240, np.uint8)
    if dark: x[10:30, 40:60] = 10
    Image.fromarray(x).save(path)
    return path
