"""Surface Anomaly Detection System in JAX: from labelled photographs to verdicts with known escape and overkill rates

## Rooms

A package imports only from those above it.

- `sads_jax.core`: types, the schema of params.yaml and settings.ini, the one factory, errors
- `sads_jax.ops`: boxes, exact suppression, crops, regions
- `sads_jax.data`: connectors, splits, batches, the synthetic line
- `sads_jax.models`: the networks and their files
- `sads_jax.training`: one loop, losses, trainers
- `sads_jax.inference`: adapters, exported programs, the predictor
- `sads_jax.domains`: a way of inspecting; `surface` has the cascade, the rules and `SADSPipeline`
- `sads_jax.evaluation`: figures with intervals, the report, the explorer
- `sads_jax.registry`: bundles and the registry of models
- `sads_jax.serving`: the server
- `sads_jax.orchestrators`: the stages that `dvc repro` runs
- `sads_jax.cli`: the command `sads`
- `sads_jax.api`: `sads.load`, `sads.Project`, answers that show themselves

Modules:

- `sads_jax.core.types`: What rooms hand to one another: pytrees of arrays inside a program, pydantic records outside it
- `sads_jax.data.failures`: What cameras, lights and cables make of a good photograph, to test a line with
- `sads_jax.data.recognise`: What a folder of photographs is, and what is in it, before anybody has to know a parameter
- `sads_jax.domains.surface.gate`: Was it a photograph of a part at all? Ranges learnt from good parts, checked before anything is believed
- `sads_jax.inference.onnx`: The whole cascade as one ONNX graph for each bucket, which onnxruntime runs without JAX
- `sads_jax.ops.boxes`: Area, overlap and the square around a box, exact to the last bit
- `sads_jax.ops.crops`: Cut squares out of a batch of images, and paste their masks back
- `sads_jax.ops.host`: What is measured outside any program: regions of a mask, their length, and masks laid where they belong
- `sads_jax.ops.nms`: Exact greedy suppression at fixed shapes: one box for each defect
- `sads_jax.ops.regions`: Connected components, their areas, boxes and lengths: inside a program and on the host"""

__version__ = "0.1.0"

_LAZY = {'load': 'api.model', 'Model': 'api.model', 'Answer': 'api.model', 'Answers': 'api.model', 'Project': 'api.project',
         'SADSError': 'core.errors'}  # imported when first asked for: they bring JAX along, and `import sads_jax` must not

def __getattr__(name):
    if name not in _LAZY: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_LAZY[name]}'), name)

def __dir__(): return sorted({*globals(), *_LAZY})
