"""The small network that tells T1w, T2w, FLAIR and DWI apart, in NumPy.

Three convolutions of 3³ with a stride of 2, each with a ReLU; the mean over the head; a linear layer: 22,100 weights.
Its weights are in ``contrast.safetensors``, eight bits each with a scale for each output, batch norm folded into them.
``benchmarks/trust/contrast_network.py`` trains it; ``sharing/page/contrast.js`` is the same in JavaScript.
"""

from functools import cache
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).with_name("contrast.safetensors")
CLASSES = ("T1w", "T2w", "FLAIR", "DWI")
BRIGHT = 0.95  # the quantile of what is brighter than air that becomes 1
MOST = 1.5
BLOCK = 8  # voxels along each axis that become one
ONE_THREAD = 2**17  # products, up to which OpenBLAS starts no threads; those wait busily and slow what comes after


def class_probabilities(volume: np.ndarray, air: float) -> np.ndarray:
    """The probabilities (4,) of ``CLASSES`` for a scan (X, Y, Z) of about 4 mm, 0 to 1, of which what is up to ``air``
    counts as air, and whose axes run as LIA."""
    convolutions, (weight, bias) = layers()
    bright = volume[volume > air]
    volume = np.clip(volume / (np.quantile(bright, BRIGHT) + 1e-3), 0, MOST).astype(np.float32)
    inside = of_head(volume, air)
    maps = volume[None]
    for kernel, shift in convolutions:
        maps = np.maximum(halved(maps, kernel) + shift[:, None, None, None], 0)
    values = weight @ maps[:, inside].mean(1, dtype=np.float64) + bias
    values = np.exp(values - values.max())
    return values / values.sum()


@cache
def layers() -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Kernels (out, in, 3, 3, 3) and shifts (out,) of the convolutions, then weights (4, in) and shifts of the classes,
    float32."""
    from safetensors.numpy import load_file

    stored = load_file(WEIGHTS)
    count = sum(name.endswith(".weight") for name in stored)
    found = []
    for number in range(count):
        weight, scale = stored[f"{number}.weight"].astype(np.float32), stored[f"{number}.scale"]
        found.append((weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), stored[f"{number}.bias"]))
    return found[:-1], found[-1]


def of_head(volume: np.ndarray, air: float) -> np.ndarray:
    """Which blocks of ``BLOCK``³ voxels lie in the head for the most part, bool; all of them where none does."""
    size = [-(-n // BLOCK) for n in volume.shape]
    bright = np.pad(volume > air, [(0, BLOCK * k - n) for k, n in zip(size, volume.shape)])
    x, y, z = size
    share = bright.reshape(x, BLOCK, y, BLOCK, z, BLOCK).mean((1, 3, 5))
    return share > 0.5 if (share > 0.5).any() else np.ones(size, bool)


def halved(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A convolution of (in, X, Y, Z) with a kernel (out, in, 3, 3, 3) at every second voxel, zeros around."""
    size = [-(-n // 2) for n in maps.shape[1:]]
    padded = np.pad(maps, [(0, 0), *[(1, 1)] * 3])
    result = np.zeros((len(kernel), int(np.prod(size))), np.float32)
    columns = ONE_THREAD // (len(kernel) * len(maps))
    for at in np.ndindex(3, 3, 3):
        seen = padded[(slice(None), *(slice(start, start + 2 * n - 1, 2) for start, n in zip(at, size)))]
        seen, weights = seen.reshape(len(maps), -1), kernel[(slice(None), slice(None), *at)]
        for some in (slice(first, first + columns) for first in range(0, seen.shape[1], columns)):
            result[:, some] += weights @ seen[:, some]
    return result.reshape(-1, *size)
