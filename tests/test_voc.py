"Pascal VOC against files written by hand, and the real set where it is at hand"
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sads_jax.core.errors import DataError
from sads_jax.core.params import VocSpec, load_params
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.formats import read_voc
from sads_jax.data.records import instance_masks

STEEL = Path(os.environ.get('SADS_SHARED', '../shared'))/'data'/'neu_steel'
PAGE = '<annotation><size><width>30</width><height>20</height></size>{}</annotation>'
OBJECT = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'


@pytest.fixture
def folder(tmp_path):
    for name in ('JPEGImages', 'Annotations'): (tmp_path/'src'/name).mkdir(parents=True)
    for name in ('a_1', 'a_2', 'b_1', 'b_2'):
        Image.new('L', (30, 20), 90).save(tmp_path/'src'/'JPEGImages'/f'{name}.png')
        (tmp_path/'src'/'Annotations'/f'{name}.xml').write_text(PAGE.format(OBJECT.format('pit', 1, 1, 5, 4)))
    return tmp_path/'src'


def test_a_box_is_counted_from_one_and_both_ends_are_in_it(folder):
    (folder/'Annotations'/'a_1.xml').write_text(PAGE.format(OBJECT.format('pit', 3, 2, 3, 2)))
    assert read_voc(folder/'Annotations'/'a_1.xml') == ((20, 30), [('pit', (2, 1, 1, 1))])


def test_parts_boxes_and_filled_boxes(folder, tmp_path):
    data = ingest(ConnectorFactory(VocSpec(root=folder, part_id_pattern='(.+)_')), tmp_path/'out')
    assert [r.part_id for r in data.images] == ['a', 'a', 'b', 'b'] and data.categories == ('pit',)
    mask, = instance_masks(data.images[0])
    assert mask[:4, :5].all() and mask.sum() == 20


@pytest.mark.parametrize(
    'text, what',
    [
        ('<annotation>', 'not valid XML'),
        ('<html/>', '<html> is no <annotation>'),
        (PAGE.format('<object><name> </name></object>'), "object[0]: 'name' is missing"),
        (PAGE.format(OBJECT.format('pit', 1, 1, 5, 4) + '<object><name>pit</name></object>'),
            "object[1]: 'bndbox/xmin'"),
        (PAGE.format(OBJECT.format('pit', 9, 1, 5, 4)), 'ends before it begins'),
        (PAGE.format(OBJECT.format('pit', 90, 1, 95, 4)), 'outside of the image'),
        (PAGE.replace('30', '31').format(''), 'the annotations are for 31 x 20 px but the image is 30 x 20 px'),
    ],
)
def test_a_bad_file_costs_one_photograph_and_is_named(folder, tmp_path, text, what):
    (folder/'Annotations'/'b_1.xml').write_text(text)
    data = ingest(ConnectorFactory(VocSpec(root=folder)), tmp_path/'out')
    assert len(data) == 3 and what in (tmp_path/'out'/'ingest.json').read_text().replace('\\"', '"')


def test_masks_of_another_size_are_refused(folder, tmp_path):
    (folder/'masks').mkdir()
    Image.fromarray(np.full((10, 30), 255, np.uint8)).save(folder/'masks'/'a_1.png')
    data = ingest(ConnectorFactory(VocSpec(root=folder, masks='masks')), tmp_path/'out')
    assert len(data) == 3 and 'mask is 30 x 10 px' in (tmp_path/'out'/'ingest.json').read_text()


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match='JPEGImages: no such folder'): ConnectorFactory(VocSpec(root=tmp_path))


@pytest.mark.shared
@pytest.mark.skipif(not STEEL.is_dir(), reason='needs the steel photographs below SADS_SHARED')
def test_steel():
    params = load_params('recipes/neu_steel.yaml', [f'data.root={STEEL}'])
    steel = ConnectorFactory(params.data)
    assert (
        len(steel) == 1800
        and len(steel.categories) == 6
        and steel.notes == ['no photograph without a box: overkill cannot be measured']
    )
    record = next(s for s in steel.records() if s.name.endswith('patches_117.jpg')).load()[1]
    assert [a.bbox for a in record.annotations] == [(0, 67, 51, 56), (81, 82, 74, 78)] and all(
        a.segmentation for a in record.annotations
    )
