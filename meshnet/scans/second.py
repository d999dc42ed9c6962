"""What the second network of a cascade is given: a scan's grey values, told from those of the brain's middle, and the
first network's probabilities, around what the first one found.

The page computes the same, to the byte: values are float32 in the order written here where nothing else is said. The
constants have their twins there.
"""

from collections.abc import Sequence

import numpy as np

from meshnet.scans.mask import box_of, slices
from meshnet.scans.mirror import find_plane, mirror_images

FOUND = 0.3  # probability above which a class is found: the region lies around all such voxels
MARGIN_MM = 8  # by which the region is larger on each side
UNSURE = 0.5  # probability below which a voxel may be ordinary brain
ELLIPSOID = 0.64  # squared radius of the brain's middle, as a share of the region
FEWEST = 500  # voxels of it, up to which their grey values say nothing
ELSE = (0, 64, 128)  # quartiles that are taken then
NARROWEST = 4  # grey levels from the first quartile to the third, at least
LOWEST, HIGHEST = -4, 8  # distances from the median, in units of that range, that become 0 and 255
Box = tuple[tuple[int, int], ...]  # ((x0, x1), (y0, y1), (z0, z1)), half open
SCALINGS = ("conform_uint8", "lesions_bright")  # that a cascade can have: those with grey values of 8 bits


def given_names(channels: Sequence[str], first: Sequence[str] | None, mirror: bool) -> list[str]:
    """What a network is given, by name: the scan's channels, the classes of the first network of a cascade, and with
    ``mirror`` all of these again."""
    names = [*channels, *(first or [])]
    return names + [f"{name}, mirrored" for name in names] if mirror else names


def region(probabilities: np.ndarray, voxel_mm: float) -> Box | None:
    """The box ((x0, x1), (y0, y1), (z0, z1)), half open, around what the first network found.

    Args:
        probabilities: of its classes but the background, on the second network's grid, (K, X, Y, Z) float32.
        voxel_mm: size of that grid's voxels.

    Returns:
        The box, with ``MARGIN_MM`` on each side as far as the volume goes; None where nothing was found.
    """
    box = box_of(probabilities.max(0) > np.float32(FOUND))
    margin = round(MARGIN_MM / voxel_mm)  # a half goes to the even number
    return box and tuple((max(0, a - margin), min(n, b + margin)) for (a, b), n in zip(box, probabilities.shape[1:]))


def second_input(scan: np.ndarray, probabilities: np.ndarray, voxel_mm: float,
                 across: int | None = None) -> np.ndarray | None:
    """What the second network is given, as a prepared data set holds it; the network sees it divided by 255.

    Args:
        scan: conformed to the second network's grid, (C, X, Y, Z) uint8.
        probabilities, voxel_mm: as for ``region``.
        across: the axis of the volumes from left to right, for a network that is given the mirror image as well.

    Returns:
        (C + K, X, Y, Z) uint8, in C order: the channels as ``grey_levels`` has them, then 255 times the probabilities,
        rounded; 0 outside the region. With ``across`` twice as many: the same follow as the plane between the
        hemispheres mirrors them, which ``mirror.find_plane`` finds in the first channel. None where nothing was found.
    """
    box = region(probabilities, voxel_mm)
    return None if box is None else input_within(scan, probabilities, box, across)


def input_within(scan: np.ndarray, probabilities: np.ndarray, box: Box, across: int | None = None) -> np.ndarray:
    """``second_input`` where the region, ``box``, is known."""
    inside = slices(box)
    found = probabilities[(slice(None), *inside)]
    middle = (found.max(0) < np.float32(UNSURE)) & ellipsoid(found.shape[1:])
    own = len(scan) + len(found)
    result = np.zeros((own if across is None else 2 * own, *scan.shape[1:]), np.uint8)
    for given, channel in zip(result, scan):
        grey = channel[inside]
        given[inside] = grey_levels(quartiles(grey[middle & (grey > 0)]))[grey]
    for given, share in zip(result[len(scan):], found):
        given[inside] = np.rint(np.float32(255) * share)
    if across is not None:
        there = [np.moveaxis(channel[inside], across, 0) for channel in result]
        for given, image in zip(there[own:], mirror_images(there[:own], find_plane(there[0]))):
            given[:] = image
    return result


def ellipsoid(shape: tuple[int, ...]) -> np.ndarray:
    """True (X, Y, Z) in the middle of a box of that ``shape``: the sum of the squared coordinates, each from -1 to 1
    over its axis, is below ``ELLIPSOID``."""
    x, y, z = (np.linspace(-1, 1, n).astype(np.float32) ** 2 for n in shape)
    return (x[:, None, None] + y[:, None]) + z < np.float32(ELLIPSOID)


def quartiles(values: np.ndarray) -> tuple[int, int, int]:
    """The quartiles of grey values (n,) uint8, each the smallest value up to which at least that share of them lies;
    ``ELSE`` where they are no more than ``FEWEST``."""
    if len(values) <= FEWEST:
        return ELSE
    upto = np.cumsum(np.bincount(values, minlength=256))
    return tuple(int(np.searchsorted(upto, share * len(values))) for share in (0.25, 0.5, 0.75))


def grey_levels(three: tuple[int, int, int]) -> np.ndarray:
    """What each grey value becomes, (256,) uint8: its distance from the median in units of the range between the
    quartiles, clipped, from 0 for ``LOWEST`` to 255 for ``HIGHEST``."""
    first, median, third = three
    apart = (np.arange(256, dtype=np.float32) - np.float32(median)) / np.float32(max(NARROWEST, third - first))
    apart = np.clip(apart, np.float32(LOWEST), np.float32(HIGHEST))
    return np.rint(np.float32(255) * (apart - np.float32(LOWEST)) / np.float32(HIGHEST - LOWEST)).astype(np.uint8)


def mixed(probabilities: np.ndarray, given: np.ndarray, places: list[int], share: float) -> np.ndarray:
    """The second network's ``probabilities`` (K, X, Y, Z) float32, with a ``share`` of the first one's, in place.

    Args:
        given: the first one's, (K', X, Y, Z) uint8, as ``second_input`` has them behind the channels.
        places: which of ``given`` is each of the second network's classes but the background.
        share: 0 to 1.
    """
    levels = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(share)
    for own, place in zip(probabilities[1:], places):
        own *= np.float32(1 - share)
        own += levels[given[place]]
    np.subtract(1, probabilities[1:].sum(0, dtype=np.float32), out=probabilities[0])
    return probabilities
