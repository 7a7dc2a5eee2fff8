"What tools/notebook_outputs.py counts as a display cell, and what it makes of outputs."
import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
import notebook_outputs as outputs  # noqa: E402


@pytest.mark.parametrize(
    'source',
    [
        'x',
        'f(1)',
        'print(2)',
        'for i in x: print(i)',
        'plt.plot(x)\ny = 1',
        'test_eq(a, b)\na',
        'x # a comment',
        'fig, ax = plt.subplots()',
        'with open(p) as f: print(f.read())',
        'display(x);',
        '"a" + b',
    ],
)
def test_these_show(source):
    assert outputs.shows(source)

@pytest.mark.parametrize(
    'source',
    [
        '',
        'x = 1',
        'x;',
        'f(1);  # quiet',
        'test_eq(a, b)',
        'assert x',
        'expect_fail(f, "no")',
        'folder.cleanup()',
        'def f(): print(1)',
        'f = lambda: print(1)',
        'print(1, file=f)',
        'plt.plot(x); plt.close()',
        '"""words"""',
    ],
)
def test_these_do_not(source):
    assert not outputs.shows(source)

def test_text_is_cut_and_says_how_much():
    assert outputs.short_text('a\nb\n') == 'a\nb\n'
    cut = outputs.short_text('\n'.join(map(str, range(100)))).splitlines()
    assert len(cut) == outputs.TEXT_LINES and cut[-1] == '… 61 more lines' and cut[-2] == '38'
    assert len(outputs.short_text('x'*200 + ('\n' + 'y'*200)*30)) <= outputs.TEXT_CHARACTERS

def test_machine_and_object_leave_no_trace():
    text = "PosixPath('/var/t1/tmpab12cd34/x.png') <A at 0x7f00aa> /home/me/code/nbs"
    assert outputs.nameless(text, {'/var/t1': 'tmp/', '/home/me/code': ''}) == "PosixPath('tmp/x.png') <A> nbs"

def test_pictures_fit_and_keep_their_subject():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    noise[:, :200] = 0
    Image.fromarray(noise).save(png := io.BytesIO(), 'PNG')
    small = outputs.small_picture(png.getvalue(), 'image/png')
    back = np.asarray(Image.open(io.BytesIO(small)).convert('L'))
    w = back.shape[1]
    assert len(png.getvalue()) > outputs.PICTURE_BYTES >= len(small)
    assert back[:, :w//2 - 2].max() < 20 and back[:, w//2 + 2:].mean() > 80
    assert outputs.small_picture(png.getvalue(), 'image/png') == small

def stream(text): return [{'name': 'stdout', 'output_type': 'stream', 'text': [text]}]

def test_another_time_is_no_other_output():
    assert outputs.alike(stream('detector 12 s, 31.5 images/s'), stream('detector 14.2 s, 30 images/s'))
    assert not outputs.alike(stream('detector 12 px'), stream('detector 14 px'))

def notebook(tmp_path, cells):
    code = {'cell_type': 'code', 'execution_count': None, 'metadata': {}}
    made = [code | {'id': f'cell{i}', 'outputs': out, 'source': [source]} for i, (source, out) in enumerate(cells)]
    tree = {'cells': made, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}
    path = tmp_path/'a.ipynb'
    path.write_text(json.dumps(tree))
    return path

def test_check_names_what_is_missing_elsewhere_and_too_large(tmp_path):
    big = base64.b64encode(b'x'*(outputs.PICTURE_BYTES + 1)).decode()
    image = [{'data': {'image/png': big}, 'metadata': {}, 'output_type': 'display_data'}]
    cells = (
        ('1 + 1', []),
        ('x = 1', stream('hello')),
        ('plt.plot(x)', image),
        ('print(3)', stream('3')),
        ('#| hide\n4', []),
    )
    path = notebook(tmp_path, cells)
    found = outputs.problems(path)
    assert [f.partition(':')[0] for f in found] == ['cell0', 'cell1', 'cell2']
    assert 'without output' in found[0] and 'displays nothing' in found[1] and 'too large' in found[2]

def test_what_is_written_passes_the_check_and_a_second_run_changes_nothing(tmp_path):
    path = notebook(tmp_path, [('x = 1', stream('old')), ('print(3)', [])])
    assert outputs.write(path, {'cell1': stream('3')})
    assert outputs.problems(path) == [] and not outputs.write(path, {})
