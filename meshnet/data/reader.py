"""Prepared cases, read from disk and cropped.

Volumes are read from the data set's memory-mapped Arrow files without decoding, and copied once.
"""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

from meshnet.data import schema
from meshnet.scans.intensity import as_input
from meshnet.scans.mask import Marks
from meshnet.scans.second import given_names


class PreparedData:
    """A folder that prepare.py wrote.

    ``info`` is its prepared.json; ``rows`` has every column but the volumes, a dictionary for each case.

    Raises:
        UserError: if ``path`` is not a prepared data set, or damaged, or of another version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.table, self.info = schema.load_dataset(path)
        self.rows = self.table.remove_columns(list(schema.VOLUMES)).to_list()

    @property
    def inputs(self) -> list[str]:
        """What a network is given, by name: the channels, for a cascade the classes of its first network, and where it
        is given the mirror image as well, all of these again."""
        return given_names(self.info["channels"], self.info.get("first"), self.info.get("mirror", False))

    @property
    def of_scan(self) -> list[bool] | None:
        """For a cascade, which of ``inputs`` are channels of the scan, mirrored or not; None otherwise."""
        if not self.info.get("first"):
            return None
        own = [True] * len(self.info["channels"]) + [False] * len(self.info["first"])
        return own * (2 if self.info.get("mirror") else 1)

    @property
    def marking(self) -> Marks:
        """Which class is scored, and the probability from which a network in training marks it."""
        return Marks(tuple(self.info["classes"]), self.info.get("marks"))

    def __len__(self) -> int:
        return len(self.rows)

    def indices(self, subjects: list[str]) -> list[int]:
        """The cases of ``subjects``, in the data set's order."""
        wanted = set(subjects)
        return [index for index, row in enumerate(self.rows) if row["subject"] in wanted]

    def read(self, index: int, column: str, box: list[int] | None = None) -> np.ndarray:
        """A volume of one case in its stored dtype: ``image`` (C, X, Y, Z), ``mask`` or ``mask_native`` (X, Y, Z).

        ``box`` (x0, x1, y0, y1, z0, z1) copies that part alone.
        """
        volume = schema.volume(self.table, index, column)
        mapped = volume
        if box is not None:
            x0, x1, y0, y1, z0, z1 = box
            volume = volume[..., x0:x1, y0:y1, z0:z1]
        copy = np.array(volume, order="C")
        release(mapped)
        return copy

    def image(self, index: int, box: list[int] | None = None) -> np.ndarray:
        """The conformed image (C, X, Y, Z), float32 in 0..1 (uint8 is divided by 255)."""
        return as_input(self.read(index, "image", box))

    def box(self, multiple: int = 1) -> list[int]:
        """One box (x0, x1, y0, y1, z0, z1) around all heads, grown to multiples of ``multiple`` voxels where the volume
        allows it."""
        grown = []
        for axis, size in enumerate(self.info["shape"]):
            low, high = self.info["box"][2 * axis:2 * axis + 2]
            length = min(-(-(high - low) // multiple) * multiple, size)
            low = max(0, min(low - (length - (high - low)) // 2, size - length))
            grown += [low, low + length]
        return grown


def release(view: np.ndarray) -> None:
    """Tell the system that this process no longer needs the pages of a view on a memory-mapped file.

    Without it the resident memory of a run over a large data set keeps growing, though all of it is file cache. It is
    only a hint: where it cannot be given, nothing happens.
    """
    start = -(-view.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (view.ctypes.data + view.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if os.name == "posix" and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
