"What of the benchmark needs no rival: its notes of finished steps, its page, its inputs"
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

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
    for i, name in enumerate(
        ('data/split/split.json', *(f'models/{t}/model.json' for t in ('detector', 'classifier', 'segmenter')))
    ):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('{}')
        os.utime(tmp_path/name, (1000 + 60*i, 1000 + 60*i))
    assert bench.training_minutes(tmp_path) == 3


def test_workers_answer_with_seconds(monkeypatch, tmp_path):
    (tmp_path / 'worker.py').write_text(
        f"import sys; sys.path.insert(0, {str(HERE / 'peers')!r})\nfrom answer import "
        f"answer\nanswer({{'a b': lambda: None}}, known=[1])\n"
    )
    monkeypatch.setattr(bench, 'PEERS', tmp_path)
    with bench.asked(sys.executable, 'worker.py') as (ask, facts):
        assert facts == {'known': [1]} and len(ask('a b', 3)) == 3 and all(0 <= t < 1 for t in ask('a b'))


def test_the_numpy_loop_and_the_inputs():
    inputs = module(HERE/'peers'/'inputs.py')
    boxes, scores = inputs.boxes_and_scores(300, 2)
    assert (
        boxes.shape == (2, 300, 4)
        and (boxes[..., 2:] > boxes[..., :2]).all()
        and all(len(set(s)) == 300 for s in scores.tolist())
    )
    share = inputs.masks(64, 3).mean((1, 2))
    assert share.shape == (3,) and (share > .02).all() and (share < .4).all()
    sys.path.insert(0, str(HERE/'peers'))
    try: ours = module(HERE/'peers'/'ours.py')
    finally: sys.path.remove(str(HERE/'peers'))
    assert ours.greedy(np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10.]]), np.array([.5, .9, .7])) == [1, 2]


def test_ratios():
    assert [bench.ratio(3, 2), bench.ratio(None, 2), bench.ratio(0.4, 0.001)] == ['1.50x', '-', 'theirs is near 0']


def test_the_page_has_each_folder_with_its_ratios():
    kinds = lambda one: {'clean': dict(one=one, batch=2*one, p50=1000/one, p95=2000/one)}
    def folder(title, fast):
        run = SimpleNamespace(title=title, peers=['peer'], forms={'ours': 'float32', 'ours, onnx form': 'onnx'})
        return run, {
            'speed': {'images': {'clean': 4}, 'found': {'clean': 0.25},
                'times': {'ours': kinds(fast), 'peer, torch': kinds(50)}},
            'start': {'cold': 6, 'photos': 4, 'first': {'ours': 1.2, 'ours, onnx form': 0.6, 'peer, torch': 2},
                'rss_mb': {'ours': 300, 'ours, onnx form': 100, 'peer, torch': 400}},
            'graph': {
                'bucket': [48, 48],
                'worst': {'torch': 1e-5, 'onnxruntime': 2e-5},
                'ms': {'ours': {'1': 9, '8': 80, '32': 320}, 'onnxruntime': {'1': 10, '8': 100, '32': 320},
                    'torch': {'1': 18, '8': 160, '32': 640}},
            },
        }
    (tiles, first), (parts, other) = folder('tiles, 64 x 96 px', 25), folder('parts, 32 x 32 px', 100)
    class Data(dict):
        categories, by_id = ('pit',), {1: SimpleNamespace(defective=True), 2: SimpleNamespace(defective=None)}
    vars(tiles).update(data=Data.fromkeys(range(9)), split={'test': [1, 2]}, minutes=3, size=80)
    scores = lambda v: {key: v for _, key in bench.ROWS}
    first |= {
        'train': {'peer': dict(minutes=3.1, cpu_minutes=6, epochs=5)},
        'quality': {'ours': scores(0.75), 'peer': scores(0.5) | {'pixel_ap': None}},
        'operations': {
            'exact': True,
            'ms': {'nms 300 32': {'ours': 4, 'torchvision': 10, 'numpy': 90},
                'components 64 8': {'host (scipy)': 2, 'jitted': 8, 'OpenCV': 1}},
        },
    }
    facts = dict(cores=2, model='A', vectors='avx2', memory_gib=24, python='3.11', code='abc', versions={'jax': '1'})
    page = bench.page([tiles, parts], [first, other], facts, 5, None)
    for title, times in {'tiles, 64 x 96 px': 2, 'parts, 32 x 32 px': 2, 'tiles, 48 x 48 px': 1}.items():
        assert page.count(f'### {title}\n') == times  # speed and start; graph
    for line in (
        'tiles, 64 x 96 px: 9 photographs, 1 classes', '2 test photographs, 1 of them defective',
        '| pixel AP | 0.750 | - | - |', '| class-aware mAP@0.5 | 0.750 | 0.500 | 1.50x |',
        '| peer, torch | 50.0 | 100.0 | 20.0 | 40.0 | 0.50x | 0.50x | 2.00x |',
        '| peer, torch | 50.0 | 100.0 | 20.0 | 40.0 | 2.00x | 2.00x | 0.50x |',
        '| peer, torch | 2.00 | 400 | 0.60x / 0.30x | 0.75x / 0.25x |', '| 8 | 80.0 | 100.0 | 160.0 | 0.80x | 0.50x |',
        '| 300 x 32 | 4.00 | 10.00 | 90.0 | 0.40x |'
    ):
        assert line in page, line


def test_two_working_folders_of_one_name_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv',
        ['bench.py', str(tmp_path / 'a/parts'), '--also', str(tmp_path / 'b/parts'), '--home', str(tmp_path / 'home')])
    with pytest.raises(SystemExit): bench.main()
    assert 'parts is given twice: rename one' in capsys.readouterr().err and not (tmp_path/'home').exists()
