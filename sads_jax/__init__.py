"""Surface Anomaly Detection System in JAX: from labelled photographs to verdicts with known escape and overkill rates

Modules:

- `sads_jax.core.canvas`: The fixed numbers of a canvas: what it is padded with, and how many of its pixels one cell of each map covers
- `sads_jax.core.types`: What rooms hand to one another: pytrees of arrays inside a program, pydantic records outside it
- `sads_jax.data.failures`: What cameras, lights and cables make of a good photograph, to test a line with
- `sads_jax.data.recognise`: What a folder of photographs is, and what is in it, before anybody has to know a parameter
- `sads_jax.domains.surface.gate`: Was it a photograph of a part at all? Ranges learnt from good parts, checked before anything is believed
- `sads_jax.inference.onnx`: The whole cascade as one ONNX graph for each bucket, which onnxruntime runs without JAX
- `sads_jax.inference.onnx_rules`: How each primitive of JAX that our cascade is made of is written as ONNX, so that the two say the same
- `sads_jax.ops.boxes`: Area, overlap and the square around a box, exact to the last bit
- `sads_jax.ops.crops`: Cut squares out of a batch of images, and paste their masks back
- `sads_jax.ops.host`: What is measured outside any program: regions of a mask, their length, and masks laid where they belong
- `sads_jax.ops.nms`: Exact greedy suppression at fixed shapes: one box for each defect
- `sads_jax.ops.regions`: Connected components, their areas, boxes and lengths: inside a program and on the host"""

__version__ = "0.1.0"
