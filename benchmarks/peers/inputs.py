"The random inputs that every rival gets"
import numpy as np

NMS = [(n, b) for n in (100, 300, 1000, 5000) for b in (1, 8, 32)]
REGIONS = [(256, 32)]


def boxes_and_scores(n, b):
    "Boxes float32 [b, n, 4] of 4 to 60 px on 320 x 320, and distinct scores [b, n]"
    rng = np.random.default_rng([n, b])
    at, size = rng.uniform(0, 260, (b, n, 2)), rng.uniform(4, 60, (b, n, 2))
    scores = np.stack([rng.permutation(n) for _ in range(b)]) / n
    return np.concatenate([at, at + size], -1).astype(np.float32), scores.astype(np.float32)


def masks(side, b):
    "bool [b, side, side]: blobs of smoothed noise"
    from numpy.fft import irfft2, rfft2
    rng = np.random.default_rng([side, b])
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    smooth = irfft2(rfft2(rng.normal(size=(b, side, side))) * np.exp(-600 * (x**2 + y**2)), s=(side, side))
    return smooth > smooth.std() * 1.2
