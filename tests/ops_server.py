"Program: a fake pipeline with metrics and sinks. ops_server.py PORT SETTINGS_INI WORKDIR [JSON of more settings]"
import json
import logging
import sys
from functools import partial
from pathlib import Path

import fake_pipeline

from sads_jax.core.errors import SADSError
from sads_jax.core.settings import Settings
from sads_jax.serving.logs import log_as_json
from sads_jax.serving.monitoring import MonitoringService
from sads_jax.serving.server import make_server, serve
from sads_jax.serving.sinks import sinks_from

if __name__ == '__main__':
    port, ini, workdir, more = sys.argv[1:]
    settings = Settings(**(dict(port=int(port), drain_s=0, workers=1, api_keys=Path(workdir)/'keys.json') | json.loads(
        more)))
    log_as_json()
    logging.getLogger('sads_jax').setLevel(logging.INFO)
    try:
        monitor, sinks = MonitoringService(log_answers=True), sinks_from(ini, Path(workdir))
        server = make_server(partial(fake_pipeline.load, .01), settings, version='fake', observers=[monitor, *sinks],
            resolve=partial(fake_pipeline.resolve, .01), mounts={'/metrics': monitor.app()})
        monitor.watch(server)
        serve(server, settings)
    except SADSError as e: sys.exit(f'error: {e}')
    assert not any(m == 'jax' or m.startswith('jax.') for m in sys.modules), 'the main process must not import JAX'
