"""Masks and probability maps that this program wrote, told from those that a person drew or corrected."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.scans.nifti import BAD_CONTENT

SIGNATURE = b"MeshNet"  # in the header's free text


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
