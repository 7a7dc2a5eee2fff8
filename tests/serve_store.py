"Program: serve a fake pipeline and keep what it decides. serve_store.py PORT; FAKE_SETTINGS: settings in JSON"
import json
import os
import sys

import fake_pipeline

from sads_jax.core.settings import Settings
from sads_jax.serving.inspections import keep_inspections, recorder_of
from sads_jax.serving.server import make_server, serve

if __name__ == '__main__':
    plain = dict(port=int(sys.argv[1]), drain_s=0, workers=1, cached_answers=0)
    settings = Settings(**(plain | json.loads(os.environ['FAKE_SETTINGS'])))
    recorder = recorder_of(settings, {'fake': .41}.get)
    server = make_server(fake_pipeline.load, settings, version='fake', observers=[recorder])
    keep_inspections(server, recorder)
    serve(server, settings)
