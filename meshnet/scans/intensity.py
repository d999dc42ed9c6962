"""Grey values of a scan: the range that a scaling maps to 0..255 or to 0..1."""

import numpy as np

from meshnet.config import SCALINGS
from meshnet.errors import UserError

HISTOGRAM_BINS = 1000  # mri_convert's
CROPPED_FRACTION = 0.001  # of the non-zero voxels, clipped at the top (mri_convert's f_high = 0.999)
EXTREME = 0.001  # share of the voxels on either side that may be extreme
EATEN = 8  # times the range of all others, from which extreme voxels are said to have taken it
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
    return low, high if high > low else low + 1.0


def without_extremes(data: np.ndarray, scaling: str, low: float, high: float) -> tuple[float, float] | None:
    """The range of all voxels (X, Y, Z) but the outermost 0.1 % on either side, where a handful of extreme ones has
    taken most of ``low`` to ``high``; None where they have not, or where the range leaves them out anyway.

    Looked for on every fourth voxel of each axis, since a whole scan would take as long as conforming it.
    """
    if scaling in ("window", "quantile") or (scaling == "conform_uint8" and data.dtype == np.uint8):
        return None
    step = 4 if min(data.shape) >= 32 else 1
    sample = data[::step, ::step, ::step]
    inner = [float(q) for q in np.quantile(sample, (EXTREME, 1 - EXTREME))]
    if not inner[1] > inner[0] or (high - low) < EATEN * (inner[1] - inner[0]):
        return None
    return inner[0], inner[1]


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
