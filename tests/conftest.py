"What all tests have in common. A kept program is found by a hash of itself, the versions and the flags."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
from kept_programs import keep_programs  # noqa: E402

keep_programs()

LONGEST = ('boxes_head', 'domain', 'orchestrators', 'models', 'onnx', 'inference', 'finetune', 'contrastive', 'weak',
    'contracts', 'toy_domain', 'server_faults', 'server_answers', 'evaluation_depth', 'tiling', 'init', 'evaluation')

def pytest_collection_modifyitems(items):
    "Files that take minutes come first, so that no process is left with one of them at the end"
    place = {f'test_{name}.py': i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
