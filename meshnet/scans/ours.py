"""Masks and probability maps that this program wrote, told from those that a person drew or corrected, and which
scan each is of."""

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.scans.mask import voxel_volume_mm3
from meshnet.scans.nifti import BAD_CONTENT

SIGNATURE = b"MeshNet"  # in the header's free text
DESCRIP, DESCRIP_2 = slice(148, 228), slice(240, 320)  # bytes of that text in a NIfTI-1 and a NIfTI-2 file
SIZE_2 = 540  # of a NIfTI-2 header, with which it begins
GZIP = b"\x1f\x8b"  # with which a compressed file begins
TAIL, CHUNK = 8, 1 << 22  # bytes at its end: the checksum and size of its content; bytes of another file read at once
MADE_OF = re.compile(SIGNATURE + rb" [0-9a-f]{8} of ([0-9a-f]{8})")


def signed(image: nib.Nifti1Image, scan: str = "") -> nib.Nifti1Image:
    """``image`` with the program's name, a checksum of its voxels and the ``scan_mark`` of its scan in its header, by
    which ``is_ours`` and ``of_another_scan`` know it: editors keep the header of a mask that is corrected by hand."""
    image.header["descrip"] = signature(image) + (f" of {scan}".encode() if scan else b"")
    return image


def signature(image: nib.Nifti1Image) -> bytes:
    """How the header's free text begins of an image that this program made."""
    return SIGNATURE + b" %08x" % zlib.crc32(np.ascontiguousarray(image.dataobj))


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
    whether or not they are compressed; "" where one cannot be read. A compressed file ends with its content's checksum,
    so that only the last bytes of it are read."""
    sums = b""
    try:
        for path in scans:
            if not os.path.isfile(path):  # a pipe can be read once
                return ""
            with open(path, "rb") as file:
                zipped = file.read(2) == GZIP
                file.seek(-TAIL if zipped else 0, os.SEEK_END if zipped else os.SEEK_SET)
                found = int.from_bytes(file.read(TAIL)[:4], "little") if zipped else 0
                while not zipped and (part := file.read(CHUNK)):
                    found = zlib.crc32(part, found)
            sums += found.to_bytes(4, "little")
    except OSError:
        return ""
    return f"{zlib.crc32(sums):08x}"


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
    other = " or with other settings" if MADE_OF.match(description(path)) else (
        ", with other settings or of another scan of that name")
    volume_ml = np.count_nonzero(voxels) * voxel_volume_mm3(earlier.affine) / 1000
    return [f"replaces an earlier mask of {volume_ml:.2f} mL, by another model{other}; -o writes elsewhere"]
