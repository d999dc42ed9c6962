"""What a scanner does to a head: sampling, thick slices, ringing, motion, bias field, noise, gamma, cropping."""

from dataclasses import dataclass, field

import numpy as np

from meshnet.data.synthetic.atlas import smooth_field


@dataclass
class Acquisition:
    """How one scan is taken; lengths in mm along the three axes of the lattice."""

    acquired_mm: tuple[float, float, float]  # voxel size of the acquisition; at most the lattice's: no loss
    bias: float = 0.1  # standard deviation of the log bias field
    bias_mm: float = 90.0
    noise: float = 0.02  # standard deviation, where bright tissue is about 1
    gamma: float = 1.0
    ghost: tuple[int, float, int] | None = None  # axis, strength, repetitions along it
    shift_mm: tuple[int, float] | None = None  # axis, how far the head moved half-way
    ringing: tuple[int, float] | None = None  # axis, share of k-space kept
    cut_mm: dict[tuple[int, int], float] = field(default_factory=dict)  # (axis, side) -> mm left dark
    gain: float = 1.0  # arbitrary units
    offset: float = 0.0  # how far a few voxels lie below the background


def draw_acquisition(rng: np.random.Generator, voxel_mm: float, share: float, smooth: bool = False) -> Acquisition:
    """A random acquisition in which each flaw appears with probability ``share``; 0 leaves bias field and noise.

    ``smooth``: the low resolution of an echo-planar scan, always.
    """
    hit = lambda factor=1.0: rng.random() < share * factor
    flaws = Acquisition((voxel_mm,) * 3, bias=rng.uniform(0.03, 0.25), bias_mm=rng.uniform(60, 150),
                        noise=float(np.exp(rng.uniform(np.log(0.003), np.log(0.05)))),
                        gain=float(np.exp(rng.uniform(np.log(100), np.log(3000)))))
    sizes = np.full(3, voxel_mm)
    if hit(1.5):
        sizes[rng.integers(3)] = rng.uniform(2.5, 7.0)
    if hit() or (smooth and share):
        sizes = np.maximum(sizes, rng.uniform(1.5, 3.2))
    flaws.acquired_mm = tuple(float(s) for s in sizes)
    if share:
        flaws.gamma = float(np.exp(rng.normal(0, 0.18)))
    if hit():
        flaws.ghost = (int(rng.integers(3)), float(rng.uniform(0.02, 0.12)), int(rng.integers(2, 6)))
    if hit():
        flaws.shift_mm = (int(rng.integers(3)), float(rng.uniform(0.5, 4.0)))
    if hit():
        flaws.ringing = (int(rng.integers(3)), float(rng.uniform(0.35, 0.7)))
    if hit(1.5):
        flaws.cut_mm[(2, 0)] = float(rng.uniform(50, 115))
    if hit(0.4):
        flaws.cut_mm[(2, 1)] = float(rng.uniform(20, 70))
    if hit():
        flaws.offset = float(rng.uniform(0.02, 0.15))
    return flaws


def scan(rng: np.random.Generator, image: np.ndarray, voxel_mm: float, how: Acquisition) -> np.ndarray:
    """The scan (X, Y, Z) float32 of a noise-free ``image`` with values about 0..1; arbitrary units come out."""
    axes = tuple(voxel_mm * (np.arange(n, dtype=np.float32) - n // 2) for n in image.shape)
    image = image * np.exp(how.bias * smooth_field(rng, axes, how.bias_mm)[0])
    np.clip(image, 0, None, out=image)
    if how.gamma != 1:
        image = image ** np.float32(how.gamma)
    if how.shift_mm:
        axis, distance = how.shift_mm
        steps = max(1, round(distance / voxel_mm))
        image = 0.6 * image + 0.4 * np.roll(image, steps, axis)
    if how.ghost:
        axis, strength, repeats = how.ghost
        image = image + strength * np.roll(image, image.shape[axis] // repeats, axis)
    if how.ringing:
        axis, kept = how.ringing
        image = along(image, low_pass(image.shape[axis], kept), axis)
    down = [coarsen(n, voxel_mm, size) for n, size in zip(image.shape, how.acquired_mm)]
    for axis, matrix in enumerate(down):
        if matrix is not None:
            image = along(image, matrix, axis)
    real = image + how.noise * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.hypot(real, how.noise * rng.standard_normal(image.shape, dtype=np.float32))
    for axis, matrix in enumerate(down):
        if matrix is not None:
            image = along(image, refine(axes[axis].size, voxel_mm, how.acquired_mm[axis]), axis)
    image[cut_away(image.shape, voxel_mm, how)] = 0
    if how.offset:
        image[tuple(n // 2 for n in image.shape)] = -how.offset
    return (image * np.float32(how.gain)).astype(np.float32)


def cut_away(shape: tuple, voxel_mm: float, how: Acquisition) -> np.ndarray:
    """True (X, Y, Z) where the scan's field of view does not reach."""
    outside = np.zeros(shape, bool)
    for (axis, side), distance in how.cut_mm.items():
        count = round(distance / voxel_mm)
        part = [slice(None)] * 3
        part[axis] = slice(0, count) if side == 0 else slice(shape[axis] - count, None)
        outside[tuple(part)] = True
    return outside


def along(image: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """``matrix`` (m, n) applied along ``axis`` of ``image``."""
    return np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis))


def coarsen(count: int, voxel_mm: float, acquired_mm: float) -> np.ndarray | None:
    """Matrix (m, count) that averages ``count`` voxels into thick ones; None where they are no thicker."""
    if acquired_mm <= voxel_mm * 1.05:
        return None
    edges = np.arange(count + 1) * voxel_mm
    starts = np.arange(int(np.ceil(count * voxel_mm / acquired_mm))) * acquired_mm
    low = np.maximum(edges[:-1], starts[:, None])
    high = np.minimum(edges[1:], starts[:, None] + acquired_mm)
    overlap = np.clip(high - low, 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def refine(count: int, voxel_mm: float, acquired_mm: float) -> np.ndarray:
    """Matrix (count, m) that interpolates thick voxels linearly back to ``count`` voxels (the inverse lattice)."""
    coarse = int(np.ceil(count * voxel_mm / acquired_mm))
    position = np.clip(((np.arange(count) + 0.5) * voxel_mm) / acquired_mm - 0.5, 0, coarse - 1)
    return np.clip(1 - np.abs(position[:, None] - np.arange(coarse)), 0, 1).astype(np.float32)


def low_pass(count: int, kept: float) -> np.ndarray:
    """Matrix (count, count) that keeps the lowest share ``kept`` of the frequencies, with Gibbs ringing."""
    frequency = np.abs(np.fft.fftfreq(count)) * 2
    return np.real(np.fft.ifft(np.fft.fft(np.eye(count), axis=0) * (frequency <= kept)[:, None], axis=0)).astype(
        np.float32)
