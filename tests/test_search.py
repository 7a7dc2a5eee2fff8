"The search over params.yaml: what trials share, and what it refuses"
import importlib.util
from pathlib import Path

import pytest

from sads_jax.core.errors import ParamsError, SADSError

SPEC = importlib.util.spec_from_file_location('search_script', Path(__file__).parents[1]/'scripts/search.py')
search = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(search)


def test_trials_share_what_no_field_touches():
    before = {'ingest', 'split', 'train-detector', 'anomaly'}
    assert set(search.shared_stages(['detector.trainer.steps'])) == {
        'ingest',
        'split',
    }  # all others start from the detector
    assert set(search.shared_stages(['segmenter.crop'])) == before
    assert set(search.shared_stages(['classifier.crop'])) == before | {'train-segmenter'}
    assert set(search.shared_stages(['decision.review_margin'])) == before | {'train-segmenter', 'train-classifier'}
    assert search.shared_stages(['split.seed_offset']) == ['ingest'] and search.shared_stages(['seed']) == []

@pytest.mark.parametrize(
    'text, says',
    [('metric: images.ap', 'fields'), ('fields: {a: [1]}', 'metric'), ('{metric: m, fields: {a: 3}}', 'fields.a'),
        ('{metric: m, fields: {a: {low: 1}}}', 'fields.a'), ('{metric: m, direction: up, fields: {a: [1]}}', 'up'),
        ('a: [', 'cannot be read')],
)
def test_a_space_that_cannot_be_meant(tmp_path, text, says):
    (tmp_path/'s.yaml').write_text(text)
    with pytest.raises(ParamsError, match=says): search.read_space(tmp_path/'s.yaml')

def test_a_figure_by_its_name():
    assert search.pick({'images': {'ap': .5}}, 'images.ap') == .5
    with pytest.raises(SADSError, match='images.aup'): search.pick({'images': {'ap': .5}}, 'images.aup')
    with pytest.raises(SADSError, match='no number'): search.pick({'images': {'ap': None}}, 'images.ap')

def test_no_trial_learns_from_what_it_is_judged_on(tmp_path):
    (tmp_path/'p.yaml').write_text('split: {refit: true}')
    assert search.trial_params(tmp_path/'p.yaml', ['split.refit=true', 'seed=3']).split.refit is False
