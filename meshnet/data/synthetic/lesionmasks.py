"""Lesion masks of a folder, in the space of MNI152: drawn by size, moved, turned, scaled.

A mask is what is above 0. Its own affine says where it lies; nothing else is registered.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnet.data.synthetic.anatomy import rotation
from meshnet.data.synthetic.atlas import load_atlas, sample
from meshnet.data.synthetic.lesions import Lesion, draw_centre
from meshnet.errors import UserError

VOLUME_MM3 = (150.0, 250_000.0)
TRIES = 5  # masks looked at for the one nearest in size
KEPT = 2000  # masks kept in memory


@dataclass(frozen=True)
class MaskFile:
    """A mask cut to its lesion: (X, Y, Z, 1) float32, one voxel of zeros around it.

    Voxel ``index`` lies at ``matrix @ index + origin`` in MNI mm.
    """

    mask: np.ndarray
    matrix: np.ndarray
    origin: np.ndarray
    volume_mm3: float
    centre_mm: np.ndarray


@dataclass(frozen=True)
class MovedLesion:
    """A mask moved to ``centre_mm`` of MNI space: a point p there is ``turn`` @ (p - centre_mm) from its own middle."""

    source: MaskFile
    centre_mm: np.ndarray
    turn: np.ndarray
    volume_mm3: float
    ragged_mm: float  # how far its border is moved by a smooth field
    seed: int

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices (K,) of the MNI points (3, N) that may lie in it, and its share 0..1 there (K,)."""
        to_index = np.linalg.inv(self.source.matrix)
        half = np.linalg.norm(self.source.matrix @ np.array(self.source.mask.shape[:3]) / 2)
        reach = 1.5 * half / abs(np.linalg.det(self.turn)) ** (1 / 3) + 12
        near = np.flatnonzero((np.abs(points - self.centre_mm[:, None]) < reach).all(0))
        offset = points[:, near] - self.centre_mm[:, None]
        if self.ragged_mm and len(near):
            offset = offset + self.ragged_mm * scattered_field(self.seed, offset)
        index = to_index @ (self.turn @ offset + (self.source.centre_mm - self.source.origin)[:, None])
        inside = ((index > 0) & (index < np.array(self.source.mask.shape[:3])[:, None] - 1)).all(0)
        return near[inside], sample(self.source.mask, index[:, inside].astype(np.float32))[:, 0]


def scattered_field(seed: int, points: np.ndarray) -> np.ndarray:
    """A smooth random vector field (3, N), about 1 in size, of wavelengths from 15 to 60 mm, at points (3, N) in mm."""
    rng = np.random.default_rng(seed)
    waves = rng.standard_normal((6, 3)).astype(np.float32)
    waves *= (2 * np.pi / rng.uniform(15, 60, 6) / np.linalg.norm(waves, axis=1))[:, None].astype(np.float32)
    ways = rng.standard_normal((3, 6)).astype(np.float32) / np.float32(3 ** 0.5)
    return ways @ np.sin(waves @ points.astype(np.float32) + rng.uniform(0, 6.3, 6)[:, None].astype(np.float32))


@functools.lru_cache(maxsize=KEPT)
def load_mask(path: str) -> MaskFile | None:
    """A mask file; None where it is empty. Raises UserError for one that is not a mask in template space."""
    import nibabel as nib

    from meshnet.scans.nifti import read_image

    image = nib.as_closest_canonical(read_image(path))
    found = np.asanyarray(image.dataobj) > 0
    places = np.argwhere(found)
    if not len(places):
        return None
    low, high = places.min(0), places.max(0) + 1
    matrix = image.affine[:3, :3]
    centre = matrix @ places.mean(0) + image.affine[:3, 3]
    if (np.abs(centre - (0, -18, 8)) > (90, 110, 100)).any():
        raise UserError(f"{path}: found a lesion at {centre.round().tolist()} mm, expected one within MNI152's brain; "
                        "give masks that were registered to that template")
    cut = np.pad(found[tuple(map(slice, low, high))], 1).astype(np.float32)[..., None]
    return MaskFile(cut, matrix.astype(np.float32), (matrix @ (low - 1) + image.affine[:3, 3]).astype(np.float32),
                    float(len(places) * abs(np.linalg.det(matrix))), centre.astype(np.float32))


def draw_moved(rng: np.random.Generator, files: list[str], smallest_mm3: float, largest_mm3: float) -> MovedLesion:
    """A lesion whose volume is drawn log-uniformly between the limits: a mask of about that size, mirrored, turned,
    scaled to it, and left about where it was or moved to where strokes of its size lie."""
    low, high = (float(np.clip(v, *VOLUME_MM3)) for v in (smallest_mm3, largest_mm3))
    volume = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    tried = [load_mask(str(files[rng.integers(len(files))])) for _ in range(TRIES)]
    tried = [each for each in tried if each is not None]
    if not tried:
        raise UserError(f"{Path(files[0]).parent}: found empty masks, expected lesions")
    source = min(tried, key=lambda each: abs(np.log(each.volume_mm3 / volume)))
    scale = (volume / source.volume_mm3) ** (1 / 3)
    axes = np.exp(rng.normal(0, 0.12, 3))
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1, 1])
    turn = np.linalg.inv(mirror @ np.diag(scale * axes / axes.prod() ** (1 / 3)) @ rotation(rng.normal(0, 0.2, 3)))
    centre = source.centre_mm * np.diag(mirror) + rng.normal(0, 5, 3)
    if rng.random() < (0.6 if volume < 15_000 else 0.25):
        centre = draw_centre(rng, volume, load_atlas(4))
        if (centre[0] > 0) != (source.centre_mm[0] * mirror[0, 0] > 0):
            turn = turn @ np.diag([-1.0, 1, 1])
    ragged = float(rng.uniform(0.3, 1.5) * min(3.0, volume ** (1 / 3) / 8))
    return MovedLesion(source, centre.astype(np.float32), turn.astype(np.float32), volume, ragged,
                       int(rng.integers(2 ** 31)))


def as_moved(lesion: Lesion) -> MovedLesion:
    """A procedural lesion as a mask that lies where it is."""
    padded = np.pad(lesion.mask, 1).astype(np.float32)[..., None]
    source = MaskFile(padded, np.eye(3, dtype=np.float32) * lesion.level_mm, lesion.origin_mm - lesion.level_mm,
                      lesion.volume_mm3, lesion.centre_mm)
    return MovedLesion(source, lesion.centre_mm, np.eye(3, dtype=np.float32), lesion.volume_mm3, 0.0, 0)
