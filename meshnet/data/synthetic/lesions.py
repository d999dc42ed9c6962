"""Procedural stroke lesions in MNI space: sizes, shapes and places of real strokes, from a few fitted numbers.

A lesion is the set of the V highest voxels of a score: the elongated distance to a centre (and to a few satellites),
plus smooth noise at fixed scales in mm, minus penalties for what strokes leave alone. V is drawn first, so the volumes
follow their distribution exactly; the noise makes borders rough and breaks parts off.

The numbers were fitted to summary statistics of 1,449 manual acute-stroke masks in MNI space (OpenNeuro ds004889, CC0);
``benchmarks/lesion_statistics.py`` compares the two. No mask is stored.
"""

from dataclasses import dataclass

import numpy as np

from meshnet.data.synthetic.atlas import Atlas, load_atlas, smooth_field

VOLUME_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
VOLUME_MM3 = (4.0, 54.0, 299.0, 551.0, 2013.0, 12659.0, 51932.0, 122709.0, 196890.0, 370109.0, 600000.0)
# Where centres lie: |x|, y, z in MNI mm, their standard deviations, and the share of small, middle and large lesions.
TERRITORIES = np.array([
    [41, -3, 19, 6, 12, 13, 0.12, 0.22, 0.38],  # insula and operculum, middle cerebral artery
    [22, -6, 9, 7, 9, 8, 0.32, 0.20, 0.06],  # basal ganglia and capsule, its deep branches
    [25, -18, 43, 11, 16, 13, 0.19, 0.14, 0.10],  # central white matter and vertex
    [42, -38, 22, 8, 14, 14, 0.06, 0.13, 0.20],  # temporo-parietal
    [19, -59, 4, 8, 17, 15, 0.07, 0.16, 0.16],  # occipital, posterior cerebral artery
    [17, -63, -33, 9, 10, 7, 0.08, 0.08, 0.06],  # cerebellum
    [5, -25, -24, 3, 7, 13, 0.12, 0.02, 0.01],  # brainstem
    [20, 25, 20, 12, 12, 15, 0.04, 0.05, 0.03],  # frontal, anterior cerebral artery
])
SMALL_MM3, LARGE_MM3 = 3000.0, 30_000.0


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


@dataclass(frozen=True)
class Shape:
    """What the noise and the axes of lesions are like; fitted with the table above."""

    spread: float = 0.72  # standard deviation of the log axes
    flat: float = 0.35  # share of small lesions drawn as one thin sheet, as thick slices show them
    coarse: float = 0.35  # strength of the noise at coarse_mm
    coarse_mm: float = 16.0
    fine: float = 0.32
    fine_mm: float = 6.5
    radius_mm: float = 15.0  # where the noise has these strengths
    power: float = 0.7  # how they fall with the radius
    ragged: float = 0.45  # standard deviation of the log strength between lesions
    compact: float = 0.35  # share of lesions in one piece: half the noise, no satellites
    satellites: float = 2.6  # mean number of satellite foci of the others, geometric
    midline: float = 1.0  # cost of crossing the midline


def draw_volume(rng: np.random.Generator, smallest_mm3: float = 0.0, largest_mm3: float = np.inf) -> float:
    """A lesion volume in mm³, log-interpolated between quantiles of real strokes and kept within the two limits."""
    low, high = (np.interp(np.log(np.clip(v, VOLUME_MM3[0], VOLUME_MM3[-1])), np.log(VOLUME_MM3), VOLUME_QUANTILES)
                 for v in (smallest_mm3, largest_mm3))
    return float(np.exp(np.interp(rng.uniform(low, high), VOLUME_QUANTILES, np.log(VOLUME_MM3))))


def draw_centre(rng: np.random.Generator, volume_mm3: float, atlas: Atlas) -> np.ndarray:
    """A lesion's centre (3,) in MNI mm, within the brain's tissue: a vascular territory first, then a place in it."""
    column = 6 + int(volume_mm3 > SMALL_MM3) + int(volume_mm3 > LARGE_MM3)
    side = rng.choice([-1, 1])
    for _ in range(50):
        territory = TERRITORIES[rng.choice(len(TERRITORIES), p=TERRITORIES[:, column] / TERRITORIES[:, column].sum())]
        centre = rng.normal(territory[:3], territory[3:6]).astype(np.float32)
        centre[0] *= side
        voxel = np.round((centre - atlas.origin_mm) / atlas.level_mm).astype(int)
        inside = np.all((voxel >= 0) & (voxel < atlas.maps.shape[:3]))
        if inside and atlas.maps[tuple(voxel)][:2].sum(dtype=int) > 100:
            break
    return centre


def draw_lesion(rng: np.random.Generator, level_mm: int = 2, smallest_mm3: float = 0.0,
                largest_mm3: float = np.inf, form: Shape = Shape()) -> Lesion:
    """One lesion (all its parts) on the atlas lattice of ``level_mm``; the volume is exact to a voxel.

    A volume below one voxel becomes one voxel; one larger than the tissue within reach takes all of that.
    """
    volume = draw_volume(rng, smallest_mm3, largest_mm3)
    centre = draw_centre(rng, volume, load_atlas(4))
    radius = (volume * 3 / 4 / np.pi) ** (1 / 3)
    axes = radius * draw_axes(rng, volume, form)
    axes_mm, maps = neighbourhood(centre, min(1.5 * axes.max() + 8, 100.0), level_mm)
    score = smooth_score(rng, axes_mm, centre, radius, axes, form)
    score -= 0.8 * maps[..., 3] + 0.4 * maps[..., 2]
    across = -np.sign(centre[0]) * axes_mm[0][:, None, None]
    score -= form.midline * np.clip(across / 3 + 0.5, 0, 1)
    score[maps[..., :3].sum(-1) < 0.4] = -np.inf
    count = int(np.clip(round(volume / level_mm ** 3), 1, np.isfinite(score).sum()))
    threshold = np.partition(score.ravel(), score.size - count)[score.size - count]
    return Lesion(score >= threshold, float(level_mm), np.array([axis[0] for axis in axes_mm], np.float32))


def smooth_score(rng: np.random.Generator, axes_mm: tuple, centre: np.ndarray, radius: float, axes: np.ndarray,
                 form: Shape) -> np.ndarray:
    """Minus the distance to the foci, plus noise (X, Y, Z); of large lesions at every second voxel, interpolated."""
    full = axes_mm
    stride = 2 if radius > 8 * (axes_mm[0][1] - axes_mm[0][0]) else 1
    axes_mm = tuple(np.append(axis[::stride], axis[-1] + 1) if stride > 1 else axis for axis in full)
    offset = np.stack(np.meshgrid(*(p - c for p, c in zip(axes_mm, centre)), indexing="ij")).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    score = -ellipsoid(offset, rotation, axes)
    compact = rng.random() < form.compact
    for _ in range(0 if compact else rng.geometric(1 / (1 + form.satellites)) - 1):
        small = axes * rng.uniform(0.15, 0.6)
        place = (rng.standard_normal(3) * (0.9 * radius + 3)).astype(np.float32)
        score = np.maximum(score, -ellipsoid(offset - place[:, None, None, None], rotation, small))
    coarse_mm, fine_mm = (min(mm, 2.0 * radius + 2) for mm in (form.coarse_mm, form.fine_mm))
    # Some strokes are compact and some ragged; large ones have relatively even borders.
    strength = np.clip(form.radius_mm / radius, 0.3, 1.6) ** form.power * np.exp(rng.normal(-0.1, form.ragged))
    strength *= 0.5 if compact else 1.0
    score += np.float32(form.coarse * strength) * smooth_field(rng, axes_mm, coarse_mm)[0]
    score += np.float32(form.fine * strength) * smooth_field(rng, axes_mm, fine_mm)[0]
    if stride > 1:
        for coarse_axis, axis in zip(axes_mm, full):  # contracts the first axis, appends the new one
            position = np.interp(axis, coarse_axis, np.arange(len(coarse_axis)))
            weights = np.clip(1 - np.abs(position[:, None] - np.arange(len(coarse_axis))), 0, 1).astype(np.float32)
            score = np.tensordot(score, weights, (0, 1))
    return score


def draw_axes(rng: np.random.Generator, volume_mm3: float, form: Shape) -> np.ndarray:
    """Three relative semi-axes with product 1."""
    log_axes = rng.normal(0, form.spread, 3)
    if rng.random() < form.flat * np.clip(1.5 - np.log10(volume_mm3 / 1000) / 1.5, 0, 1):
        log_axes[0] -= rng.uniform(0.6, 1.6)
    return np.exp(log_axes - log_axes.mean())


def ellipsoid(offset_mm: np.ndarray, rotation: np.ndarray, axes_mm: np.ndarray) -> np.ndarray:
    """Distance (X, Y, Z) from the middle in units of the rotated semi-axes: 1 on the ellipsoid."""
    turned = np.tensordot((rotation / axes_mm[:, None]).astype(np.float32), offset_mm.astype(np.float32), (1, 0))
    return np.sqrt((turned ** 2).sum(0))


def neighbourhood(centre_mm: np.ndarray, reach_mm: float, level_mm: int) -> tuple[tuple, np.ndarray]:
    """The atlas lattice in mm and its maps (X, Y, Z, 4; 0..1) within ``reach_mm`` of a point on every axis."""
    atlas = load_atlas(level_mm)
    low = np.maximum(np.floor((centre_mm - reach_mm - atlas.origin_mm) / level_mm), 0).astype(int)
    high = np.minimum(np.ceil((centre_mm + reach_mm - atlas.origin_mm) / level_mm) + 1, atlas.maps.shape[:3])
    axes = tuple(atlas.origin_mm[a] + level_mm * np.arange(low[a], int(high[a]), dtype=np.float32) for a in range(3))
    maps = atlas.maps[tuple(slice(a, int(b)) for a, b in zip(low, high))]
    return axes, maps.astype(np.float32) / 255
