"What all tests have in common. A kept program is found by a hash of itself, the versions and the flags."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
from kept_programs import keep_programs  # noqa: E402

keep_programs()
