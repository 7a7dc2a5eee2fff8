"""A second domain: counts bright blobs. Configured, not trained; evaluated, registered and served by rooms that don't
know it."""
import hashlib
import inspect
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sads_jax.core.errors import ParamsError
from sads_jax.core.params import override, parse_params
from sads_jax.core.settings import Settings
from sads_jax.core.types import Findings, InspectionReport, Reason, Verdict
from sads_jax.data.images import read_image
from sads_jax.domains.base import Cascade, DomainFactory, Inspection
from sads_jax.evaluation.evaluate import EvaluationOrchestrator
from sads_jax.ops.regions import components, region_properties
from sads_jax.orchestrators.training import NAMES, compose_training
from sads_jax.registry.bundle import load_pipeline, read_bundle
from sads_jax.registry.golden import require_golden
from sads_jax.registry.registries import MLflowRegistry
from sads_jax.serving.judging import Photograph, judge
from sads_jax.serving.service import check_answers, warm_up

# ---------------------------------------------------------------- the domain

def count_blobs(weights, images):
    "Findings of a batch: a box for each bright blob; the score of an image is its number of blobs, of eight"
    def one(image):
        bright = image.mean(-1) > 255*weights['bright']
        blobs = region_properties(components(bright), 8)
        score = blobs.valid.astype(jnp.float32)
        k, h, w = 8, bright.shape[0]//4, bright.shape[1]//4
        return Findings(blobs.bbox, score, blobs.valid, jnp.ones((k, 1)), blobs.bbox, jnp.ones((k, 4, 4)),
            bright.reshape(h, 4, w, 4).mean((1, 3), dtype=jnp.float32), score.mean(),
            jnp.bool_(True))._replace(anomaly=None)
    return jax.lax.map(one, images)

@dataclass(frozen=True)
class BlobPipeline:
    predictor: object
    model_version: str
    rules_version: str
    threshold: float
    max_megapixels: float
    station_id: str|None = None
    categories: tuple[str, ...] = ('crowded',)

    def inspect(self, srcs, *, batch_size=8, part_ids=None):
        came = [s.read_bytes() if isinstance(s, Path) else s for s in srcs]  # hashed as they came
        pixels = [read_image(b) if isinstance(b, bytes) else b for b in came]
        found = self.predictor.predict(pixels)
        return [Inspection(self._report(b, x, f, part), f, at, np.zeros(x.shape[:2], np.float32))
            for b, x, (f, at), part in zip(came, pixels, found, part_ids or [None]*len(came))]

    def _report(self, came, pixels, found, part):
        n, score = int(found.valid.sum()), float(found.image_scores)
        verdict = Verdict.FAIL if score >= self.threshold else Verdict.PASS
        return InspectionReport(verdict=verdict,
            reasons=[Reason(rule='blobs', verdict=verdict, text=f'{verdict.value}: {n} blobs', measured=n)], defects=[],
            image_score=score, image_sha256=hashlib.sha256(came).hexdigest(), image_size=pixels.shape[1::-1],
            model_version=self.model_version, rules_version=self.rules_version, part_id=part,
            station_id=self.station_id)

    def run_inference(self, srcs, *, part_ids=None, names=None, batch_size=8, on_error='raise'):
        return [x.report for x in self.inspect(srcs, part_ids=part_ids)]

    def stream(self, srcs, **more): yield from self.run_inference(srcs, **more)
    def process_request(self, src, *, part_id=None, name=None): return self.run_inference([src], part_ids=[part_id])[0]
    def warm_up(self): self.predictor.warm_up()

@dataclass(frozen=True)
class BlobDomain:
    options: dict
    kind: str = 'blobs'
    metrics: tuple[str, ...] = ('images', 'rates')

    def check(self, decision, labels):
        if tuple(labels) != ('crowded',):
            raise ParamsError('counts blobs, and knows the class crowded only', where='data')
    def lint(self, decision, labels): return []
    def rules_version(self, decision): return hashlib.sha256(decision.model_dump_json().encode()).hexdigest()[:12]
    def build(self, models, params, labels):
        return Cascade(count_blobs, {'bright': np.float32(params.domain.options['bright'])}, anomaly=False)
    def load(self, bundle, open_program, *, station_id, max_megapixels, every_box):
        return BlobPipeline(open_program({}), bundle.version, bundle.decision.rules_version, bundle.decision.threshold,
            max_megapixels, station_id)
    def usual(self, photos, parts, choose): return None, None
    def golden_answer(self, report):
        return report.model_dump(mode='json', exclude={'timings_ms', 'model_version', 'station_id'})
    def name_boxes(self, models, params): return None

# ---------------------------------------------------------------- its photographs

def photograph(n, seed):
    "A dark picture with `n` bright squares in a grid"
    x, rng = np.full((64, 64, 3), 30, np.uint8), np.random.default_rng(seed)
    for cell in rng.permutation(16)[:n]: x[(y := cell//4*16 + 4):y + 6, (c := cell % 4*16 + 4):c + 6] = 240
    return x

@pytest.fixture
def photographs(tmp_path):
    "COCO: good parts show up to three blobs, crowded ones five or more; labels for whole photographs, no boxes"
    (tmp_path/'photos').mkdir()
    images = []
    for i in range(48):
        n = i % 4 if i % 2 else 5 + i % 3
        Image.fromarray(photograph(n, i)).save(tmp_path/'photos'/f'{i}.png')
        images.append(
            {'id': i, 'file_name': f'{i}.png', 'width': 64, 'height': 64, 'part_id': f'p{i}', 'defective': n > 4,
                'classes': ['crowded'] * (n > 4)}
        )
    tree = {'images': images, 'annotations': [], 'categories': [{'id': 1, 'name': 'crowded'}]}
    (tmp_path/'photos'/'annotations.json').write_text(json.dumps(tree))
    return tmp_path/'photos'

# ---------------------------------------------------------------- and what the rest makes of it

def test_the_domain_is_small():
    lines = [
        line
        for thing in (count_blobs, BlobPipeline, BlobDomain)
        for line in inspect.getsource(thing).splitlines()
        if line.strip()
    ]
    assert len(lines) < 60

def test_a_second_domain_is_evaluated_registered_and_served(photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(DomainFactory, 'blobs', BlobDomain)  # as an entry point would
    params = parse_params(
        override(
            {'data': {'kind': 'coco', 'root': str(photographs)}},
            ['domain.kind=blobs', 'domain.options={bright: 0.6}', 'image.buckets=[[64, 64]]', 'split.near_duplicate=1',
                'evaluate.golden=3'],
        )
    )
    line = compose_training(params, Settings(progress='none', tracking='disabled'), tmp_path/'work')
    for name in NAMES:
        if name not in ('train', 'anomaly'): line.stage(name)
    # evaluated
    rates = json.loads((line.at.reports/'metrics.json').read_text())
    assert (
        rates['images']['auroc'] == 1
        and rates['rates']['image']['escape']['count'] == rates['rates']['image']['overkill']['count'] == 0
    )
    assert 'blobs' in (line.at.bundle/'card.md').read_text() and (line.at.reports/'report.html').exists()
    # registered, and whole where it is fetched
    registry = MLflowRegistry(f"sqlite:///{tmp_path/'work'}/.sads/registry.db", tmp_path/'work'/'.sads'/'registry')
    folder = registry.get('champion')
    pipeline = load_pipeline(folder, settings=Settings())
    assert read_bundle(folder).params.domain.kind == 'blobs' and require_golden(folder, pipeline) == 3
    # served
    warm_up(pipeline, 8)
    check_answers(folder, 'float32', pipeline)
    def encoded(n):
        Image.fromarray(photograph(n, n)).save(out := BytesIO(), 'PNG')
        return out.getvalue()
    shots = [Photograph(encoded(n), f'{n}.png', f'part {n}') for n in (0, 2, 5, 7)]
    reports = judge(pipeline, shots, 8)
    assert [(r.verdict, r.reasons[0].measured, r.part_id) for r in reports] == [
        ('PASS', 0, 'part 0'), ('PASS', 2, 'part 2'), ('FAIL', 5, 'part 5'), ('FAIL', 7, 'part 7')]
    # judged on photographs of another day
    found = EvaluationOrchestrator(pipeline, ('images',)).run(line.ingest())
    assert found.metrics['data']['images'] == 48 and found.metrics['images']['auroc'] == 1
