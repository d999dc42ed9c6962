"""Training batches: the order of cases, crops, patches and augmentation."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from meshnet.data.augment import Augment, case_seed
from meshnet.data.reader import PreparedData
from meshnet.errors import AGAIN, TOKEN, Surroundings, first_line
from meshnet.machine import usable_cores
from meshnet.scans.intensity import as_input

BATCH_KEYS = ("image", "mask")
SHARED = Path("/dev/shm")
NO_SHARED = re.compile(r"/torch_\w*|\(shm\)|shared memory|Bus error|ancdata|/psm_|shm_open")
WORKER_ENDED = re.compile(r"DataLoader worker .*(killed|exited)", re.DOTALL)


class TrainingCases(torch.utils.data.Dataset):
    """Cases by (case, epoch): cropped, and augmented by the seed (seed, epoch, case).

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
    """A patch of ``size`` voxels of image (C, X, Y, Z) and mask (X, Y, Z); half of them are centred on a lesion voxel.

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
    """The cases of an epoch: a permutation by (seed, epoch), repeated from its start to fill the last step.

    Its length is a multiple of ``step_size``, the cases of one optimizer step on all processes together.
    """
    order = np.random.default_rng([seed, epoch]).permutation(cases).tolist()
    return [order[i % len(order)] for i in range(-(-len(order) // step_size) * step_size)]


def batches_of_rank(order: list[int], batch_size: int, rank: int, world: int) -> list[list[int]]:
    """This process's share: batch b of rank r holds cases ``(b * world + r) * batch_size …`` of the order."""
    return [order[start:start + batch_size] for start in range(rank * batch_size, len(order), world * batch_size)]


def choose_workers(asked: int | None, on_gpu: bool, augmented: bool = False) -> int:
    """``data.workers``: on a GPU all cores that this process has, at least 2 and at most 8, or 16 to augment cases,
    which takes one core several times as long as a step takes a GPU."""
    if asked is not None:
        return asked
    if not on_gpu:
        return 2
    given = os.environ.get("OMP_NUM_THREADS", "") if os.environ.get(TOKEN) else ""  # its driver's share
    cores = int(given) if given.isdecimal() else usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(16 if augmented else 8, max(2, cores))


def load_batches(cases: TrainingCases, batches: list[list[int]], epoch: int, workers: int,
                 pinned: bool = False) -> Iterator[dict]:
    """Batches in order, read ahead by ``workers`` processes: image (B, C, X, Y, Z), mask (B, X, Y, Z), index (B,).

    pinned: in memory that a GPU copies from by itself.

    Raises:
        Surroundings: where the worker processes have too little shared memory, or one was killed.
    """
    # A generator of its own: making an iterator draws from torch's global one otherwise, once more in a resumed epoch.
    try:
        yield from torch.utils.data.DataLoader(
            cases, batch_sampler=[[(index, epoch) for index in batch] for batch in batches], num_workers=workers,
            generator=torch.Generator(), pin_memory=pinned,
            multiprocessing_context="fork" if workers else None)
    except (RuntimeError, OSError) as error:
        line = explain_worker(error, workers) if workers else ""
        if not line:
            raise
        raise Surroundings(line) from error


def explain_worker(error: Exception, workers: int) -> str:
    """One line where a worker process of the loader could not hand over a batch; "" for any other error."""
    text, flag = str(error), f"--data.workers {workers}"
    if NO_SHARED.search(text):
        free = f"{shutil.disk_usage(SHARED).free / 2**20:.1f} MiB free" if SHARED.is_dir() else "missing"
        return (f"{flag}: found too little shared memory for worker processes ({SHARED}: {free}), or a file of the "
                "data set gone while it was read; give the container more (docker run --shm-size=2g) or use "
                f"--data.workers 0, {AGAIN}")
    if WORKER_ENDED.search(text):
        return (f"{flag}: a worker process that reads cases was killed, probably for lack of memory "
                f"({first_line(error)}); use fewer --data.workers, {AGAIN}")
    return ""
