"""One deformed head: where its tissues, its lesions and its look-alikes lie on the scan's lattice."""

from dataclasses import dataclass

import numpy as np

from meshnet.data.synthetic.atlas import (
    BRAIN_CENTRE_MM,
    DISTANCE_MM,
    DISTANCE_ORIGIN_MM,
    LEVELS_MM,
    face_distance,
    load_atlas,
    load_distance,
    sample,
    smooth_field,
)
from meshnet.data.synthetic.lesions import Lesion

VENTRICLES_MM = np.array([[-16.0, -18.0, 16.0], [16.0, -18.0, 16.0]], np.float32)  # middles of the lateral ventricles


@dataclass
class Head:
    """Maps (X, Y, Z) float32 of one head within ``box`` of the scan's lattice."""

    box: tuple[slice, slice, slice]
    axes_mm: tuple
    grey: np.ndarray  # shares of a voxel, as are white and fluid
    white: np.ndarray
    fluid: np.ndarray
    ventricle: np.ndarray
    lesion: np.ndarray  # 0..1, partial volume
    depth: np.ndarray  # mm to the brain's surface, negative inside
    outside: np.ndarray  # mm to the head's surface, negative inside
    eye: np.ndarray  # mm to an eyeball's surface
    skull_mm: float


@dataclass
class Warp:
    """From the scan's millimetres to the atlas: affine, elastic at two scales, then local pulls and swellings.

    A swelling (centre, reach_mm, k) magnifies around its centre by 1 / (1 - k); a pull (centre, reach_mm, vector_mm)
    moves what lies at the centre along the vector.
    """

    matrix: np.ndarray
    shift_mm: np.ndarray
    elastic: tuple[tuple[float, float, int], ...]  # amplitude mm, spacing mm, seed
    swellings: list[tuple[np.ndarray, float, float]]
    pulls: list[tuple[np.ndarray, float, np.ndarray]]

    def points(self, axes_mm: tuple) -> np.ndarray:
        """MNI points (3, N) float32 of the lattice ``axes_mm``."""
        grid = np.stack(np.meshgrid(*axes_mm, indexing="ij")).reshape(3, -1).astype(np.float32)
        points = self.matrix @ (grid - self.shift_mm[:, None]) + BRAIN_CENTRE_MM[:, None]
        for amplitude, spacing, seed in self.elastic:
            field = smooth_field(np.random.default_rng(seed), axes_mm, spacing, 3)
            points += np.float32(amplitude) * field.reshape(3, -1)
        for centre, reach, k in self.swellings:
            offset = points - centre[:, None]
            points -= offset * (k * np.exp((offset ** 2).sum(0) / np.float32(-2 * reach ** 2)))
        for centre, reach, vector in self.pulls:
            offset = points - centre[:, None]
            points -= vector[:, None] * np.exp((offset ** 2).sum(0) / np.float32(-2 * reach ** 2))
        return points


def draw_warp(rng: np.random.Generator, lesions: list[Lesion], acute: bool, strength: float) -> Warp:
    """A random warp; ``strength`` 1 is full variety. Old lesions pull the ventricle in, fresh ones swell."""
    scale = rng.normal(1.0, 0.06 * strength) * np.exp(rng.normal(0, 0.04 * strength, 3))
    skew = np.eye(3) + np.triu(rng.normal(0, 0.04 * strength, (3, 3)), 1)
    angles = rng.normal(0, 0.14, 3) * np.array([1.3, 0.7, 0.8])
    matrix = (rotation(angles) @ skew / scale[:, None]).astype(np.float32)
    shift = rng.normal(0, 7, 3).astype(np.float32) + np.array([0, 0, 12], np.float32)
    elastic = tuple((float(amplitude * strength * rng.uniform(0.5, 1.2)), spacing, int(rng.integers(2 ** 31)))
                    for amplitude, spacing in ((6.0, 70.0), (3.0, 28.0), (1.2, 12.0)))
    swellings, pulls = [], []
    for middle in VENTRICLES_MM:
        swellings.append((middle, 24.0, float(rng.uniform(-0.15, 0.42) * strength)))
    for lesion in lesions:
        centre, radius = lesion.centre_mm, (lesion.volume_mm3 * 3 / 4 / np.pi) ** (1 / 3)
        middle = VENTRICLES_MM[int(centre[0] > 0)]
        away = centre - middle
        distance = float(np.linalg.norm(away)) + 1e-3
        if acute:
            swellings.append((centre, float(1.3 * radius), float(rng.uniform(0, 0.2))))
        elif distance < 60 and radius > 12:
            pulls.append((middle, 14.0, (away / distance * rng.uniform(0, 0.25) * radius).astype(np.float32)))
    return Warp(matrix, shift, elastic, swellings, pulls)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix of three angles in radians about x, y, z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def build_head(rng: np.random.Generator, warp: Warp, lesions: list[Lesion], voxel_mm: float, shape: tuple) -> Head:
    """Sample the atlas and the lesions through ``warp``; draw skull, atrophy and folds."""
    wall_mm, skull_mm = rng.uniform(9, 18), rng.uniform(4, 8)
    box = head_extent(warp, wall_mm, voxel_mm, shape)
    axes = tuple(axis[part] for axis, part in zip(lattice_axes(shape, voxel_mm), box))
    points = warp.points(axes)
    depth, outside = surfaces(points, wall_mm)

    level = max(step for step in LEVELS_MM if step <= max(voxel_mm, 1))
    atlas = load_atlas(level)
    near = np.flatnonzero(depth < 6)  # the rest of the head has no brain
    index = (points[:, near] - atlas.origin_mm[:, None]) / np.float32(level)
    tissue = np.zeros((points.shape[1], 4), np.float32)
    tissue[near] = sample(atlas.maps, index) / np.float32(255)
    grey, white, fluid, ventricle = tissue.T
    brain = np.clip((grey + white + fluid - 0.3) / 0.4, 0, 1)
    grey, white, fluid = atrophy(rng, axes, grey, white, fluid, ventricle, depth)

    lesion = np.zeros(points.shape[1], np.float32)
    for each in lesions:
        index = (points[:, near] - each.origin_mm[:, None]) / np.float32(each.level_mm)
        inside = np.all((index > -1) & (index < np.array(each.mask.shape)[:, None]), axis=0)
        padded = np.pad(each.mask, 1).astype(np.float32)[..., None]
        part = near[inside]
        lesion[part] = np.maximum(lesion[part], sample(padded, index[:, inside] + 1)[:, 0])
    lesion *= brain * np.clip(1.6 - 2 * ventricle, 0, 1)

    x, y, z = points
    eye = np.sqrt((np.abs(x) - 33) ** 2 + (y - 60) ** 2 + (z + 38) ** 2) - 12
    size = [len(axis) for axis in axes]
    maps = [each.reshape(size) for each in
            (grey * brain, white * brain, fluid * brain, ventricle * brain, lesion, depth, outside, eye)]
    return Head(box, axes, *maps, skull_mm=skull_mm)


def atrophy(rng: np.random.Generator, axes: tuple, grey: np.ndarray, white: np.ndarray, fluid: np.ndarray,
            ventricle: np.ndarray, depth: np.ndarray) -> list[np.ndarray]:
    """Shares of grey, white and fluid (each (N,)) with crisper borders, wider sulci and ventricles, and folds.

    The mean brain's sulci are blurred away; thin sheets where a smooth random field crosses zero stand in for them.
    """
    wide = np.exp(np.float32(rng.normal(0.4, 0.6)) + np.float32(rng.uniform(0, 0.7)) * smooth_field(rng, axes, 45.0))
    odds = np.where(ventricle > 0.05, np.float32(np.exp(rng.normal(0.6, 0.6))), wide.ravel())
    cortex = np.clip((depth + rng.uniform(14, 26)) / 8, 0, 1) * (1 - np.clip(ventricle * 4, 0, 1))
    folds = np.exp(-(smooth_field(rng, axes, rng.uniform(7, 11)).ravel() / rng.uniform(0.1, 0.3)) ** 2) * cortex
    fluid = fluid * odds + rng.uniform(0, 1.2) * folds * (grey + 0.3 * fluid)
    sharp = rng.uniform(1.2, 2.2)
    shares = [np.power(np.maximum(each, 0), np.float32(sharp)) for each in (grey, white, fluid)]
    total = np.maximum(sum(shares), np.float32(1e-3))
    return [each / total for each in shares]


def lattice_axes(shape: tuple, voxel_mm: float) -> tuple:
    """Millimetres along each axis of a lattice whose voxel n/2 lies at 0."""
    return tuple(np.float32(voxel_mm) * (np.arange(n, dtype=np.float32) - n // 2) for n in shape)


def head_extent(warp: Warp, wall_mm: float, voxel_mm: float, shape: tuple) -> tuple[slice, slice, slice]:
    """The part of the lattice that holds the head, found on a coarse one."""
    stride = max(1, round(8 / voxel_mm))
    rough = tuple(axis[::stride] for axis in lattice_axes(shape, voxel_mm))
    outside = surfaces(warp.points(rough), wall_mm)[1].reshape([len(axis) for axis in rough])
    inside = np.argwhere(outside < 6)
    return tuple(slice(max(0, int(a - 1) * stride), min(n, int(b + 2) * stride))
                 for a, b, n in zip(inside.min(0), inside.max(0), shape))


def surfaces(points: np.ndarray, wall_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed mm (N,) to the brain's surface and to the head's, at MNI points (3, N)."""
    depth = sample(load_distance(), (points - DISTANCE_ORIGIN_MM[:, None]) / np.float32(DISTANCE_MM))[:, 0]
    return depth, np.minimum(depth - np.float32(wall_mm), face_distance(points))
