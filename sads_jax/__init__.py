"""Surface Anomaly Detection System in JAX: from labelled photographs to verdicts with known escape and overkill rates

Modules:

- `sads_jax.core.drawing`: A photograph with what was found on it, as SVG over an embedded JPEG
- `sads_jax.core.pictures`: Opening a picture file that nobody vouches for: known formats, bounded size, one frame
- `sads_jax.core.templates`: Pages and drawings from templates that lie beside the code that fills them
- `sads_jax.core.types`: What rooms hand to one another: pytrees of arrays inside a program, pydantic records outside it
- `sads_jax.core.yaml_text`: Reading YAML that cannot grow, loop or say a thing twice
- `sads_jax.data.augment`: Image, mask and boxes moved together, and the light changed, in one jitted step
- `sads_jax.data.connectors`: From wherever photographs come to one folder that needs nothing else
- `sads_jax.data.dataset`: From records to batches of fixed shape: decoded once, letterboxed, one bucket a batch
- `sads_jax.data.failures`: What cameras, lights and cables make of a good photograph, to test a line with
- `sads_jax.data.formats`: How masks are written down: run lengths, polygons, pictures; and how folders of them are laid out
- `sads_jax.data.images`: From a file or an upload to pixels, and from pixels to a canvas of fixed size and back
- `sads_jax.data.recognise`: What a folder of photographs is, and what is in it, before anybody has to know a parameter
- `sads_jax.data.records`: What is known of each photograph: its part, its lot, its defects; COCO on disk
- `sads_jax.data.splits`: Dividing photographs so that no part is on two sides, and the audits that prove it
- `sads_jax.data.synthetic`: Procedural parts with defects, photographed several times each: data that everyone has
- `sads_jax.domains.surface.gate`: Was it a photograph of a part at all? Ranges learnt from good parts, checked before anything is believed
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
- `sads_jax.ops.boxes`: Area, overlap and the square around a box, exact to the last bit
- `sads_jax.ops.crops`: Cut squares out of a batch of images, and paste their masks back
- `sads_jax.ops.host`: What is measured outside any program: regions of a mask, their length, and masks laid where they belong
- `sads_jax.ops.nms`: Exact greedy suppression at fixed shapes: one box for each defect
- `sads_jax.ops.regions`: Connected components, their areas, boxes and lengths: inside a program and on the host
- `sads_jax.serving.docs`: What the server answers, as a page that fetches nothing"""

__version__ = "0.1.0"
