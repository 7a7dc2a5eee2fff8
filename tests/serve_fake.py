"Program: serve a fake pipeline. serve_fake.py PORT [NAME_OF_LOADER [DELAY [LOG]]]; FAKE_SETTINGS: more, in JSON"
import json
import os
import sys
from functools import partial

import fake_pipeline

from sads_jax.core.errors import SADSError
from sads_jax.core.settings import Settings
from sads_jax.serving.server import check_address, make_server, serve

if __name__ == '__main__':
    port, loader, *rest = sys.argv[1:] if len(sys.argv) > 2 else [sys.argv[1], 'load']
    args = [float(rest[0]), *rest[1:]] if rest else []
    plain = dict(port=int(port), batch_timeout_ms=50, max_batch_size=8, max_image_mb=4, drain_s=0, workers=1)
    settings = Settings(**(plain | json.loads(os.environ.get('FAKE_SETTINGS', '{}'))))
    watching = [fake_pipeline.Scribe(os.environ['FAKE_SEEN'])] if 'FAKE_SEEN' in os.environ else []
    try:
        check_address(settings.host, settings.port)
        server = make_server(partial(getattr(fake_pipeline, loader), *args), settings, version='fake',
            resolve=partial(fake_pipeline.resolve, args[0] if args else 0.), observers=watching)
        server.on_ready = lambda: print('ready', flush=True)
        serve(server, settings)
    except SADSError as e: sys.exit(f'error: {e}')
    assert not any(m == 'jax' or m.startswith('jax.') for m in sys.modules), 'the main process must not import JAX'
