"Programs that XLA has compiled for notebooks and tests stay below .sads: half of their time is compiling."
import os
from pathlib import Path

FOLDER = Path(__file__).absolute().parents[1]/'.sads'/'compiled'

def keep_programs() -> None:
    "Tell JAX, before it is imported, where to keep what took long to compile; what the environment says already stays"
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(FOLDER))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '.05')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
