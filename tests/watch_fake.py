"Program: watch a folder with a fake pipeline. watch_fake.py FOLDER JOURNAL SETTINGS_INI WORKDIR [move] [once]"
import sys
from pathlib import Path

import fake_pipeline

from sads_jax.cli.watch import until_told, watch_folder
from sads_jax.serving.sinks import sinks_from

if __name__ == '__main__':
    folder, journal, ini, workdir, *words = sys.argv[1:]
    pipeline = fake_pipeline.load(.002)
    pipeline.model_version = pipeline.rules_version = 'fake'
    stop, sinks = until_told(), sinks_from(ini, Path(workdir))
    print('watching', flush=True)
    try:
        watch_folder(Path(folder), pipeline, sinks, Path(journal), stop, once='once' in words, move='move' in words,
            batch_size=4, settle_s=.02, unreadable_s=.3)
    finally:
        for s in sinks: s.close()
