"""One scan's geometry: conforming (as ``mri_convert --conform``) and the way back to the scan's own grid.

Voxel arrays are (X, Y, Z) in the order of the NIfTI file; affines are 4x4, voxel index to RAS+ millimetres.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.scans.intensity import _spread, intensity_range
from meshnet.scans.nifti import mask_classes
from meshnet.scans.resample import resample, resample_mean

CENTRES = {"n/2": 0.0, "middle": 0.5}  # voxels from n/2 back to the centre


@dataclass(frozen=True)
class Grid:
    """The voxel grid that a model sees: cubic voxels, axes along the scanner's."""

    voxel_mm: float = 1.0
    shape: tuple[int, int, int] | None = None  # None: round(256 / voxel_mm) on each axis
    orientation: str = "LIA"  # one of the 48 axis codes; LIA is mri_convert's and brainchop's
    centre: str = "n/2"  # what lies on what: voxel n/2 as mri_convert has it, or the middles, so that turning a file
                         # (its axes exchanged or mirrored) moves nothing
    averaged: bool = False  # a voxel is the mean of what it covers, not the scan's value at its middle (mri_convert's)
    offset: float = 0.0  # voxels that the grid is moved by along each of its axes

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


def target_affine(image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """The (4, 4) affine of ``grid`` around ``image``: axis-aligned, the scan's centre at the grid's."""
    back = CENTRES[grid.centre]
    centre_mm = image.affine @ [*(np.array(image.shape[:3]) / 2 - back), 1]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(grid.orientation):
        affine["LRPAIS".index(code) // 2, axis] = grid.voxel_mm * (1 if code in "RAS" else -1)
    affine[:3, 3] = centre_mm[:3] - affine[:3, :3] @ (np.array(grid.size) / 2 - back - grid.offset)
    return affine


def conform(
    image: nib.Nifti1Image,
    grid: Grid = Grid(),
    scaling: str = "conform_uint8",
    window: tuple[float, float] | None = None,
    reference: nib.Nifti1Image | None = None,
) -> nib.Nifti1Image:
    """Resample a scan onto ``grid`` with trilinear interpolation and scale its intensities.

    Where the grid's voxels are larger than the scan's, ``grid.averaged`` gives each the mean of what it covers: less
    noise, and partial volume as a scanner of that resolution has it.
    With the defaults this is ``mri_convert --conform``: uint8, the lowest value to 0, the value below which all but
    0.1 % of the non-zero voxels lie to 255, on a 1,000-bin histogram of the scan; data that are uint8 already keep
    their values. The other scalings give float32 in 0..1: ``minmax`` (of the scan), ``quantile`` (0.5 % and 99.5 % of
    the non-zero voxels), ``window`` (``window`` = lowest and highest value, e.g. HU of a CT). ``brainchop_quantile`` is
    brainchop.org's: conformed to uint8 as above, then 5 % and 95 % of all voxels to 0 and 1, values beyond them kept.
    Space outside the scan is 0. ``reference``: the image whose centre defines the grid, for further modalities of a
    case (their affines place them). Raises UserError for a wrong shape or setting.
    """
    if len(image.shape) != 3:
        raise UserError(f"conform: found an image of shape {image.shape}, expected (X, Y, Z); split its channels first")
    affine = target_affine(reference or image, grid)
    if scaling == "brainchop_quantile":
        return _image(_spread(np.asarray(conform(image, grid, "conform_uint8", window, reference).dataobj)), affine)
    data, to_source = _along(image, grid, affine, reference)
    low, high = intensity_range(data, scaling, window)
    top = np.float32(255 if scaling == "conform_uint8" else 1)
    if grid.averaged:
        volume = resample_mean(data, to_source, grid.size, fill=low)
    else:
        volume = resample(data, to_source, grid.size, order=1, fill=low)
    if (low, high, scaling, volume.dtype) != (0, 255, "conform_uint8", np.uint8):
        volume = volume.astype(np.float32)
        volume -= np.float32(low)
        volume *= top / np.float32(high - low)
        np.clip(volume, 0, top, out=volume)
        if scaling == "conform_uint8":
            volume = np.rint(volume, out=volume).astype(np.uint8)
    return _image(volume, affine)


def _along(
    image: nib.Nifti1Image, grid: Grid, affine: np.ndarray, reference: nib.Nifti1Image | None
) -> tuple[np.ndarray, np.ndarray]:
    """The scan's data turned so that its axes run as the grid's (a view), and the (4, 4) way from grid to it.

    Turned first, and centres laid on each other without the two affines' millimetres, every sum that follows is the
    same to the last bit however the file's axes were ordered: a voxel's grey value that lies on a rounding edge must
    not fall to another side when a file is mirrored.
    """
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(grid.orientation)
    )
    data = nib.orientations.apply_orientation(np.asanyarray(image.dataobj), turn)
    turned = image.affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    to_source = np.linalg.inv(turned) @ affine
    if reference is None or (reference.shape[:3] == image.shape and np.array_equal(reference.affine, image.affine)):
        back = CENTRES[grid.centre]
        centre = np.empty(3)
        for axis, (target, sign) in enumerate(turn):
            middle = image.shape[axis] / 2 - back
            centre[int(target)] = middle if sign > 0 else image.shape[axis] - 1 - middle
        to_source[:3, :3] = np.linalg.inv(turned[:3, :3]) @ affine[:3, :3]
        to_source[:3, 3] = centre - to_source[:3, :3] @ (np.array(grid.size) / 2 - back - grid.offset)
    return data, to_source


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
            result = np.empty((len(array), *shape[::-1]), np.float32).transpose(0, 3, 2, 1)  # as NIfTI files are read
            for one, a in zip(result, array.astype(np.float32, copy=False)):
                resample(a, to_source, shape, order=1, out=one)
            return result
        return resample(array.astype(np.float32, copy=False), to_source, shape, order=1)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return resample(array, to_source, shape, order=0, nudge=-1)


def stack_channels(channels: list[np.ndarray]) -> np.ndarray:
    """Volumes (X, Y, Z) as one (C, X, Y, Z), each channel in one piece of memory with its axes as the first one's."""
    axes = sorted(range(3), key=lambda axis: -channels[0].strides[axis])
    return np.stack([channel.transpose(axes) for channel in channels]).transpose(0, *(1 + np.argsort(axes)))


def _image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    # Scanner coordinates: the target grid lies in the scan's own world. The image keeps its affine in float64: the
    # header's float32 would move it by 1e-5 mm, on the way back differently for each order of the file's axes.
    image.set_sform(affine, 1, update_affine=False)
    image.set_qform(affine, 1, update_affine=False)
    return image
