"""One scan's geometry: reading, conforming (as ``mri_convert --conform``) and the way back to the scan's own grid.

Voxel arrays are (X, Y, Z) in the order of the NIfTI file; affines are 4x4, voxel index to RAS+ millimetres.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.files import whole_file
from meshnet.resample import resample

SCALINGS = ("conform_uint8", "minmax", "quantile", "window")
HISTOGRAM_BINS = 1000  # mri_convert's
CROPPED_FRACTION = 0.001  # of the non-zero voxels, clipped at the top (mri_convert's f_high = 0.999)
QUANTILES = (0.005, 0.995)  # of the non-zero voxels, for the scaling "quantile"


@dataclass(frozen=True)
class Grid:
    """The voxel grid that a model sees: cubic voxels, axes along the scanner's."""

    voxel_mm: float = 1.0
    shape: tuple[int, int, int] | None = None  # None: round(256 / voxel_mm) on each axis
    orientation: str = "LIA"  # one of the 48 axis codes; LIA is mri_convert's and brainchop's

    def __post_init__(self):
        if not np.isfinite(self.voxel_mm) or self.voxel_mm <= 0:
            raise UserError(f"voxel_mm: found {self.voxel_mm}, expected a positive size in mm; 1 is the usual one")
        if self.shape is not None and (len(self.shape) != 3 or any(n != int(n) or n < 1 for n in self.shape)):
            raise UserError(f"shape: found {self.shape}, expected three positive whole numbers, such as 256 256 256")
        axes = sorted("LR AP IS".replace(" ", "").index(c) // 2 for c in self.orientation if c in "LRAPIS")
        if axes != [0, 1, 2] or len(self.orientation) != 3:
            raise UserError(
                f"orientation: found {self.orientation!r}, expected three letters, one each of L or R, A or P, "
                "I or S; LIA is the usual one"
            )

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels on each axis."""
        return tuple(int(n) for n in self.shape) if self.shape else (max(1, round(256 / self.voxel_mm)),) * 3


def read_image(path: str | Path, kind: str = "scan", channels: bool = False) -> nib.Nifti1Image:
    """Read and check one NIfTI file; the image that comes back holds its data in memory.

    ``kind``: ``scan`` or ``mask`` (an empty mask is left to the caller to judge). ``channels``: a 4D file's last axis
    is declared to be channels. Otherwise the result is (X, Y, Z); a last axis of length one is dropped.
    Integer data without header scaling keep their type, everything else becomes float32 (masks float64, since a
    broken ``scl_slope`` can make their values tiny). Raises UserError with one line for every bad file.
    """
    path = Path(path)
    image = _open(path)
    _check_affine(image, path)
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1 and not (channels and len(shape) == 4):
        shape = shape[:-1]
    if len(shape) != 3 and not (channels and len(shape) == 4):
        raise UserError(
            f"{path}: found {len(image.shape)}D data of shape {tuple(image.shape)}, expected one 3D volume; "
            "extract the volume to use, or declare the last axis as channels where the format allows it"
        )
    if min(shape) < 1:
        raise UserError(f"{path}: found an empty volume of shape {shape}, expected voxels on every axis; replace it")
    try:
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError, nib.spatialimages.HeaderDataError) as error:
        raise UserError(
            f"{path}: cannot read the voxels ({error}), expected a whole file; it is truncated or damaged, copy it anew"
        ) from error
    if data.dtype.fields is not None or data.dtype.kind == "c":
        raise UserError(f"{path}: found {data.dtype} voxels (colour or complex), expected numbers; convert it")
    data = data.reshape(shape)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise UserError(f"{path}: found NaN or infinite voxels, expected finite numbers; repair or leave out the scan")
    if kind == "scan":
        if data.dtype.kind == "f":
            data = data.astype(np.float32, copy=False)
        if not data.any():
            raise UserError(f"{path}: every voxel is zero, expected a scan; leave it out")
    header = image.header.copy()
    header.set_data_dtype(data.dtype if data.dtype.kind in "iuf" else np.uint8)
    header.set_slope_inter(1, 0)
    return type(image)(data, image.affine, header)


def _open(path: Path) -> nib.Nifti1Image:
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a NIfTI scan; check the path")
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, zlib.error) as e:
        raise UserError(
            f"{path}: found no NIfTI header ({e}), expected .nii or .nii.gz; convert it with dcm2niix or mri_convert, "
            "or copy it anew if it is damaged"
        ) from e
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti1Pair)):
        raise UserError(f"{path}: found {type(image).__name__}, expected NIfTI; convert it, e.g. with mri_convert")
    return image


def _check_affine(image: nib.Nifti1Image, path: Path) -> None:
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        raise UserError(
            f"{path}: found no affine (sform_code and qform_code are both 0), expected one of them set; convert it "
            "anew from DICOM, or copy the header from a scan on the same grid (fslcpgeom)"
        )
    affine = image.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # Relative to the voxel's edges, so that micrometre voxels are not called singular.
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(lengths):
        raise UserError(
            f"{path}: found a singular affine {np.round(affine[:3], 4).tolist()}, expected three independent axes; "
            "convert it anew from DICOM or repair its header"
        )


def split_channels(image: nib.Nifti1Image) -> list[nib.Nifti1Image]:
    """A (X, Y, Z, C) image as C images of (X, Y, Z); a 3D image as a list of itself."""
    if len(image.shape) == 3:
        return [image]
    data = np.asanyarray(image.dataobj)
    header = image.header.copy()
    header.set_data_shape(image.shape[:3])
    return [nib.Nifti1Image(data[..., c], image.affine, header) for c in range(image.shape[3])]


def target_affine(image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """The (4, 4) affine of ``grid`` around ``image``: axis-aligned, the scan's centre (voxel n/2) at voxel n/2."""
    centre_mm = image.affine @ [*(np.array(image.shape[:3]) / 2), 1]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(grid.orientation):
        affine["LRPAIS".index(code) // 2, axis] = grid.voxel_mm * (1 if code in "RAS" else -1)
    affine[:3, 3] = centre_mm[:3] - affine[:3, :3] @ (np.array(grid.size) / 2)
    return affine


def conform(
    image: nib.Nifti1Image,
    grid: Grid = Grid(),
    scaling: str = "conform_uint8",
    window: tuple[float, float] | None = None,
    reference: nib.Nifti1Image | None = None,
) -> nib.Nifti1Image:
    """Resample a scan onto ``grid`` with trilinear interpolation and scale its intensities.

    With the defaults this is ``mri_convert --conform``: uint8, the lowest value to 0, the value below which all but
    0.1 % of the non-zero voxels lie to 255, on a 1,000-bin histogram of the scan; data that are uint8 already keep
    their values. The other scalings give float32 in 0..1: ``minmax`` (of the scan), ``quantile`` (0.5 % and 99.5 % of
    the non-zero voxels), ``window`` (``window`` = lowest and highest value, e.g. HU of a CT). Space outside the scan is
    0. ``reference``: the image whose centre defines the grid, for further modalities of a case (their affines place
    them). Raises UserError for a wrong shape or setting.
    """
    if len(image.shape) != 3:
        raise UserError(f"conform: found an image of shape {image.shape}, expected (X, Y, Z); split its channels first")
    affine = target_affine(reference or image, grid)
    data = np.asanyarray(image.dataobj)
    low, high = intensity_range(data, scaling, window)
    top = np.float32(255 if scaling == "conform_uint8" else 1)
    to_source = np.linalg.inv(image.affine) @ affine
    volume = resample(data, to_source, grid.size, order=1, fill=low)
    if (low, high, scaling, volume.dtype) != (0, 255, "conform_uint8", np.uint8):
        volume = volume.astype(np.float32)
        volume -= np.float32(low)
        volume *= top / np.float32(high - low)
        np.clip(volume, 0, top, out=volume)
        if scaling == "conform_uint8":
            volume = np.rint(volume, out=volume).astype(np.uint8)
    return _image(volume, affine)


def intensity_range(data: np.ndarray, scaling: str, window: tuple[float, float] | None = None) -> tuple[float, float]:
    """The values of a scan that ``scaling`` maps to the bottom and the top of its range; the second is the larger."""
    if scaling not in SCALINGS:
        raise UserError(f"scaling: found {scaling!r}, expected one of {', '.join(SCALINGS)}")
    if (scaling == "window") != (window is not None):
        raise UserError("window: expected LOW and HIGH together with the scaling 'window', and with no other scaling")
    if scaling == "window":
        if len(window) != 2 or not window[0] < window[1]:
            raise UserError(f"window: found {window}, expected LOW < HIGH, such as 0 80")
        return float(window[0]), float(window[1])
    if scaling == "conform_uint8" and data.dtype == np.uint8:
        return 0.0, 255.0  # mri_convert changes the type only where it differs
    low, high = float(data.min()), float(data.max())
    if scaling == "conform_uint8" and high > low:
        high = _all_but_top(data, low, high)
    elif scaling == "quantile" and high > low:
        low, high = (float(q) for q in np.quantile(data[data != 0], QUANTILES))
    return low, high if high > low else low + 1.0


def _all_but_top(data: np.ndarray, low: float, high: float) -> float:
    """The value below which all but 0.1 % of the non-zero voxels lie, to a bin of the 1,000-bin histogram."""
    bin_size = (high - low) / HISTOGRAM_BINS
    bins = ((data - np.float32(low)) * np.float32(1 / bin_size)).astype(np.int32).ravel()
    counts = np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
    below = data.size - int(CROPPED_FRACTION * np.count_nonzero(data))
    first_bin_past = int(np.searchsorted(np.cumsum(counts), below))
    return low + max(first_bin_past - 1, 1) * bin_size


def mask_classes(image: nib.Nifti1Image, labels: dict[int, int] | None = None, name: str = "mask") -> np.ndarray:
    """The classes (X, Y, Z), uint8, of a mask on its own grid.

    Without ``labels`` a voxel belongs to the lesion where its value is > 0; a broken ``scl_slope`` or a soft mask (no
    value above 1) does not matter, but several values of which one is above 1 are labels and raise UserError.
    With ``labels`` = {value: class}, unnamed values are background (0); the values must be whole numbers.
    """
    values = np.asanyarray(image.dataobj)
    if labels is None:
        positive = values > 0
        top = values.max()
        if top > 1 and not (values[positive] == top).all():
            found = np.unique(values[positive])
            shown = ", ".join(f"{v:g}" for v in found[:8]) + (", …" if len(found) > 8 else "")
            raise UserError(
                f"{name}: found the values {shown}, expected 0 and one other; say with --labels which ones are lesion"
            )
        return positive.astype(np.uint8)
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        raise UserError(
            f"{name}: found fractions, expected whole-number labels for --labels; check the scl_slope in its header"
        )
    classes = np.zeros(values.shape, np.uint8)
    for value, number in labels.items():
        classes[values == value] = number
    return classes


def conform_mask(
    mask_image: nib.Nifti1Image,
    grid: Grid = Grid(),
    labels: dict[int, int] | None = None,
    reference: nib.Nifti1Image | None = None,
) -> nib.Nifti1Image:
    """Resample a mask onto ``grid`` by nearest neighbour: uint8, ``> 0`` or the classes that ``labels`` gives.

    ``reference``: the scan whose centre defines the grid. See ``mask_classes`` for what raises UserError.
    """
    affine = target_affine(reference or mask_image, grid)
    classes = mask_classes(mask_image, labels)
    to_source = np.linalg.inv(mask_image.affine) @ affine
    return _image(resample(classes, to_source, grid.size, order=0, nudge=1), affine)


def to_native(array: np.ndarray, conformed_affine: np.ndarray, like: nib.Nifti1Image) -> np.ndarray:
    """Bring a result from the conformed grid back to exactly ``like``'s grid.

    Whole-number labels (X, Y, Z) go by nearest neighbour with ties broken opposite to ``conform_mask``, so that a
    mask on voxels of the same size comes back as it was. Probabilities (X, Y, Z) or (K, X, Y, Z) in floating point go
    by linear interpolation, float32. What lies outside the conformed grid is 0.
    """
    array = np.asarray(array)
    to_source = np.linalg.inv(conformed_affine) @ like.affine
    shape = tuple(like.shape[:3])
    if array.dtype.kind == "f":
        if array.ndim == 4:
            return np.stack([resample(a, to_source, shape, order=1) for a in array.astype(np.float32, copy=False)])
        return resample(array.astype(np.float32, copy=False), to_source, shape, order=1)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return resample(array, to_source, shape, order=0, nudge=-1)


def save_like(array: np.ndarray, like: nib.Nifti1Image, path: str | Path) -> None:
    """Write (X, Y, Z) to ``path`` with ``like``'s shape, affine, sform and qform codes and units, whole or not at all.

    Floating point is stored as float32, everything else as uint8, without scaling. Raises ValueError for another
    shape, or labels above 255.
    """
    array = np.asarray(array)
    if array.shape != tuple(like.shape[:3]):
        raise ValueError(f"array of shape {array.shape} does not fit the scan's {tuple(like.shape[:3])}")
    dtype = np.float32 if array.dtype.kind == "f" else np.uint8
    if dtype is np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError("labels outside 0..255 do not fit uint8")
    header = like.header.copy()
    header.set_data_shape(array.shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the scan's display window would hide a mask of 0 and 1
    kind = nib.Nifti2Image if isinstance(like, nib.Nifti2Image) else nib.Nifti1Image
    with whole_file(path) as temporary:
        nib.save(kind(array.astype(dtype, copy=False), None, header), temporary)


def _image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)  # scanner coordinates: the target grid lies in the scan's own world
    image.set_qform(affine, 1)
    return image


def head_box(volume: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The box ((x0, x1), (y0, y1), (z0, z1)), half open, around the head in a conformed volume (X, Y, Z).

    The head is the largest connected part brighter than a third of the way from air to Otsu's threshold (Otsu 1979),
    after an opening that removes specks of noise, found on every second voxel; a margin of 2 % of each axis is added.
    Air is the upper quartile of what lies under the threshold, since a scan with negative values has two kinds of it:
    its own and the space around the scan. A volume without contrast gives the whole volume.
    """
    from scipy.ndimage import binary_opening, find_objects, label

    step = 2 if min(volume.shape) >= 64 else 1
    small = volume[::step, ::step, ::step]
    whole = tuple((0, n) for n in volume.shape)
    low, high = float(small.min()), float(small.max())
    if not high > low:
        return whole
    threshold = _otsu(small, low, high)
    air = float(np.percentile(small[small <= threshold], 75))
    foreground = small > air + (threshold - air) / 3
    opened = binary_opening(foreground)
    parts, count = label(opened if opened.any() else foreground)
    if count == 0:
        return whole
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    box = find_objects(parts, max_label=largest)[largest - 1]
    margins = [step + round(0.02 * n) for n in volume.shape]
    return tuple(
        (max(0, s.start * step - m), min(n, s.stop * step + m)) for s, m, n in zip(box, margins, volume.shape)
    )


def _otsu(values: np.ndarray, low: float, high: float, bins: int = 256) -> float:
    """The threshold that splits the values into two classes of the largest between-class variance."""
    counts, edges = np.histogram(values, bins, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)[:-1].astype(float)
    total = np.cumsum(counts * centres)[:-1]
    n, mean = counts.sum(), (counts * centres).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (mean * weight / n - total) ** 2 / (weight * (n - weight))
    return float(edges[1:-1][np.nanargmax(variance)])
