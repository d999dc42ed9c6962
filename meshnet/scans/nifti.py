"""NIfTI files in and out: a bad file is reported in one clear line, and a mask gets the grid of its scan."""

import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.files import whole_file

UNITS_MM = {1: 1000.0, 3: 0.001}  # metres and micrometres, by xyzt_units; other codes are mm, or not declared
GRID_FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
               "qoffset_z", "srow_x", "srow_y", "srow_z")
LEAST_MM = 1  # a scan's longest side is more; headers that hold metres without saying so give less
HEAD_MM = (10, 2000)  # between which a scan's longest side lies where a header declares another unit
FARTHEST_MM = 1e5  # a voxel's edge or an origin beyond this is no number of millimetres
LEAST, MOST = 1e-30, 1e30  # of a scan's largest value, in float32 with room for its range
POINTERS = ((b"version https://git-lfs", "a pointer of Git LFS (git lfs pull)"),
            (b"/annex/objects/", "a pointer of git-annex (datalad get, git annex get)"),
            (b"<!doctype html", "a page of the web"), (b"<html", "a page of the web"))
GZIP = b"\x1f\x8b"  # with which a compressed file begins
PACKED = 2  # times that a file may be gzipped: tools gzip what is so already
WHOLE = 1e-3  # by which a value may differ from a whole number, or from the mask's one value
GRID_TOLERANCE = 0.1  # voxels; headers round their affines
# Raised by nibabel and numpy where the content does not match its header.
BAD_CONTENT = (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError, nib.filebasedimages.ImageFileError,
               OSError, ValueError, OverflowError)
# nibabel prints a line for each small thing that it repairs in a header. What matters to a mask is in scans/checks.py.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def read_image(path: str | Path, kind: str = "scan", channels: bool = False) -> nib.Nifti1Image:
    """Read and check one NIfTI file (.nii, .nii.gz). The returned image holds its data in memory.

    Integer data without scaling in the header keep their type. All other data become float32 (in masks float64, since
    a broken ``scl_slope`` can make their values tiny).

    Args:
        path: of the file.
        kind: ``scan`` or ``mask``. A scan must not be zero everywhere; a mask may.
        channels: the last axis of a 4D file is channels. Otherwise the image is (X, Y, Z), and a last axis of length
            one is dropped.

    Raises:
        UserError: one line, for every bad file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {_no_file(path)}, expected a NIfTI scan; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions and its disk") from error
    return image_from_bytes(content, str(path), kind, channels)


def _no_file(path: Path) -> str:
    """What there is instead of a file."""
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is no file that can be read twice (a pipe or a device)"
    return "is a link to a file that is not there" if path.is_symlink() else "no such file"


def image_from_bytes(content: bytes, name: str, kind: str = "scan", channels: bool = False) -> nib.Nifti1Image:
    """``read_image`` for the content of a file, plain or gzipped; ``name`` stands for the path in errors."""
    if not content:
        raise UserError(f"{name}: found an empty file, expected a NIfTI scan; copy it again")
    content = unpacked(content, name)
    if content[344:348] == b"n+1\0":
        if content[108:112] == bytes(4):  # no offset given: nibabel would read the header as voxels
            order = "<" if content[:4] == (348).to_bytes(4, "little") else ">"
            content = content[:108] + np.array([352], f"{order}f4").tobytes() + content[112:]
        form = nib.Nifti1Image
    elif content[4:8] == b"n+2\0":
        form = nib.Nifti2Image
    else:
        stands_for = next((what for start, what in POINTERS if content[:200].lstrip().lower().startswith(start)), None)
        if stands_for:
            raise UserError(f"{name}: found {stands_for}, expected the NIfTI file itself; fetch it")
        raise UserError(f"{name}: found no NIfTI, expected .nii or .nii.gz; convert it with dcm2niix or mri_convert, "
                        "or copy it again if it is damaged")
    try:
        return _checked(form.from_bytes(content), name, kind, channels)
    except BAD_CONTENT as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: damaged or truncated NIfTI ({reason}), expected it whole; copy it again") from error


def unpacked(content: bytes, name: str) -> bytes:
    """The content of a file without gzip, also of several members, with zeros after them, and of gzip in gzip.

    Raises:
        UserError: where it is damaged; ``name`` stands for the path.
    """
    for _ in range(PACKED):
        if content[:2] != GZIP:
            break
        try:
            content = gzip.decompress(content)  # to the end, so that the checksum is verified
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{name}: truncated or damaged gzip ({error}), expected it whole; copy it again") from error
    return content


def check_image(image: nib.Nifti1Image, name: str, kind: str = "scan", channels: bool = False) -> nib.Nifti1Image:
    """``read_image`` for an image in memory; ``name`` stands for the path in errors."""
    if not isinstance(image, nib.Nifti1Image):
        image = nib.Nifti1Image.from_image(image)
    return _checked(image, name, kind, channels)


def _checked(image: nib.Nifti1Image, path: str, kind: str, channels: bool) -> nib.Nifti1Image:
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
    data = np.asanyarray(image.dataobj)
    if data.dtype.fields is not None or data.dtype.kind == "c":
        raise UserError(f"{path}: found {data.dtype} voxels (colour or complex), expected numbers; convert it")
    data = data.reshape(shape)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise UserError(f"{path}: found NaN or infinite voxels, expected finite numbers; repair it or leave it out")
    if kind == "scan":
        longest = float((np.linalg.norm(image.affine[:3, :3], axis=0) * shape[:3]).max())
        if longest < LEAST_MM and declared_scale(image.header) == 1:
            raise UserError(f"{path}: found an extent of {longest:g} mm, expected a head; if the header holds metres, "
                            "set its xyzt_units to 1 (nifti_tool)")
        if data.dtype.kind == "f":
            largest = float(np.abs(data).max(initial=0))
            if largest > MOST or 0 < largest < LEAST:
                raise UserError(f"{path}: found values up to {largest:g}, expected ones that float32 can hold; rescale "
                                "the scan (fslmaths, nibabel), or correct its scl_slope")
            data = data.astype(np.float32, copy=False)
        if not data.any():
            raise UserError(f"{path}: every voxel is zero, expected a scan; leave it out")
    header = image.header.copy()
    header.set_data_dtype(data.dtype if data.dtype.kind in "iuf" else np.uint8)
    header.set_slope_inter(1, 0)
    scale = declared_scale(header)
    if scale == 1:
        return type(image)(data, image.affine, header)
    return _in_millimetres(type(image)(data, image.affine, header), scale, path)


def declared_scale(header: nib.Nifti1Header) -> float:
    """Millimetres in the unit that a header declares for space."""
    return UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _in_millimetres(image: nib.Nifti1Image, scale: float, path: str) -> nib.Nifti1Image:
    """An image whose header declares another unit, with an affine in mm; its own header goes along for ``image_like``.

    Raises:
        UserError: where that makes it no head by its size.
    """
    affine = np.diag([scale, scale, scale, 1]) @ image.affine
    extent = np.linalg.norm(affine[:3, :3], axis=0) * image.shape[:3]
    if not HEAD_MM[0] <= extent.max() <= HEAD_MM[1]:
        unit = "metre" if scale > 1 else "micrometre"
        raise UserError(f"{path}: found an extent of {extent.max():g} mm, since its header declares the unit {unit}, "
                        f"expected a head; if the sizes are in mm, set xyzt_units to 2 (fslmodhd, nifti_tool)")
    header = image.header.copy()
    header.set_xyzt_units("mm")
    converted = type(image)(np.asanyarray(image.dataobj), affine, header)
    converted.extra["header"] = image.header
    return converted


def _check_affine(image: nib.Nifti1Image, path: str) -> None:
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        raise UserError(
            f"{path}: found no affine (sform_code and qform_code are both 0), expected one of them set; convert it "
            "again from DICOM, or copy the header from a scan on the same grid (fslcpgeom)"
        )
    affine = image.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # Relative to the edges of a voxel, so that an affine with micrometre voxels is not called singular.
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(lengths):
        raise UserError(
            f"{path}: found a singular affine {np.round(affine[:3], 4).tolist()}, expected three independent axes; "
            "convert it again from DICOM or repair its header"
        )
    farthest = float(np.abs(affine).max()) * declared_scale(image.header)
    if farthest > FARTHEST_MM:
        raise UserError(f"{path}: found {farthest:g} mm in its affine, expected at most {FARTHEST_MM:g}; "
                        "convert it again from DICOM or repair its header")


def split_channels(image: nib.Nifti1Image) -> list[nib.Nifti1Image]:
    """An image (X, Y, Z, C) as C images (X, Y, Z); a 3D image as a list of itself."""
    if len(image.shape) == 3:
        return [image]
    data = np.asanyarray(image.dataobj)
    header = image.header.copy()
    header.set_data_shape(image.shape[:3])
    return [nib.Nifti1Image(data[..., c], image.affine, header, dict(image.extra)) for c in range(image.shape[3])]


def same_grid(image: nib.Nifti1Image, other: nib.Nifti1Image) -> bool:
    """Whether two 3D images have the same shape, and their affines place every corner within a tenth of a voxel."""
    if image.shape[:3] != other.shape[:3]:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]], [1], indexing="ij")).reshape(4, -1)
    apart_mm = np.linalg.norm((image.affine - other.affine)[:3] @ corners, axis=0)
    return bool(apart_mm.max() <= GRID_TOLERANCE * np.linalg.norm(image.affine[:3, :3], axis=0).min())


def mask_classes(image: nib.Nifti1Image, labels: dict[int, int] | None = None, name: str = "mask") -> np.ndarray:
    """The classes (X, Y, Z), uint8, of a mask on its own grid.

    Args:
        image: the mask.
        labels: {value: class}; other values are background (0). Values must then be whole numbers. None: a voxel with
            a value above 0 is lesion, whatever the value (a broken ``scl_slope``); of a soft mask, with fractions
            between 0 and its largest value, the upper half is.
        name: stands for the mask in errors.

    Raises:
        UserError: without ``labels`` for values below 0, and for several that are no soft mask, since these are labels;
            with them for values that are not whole numbers.
    """
    values = np.asanyarray(image.dataobj)
    if labels is None:
        return _lesion(values, name)
    whole = np.rint(values)
    if values.dtype.kind == "f" and np.abs(values - whole).max(initial=0) > WHOLE:
        raise UserError(
            f"{name}: found fractions, expected whole-number labels for --labels; check the scl_slope in its header"
        )
    classes = np.zeros(values.shape, np.uint8)
    for value, number in labels.items():
        classes[whole == value] = number
    return classes


def _lesion(values: np.ndarray, name: str) -> np.ndarray:
    """Whether a voxel is lesion, uint8, by a mask of one class: 0 and one other value, or a soft mask."""
    positive = values > 0
    top = float(values.max(initial=0))
    if is_soft(values):
        return (values >= top / 2).astype(np.uint8) if top > 1 else (values >= 0.5).astype(np.uint8)
    several = not (np.abs(values[positive] - top) <= WHOLE * top).all()
    if several or float(values.min(initial=0)) < -WHOLE * max(top, WHOLE):  # such as 255 stored as int8
        found = np.unique(values[values != 0])
        shown = ", ".join(f"{v:g}" for v in found[:8]) + (", …" if len(found) > 8 else "")
        raise UserError(f"{name}: found the values {shown}, expected 0 and one other above 0; say with --labels which "
                        "ones are lesion, such as --labels=-1")
    return positive.astype(np.uint8)


def is_soft(values: np.ndarray) -> bool:
    """Whether a mask holds probabilities or an interpolated outline: fractions between 0 and its largest value.

    A broken ``scl_slope`` gives one fraction, or whole labels times one; those are no soft mask.
    """
    if values.dtype.kind != "f":
        return False
    positive = values[values > 0]
    if not positive.size:
        return False
    top = float(positive.max())
    between = (positive < top * (1 - WHOLE)) & (np.abs(positive - np.rint(positive)) > WHOLE * max(top, 1))
    tails = positive <= WHOLE * top
    return bool((between | tails).any()) and (top >= 0.5)


def image_like(array: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    """``array`` (X, Y, Z) as an image with the affine, the sform and qform codes and the units of ``like``.

    Floating-point data are stored as float32, all others as uint8, without scaling.

    Raises:
        ValueError: for another shape than that of ``like``, or labels outside 0..255.
    """
    array = np.asarray(array)
    if array.shape != tuple(like.shape[:3]):
        raise ValueError(f"array of shape {array.shape} does not fit the scan's {tuple(like.shape[:3])}")
    dtype = np.float32 if array.dtype.kind == "f" else np.uint8
    if dtype is np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError("labels outside 0..255 do not fit uint8")
    kind = nib.Nifti2Image if isinstance(like, nib.Nifti2Image) else nib.Nifti1Image
    header = _grid_header(like.extra.get("header", like.header), kind)
    header.set_data_shape(array.shape)
    header.set_data_dtype(dtype)
    # nibabel rewrites sform and qform where the affine is not close to the header's, so such an affine is left out.
    affine = header.get_best_affine()
    return kind(array.astype(dtype, copy=False), like.affine if np.allclose(like.affine, affine) else affine, header)


def _grid_header(source, kind: type) -> nib.Nifti1Header:
    """A new header with what ``source`` says of its grid, and nothing else: no name, intent, free text, colour map,
    display window or extension of the scan belongs to a mask."""
    header = kind.header_class()
    for name in GRID_FIELDS:
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
    header["xyzt_units"] = source["xyzt_units"]
    return header


def save_like(array: np.ndarray, like: nib.Nifti1Image, path: str | Path) -> None:
    """Write ``image_like(array, like)`` to ``path``, whole or not at all."""
    with whole_file(path) as temporary:
        nib.save(image_like(array, like), temporary)
