"""The plane between the hemispheres of a head, and a volume seen in it as in a mirror.

The page computes the same, to the byte: what is compared are sums of integers, and points are float64, computed in the
order written here. The constants have their twins there.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

CAP = 48  # grey levels from which a difference counts no more: a lesion must not turn the plane
SCALE = 4096  # by which mean differences are multiplied before they are rounded down
BLOCKS = (4, 2)  # edges of the blocks of voxels, coarse ones first, whose means are compared
TILTS, SHIFTS = (3, 16), (2, 1)  # tried on the coarse ones: so many steps each way, of 1/16 and of a block
FINER = ((1 / 32, 1.0), (1 / 64, 0.5), (1 / 128, 0.25))  # steps of the tilts and, in fine blocks, of the shift
ROUNDS = 2  # at most, of each of these
EVERY = 2  # of the fine blocks one in so many on each axis is looked at
Plane = tuple[float, float, float]  # tilts towards the second and the third axis, and voxels from the middle


def find_plane(volume: np.ndarray) -> Plane:
    """The plane (a, b, shift) by which ``volume`` differs least from its mirror image.

    It goes through the point (middle of the first axis + ``shift``, middles of the others) with the normal (1, a, b).

    Args:
        volume: (X, Y, Z) uint8, left and right along its first axis.
    """
    coarse, fine = (means(volume, size) for size in BLOCKS)
    tilts, shifts = ([n / unit for n in range(-most, most + 1)] for most, unit in (TILTS, SHIFTS))
    best = least(coarse, 1, itertools.product(tilts, tilts, shifts), (0.0, 0.0, 0.0))
    best = regrid(regrid(best, volume.shape, BLOCKS[0]), volume.shape, BLOCKS[1], back=True)
    for tilt, shift in FINER:
        for _ in range(ROUNDS):
            around = itertools.product(*([x - step, x, x + step] for x, step in zip(best, (tilt, tilt, shift))))
            before, best = best, least(fine, EVERY, around, best)
            if best == before:
                break
    return regrid(best, volume.shape, BLOCKS[1])


def regrid(plane: Plane, shape: tuple[int, ...], size: int, back: bool = False) -> Plane:
    """A plane by the blocks of ``size``³ voxels of a volume of that ``shape``, by its voxels, or the way ``back``. The
    middle of the blocks is not that of the volume where some voxels are left out."""
    a, b, shift = plane
    x, y, z = (n % size / 2 for n in shape)
    moved = x + a * y + b * z
    return (a, b, (shift + moved) / size) if back else (a, b, shift * size - moved)


def means(volume: np.ndarray, size: int) -> np.ndarray:
    """Means of blocks of ``size``³ voxels, rounded down, (X', Y', Z') int32; what is left over at the ends is left
    out."""
    shape = [n // size for n in volume.shape]
    whole = volume[tuple(slice(n * size) for n in shape)].astype(np.int32)
    x, y, z = shape
    return whole.reshape(x, size, y, size, z, size).sum((1, 3, 5), dtype=np.int32) // size**3


def least(volume: np.ndarray, every: int, planes, near: Plane) -> Plane:
    """The plane with the smallest difference; of several the nearest to ``near``, then the smallest numbers."""
    points = grid_points(volume.shape, every)
    own = volume[::every, ::every, ::every].ravel()
    return min(planes, key=lambda plane: (difference(volume, points, own, plane),
                                          sum(abs(x - y) for x, y in zip(plane, near)), plane))


def difference(volume: np.ndarray, points: list[np.ndarray], own: np.ndarray, plane: Plane) -> int:
    """The mean difference between ``own`` at ``points`` and ``volume`` at their mirror images, times ``SCALE``; as
    large as can be where most of these lie outside."""
    inside, places = mirror_places(volume.shape, points, plane)
    known = int(np.count_nonzero(inside))
    if 2 * known <= len(own):
        return CAP * SCALE
    apart = np.minimum(np.abs(volume.ravel()[places[inside]] - own[inside]), CAP)
    return int(apart.sum(dtype=np.int64)) * SCALE // known


def mirror_images(volumes: Sequence[np.ndarray], plane: Plane) -> Iterator[np.ndarray]:
    """Each of the ``volumes`` (X, Y, Z) of one shape seen in ``plane``, each voxel that of the nearest point; 0 beyond
    it."""
    shape = volumes[0].shape
    inside, places = mirror_places(shape, grid_points(shape), plane)
    for volume in volumes:
        yield (volume.ravel()[places] * inside).reshape(shape)


def grid_points(shape: tuple[int, ...], every: int = 1) -> list[np.ndarray]:
    """The three coordinates of every so many voxels of a volume, each of a shape that broadcasts."""
    return np.ogrid[tuple(slice(0, n, every) for n in shape)]


def mirror_places(shape: tuple[int, ...], points: list[np.ndarray], plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Whether the mirror image of each point lies in a volume of that ``shape`` (n,) bool, and at which place of its
    data (n,) int32; 0 where it does not."""
    tilt_y, tilt_z, shift = plane
    x, y, z = (axis - (n - 1) / 2 for axis, n in zip(points, shape))
    apart = ((x - shift) + tilt_y * y + tilt_z * z) * (2 / (1 + tilt_y * tilt_y + tilt_z * tilt_z))
    places, inside = np.zeros(apart.shape, np.int32), np.ones(apart.shape, bool)
    for own, tilt, n in zip((x, y, z), (1.0, tilt_y, tilt_z), shape):
        found = np.floor((own - tilt * apart) + (n - 1) / 2 + 0.5).astype(np.int32)
        inside &= (found >= 0) & (found < n)
        places *= n
        places += found
    places[~inside] = 0
    return inside.ravel(), places.ravel()
