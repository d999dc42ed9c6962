"""Masks and probability maps that this program wrote, told from those that a person drew or corrected, and which
scan each is of."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.numbers import in_ml
from meshnet.scans.mask import box_of, slices, voxel_volume_mm3
from meshnet.scans.nifti import BAD_CONTENT, GZIP, unpacked

SIGNATURE = b"MeshNet"  # in the header's free text
DESCRIP, DESCRIP_2 = slice(148, 228), slice(240, 320)  # bytes of that text in a NIfTI-1 and a NIfTI-2 file
SIZE_2 = 540  # of a NIfTI-2 header, with which it begins
TAIL, CHUNK = 8, 1 << 22  # bytes at its end: the checksum and size of its content; bytes of another file read at once
MADE_OF = re.compile(SIGNATURE + rb" [0-9a-f]{8} of ([0-9a-f]{8})")


def signed(image: nib.Nifti1Image, scan: str = "") -> nib.Nifti1Image:
    """``image`` with the program's name, a checksum of its voxels and the ``scan_mark`` of its scan in its header, by
    which ``is_ours`` and ``of_another_scan`` know it: editors keep the header of a mask that is corrected by hand."""
    image.header["descrip"] = signature(image) + (f" of {scan}".encode() if scan else b"")
    return image


def signature(image: nib.Nifti1Image) -> bytes:
    """How the header's free text begins of an image that this program made."""
    return SIGNATURE + b" %08x" % zlib.crc32(in_order(np.asanyarray(image.dataobj)))


def in_order(voxels: np.ndarray) -> np.ndarray:
    """``voxels`` (X, Y, Z) with the last axis next in memory. Of a mask, which is mostly 0, only the box with something
    in it is copied: to turn all of it takes a tenth of a second."""
    if voxels.flags.c_contiguous or voxels.ndim != 3 or voxels.dtype.kind not in "bu":
        return np.ascontiguousarray(voxels)
    result = np.zeros(voxels.shape, voxels.dtype)
    if box := box_of(voxels):
        result[slices(box)] = voxels[slices(box)]
    return result


def has_signature(image: nib.Nifti1Image) -> bool:
    """Whether an image is as this program made it."""
    said = bytes(image.header["descrip"].item())
    return said.startswith(SIGNATURE) and said.partition(b" of ")[0] == signature(image)


def is_ours(path: str | Path) -> bool:
    """Whether a file is a mask or a probability map as this program wrote it."""
    try:
        return has_signature(nib.load(path))
    except (*BAD_CONTENT, KeyError, EOFError, zlib.error):
        return False


def scan_mark(scans: Sequence[str | Path]) -> str:
    """Eight letters that tell the content of a case's files from that of other ones, whatever they are called and
    whether or not, and how, they are compressed; "" where one cannot be read."""
    if not all(map(os.path.isfile, scans)):  # a pipe can be read once
        return ""
    try:
        sums = [content_sum(path) for path in scans]
    except (OSError, EOFError, zlib.error, UserError):
        return ""
    return f"{zlib.crc32(np.array(sums, '<u4').tobytes()):08x}"


def content_sum(path: str | Path) -> int:
    """The CRC-32 of what a file holds once unpacked.

    A compressed file ends with the checksum and the size of its content, so that only its first and last bytes are
    read where that is the size that its header tells. It is not for a file of several members (bgzip), whose end is of
    the last one alone, or with zeros after it: such a file is unpacked.
    """
    with open(path, "rb") as file:
        if file.read(2) != GZIP:
            file.seek(0)
            found = 0
            while part := file.read(CHUNK):
                found = zlib.crc32(part, found)
            return found
        file.seek(0)
        wanted = told_size(gzip.GzipFile(fileobj=file).read(SIZE_2))
        file.seek(-TAIL, os.SEEK_END)
        end = file.read(TAIL)
        if wanted is not None and int.from_bytes(end[4:], "little") == wanted % 2 ** 32:
            return int.from_bytes(end[:4], "little")
        file.seek(0)
        return zlib.crc32(unpacked(file.read(), str(path)))


def told_size(start: bytes) -> int | None:
    """Bytes of the NIfTI file that begins so, by its header; None where there is none."""
    form = nib.Nifti2Header if start[4:8] == b"n+2\0" else nib.Nifti1Header
    try:
        header = form(start[:form.sizeof_hdr], check=False)
        return header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    except (*BAD_CONTENT, KeyError):
        return None


def of_another_scan(path: str | Path, scans: Sequence[str | Path]) -> bool:
    """Whether a mask that this program wrote is of other files than ``scans``, or of these before they were changed.
    False where it is not known, as of a mask of an earlier version."""
    found = MADE_OF.match(description(path))
    return found is not None and (mark := scan_mark(scans)) != "" and found[1].decode() != mark


def carries_our_name(path: str | Path) -> bool:
    """Whether a file is a mask or a probability map that this program wrote, corrected by hand since or not."""
    return description(path).startswith(SIGNATURE)


def description(path: str | Path) -> bytes:
    """The free text in the header of a NIfTI file; empty where there is none. It reads the first bytes alone, so that
    each of many thousands of scans can be asked."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP
            file.seek(0)
            header = (gzip.GzipFile(fileobj=file) if zipped else file).read(DESCRIP_2.stop)
    except (OSError, EOFError, zlib.error):
        return b""
    size = min(int.from_bytes(header[:4], order) for order in ("little", "big"))
    return header[DESCRIP_2 if size == SIZE_2 else DESCRIP].rstrip(b"\0")


def replaced_remarks(path: str | Path, mask: nib.Nifti1Image) -> list[str]:
    """Whether writing ``mask`` to ``path`` replaces another result: of another model or with other settings; of another
    scan where the mask is of an earlier version, which does not say of which."""
    if not Path(path).exists():
        return []
    try:
        earlier = nib.load(path)
        voxels = np.asanyarray(earlier.dataobj)
    except (*BAD_CONTENT, KeyError, EOFError, zlib.error):
        return []
    if np.array_equal(voxels, np.asanyarray(mask.dataobj)) and np.allclose(earlier.affine, mask.affine, atol=1e-3):
        return []
    was, now = MADE_OF.match(description(path)), MADE_OF.match(bytes(mask.header["descrip"].item()))
    other = ", with other settings or of another scan of that name" if not was else (
        " or with other settings" if not now or now[1] == was[1] else
        ", with other settings or of the scan before it was changed")
    volume_ml = np.count_nonzero(voxels) * voxel_volume_mm3(earlier.affine) / 1000
    return [f"replaces an earlier mask of {in_ml(volume_ml)}, by another model{other}; -o writes elsewhere"]
