"""Procedural stroke lesions in MNI space: sizes, shapes and places of real strokes, from a few fitted numbers.

A lesion is the set of the V highest voxels of a score: an elongated distance to a centre, plus smooth noise at two
scales, plus a leaning towards the tissue that strokes take. V is drawn first, so the volumes follow their distribution
exactly; the noise makes borders rough and breaks off satellites.
"""

from dataclasses import dataclass

import numpy as np

from meshnet.atlas import Atlas, load_atlas, smooth_field

VOLUME_QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
VOLUME_MM3 = (30.0, 300.0, 550.0, 2010.0, 12660.0, 51930.0, 122700.0, 196900.0, 400000.0)


@dataclass(frozen=True)
class Lesion:
    """A lesion mask on a box of an atlas lattice: voxel (i, j, k) lies at ``origin_mm + level_mm * (i, j, k)``."""

    mask: np.ndarray
    level_mm: float
    origin_mm: np.ndarray

    @property
    def volume_mm3(self) -> float:
        return float(self.mask.sum() * self.level_mm ** 3)

    @property
    def centre_mm(self) -> np.ndarray:
        return self.origin_mm + self.level_mm * np.argwhere(self.mask).mean(0).astype(np.float32)


def draw_volume(rng: np.random.Generator, smallest_mm3: float = 0.0, largest_mm3: float = np.inf) -> float:
    """A lesion volume in mm³, log-interpolated between quantiles of real strokes and kept within the two limits."""
    low, high = (np.interp(np.log(np.clip(v, VOLUME_MM3[0], VOLUME_MM3[-1])), np.log(VOLUME_MM3), VOLUME_QUANTILES)
                 for v in (smallest_mm3, largest_mm3))
    return float(np.exp(np.interp(rng.uniform(low, high), VOLUME_QUANTILES, np.log(VOLUME_MM3))))


def draw_centre(rng: np.random.Generator, atlas: Atlas) -> np.ndarray:
    """A lesion's centre (3,) in MNI mm: a brain voxel, mostly in the middle cerebral arteries' territory."""
    tissue = atlas.maps[..., 0].astype(np.float32) + atlas.maps[..., 1]
    x, y, z = (atlas.origin_mm[a] + atlas.level_mm * np.arange(tissue.shape[a], dtype=np.float32) for a in range(3))
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    middle = np.exp(-((np.abs(x) - 38) / 16) ** 2 - ((y + 12) / 34) ** 2 - ((z - 16) / 26) ** 2)
    weight = tissue * (middle + 0.12)
    flat = np.cumsum(weight.ravel(), dtype=np.float64)
    chosen = np.searchsorted(flat, rng.uniform(0, flat[-1]))
    return atlas.origin_mm + atlas.level_mm * np.array(np.unravel_index(chosen, tissue.shape), np.float32)


def draw_lesion(rng: np.random.Generator, level_mm: int = 2, smallest_mm3: float = 0.0,
                largest_mm3: float = np.inf) -> Lesion:
    """One lesion (all its parts) on the atlas lattice of ``level_mm``; the volume is exact to a voxel.

    A volume below one voxel becomes one voxel; one larger than the brain within reach takes all of that.
    """
    atlas = load_atlas(level_mm)
    volume = draw_volume(rng, smallest_mm3, largest_mm3)
    centre = draw_centre(rng, load_atlas(4))
    radius = (volume * 3 / 4 / np.pi) ** (1 / 3)
    log_axes = rng.normal(0, 0.35, 3)
    axes = radius * np.exp(log_axes - log_axes.mean())
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]

    reach = 2.2 * axes.max() + 6
    low = np.maximum(np.floor((centre - reach - atlas.origin_mm) / level_mm), 0).astype(int)
    high = np.minimum(np.ceil((centre + reach - atlas.origin_mm) / level_mm) + 1, atlas.maps.shape[:3]).astype(int)
    maps = atlas.maps[tuple(slice(a, b) for a, b in zip(low, high))].astype(np.float32) / 255
    axes_mm = tuple(atlas.origin_mm[a] + level_mm * np.arange(low[a], high[a], dtype=np.float32) for a in range(3))
    offset = np.stack(np.meshgrid(*(p - c for p, c in zip(axes_mm, centre)), indexing="ij"))
    distance = np.sqrt((np.tensordot(rotation / axes[:, None], offset, (1, 0)) ** 2).sum(0))

    coarse = smooth_field(rng, axes_mm, float(np.clip(radius, 4, 20)))[0]
    fine = smooth_field(rng, axes_mm, float(np.clip(radius / 3, 3, 8)))[0]
    score = -distance + 0.25 * coarse + 0.12 * fine
    score += 0.35 * (maps[..., 0] + maps[..., 1]) - 0.6 * maps[..., 3]
    score[maps[..., :3].sum(-1) < 0.4] = -np.inf
    count = int(np.clip(round(volume / level_mm ** 3), 1, np.isfinite(score).sum()))
    threshold = np.partition(score.ravel(), score.size - count)[score.size - count]
    return Lesion(score >= threshold, float(level_mm), axes_min(axes_mm))


def axes_min(axes_mm: tuple) -> np.ndarray:
    """First point of a lattice."""
    return np.array([axis[0] for axis in axes_mm], np.float32)
