"""`sads`, whose networks are stood in for by a cascade without any: stages take seconds, everything around the
networks is real

python tests/fake_line.py stage ingest
"""
import hashlib
import json
import sys
from pathlib import Path

import dark_cascade as dark
import numpy as np

from sads_jax.core.errors import DataError
from sads_jax.core.params import dump_params
from sads_jax.domains.base import Cascade
from sads_jax.domains.surface.domain import SurfaceDomain
from sads_jax.models.store import save_model
from sads_jax.orchestrators import training
from sads_jax.orchestrators.stages import TASKS
from sads_jax.orchestrators.training import compose_training


def train_task(name, data, split, params, out, *, start_from=None, checkpoints=None, progress=None):
    "A model of two numbers, learnt by the real loop with real checkpoints"
    from sads_jax.training.loop import Schedule, fit
    plan = Schedule(steps=4, batch_size=1, learning_rate=0.1, weight_decay=0.0, warmup=1, clip=1.0, ema=0.5,
        eval_every=1, patience=0)
    aim = np.float32(
        int(hashlib.sha256(dump_params(params).encode()).hexdigest()[:4], 16) / 65536
    )  # other parameters, other weights
    distance, batch = lambda p, b, k: ((p['w'] - b['x'])**2).mean(), {'x': np.full(2, aim)}
    weights, history = fit(
        {'w': np.zeros(2)}, distance, lambda step: batch, schedule=plan, seed=0, checkpoints=checkpoints / 'all'
    )
    save_model(out, name, {}, weights, history, classes=list(data.categories))

def train_anomaly(data, split, params, detector, out, **_):
    "Nothing is learnt but the parameters' digest"
    save_model(out, 'anomaly', {}, {'w': np.float32([params.anomaly.shrinkage])}, [])
    return len(split['train'])

class DarkDomain(SurfaceDomain):
    "The surface domain, whose networks are the dark cascade"
    def build(self, models, params, labels):
        read = {
            t: json.loads((Path(models) / t / 'model.json').read_text()) for t in (*TASKS, 'anomaly')
        }  # all must be there
        if tuple(read['classifier'].get('classes', labels)) != tuple(labels):
            raise DataError('was trained on other defect classes', where=Path(models)/'classifier')
        return Cascade(dark.cascade(labels), dark.WEIGHTS, False)

    def name_boxes(self, models, params): return None

def line(params, settings=None, workdir='.', **more):
    "`compose_training` with the stand-ins"
    return compose_training(params, settings, workdir,
        **{'domain': DarkDomain(), 'train_task': train_task, 'train_anomaly': train_anomaly} | more)

def install():
    "Put the stand-ins in the place of what the command line calls"
    training.compose_training = line

if __name__ == '__main__':
    install()
    from sads_jax.cli.main import main
    main(sys.argv[1:])
