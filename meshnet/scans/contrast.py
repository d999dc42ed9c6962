"""What contrast a head scan looks like, and scans on which lesions are dark turned round.

On T1w old strokes are dark, on T2w, FLAIR and DWI they are bright. A network that is to find both needs to learn one
thing only where T1w scans are turned round first: within the head, white becomes black and black white.
"""

from __future__ import annotations

import numpy as np

AIR = 0.1  # grey value (0..1) up to which a voxel may be air
NOISY_AIR = 0.2  # the same, for what is asked of a scan with so much noise that nothing lies outside its head
CORE = 0.12  # depth below the head's surface, as a share of its size, from which a voxel is taken for brain
DEEPEST = 0.3  # up to which depth is measured
COARSE_MM = 4.0
FEWEST = 50  # voxels of brain, below which nothing is said
T1W, T2W, OTHER = CONTRASTS = ("T1w", "T2w", "FLAIR or DWI")  # what can be told apart
# Logistic regressions on synthetic heads at 4 mm of label maps 1 to 16: T1w against all others on 2,200 of them, from
# the nine ``features``, their squares and products (in the order of ``quadratic``), and T2w against FLAIR and DWI on
# 1,000, from the first six. On 350 heads of label maps 17 to 20, 91 and 92 % are right. All of fifteen real scans are
# told apart; which features to take was decided with those in view.
MIDDLE = np.array([0.051, 0.716, 3.561, -0.119, 0.428, 0.149, 0.305, 0.7, 0.826])
SPREAD = np.array([0.131, 0.174, 1.47, 0.573, 0.144, 0.799, 0.129, 0.123, 0.089])
IS_T1W = np.array([
    0.958, 1.296, -0.773, 1.603, -0.607, 0.53, -0.004, -0.031, 0.536, 0.148, 0.321, -0.071, -0.17, -0.173, 0.053,
    0.24, -0.229, 0.413, 0.154, -0.196, 0.301, 0.547, 0.447, -0.368, 0.408, -0.529, -0.114, -0.25, -0.299, 0.204,
    0.139, 0.471, 0.015, -0.585, 0.013, -0.199, -0.125, 0.092, 0.677, -0.299, 0.224, 0.09, 0.357, 0.329, -1.035,
    -0.965, 0.298, -0.729, -0.566, 0.357, -0.153, -0.668, 0.288, 0.354, -1.082])
IS_T2W = np.array([-8.6377, 1.5806, -0.9775, -2.9556, 3.3778, 2.54, -0.6825])


def looks_like(volume: np.ndarray, voxel_mm: float) -> str | None:
    """Which of ``CONTRASTS`` a conformed scan (X, Y, Z) uint8 resembles most; None for what is no head.

    T1w: white matter is brighter than grey matter, and fluid dark. T2w: fluid is bright.
    """
    found = features(volume, voxel_mm)
    if found is None:
        found = features(volume, voxel_mm, NOISY_AIR)
    if found is None:
        return None
    if float(IS_T1W @ quadratic(found)) > 0:
        return T1W
    return T2W if float(IS_T2W @ np.append(found[:6], 1)) > 0 else OTHER


def quadratic(found: np.ndarray) -> np.ndarray:
    """The nine ``features`` in units of their spread, the products of every two, row by row, and 1: (55,)."""
    x = np.clip((found - MIDDLE) / SPREAD, -4, 4)
    return np.concatenate([x, np.outer(x, x)[np.triu_indices(len(x))], [1]])


def turned_round(volume: np.ndarray) -> np.ndarray:
    """A conformed scan (X, Y, Z) uint8 with black and white exchanged within the head."""
    return np.where(inside_head(volume / np.float32(255)), 255 - volume, volume)


def inside_head(volume: np.ndarray, air: float = AIR) -> np.ndarray:
    """True (X, Y, Z) for voxels of ``volume`` (0..1) that lie between others brighter than ``air`` on every axis."""
    bright = volume > air
    inside = np.ones(bright.shape, bool)
    for axis in range(3):
        before = np.maximum.accumulate(bright, axis)
        after = np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
        inside &= before & after
    return inside


def features(volume: np.ndarray, voxel_mm: float, air: float = AIR) -> np.ndarray | None:
    """What the guess is made from, of a scan (X, Y, Z) uint8 averaged to about 4 mm; None for what is no head.

    Of the voxels deep within the head: how their grey value rises with depth (from the 25 % to the 90 % quantile, a
    correlation), the 90 % quantile of the shell around them, their kurtosis, the skewness of the difference to their
    six neighbours, their 25 % quantile, their skewness, and their 10, 75 and 90 % quantiles. Quantiles are shares of
    their 98 % quantile.
    """
    x = coarse(volume, voxel_mm)
    head = inside_head(x, air)
    size = float(np.cbrt(head.sum()))
    depth, left = np.zeros(x.shape), head.copy()
    for _ in range(int(size * DEEPEST)):
        left = left & np.logical_and.reduce([np.roll(left, way, axis) for axis in range(3) for way in (1, -1)])
        depth += left
    core = depth > CORE * size
    if core.sum() < FEWEST or (head & ~core).sum() < FEWEST:
        return None
    values, depths = x[core], depth[core]
    lower, upper, least, high, top = np.quantile(values, (0.25, 0.9, 0.1, 0.75, 0.98)) + (0, 0, 0, 0, 1e-3)
    middle = (values > lower) & (values < upper)
    apart = sum(np.roll(x, way, axis) for axis in range(3) for way in (1, -1))[core] - 6 * values
    return np.array([correlation(depths[middle], values[middle]), np.quantile(x[head & ~core], 0.9) / top,
                     min(moment(values, 4), 10.0), np.clip(moment(apart, 3), -4, 4), lower / top,
                     moment(values, 3), least / top, high / top, upper / top])


def coarse(volume: np.ndarray, voxel_mm: float) -> np.ndarray:
    """``volume`` uint8 as 0..1, float64, each voxel the mean of as many as make about ``COARSE_MM``."""
    step = max(1, round(COARSE_MM / voxel_mm))
    size = [n // step for n in volume.shape]
    cut = volume[tuple(slice(n * step) for n in size)].astype(np.float64) / 255
    return cut.reshape(size[0], step, size[1], step, size[2], step).mean((1, 3, 5))


def moment(values: np.ndarray, power: int) -> float:
    """The standardised moment: 3 is the skewness, 4 the kurtosis."""
    apart = values - values.mean()
    return float((apart ** power).mean() / (apart.std() + 1e-6) ** power)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))
