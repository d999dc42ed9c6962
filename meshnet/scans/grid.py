"""The grid that a model sees: conforming a scan or mask (as ``mri_convert --conform``), and the way back.

Voxel arrays are (X, Y, Z) in the order of the NIfTI file. Affines are 4x4, from voxel index to RAS+ millimetres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.scans.affines import inverse, product
from meshnet.scans.contrast import T1W, likelihoods, most_likely, turned_round
from meshnet.scans.intensity import intensity_range, stretch_quantiles, without_extremes
from meshnet.scans.mask import voxel_volume_mm3
from meshnet.scans.nifti import mask_classes
from meshnet.scans.resample import covering_reach, resample, resample_mean

EXTREMES = "extremes"  # key of a conformed image's ``extra``: what ``without_extremes`` found
LOOKS = "looks like"  # likewise: the contrast that the scaling ``lesions_bright`` found; it turns T1w scans round
LIKELY = "likely"  # likewise: how likely each of the contrasts is; None where no head was found
CENTRES = {"n/2": 0.0, "middle": 0.5}  # voxels that the centre lies before voxel n/2


@dataclass(frozen=True)
class Grid:
    """The voxel grid that a model sees: cubic voxels, axes parallel to the scanner's."""

    voxel_mm: float = 1.0
    shape: tuple[int, int, int] | None = None  # None: round(256 / voxel_mm) on each axis
    orientation: str = "LIA"  # one of the 48 axis codes; LIA is mri_convert's and brainchop's
    centre: str = "n/2"  # which points of scan and grid coincide: voxel n/2 of each, as in mri_convert, or the
                         # middles, so that exchanging or mirroring the axes of a file moves nothing
    averaged: bool = False  # a voxel is the mean over its volume, not (as in mri_convert) the value at its centre
    offset: float = 0.0  # voxels by which the grid is moved along each of its axes

    def __post_init__(self):
        if not np.isfinite(self.voxel_mm) or self.voxel_mm <= 0:
            raise UserError(f"voxel_mm: found {self.voxel_mm}, expected a positive size in mm; 1 is the usual one")
        if self.shape is not None and (len(self.shape) != 3 or any(n != int(n) or n < 1 for n in self.shape)):
            raise UserError(f"shape: found {self.shape}, expected three positive whole numbers, such as 256 256 256")
        if len(self.orientation) != 3 or sorted("LRAPIS".find(c) // 2 for c in self.orientation) != [0, 1, 2]:
            raise UserError(
                f"orientation: found {self.orientation!r}, expected three letters, one each of L or R, A or P, "
                "I or S; LIA is the usual one"
            )
        if self.centre not in CENTRES:
            raise UserError(f"centre: found {self.centre!r}, expected {' or '.join(CENTRES)}; n/2 is the usual one")
        if not isinstance(self.averaged, bool):
            raise UserError(f"averaged: found {self.averaged!r}, expected true or false")

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels on each axis."""
        return tuple(int(n) for n in self.shape) if self.shape else (max(1, round(256 / self.voxel_mm)),) * 3


def left_to_right(orientation: Sequence[str]) -> int:
    """Which axis of a grid with these codes runs from left to right, or from right to left."""
    return next(axis for axis, code in enumerate(orientation) if code in "LR")


def target_affine(image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """The (4, 4) affine of ``grid`` for ``image``: axes parallel to the scanner's, centre on the scan's centre."""
    back = CENTRES[grid.centre]
    centre_mm = product(image.affine, [*(np.array(image.shape[:3]) / 2 - back), 1])
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(grid.orientation):
        affine["LRPAIS".index(code) // 2, axis] = grid.voxel_mm * (1 if code in "RAS" else -1)
    affine[:3, 3] = centre_mm[:3] - product(affine[:3, :3], np.array(grid.size) / 2 - back - grid.offset)
    return affine


def conform(
    image: nib.Nifti1Image,
    grid: Grid = Grid(),
    scaling: str = "conform_uint8",
    window: tuple[float, float] | None = None,
    reference: nib.Nifti1Image | None = None,
    exact: bool = True,
) -> nib.Nifti1Image:
    """Resample a scan onto ``grid`` with trilinear interpolation and scale its intensities.

    With the defaults this is ``mri_convert --conform``.

    Args:
        image: the scan (X, Y, Z).
        grid: where its voxels are larger than the scan's, ``grid.averaged`` makes each the mean over its volume. This
            has less noise, and the partial volume of a scanner of that resolution.
        scaling: how intensities are scaled. Space outside the scan becomes 0, in the last one before the stretch.

            - ``conform_uint8``: to uint8. The lowest value becomes 0. The value below which all but 0.1 % of the
              non-zero voxels lie, on a 1,000-bin histogram, becomes 255. Data that are uint8 keep their values.
            - ``minmax``, ``quantile``, ``window``: to float32 in 0..1, from the scan's minimum and maximum, from the
              0.5 % and 99.5 % quantiles of its non-zero voxels, or from the two values of ``window``.
            - ``brainchop_quantile``: as brainchop.org does it. To uint8 as above, then to float32, so that the 5 % and
              95 % quantiles of all voxels become 0 and 1 (the stretch). Values beyond them are kept.
            - ``lesions_bright``: to uint8 as above; where the scan then looks like T1w, on which lesions are dark, its
              grey values are turned round within the head (``scans.contrast``).
        window: lowest and highest value, such as Hounsfield units of a CT.
        reference: the image whose centre defines the grid, for further modalities of a case; their own affines place
            them on it.
        exact: as ``mri_convert`` has it: a scan ends at the centres of its outermost voxels, and its lowest and highest
            values set the range. False, as infer.py and prepare.py: a voxel that lies partly in the scan has its
            value, so that a lesion in the first thick slice is not lost, and a handful of extreme voxels or a bright
            slice does not set the range. Whether there are such ones is in the result's ``extra["extremes"]``.

    Raises:
        UserError: for a wrong shape or setting.
    """
    if len(image.shape) != 3:
        raise UserError(f"conform: found an image of shape {image.shape}, expected (X, Y, Z); split its channels first")
    affine = target_affine(reference or image, grid)
    if scaling in ("brainchop_quantile", "lesions_bright"):
        conformed = conform(image, grid, "conform_uint8", window, reference, exact)
        new, told = _regraded(np.asarray(conformed.dataobj), scaling, grid)
        result = _image(new, affine)
        result.extra.update(conformed.extra | told)
        return result
    data, to_source = _along(image, grid, affine, reference)
    low, high = intensity_range(data, scaling, window)
    found = None if exact else without_extremes(data, scaling, voxel_volume_mm3(image.affine) / 1000)
    if found:
        low, high = found.low, found.high
        data = np.clip(data, low, high).astype(np.float32, copy=False)  # before they are mixed with others
    if grid.averaged:
        volume = resample_mean(data, to_source, grid.size, fill=low, covers=not exact)
    else:
        volume = resample(data, to_source, grid.size, order=1, fill=low, covers=not exact)
    conformed = _image(_scaled(volume, low, high, scaling), affine)
    conformed.extra[EXTREMES] = found
    return conformed


def _regraded(volume: np.ndarray, scaling: str, grid: Grid) -> tuple[np.ndarray, dict]:
    """A conformed scan (X, Y, Z) uint8 in the grey values of a scaling that needs it whole, and what ``conform`` says
    of it."""
    if scaling == "brainchop_quantile":
        return stretch_quantiles(volume), {}
    likely = likelihoods(volume, grid.voxel_mm, grid.orientation)
    told = {LOOKS: most_likely(likely), LIKELY: likely}
    return turned_round(volume) if told[LOOKS] == T1W else volume, told


def _scaled(volume: np.ndarray, low: float, high: float, scaling: str) -> np.ndarray:
    """``low`` to ``high`` as 0 to 255, uint8, or as 0 to 1, float32."""
    if (low, high, scaling, volume.dtype) == (0, 255, "conform_uint8", np.uint8):
        return volume
    top = np.float32(255 if scaling == "conform_uint8" else 1)
    volume = volume.astype(np.float32)
    volume -= np.float32(low)
    volume *= top / np.float32(high - low)
    np.clip(volume, 0, top, out=volume)
    return np.rint(volume, out=volume).astype(np.uint8) if scaling == "conform_uint8" else volume


def _along(
    image: nib.Nifti1Image, grid: Grid, affine: np.ndarray, reference: nib.Nifti1Image | None
) -> tuple[np.ndarray, np.ndarray]:
    """The scan's data with its axes in the order and direction of the grid's (a view), and the (4, 4) matrix from grid
    index to index of that view.

    The axes are turned first, and the centres are matched in voxels rather than in millimetres. All sums that follow
    are then the same to the last bit, however the file's axes are ordered. Otherwise a grey value on a rounding edge
    could fall to either side, depending on whether a file is mirrored.
    """
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(grid.orientation)
    )
    data = nib.orientations.apply_orientation(np.asanyarray(image.dataobj), turn)
    turned = product(image.affine, nib.orientations.inv_ornt_aff(turn, image.shape))
    to_source = product(inverse(turned), affine)
    if reference is None or (reference.shape[:3] == image.shape and np.array_equal(reference.affine, image.affine)):
        back = CENTRES[grid.centre]
        centre = np.empty(3)
        for axis, (target, sign) in enumerate(turn):
            middle = image.shape[axis] / 2 - back
            centre[int(target)] = middle if sign > 0 else image.shape[axis] - 1 - middle
        to_source[:3, :3] = product(inverse(turned[:3, :3]), affine[:3, :3])
        to_source[:3, 3] = centre - product(to_source[:3, :3], np.array(grid.size) / 2 - back - grid.offset)
    return data, to_source


def conform_mask(
    mask_image: nib.Nifti1Image,
    grid: Grid = Grid(),
    labels: dict[int, int] | None = None,
    reference: nib.Nifti1Image | None = None,
    exact: bool = True,
) -> nib.Nifti1Image:
    """Resample a mask onto ``grid`` by nearest neighbour, to uint8.

    Args:
        mask_image: the mask (X, Y, Z).
        labels: {value: class}; None: values above 0 are lesion. See ``mask_classes``, also for what raises UserError.
        reference: the scan whose centre defines the grid.
        exact: as in ``conform``.
    """
    affine = target_affine(reference or mask_image, grid)
    classes = mask_classes(mask_image, labels)
    to_source = product(inverse(mask_image.affine), affine)
    return _image(resample(classes, to_source, grid.size, order=0, nudge=1, covers=not exact), affine)


def to_native(
    array: np.ndarray, conformed_affine: np.ndarray, like: nib.Nifti1Image, seen_only: bool = False
) -> np.ndarray:
    """Resample a result from the conformed grid to exactly the grid of ``like``. Space outside that grid becomes 0.

    Integer labels (X, Y, Z) are resampled by nearest neighbour. Ties are broken opposite to ``conform_mask``, so that a
    mask on voxels of the same size comes back unchanged. Floating-point probabilities (X, Y, Z) or (K, X, Y, Z) are
    resampled by linear interpolation, to float32. ``seen_only``: without those of voxels that lie outside the scan,
    where a network has seen nothing.
    """
    array = np.asarray(array)
    to_source = product(inverse(conformed_affine), like.affine)
    shape = tuple(like.shape[:3])
    if array.dtype.kind == "f":
        if seen_only:
            array = _carried_past_faces(array, inverse(to_source), shape)
        if array.ndim == 4:
            result = np.empty((len(array), *shape[::-1]), np.float32).transpose(0, 3, 2, 1)  # as NIfTI files are read
            for one, a in zip(result, array.astype(np.float32, copy=False)):
                resample(a, to_source, shape, order=1, out=one, covers=True)
            return result
        return resample(array.astype(np.float32, copy=False), to_source, shape, order=1, covers=True)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return resample(array, to_source, shape, order=0, nudge=-1)


def _carried_past_faces(array: np.ndarray, to_scan: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Probabilities ([K,] X, Y, Z) on the grid, with the outermost voxels that lie partly in the scan copied one voxel
    outwards. The centres of the scan's outermost voxels may lie between the two, and what is further out was not seen.

    ``to_scan`` (4, 4) goes from index of the grid to index of the scan, of ``shape``. Where the grid's voxels are at
    most 1.5 times the scan's, nothing is copied: interpolation leaves at least (0.5 + 0.5 / 1.5)^3 of a value.
    """
    matrix = to_scan[:3, :3]
    if np.abs(matrix).sum(axis=1).max() <= 1.5:
        return array
    covered = np.ones(array.shape[-3:], bool)
    for row, offset, reach, n in zip(matrix, to_scan[:3, 3], covering_reach(matrix), shape):
        steps = [row[t] * np.arange(size) for t, size in enumerate(covered.shape)]
        at = offset + sum(np.expand_dims(step, [a for a in range(3) if a != t])
                          for t, step in enumerate(steps) if np.abs(step).max() > 1e-3)
        covered &= (at >= -reach) & (at <= n - 1 + reach)
    array = array.copy(order="K")
    for axis in range(3):
        before = np.moveaxis(covered.copy(), axis, 0)
        values, after = np.moveaxis(array, axis - 3, -3), np.moveaxis(covered, axis, 0)
        for to, source in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            where = np.nonzero(before[source] & ~before[to])
            values[..., to, :, :][(..., *where)] = values[..., source, :, :][(..., *where)]
            after[to][where] = True
    return array


def stack_channels(channels: list[np.ndarray]) -> np.ndarray:
    """Volumes (X, Y, Z) as one (C, X, Y, Z). Each channel is contiguous, its axes in memory ordered as the first one's.
    """
    axes = sorted(range(3), key=lambda axis: -channels[0].strides[axis])
    return np.stack([channel.transpose(axes) for channel in channels]).transpose(0, *(1 + np.argsort(axes)))


def _image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    # Code 1, scanner coordinates, since the grid is placed in those of the scan. The image keeps its affine in float64:
    # the header's float32 would move it by 1e-5 mm, and on the way back differently for each order of the file's axes.
    image.set_sform(affine, 1, update_affine=False)
    image.set_qform(affine, 1, update_affine=False)
    return image
