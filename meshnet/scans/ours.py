"""Masks and probability maps that this program wrote, told from those that a person drew or corrected."""

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.scans.mask import voxel_volume_mm3
from meshnet.scans.nifti import BAD_CONTENT

SIGNATURE = b"MeshNet"  # in the header's free text
DESCRIP, DESCRIP_2 = slice(148, 228), slice(240, 320)  # bytes of that text in a NIfTI-1 and a NIfTI-2 file
SIZE_2 = 540  # of a NIfTI-2 header, with which it begins
GZIP = b"\x1f\x8b"  # with which a compressed file begins


def signed(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """``image`` with the program's name and a checksum of its voxels in its header, by which ``is_ours`` knows it:
    editors keep the header of a mask that is corrected by hand."""
    image.header["descrip"] = signature(image)
    return image


def signature(image: nib.Nifti1Image) -> bytes:
    """What the header's free text holds of an image that this program made."""
    return SIGNATURE + b" %08x" % zlib.crc32(np.ascontiguousarray(image.dataobj))


def has_signature(image: nib.Nifti1Image) -> bool:
    """Whether an image is as this program made it."""
    said = bytes(image.header["descrip"].item())
    return said.startswith(SIGNATURE) and said == signature(image)


def is_ours(path: str | Path) -> bool:
    """Whether a file is a mask or a probability map as this program wrote it."""
    try:
        return has_signature(nib.load(path))
    except (*BAD_CONTENT, KeyError, EOFError, zlib.error):
        return False


def carries_our_name(path: str | Path) -> bool:
    """Whether a file is a mask or a probability map that this program wrote, corrected by hand since or not: by the
    first bytes alone, so that each of many thousands of scans can be asked."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP
            file.seek(0)
            header = (gzip.GzipFile(fileobj=file) if zipped else file).read(DESCRIP_2.stop)
    except (OSError, EOFError, zlib.error):
        return False
    size = min(int.from_bytes(header[:4], order) for order in ("little", "big"))
    return header[DESCRIP_2 if size == SIZE_2 else DESCRIP].startswith(SIGNATURE)


def replaced_remarks(path: str | Path, mask: nib.Nifti1Image) -> list[str]:
    """Whether writing ``mask`` to ``path`` replaces another result: of another model, with other settings, or of
    another scan: a mask does not name its scan."""
    if not Path(path).exists():
        return []
    try:
        earlier = nib.load(path)
        voxels = np.asanyarray(earlier.dataobj)
    except (*BAD_CONTENT, KeyError, EOFError, zlib.error):
        return []
    if np.array_equal(voxels, np.asanyarray(mask.dataobj)) and np.allclose(earlier.affine, mask.affine, atol=1e-3):
        return []
    volume_ml = np.count_nonzero(voxels) * voxel_volume_mm3(earlier.affine) / 1000
    return [f"replaces an earlier mask of {volume_ml:.2f} mL, by another model, with other settings or of another "
            "scan of that name; -o writes elsewhere"]
