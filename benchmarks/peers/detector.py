"""Our detector's graph in torch and, exported from there, in onnxruntime.

    python detector.py torch|onnx WEIGHTS.safetensors.npz EXPECTED.npz FOLDER

Written the way a torch user would: depthwise and 1x1 layers as convolutions, channels last. Before anything is
timed the answer is compared with JAX's (EXPECTED: `images` [B,H,W,3] and `map`); jobs are named after batch sizes.
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from answer import answer

THREADS = 2
STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}  # EfficientNet-Lite0's blocks that halve
TAPS = (2, 4, 10, 15)


class Detector(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.names = {}
        for name, w in weights.items():
            if name.endswith("depthwise"): w = w.transpose(2, 0, 1)[:, None]
            elif w.ndim == 4: w = w.transpose(3, 2, 0, 1)
            elif w.ndim == 2: w = w.T[:, :, None, None]
            self.names[name] = name.replace("/", "_")
            self.register_buffer(
                self.names[name],
                torch.tensor(np.ascontiguousarray(w)).contiguous(
                    memory_format=torch.channels_last if w.ndim == 4 else torch.contiguous_format
                ),
            )

    def __getitem__(self, name): return getattr(self, self.names[name])

    def conv(self, x, w, b, stride=1, groups=1):
        k, n = w.shape[-1], x.shape[-2:]
        pads = []
        for side in reversed(n):  # TensorFlow's SAME
            total = max((-(-int(side) // stride) - 1) * stride + k - int(side), 0)
            pads += [total // 2, total - total // 2]
        if len(set(pads)) == 1: return F.conv2d(x, w, b, stride, pads[0], groups=groups)
        return F.conv2d(F.pad(x, pads), w, b, stride, groups=groups)

    def dense(self, x, name): return self.conv(x, self[f"head/{name}/kernel"], self[f"head/{name}/bias"])

    def features(self, x):
        x, out = F.relu6(self.conv(x, self["backbone/stem"], self["backbone/stem_bias"], 2)), []
        for i in range(16):
            b = f"backbone/blocks/{i}/"
            y = F.relu6(self.conv(x, self[b + "expand"], self[b + "expand_bias"])) if b + "expand" in self.names else x
            y = F.relu6(self.conv(y, self[b + "depthwise"], self[b + "depthwise_bias"], STRIDES.get(i, 1), y.shape[1]))
            y = self.conv(y, self[b + "project"], self[b + "project_bias"])
            x = x + y if i not in STRIDES and x.shape[1] == y.shape[1] else y
            if i in TAPS: out.append(x)
        return out

    def forward(self, images):
        levels = []
        for i, f in enumerate(self.features((images.permute(0, 3, 1, 2) * 255 - 127) / 128)):
            wide = lambda name, i=i: self[f"head/standardise/{name}/{i}"][:, None, None]
            f = ((f - wide("mean")) * wide("gain")).clamp(-5, 5)
            levels.append(torch.cat([f, f - f.mean((2, 3), keepdim=True)], 1))
        top = None
        for i in (3, 2, 1):
            x = self.dense(levels[i], f"pyramid/lateral/{i}")
            if top is not None: x = x + F.interpolate(top, scale_factor=2)
            top = x + F.relu(self.dense(F.relu(x), f"pyramid/smooth/{i - 1}"))
        x = F.relu(F.interpolate(top, scale_factor=2) + self.dense(levels[0], "pyramid/lateral/0"))
        x = torch.cat([x, F.relu(self.dense(x, "pyramid/fine"))], 1)
        return self.dense(F.relu(self.dense(x, "mix")), "out")[:, 0]


def run_onnx(session, images): return session.run(None, {"images": images})[0]


@torch.inference_mode()
def main():
    kind, weights, expected, folder = sys.argv[1], dict(np.load(sys.argv[2])), np.load(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(THREADS)
    net, runs = Detector(weights).eval(), {}
    for b in (1, 8, 32):
        images = torch.tensor(np.resize(expected["images"], (b, *expected["images"].shape[1:])))
        if kind == "torch": runs[b] = lambda x=images: net(x).numpy()
        else:
            import onnxruntime
            path = folder / f"detector-{b}.onnx"
            torch.onnx.export(
                net, (images,), str(path), dynamo=False, input_names=["images"], output_names=["map"], opset_version=17
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = THREADS
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            runs[b] = partial(run_onnx, session, images.numpy())
    worst = float(np.abs(runs[8]()[: len(expected["map"])] - expected["map"]).max())
    answer({str(b): f for b, f in runs.items()}, worst=worst)


if __name__ == "__main__":
    main()
