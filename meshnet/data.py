"""Prepared cases for training: opened from disk, cropped, ordered, batched.

Volumes are read from the data set's memory-mapped Arrow files without decoding, and copied once. Which case comes
when depends on (seed, epoch) alone, so that a resumed run, more workers or more processes see the same order.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from meshnet import schema
from meshnet.augment import Augment, case_seed

BATCH_KEYS = ("image", "mask")


class PreparedData:
    """A folder that prepare.py wrote.

    ``info`` is its prepared.json; ``rows`` has every column but the volumes, a dictionary a case.

    Raises:
        UserError: if ``path`` is no prepared data set, or one of another version, or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.table, self.info = schema.load_dataset(path)
        self.rows = self.table.remove_columns(list(schema.VOLUMES)).to_list()

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
        """One box around every head, grown to multiples of ``multiple`` voxels where the volume allows it."""
        grown = []
        for axis, size in enumerate(self.info["shape"]):
            low, high = self.info["box"][2 * axis:2 * axis + 2]
            length = min(-(-(high - low) // multiple) * multiple, size)
            low = max(0, min(low - (length - (high - low)) // 2, size - length))
            grown += [low, low + length]
        return grown


def as_input(volume: np.ndarray) -> np.ndarray:
    """What a network sees: float32, and uint8 intensities divided to 0..1."""
    return volume.astype(np.float32) / 255 if volume.dtype == np.uint8 else volume.astype(np.float32, copy=False)


def release(view: np.ndarray) -> None:
    """Tell the system that the pages below a view on a memory-mapped file are no longer needed by this process.

    Without it a run over a large data set shows ever more resident memory, all of it file cache. A hint alone:
    where it cannot be given, nothing happens.
    """
    start = -(-view.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (view.ctypes.data + view.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if os.name == "posix" and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


class TrainingCases(torch.utils.data.Dataset):
    """Cases by (case, epoch): cropped, augmented as (seed, epoch, case) decide.

    Items: ``image`` (C, X, Y, Z), in the stored dtype where nothing was augmented (the loop divides on the device);
    ``mask`` (X, Y, Z) uint8; ``index``.
    """

    def __init__(self, data: PreparedData, box: list[int] | None, patch: list[int], seed: int, augment: Augment | None):
        self.data, self.box, self.patch, self.seed, self.augment = data, box, patch, seed, augment

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, epoch = key
        box = self.box or [edge for size in self.data.info["shape"] for edge in (0, size)]
        image, mask = (self.data.read(index, name, box) for name in BATCH_KEYS)
        seed = case_seed(self.seed, epoch, index)
        if self.patch:
            image, mask = cut_patch(image, mask, self.patch, np.random.default_rng(seed))
        if self.augment is not None:
            image, mask = self.augment(as_input(image), mask, seed)
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask), "index": index}


def cut_patch(image: np.ndarray, mask: np.ndarray, size: list[int], generator: np.random.Generator):
    """A patch of ``size`` voxels of image and mask; every other one, on average, is centred on a lesion voxel.

    Axes that are shorter than the patch are padded with zeros at their end.
    """
    gaps = [max(0, want - have) for want, have in zip(size, mask.shape)]
    image = np.pad(image, [(0, 0)] + [(0, gap) for gap in gaps])
    mask = np.pad(mask, [(0, gap) for gap in gaps])
    lesion = np.flatnonzero(mask)
    if len(lesion) and generator.random() < 0.5:
        centre = np.unravel_index(lesion[generator.integers(len(lesion))], mask.shape)
    else:
        centre = [generator.integers(length) for length in mask.shape]
    low = [int(np.clip(c - want // 2, 0, have - want)) for c, want, have in zip(centre, size, mask.shape)]
    cut = tuple(slice(start, start + want) for start, want in zip(low, size))
    return np.ascontiguousarray(image[(slice(None), *cut)]), np.ascontiguousarray(mask[cut])


def epoch_order(cases: list[int], seed: int, epoch: int, step_size: int) -> list[int]:
    """The cases of an epoch: a permutation by (seed, epoch), begun anew where the last step lacks cases.

    Its length is a multiple of ``step_size``, the cases of one optimizer step on all processes together.
    """
    order = np.random.default_rng([seed, epoch]).permutation(cases).tolist()
    return [order[i % len(order)] for i in range(-(-len(order) // step_size) * step_size)]


def batches_of_rank(order: list[int], batch_size: int, rank: int, world: int) -> list[list[int]]:
    """This process's share: batch b of rank r holds cases ``(b * world + r) * batch_size …`` of the order."""
    return [order[start:start + batch_size] for start in range(rank * batch_size, len(order), world * batch_size)]


def load_batches(cases: TrainingCases, batches: list[list[int]], epoch: int, workers: int) -> Iterator[dict]:
    """Batches in order, read ahead by ``workers`` processes: image (B, C, X, Y, Z), mask (B, X, Y, Z), index (B,)."""
    # A generator of its own: making an iterator draws from torch's global one otherwise, once more in a resumed epoch.
    return iter(torch.utils.data.DataLoader(
        cases, batch_sampler=[[(index, epoch) for index in batch] for batch in batches], num_workers=workers,
        generator=torch.Generator(), pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None))
