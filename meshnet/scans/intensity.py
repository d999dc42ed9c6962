"""Grey values of a scan: the range that a scaling maps to 0..255 or to 0..1."""

from typing import NamedTuple

import numpy as np

from meshnet.config import SCALINGS
from meshnet.errors import UserError

HISTOGRAM_BINS = 1000  # mri_convert's
CROPPED_FRACTION = 0.001  # of the non-zero voxels, clipped at the top (mri_convert's f_high = 0.999)
# Share of the voxels on either side that may be extreme, and how many times the range of all others they must then have
# taken: a handful of voxels, a bright slice or block.
EXTREMES = ((0.001, 8), (0.003, 16), (0.01, 16), (0.03, 16), (0.06, 16))
FAR = 16  # times the range of all else, at which what surrounds a scan is no part of it
LARGEST_ML = 300  # of a bright slice or block; a head is larger
LEAST_RANGE = float(np.finfo(np.float32).tiny)  # that grey levels in float32 can be divided by
SMALL = 2**21  # voxels, up to which all are looked at
EVERY = 61  # voxels in memory of which one is looked at; a prime, so that no slice is left out
QUANTILES = (0.005, 0.995)  # of the non-zero voxels, for the scaling "quantile"
BRAINCHOP_QUANTILES = (0.05, 0.95)  # of all voxels of the conformed volume


def intensity_range(data: np.ndarray, scaling: str, window: tuple[float, float] | None = None) -> tuple[float, float]:
    """The two values of a scan that ``scaling`` maps to the bottom and the top of its range, the lower one first.

    Args:
        data: the scan, of any shape.
        window: lowest and highest value, for the scaling ``window`` only.

    Raises:
        UserError: for an unknown scaling, or a window that is missing, wrong or not asked for.
    """
    if scaling not in SCALINGS:
        raise UserError(f"scaling: found {scaling!r}, expected one of {', '.join(SCALINGS)}")
    if (scaling == "window") != (window is not None):
        raise UserError("window: expected LOW and HIGH together with the scaling 'window', and with no other scaling")
    if scaling == "window":
        if len(window) != 2 or not window[0] < window[1]:
            raise UserError(f"window: found {window}, expected LOW < HIGH, such as 0 80")
        return float(window[0]), float(window[1])
    if scaling == "conform_uint8" and data.dtype == np.uint8:
        return 0.0, 255.0  # mri_convert rescales only where the type changes
    low, high = float(data.min()), float(data.max())
    if scaling == "conform_uint8" and high > low:
        high = _all_but_top(data, low, high)
    elif scaling == "quantile" and high > low:
        low, high = (float(q) for q in np.quantile(data[data != 0], QUANTILES))
    return low, high if high > low else low + max(1.0, 1e-6 * abs(low))  # more than 1, where a float has no steps of 1


class Extremes(NamedTuple):
    """What ``without_extremes`` finds: the whole range, the range of all others, and the share that was left out."""

    lowest: float
    highest: float
    low: float
    high: float
    share: float


def without_extremes(data: np.ndarray, scaling: str, voxel_ml: float) -> Extremes | None:
    """The range of all voxels (X, Y, Z) but the outermost on either side, where these have taken most of the whole: a
    handful of rogue ones, or a bright slice or block. None where they have not, or where ``scaling`` leaves them out.

    Voxels of the background, 0 or what lies in the corners, do not count: the head may be a small part. Suspected on
    every 61st voxel, since a whole scan would take as long as conforming it, and measured on all, so that the order of
    a file's axes changes nothing.
    """
    kept = ("conform_uint8", "brainchop_quantile", "lesions_bright")  # scalings that leave data of uint8 as they are
    if scaling == "window" or (scaling in kept and data.dtype == np.uint8):
        return None
    lowest, highest = float(data.min()), float(data.max())
    background = float(np.median(data[np.ix_(*[(0, n - 1) for n in data.shape])]))
    zero = 0.0 if lowest <= 0 <= highest else background
    for every in (EVERY, 1) if data.size > SMALL else (1,):  # the second time only where the first one finds something
        values = _every(data, every)
        values = values[(values != 0) & (values != background)]
        inner = _inner(values, (zero, background), scaling, highest - lowest, voxel_ml * every, 0.5 if every > 1 else 1)
        if inner is None:
            return None
    low, high = inner
    counted = values if scaling == "quantile" or low <= background <= high else data
    return Extremes(lowest, highest, low, high, np.count_nonzero((counted < low) | (counted > high)) / data.size)


def _inner(values: np.ndarray, background: tuple[float, float], scaling: str, whole: float, voxel_ml: float,
           strict: float) -> tuple[float, float] | None:
    """Lowest and highest of ``values`` (n,), and of the background where it is near them, without the smallest share
    that has taken the range ``whole``; None where no share has. ``strict`` is 1, or less to find what is nearly so."""
    if scaling == "quantile" and values.size:
        whole = float(np.subtract(*np.quantile(values, QUANTILES[::-1])))
    for position, (share, times) in enumerate(EXTREMES if values.size else ()):
        if position and share * values.size * voxel_ml > LARGEST_ML / strict:
            return None
        low, high = (float(q) for q in np.quantile(values, (share, 1 - share)))
        if scaling == "quantile":  # of which the background is no part
            ranges = [(low, high, times)]
        else:
            low, high = min(low, background[0]), max(high, background[0])
            ranges = [(min(low, background[1]), max(high, background[1]), times), (low, high, FAR)]
        for low, high, times in ranges:
            if high - low > LEAST_RANGE and whole >= times * strict * (high - low):
                return low, high
    return None


def _every(data: np.ndarray, every: int) -> np.ndarray:
    """One voxel in ``every`` of ``data`` (X, Y, Z) along memory."""
    order = sorted(range(data.ndim), key=lambda axis: -abs(data.strides[axis]))
    along = data.transpose(order)[tuple(slice(None, None, 1 if data.strides[axis] >= 0 else -1) for axis in order)]
    return along.reshape(-1)[::every]


def as_input(volume: np.ndarray) -> np.ndarray:
    """A conformed volume, of any shape, as a network sees it: float32, with uint8 grey values scaled to 0..1."""
    if volume.dtype == np.uint8:
        return np.divide(volume, 255, dtype=np.float32)
    return volume.astype(np.float32, copy=False)


def stretch_quantiles(volume: np.ndarray) -> np.ndarray:
    """A uint8 volume as float32, scaled so that the values at 5 % and 95 % of its sorted voxels become 0 and 1."""
    up_to = np.cumsum(np.bincount(volume.ravel(), minlength=256))
    low, high = (int(np.searchsorted(up_to, rank, side="right")) for rank in
                 (int(BRAINCHOP_QUANTILES[0] * volume.size), int(np.ceil(BRAINCHOP_QUANTILES[1] * volume.size)) - 1))
    return (volume.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1))


def _all_but_top(data: np.ndarray, low: float, high: float) -> float:
    """The value below which all but 0.1 % of the non-zero voxels lie, on the 1,000-bin histogram of ``data``."""
    bin_size = (high - low) / HISTOGRAM_BINS
    bins = ((data - np.float32(low)) * np.float32(1 / bin_size)).astype(np.int32).ravel()
    counts = np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
    below = data.size - int(CROPPED_FRACTION * np.count_nonzero(data))
    first_bin_past = int(np.searchsorted(np.cumsum(counts), below))
    return low + max(first_bin_past - 1, 1) * bin_size
