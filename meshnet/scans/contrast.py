"""What contrast a head scan looks like, and scans on which lesions are dark turned round.

On T1w old strokes are dark, on T2w, FLAIR and DWI they are bright. A network that is to find both needs to learn one
thing only where T1w scans are turned round first: within the head, white becomes black and black white.
"""

from __future__ import annotations

import numpy as np

from meshnet.scans.contrast_network import class_probabilities

AIR = 0.1  # grey value (0..1) up to which a voxel may be air
NOISY_AIR = 0.2  # the same, for what is asked of a scan with so much noise that nothing lies outside its head
CORE = 0.12  # depth below the head's surface, as a share of its size, from which a voxel is taken for brain
COARSE_MM = 4.0
TRAINED = "LIA"  # orientation of the axes in which the network has seen heads
FEWEST = 50  # voxels of brain, below which nothing is said
T1W, T2W, OTHER = CONTRASTS = ("T1w", "T2w", "FLAIR or DWI")  # what can be told apart


def likelihoods(volume: np.ndarray, voxel_mm: float, orientation: str = TRAINED) -> dict[str, float] | None:
    """How likely a conformed scan (X, Y, Z) uint8, whose axes have that ``orientation``, is each of ``CONTRASTS``; None
    for what is no head.

    The probabilities are those of a network of 22,100 weights (``contrast_network``), which was trained on synthetic
    heads at 4 mm. Other contrasts, such as ADC, are taken for one of these.
    """
    if orientation != TRAINED:
        import nibabel as nib

        codes = (nib.orientations.axcodes2ornt(one) for one in (orientation, TRAINED))
        volume = nib.orientations.apply_orientation(volume, nib.orientations.ornt_transform(*codes))
    x = coarse(volume, voxel_mm)
    air = next((air for air in (AIR, NOISY_AIR) if is_head(x, air)), None)
    if air is None:
        return None
    t1w, t2w, flair, dwi = (float(p) for p in class_probabilities(x, air))
    return dict(zip(CONTRASTS, (t1w, t2w, flair + dwi)))


def most_likely(found: dict[str, float] | None) -> str | None:
    """The contrast that ``likelihoods`` found the most likely; None for what is no head."""
    return None if found is None else max(found, key=found.get)


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


def is_head(volume: np.ndarray, air: float) -> bool:
    """Whether ``volume`` (X, Y, Z), 0..1, has something deep within what is brighter than ``air``, and a shell."""
    head = inside_head(volume, air)
    left, whole = head, int(head.sum())
    for _ in range(int(CORE * np.cbrt(whole)) + 1):
        left = left & np.logical_and.reduce([np.roll(left, way, axis) for axis in range(3) for way in (1, -1)])
    return left.sum() >= FEWEST and whole - left.sum() >= FEWEST


def coarse(volume: np.ndarray, voxel_mm: float) -> np.ndarray:
    """``volume`` uint8 as 0..1, float64, each voxel the mean of as many as make about ``COARSE_MM``; larger ones
    several times each."""
    times = round(voxel_mm / COARSE_MM)
    for axis in range(3):
        volume = volume if times < 2 else np.repeat(volume, times, axis)
    step = max(1, round(COARSE_MM / voxel_mm))
    size = [n // step for n in volume.shape]
    cut = volume[tuple(slice(n * step) for n in size)].astype(np.float64) / 255
    return cut.reshape(size[0], step, size[1], step, size[2], step).mean((1, 3, 5))
