"Work that cannot change a verdict is left out, and nothing else changes"
import dark_cascade as dark
import numpy as np
import pytest

from sads_jax.domains.surface.orchestrator import BOX_FLOOR, IMAGE_FLOOR
from sads_jax.registry.bundle import load_pipeline


@pytest.mark.parametrize('threshold', [.3, .62, .9])
def test_reports_do_not_depend_on_boxes_that_cannot_count(tmp_path, monkeypatch, threshold):
    monkeypatch.setattr(dark, 'WEIGHTS', dark.WEIGHTS | {IMAGE_FLOOR: np.float32(0), BOX_FLOOR: np.float32(0)})
    dark.bundle(tmp_path/'bundle', threshold=threshold)
    every, thrifty = load_pipeline(tmp_path/'bundle'), load_pipeline(tmp_path/'bundle', every_box=False)
    rng, photos = np.random.default_rng(0), []
    for i in range(30):
        x = rng.integers(200, 250, (70, 60, 3)).astype(np.uint8)
        if i % 5: x[10:30, 20:20 + i] = rng.integers(0, 120)
        photos.append(x)
    plain = lambda r: r.model_dump(exclude={'timings_ms'})
    a, b = every.run_inference(photos), thrifty.run_inference(photos)
    assert [plain(x) for x in a] == [plain(x) for x in b] and len({x.verdict for x in a}) > 1
    seen = [np.asarray(f.findings.masks).any() for f in every.inspect(photos)], [np.asarray(f.findings.masks).any() for f in thrifty.inspect(photos)]
    assert all(not t or e for e, t in zip(*seen)) and sum(seen[0]) > sum(seen[1]) > 0  # it did save work

def test_a_bundle_without_floors_is_served_as_before(tmp_path):
    dark.bundle(tmp_path/'bundle')
    dark.photo(tmp_path/'p.png')
    assert load_pipeline(tmp_path/'bundle', every_box=False).process_request(tmp_path/'p.png').verdict == 'FAIL'
