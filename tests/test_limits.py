"Work that cannot change a verdict is left out, and nothing else changes"
import dark_cascade as dark
import numpy as np
import pytest

from sads_jax.domains.surface.orchestrator import BOX_FLOOR, IMAGE_FLOOR
from sads_jax.registry.bundle import load_pipeline


@pytest.mark.parametrize('threshold', [.35, .62, .9])
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
    seen = ([np.asarray(f.findings.masks).any() for f in every.inspect(photos)],
        [np.asarray(f.findings.masks).any() for f in thrifty.inspect(photos)])
    assert all(not t or e for e, t in zip(*seen)) and sum(seen[0]) > sum(seen[1]) > 0  # it did save work

def test_a_bundle_without_floors_is_served_as_before(tmp_path):
    dark.bundle(tmp_path/'bundle')
    dark.photo(tmp_path/'p.png')
    assert load_pipeline(tmp_path/'bundle', every_box=False).process_request(tmp_path/'p.png').verdict == 'FAIL'

# ---------------------------------------------------------------- folders of any size

def test_a_stream_reads_one_batch_ahead_and_keeps_order(tmp_path, monkeypatch):
    import threading
    import time

    from sads_jax.core.errors import ImageError, SADSError
    from sads_jax.domains.surface import pipeline as P
    dark.bundle(tmp_path/'bundle')
    pipeline = load_pipeline(tmp_path/'bundle')
    files = [dark.photo(tmp_path/f'{i:02d}.png', dark=i % 3 == 0) for i in range(22)]
    files[5].write_bytes(b'text')
    read, lock, began, out, most = P._read, threading.Lock(), [0], [0], [0]
    def counted(*given):
        with lock:
            began[0] += 1
            most[0] = max(most[0], began[0] - out[0])
        return read(*given)
    monkeypatch.setattr(P, '_read', counted)
    got = []
    for r in pipeline.stream(files, batch_size=4, on_error='return'):
        time.sleep(.01)  # a slow reader of the answers must not let photographs pile up
        out[0] += 1
        got.append(r)
    assert most[0] <= 2*4
    assert [isinstance(r, SADSError) for r in got] == [i == 5 for i in range(22)]
    assert [r.verdict == 'FAIL' for i, r in enumerate(got) if i != 5] == [i % 3 == 0 for i in range(22) if i != 5]
    with pytest.raises(ImageError, match='05.png'): list(pipeline.stream(files, batch_size=4))
    before = threading.active_count()
    stream = pipeline.stream(files[6:], batch_size=4)
    next(stream)
    stream.close()  # somebody lost interest: no thread is left behind
    assert threading.active_count() <= before

def test_ten_thousand_answers_print_no_ten_thousand_lines(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from sads_jax.cli import main, predict
    dark.bundle(tmp_path/'bundle')
    (tmp_path/'day').mkdir()
    first = dark.photo(tmp_path/'day'/'000.png', dark=False)
    for i in range(1, 24):
        (
            dark.photo(tmp_path / 'day' / f'{i:03d}.png')
            if i == 7
            else (tmp_path / 'day' / f'{i:03d}.png').write_bytes(first.read_bytes())
        )
    monkeypatch.setattr(predict, 'ROWS', 10)
    monkeypatch.chdir(tmp_path)  # a long path would be folded in the table
    r = CliRunner().invoke(
        main.app,
        ['predict', 'day', '--bundle', str(tmp_path / 'bundle'), '--workdir', str(tmp_path), '--out',
            str(tmp_path / 'v.jsonl')],
    )
    assert r.exit_code == 0, r.exception
    assert (
        '007.png' in r.output
        and '008.png' not in r.output
        and 'of 24 photographs, the first 1 that did not pass' in r.output
        and '24 judged: 23 PASS, 0 REVIEW, 1 FAIL' in r.output
    )
    assert len((tmp_path/'v.jsonl').read_text().splitlines()) == 24
