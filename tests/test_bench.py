"What of the benchmark needs no rival: its notes of finished steps, its page, its inputs"
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent.parent/'benchmarks'


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


bench = module(HERE/'bench.py')


def test_a_finished_step_is_kept_until_what_it_was_made_from_changes(tmp_path):
    ran = []
    def work(): ran.append(1); return {'n': len(ran)}
    steps = bench.Steps(tmp_path, fresh=False)
    assert [steps('speed', made, work)['n'] for made in (('a', 1), ('a', 1), ('a', 2))] == [1, 1, 2]
    assert bench.Steps(tmp_path, fresh=True)('speed', ('a', 2), work) == {'n': 3}


def test_text_around_the_marks_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'RESULTS', tmp_path/'RESULTS.md')
    bench.write('one\n')
    page = bench.RESULTS.read_text()
    bench.RESULTS.write_text(page + '\n## GPU\n')
    bench.write('two\n')
    assert bench.RESULTS.read_text() == page.replace('one', 'two') + '\n## GPU\n'


def test_training_minutes(tmp_path):
    import os
    with pytest.raises(SystemExit, match='give --minutes'): bench.training_minutes(tmp_path)
    stamps = tmp_path/'.sads'/'stages'
    stamps.mkdir(parents=True)
    for i, name in enumerate(('split', 'train-detector', 'train-classifier', 'train-segmenter', 'calibrate')):
        (stamps/f'{name}.json').write_text('{}')
        os.utime(stamps/f'{name}.json', (1000 + 60*i, 1000 + 60*i))
    assert bench.training_minutes(tmp_path) == 3


def test_workers_answer_with_seconds(monkeypatch, tmp_path):
    (tmp_path/'worker.py').write_text(f"import sys; sys.path.insert(0, {str(HERE/'peers')!r})\nfrom answer import answer\nanswer({{'a b': lambda: None}}, known=[1])\n")
    monkeypatch.setattr(bench, 'PEERS', tmp_path)
    with bench.asked(sys.executable, 'worker.py') as (ask, facts):
        assert facts == {'known': [1]} and len(ask('a b', 3)) == 3 and all(0 <= t < 1 for t in ask('a b'))


def test_the_numpy_loop_and_the_inputs():
    inputs = module(HERE/'peers'/'inputs.py')
    boxes, scores = inputs.boxes_and_scores(300, 2)
    assert boxes.shape == (2, 300, 4) and (boxes[..., 2:] > boxes[..., :2]).all() and all(len(set(s)) == 300 for s in scores.tolist())
    share = inputs.masks(64, 3).mean((1, 2))
    assert share.shape == (3,) and (share > .02).all() and (share < .4).all()
    sys.path.insert(0, str(HERE/'peers'))
    try: ours = module(HERE/'peers'/'ours.py')
    finally: sys.path.remove(str(HERE/'peers'))
    assert ours.greedy(np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10.]]), np.array([.5, .9, .7])) == [1, 2]


def test_ratios(): assert [bench.ratio(3, 2), bench.ratio(None, 2), bench.ratio(.4, .001)] == ['1.50x', '-', 'theirs is near 0']
