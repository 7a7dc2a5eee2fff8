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
- `sads_jax.serving`: the server, the store with its audit chain, a watched folder or camera, metrics, and sinks
- `sads_jax.deployment`: who gets a part, sequential tests, rollouts that go on or back by themselves
- `sads_jax.orchestrators`: the stages that `dvc repro` runs
- `sads_jax.cli`: the command `sads`
- `sads_jax.api`: `sads.load`, `sads.Project`, answers that show themselves
- `sads_jax.client`: ask a server from Python

Modules:

- `sads_jax.core.canvas`: The fixed numbers of a canvas: what it is padded with, and how many of its pixels one cell of each map covers
- `sads_jax.core.chain`: Rows that hold one another: whoever changes one later is found
- `sads_jax.core.drawing`: A photograph with what was found on it, as SVG over an embedded JPEG
- `sads_jax.core.pictures`: Opening a picture file that nobody vouches for: known formats, bounded size, one frame
- `sads_jax.core.templates`: Pages and drawings from templates that lie beside the code that fills them
- `sads_jax.core.types`: What rooms hand to one another: pytrees of arrays inside a program, pydantic records outside it
- `sads_jax.core.yaml_text`: Reading YAML that cannot grow, loop or say a thing twice
- `sads_jax.data.annotators`: People draw in a tool of their choice, programs propose; a label always says which of the two made it
- `sads_jax.data.augment`: Image, mask and boxes moved together, and the light changed, in one jitted step
- `sads_jax.data.connectors`: From wherever photographs come to one folder that needs nothing else
- `sads_jax.data.dataset`: From records to batches of fixed shape: decoded once, letterboxed, one bucket a batch
- `sads_jax.data.failures`: What cameras, lights and cables make of a good photograph, to test a line with
- `sads_jax.data.formats`: How masks are written down: run lengths, polygons, pictures; and how folders of them are laid out
- `sads_jax.data.images`: From a file or an upload to pixels, and from pixels to a canvas of fixed size and back
- `sads_jax.data.layouts`: MVTec LOCO and AD 2, VisA, KolektorSDD and KolektorSDD2, DAGM
- `sads_jax.data.projects`: VIA, Supervisely and Datumaro
- `sads_jax.data.recognise`: What a folder of photographs is, and what is in it, before anybody has to know a parameter
- `sads_jax.data.records`: What is known of each photograph: its part, its lot, its defects; COCO on disk
- `sads_jax.data.shapes`: Boxes, polygons, ellipses, lines and masks as tools write them, checked and clipped, become annotations
- `sads_jax.data.sources`: What every reader of labels shares: photographs found by name, text and JSON checked, remarks counted
- `sads_jax.data.splits`: Dividing photographs so that no part is on two sides, and the audits that prove it
- `sads_jax.data.survey`: What an ingest saw: counts, what was mended and left out, doubtful labels, with small pictures
- `sads_jax.data.synthetic`: Procedural parts with defects, photographed several times each: data that everyone has
- `sads_jax.data.tables`: Manifests in CSV or Parquet, run lengths in CSV, solar cells
- `sads_jax.data.tools`: LabelMe, CVAT and Label Studio: what each writes, read shape by shape
- `sads_jax.data.twins`: The same part photographed twice under two names: found by what the set does not predict
- `sads_jax.data.writers`: A data set out again, in the format that another tool reads
- `sads_jax.data.yolo`: Text files of shares beside photographs: boxes, polygons and turned boxes
- `sads_jax.deployment.envoy`: One machine, two servers, one proxy: shares change while it runs, and a dead candidate costs no request
- `sads_jax.deployment.mesh`: The same traffic in a cluster: Istio's VirtualService or the Gateway API's HTTPRoute, changed without trampling on others
- `sads_jax.deployment.rollout`: From the first share to all traffic, or back: a state machine that writes down what it is about to do
- `sads_jax.deployment.sequential`: Promote, roll back, or wait for about N more parts: an answer that holds however often one looks
- `sads_jax.deployment.traffic`: Who gets a part: shares, a header that asks for the candidate, parts that stay where they were, a mirror
- `sads_jax.domains.surface.orchestrator`: Detection, crops, classification, segmentation: four steps injected, one program compiled
- `sads_jax.evaluation.charts`: Lines, dots and intervals as SVG: sharp at any size, and a few hundred bytes each
- `sads_jax.evaluation.compare`: Is the new version better, or only lucky? Two models on the same photographs, part by part
- `sads_jax.evaluation.explorer`: Move the threshold, and see which defects would pass, which good parts would be stopped, and what that rests on
- `sads_jax.evaluation.intervals`: How far a figure might have come out elsewhere, with other parts: the bootstrap, part by part
- `sads_jax.evaluation.localisation`: Is the right place suspected? AUPRO and AUPIMO of the score map, image by image, in constant memory
- `sads_jax.evaluation.metrics`: What a model found against what is there: boxes, names, outlines and whole images
- `sads_jax.evaluation.pod`: How large a defect must be before it is found nine times in ten, and how sure we are of that
- `sads_jax.evaluation.qualification`: May this station judge parts today? Golden samples, re-shots, and people beside the model
- `sads_jax.evaluation.slices`: Where it is worse: escape and overkill by class, defect size, exposure and lot
- `sads_jax.evaluation.suspects`: Photographs whose label the model contradicts with confidence: look at them before blaming the model
- `sads_jax.inference.adapters`: From what a network says to what the rest of the system understands
- `sads_jax.inference.export`: A program and its weights as two files that need none of our code to run
- `sads_jax.inference.onnx`: The whole cascade as one ONNX graph for each bucket, which onnxruntime runs without JAX
- `sads_jax.inference.onnx_rules`: How each primitive of JAX that our cascade is made of is written as ONNX, so that the two say the same
- `sads_jax.ops.boxes`: Area, overlap and the square around a box, exact to the last bit
- `sads_jax.ops.crops`: Cut squares out of a batch of images, and paste their masks back
- `sads_jax.ops.host`: What is measured outside any program: regions of a mask, their length, and masks laid where they belong
- `sads_jax.ops.nms`: Exact greedy suppression at fixed shapes: one box for each defect
- `sads_jax.ops.regions`: Connected components, their areas, boxes and lengths: inside a program and on the host
- `sads_jax.serving.docs`: What the server answers, as a page that fetches nothing"""

__version__ = "0.1.0"

_LAZY = {'load': 'api.model', 'Model': 'api.model', 'Answer': 'api.model', 'Answers': 'api.model', 'Project': 'api.project',
         'SADSError': 'core.errors'}  # imported when first asked for: they bring JAX along, and `import sads_jax` must not

def __getattr__(name):
    if name not in _LAZY: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_LAZY[name]}'), name)

def __dir__(): return sorted({*globals(), *_LAZY})
