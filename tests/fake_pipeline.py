"A pipeline that needs no model, importable by spawned workers: PASS for what decodes, with the real decoder's errors."
import hashlib
import json
import os
import signal
import time
from functools import partial

import numpy as np
from pycocotools import mask as coco

from sads_jax.core.errors import SADSError
from sads_jax.core.types import RLE, Defect, InspectionReport, Reason, Verdict
from sads_jax.data.images import read_image


def square(h, w):
    "A mask of the pixels 2..9 in both directions"
    inside = np.zeros((h, w), np.uint8, order='F')
    inside[2:10, 2:10] = 1
    return RLE(size=(h, w), counts=coco.encode(inside)['counts'].decode())

class Predictor:
    buckets, batch_sizes = ((64, 64),), (1, 8)

class FakePipeline:
    "FAIL with one defect where the mean is dark, else PASS; `delay` seconds a batch"
    predictor = Predictor()

    def __init__(self, delay:float=0., log:str|None=None, version:str='fake'):
        self.delay, self.log, self.version = delay, log, version

    def run_inference(self, srcs, *, part_ids=None, names=None, batch_size=8, on_error='raise'):
        if self.log:
            with open(self.log, 'a') as f: f.write(f'{len(srcs)}\n')
        time.sleep(self.delay)
        none = [None]*len(srcs)
        return [self._one(s, n, p, on_error) for s, n, p in zip(srcs, names or none, part_ids or none, strict=True)]

    def stream(self, srcs, *, batch_size=8, **kw):
        for i in range(0, len(srcs), batch_size):
            yield from self.run_inference(srcs[i : i + batch_size], batch_size=batch_size, **kw)

    def process_request(self, src, *, part_id=None): return self.run_inference([src], part_ids=[part_id])[0]

    def _one(self, src, name, part_id, on_error):
        if name == 'poison.png': raise RuntimeError('a fault of the program')
        if name == 'kill.png': os.kill(os.getpid(), signal.SIGKILL)
        if name == 'hang.png': time.sleep(600)
        try:
            image = src if isinstance(src, np.ndarray) else read_image(src, name=name)
        except SADSError as e:
            if on_error == 'raise': raise
            return e
        data = (
            image.tobytes()
            if isinstance(src, np.ndarray)
            else src
            if isinstance(src, bytes)
            else open(src, 'rb').read()
        )
        h, w = image.shape[:2]
        dark = bool(image.mean() < 64)
        defect = Defect(box=(2, 2, 10, 10), label='pit', label_score=0.9, score=0.8, area_px=64, length_px=11.3,
            mask=square(h, w))
        return InspectionReport(verdict=Verdict.FAIL if dark else Verdict.PASS, defects=[defect] if dark else [],
            reasons=[Reason(rule='any defect', verdict=Verdict.FAIL, text='FAIL: pit', defect=0)] if dark else [],
            image_score=round(1 - float(image.mean()) / 255, 4), image_sha256=hashlib.sha256(data).hexdigest(),
            image_size=(w, h), model_version=self.version, part_id=part_id, rules_version='fake',
            timings_ms={'total': 1.0})

def load(delay:float=0., log:str|None=None, version:str='fake'): return FakePipeline(delay, log, version)

def resolve(delay, ref):
    "As `resolve_model`: a model whose version is its name; 'broken' does not load"
    return (load_broken if ref == 'broken' else partial(load, delay, None, ref)), None, ref

def load_broken(): raise RuntimeError('no model here')

def load_killed(): os._exit(9)

class Scribe:
    "An observer that writes what it is told to a file"
    def __init__(self, path): self.file = open(path, 'w')

    def judged(self, e):
        row = dict(id=e.request_id, part=e.report.part_id, sha256=e.sha256, same=e.report.image_sha256 == e.sha256,
            size=len(e.photograph), stages=sorted(e.timings_ms), lot=e.lot, source=e.source)
        self.file.write(json.dumps(row) + '\n')

    def refused(self, e): self.file.write(json.dumps(dict(id=e.request_id, status=e.status)) + '\n')

    def close(self): self.file.close()
