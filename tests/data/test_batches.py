"""Batches: who gets which case and when, patches, and memory that stays flat."""

import collections
import os
import signal

import numpy as np
import pytest
import torch

from meshnet.data import batches as module
from meshnet.data.batches import (
    TrainingCases,
    batches_of_rank,
    cut_patch,
    epoch_order,
    explain_worker,
    load_batches,
)
from meshnet.errors import Surroundings


@pytest.mark.parametrize(("cases", "batch", "accumulation", "world"),
                         [(9, 1, 1, 1), (9, 2, 1, 2), (7, 1, 4, 2), (3, 4, 2, 1)])
def test_every_case_comes_once_an_epoch_but_for_the_last_step(cases, batch, accumulation, world):
    step = batch * accumulation * world
    order = epoch_order(list(range(100, 100 + cases)), seed=3, epoch=5, step_size=step)
    assert len(order) % step == 0 and len(order) - cases < step
    assert set(collections.Counter(order[:cases]).values()) == {1}
    assert order[cases:] == [order[i % cases] for i in range(cases, len(order))]
    shares = [batches_of_rank(order, batch, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    # What the processes see in step s, together, is what one process would: the same cases, whoever has them.
    together = [case for group in zip(*shares) for share in group for case in share]
    assert together == order


def test_order_depends_on_seed_and_epoch_alone():
    cases = list(range(20))
    assert epoch_order(cases, 0, 0, 1) == epoch_order(cases, 0, 0, 1)
    assert len({tuple(epoch_order(cases, seed, epoch, 1)) for seed, epoch in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_in_order_whatever_the_workers(tiny_cases, workers):
    cases = TrainingCases(tiny_cases, None, [], 0, None)
    batches = [[4, 1], [0], [8, 2]]
    found = list(load_batches(cases, batches, 0, workers))
    assert [batch["index"].tolist() for batch in found] == batches
    assert torch.equal(found[0]["image"][1], torch.from_numpy(tiny_cases.read(1, "image")))
    assert found[0]["image"].dtype == torch.uint8 and found[0]["mask"].shape == (2, *tiny_cases.info["shape"])


def test_patches_lie_inside_and_half_hold_a_lesion_voxel_at_their_centre():
    image = np.arange(8 * 9 * 10, dtype=np.float32).reshape(1, 8, 9, 10)
    mask = np.zeros((8, 9, 10), np.uint8)
    mask[4, 4, 5] = 1
    centred = on_purpose = 0
    for seed in range(200):
        part, cut = cut_patch(image, mask, [3, 5, 12], np.random.default_rng(seed))
        assert part.shape == (1, 3, 5, 12) and cut.shape == (3, 5, 12)
        first = int(part[0, 0, 0, 0])
        x, y, z = np.unravel_index(first, mask.shape)
        assert np.array_equal(part[0, :, :, :10], image[0, x:x + 3, y:y + 5, z:z + 10])
        assert (part[0, :, :, 10:] == 0).all()  # the axis that was too short is padded
        centred += int(cut[1, 2, 5])
        on_purpose += np.random.default_rng(seed).random() < 0.5
    assert 70 <= on_purpose <= centred <= on_purpose + 60  # and now and then by chance


def test_a_patch_is_the_same_for_the_same_seed_epoch_and_case(tiny_cases):
    cases = TrainingCases(tiny_cases, None, [16, 16, 16], 7, None)
    assert torch.equal(cases[2, 3]["image"], cases[2, 3]["image"])
    assert not torch.equal(cases[2, 3]["image"], cases[2, 4]["image"])


def test_a_loader_holds_memory_flat(tiny_cases):
    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    cases = TrainingCases(tiny_cases, None, [], 0, None)
    batches = [[i % len(tiny_cases)] for i in range(50)]
    for _ in load_batches(cases, batches, 0, 0):
        pass
    before = anonymous()
    for epoch in range(4):
        for _ in load_batches(cases, batches, epoch, 0):
            pass
    assert anonymous() - before < 2000  # kB; 200 cases of 65 kB would be 13,000


@pytest.mark.parametrize(("words", "said"), [
    ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...", "shared memory"),
    ("unable to write to file </torch_71_3>: No space left on device (28)", "shared memory"),
    ("unable to open shared memory object </torch_5> in read-write mode: No such file or directory (2)", "--shm-size"),
    ("received 0 items of ancdata", "--data.workers 0"),
    ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "was killed"),
])
def test_workers_that_cannot_hand_over_a_batch_are_explained(words, said):
    line = explain_worker(RuntimeError(words), 3)
    assert line.startswith("--data.workers 3: ") and said in line
    assert "No space left on device" not in line or "shared memory" not in said  # not taken for a full disk
    assert explain_worker(RuntimeError("shapes differ"), 3) == ""


class Deadly(torch.utils.data.Dataset):
    """Cases whose worker is killed, as a system short of memory does."""

    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_a_matter_of_the_surroundings():
    with pytest.raises(Surroundings, match=r"--data.workers 1: a worker process that reads cases was killed"):
        list(load_batches(Deadly(), [[0], [1]], 0, 1))


@pytest.mark.parametrize("asked, on_gpu, environment, found", [
    (None, False, {}, 2), (0, True, {}, 0), (5, False, {}, 5), (None, True, {}, 8),
    (None, True, {"LOCAL_WORLD_SIZE": "4"}, 4), (None, True, {"LOCAL_WORLD_SIZE": "16"}, 2),
    (None, True, {"MESHNET_JOB": "t", "OMP_NUM_THREADS": "3"}, 3), (None, True, {"OMP_NUM_THREADS": "3"}, 8),
])
def test_how_many_processes_read(monkeypatch, asked, on_gpu, environment, found):
    """One thread is what accelerate launch sets, of a slot it is the share of the cores."""
    monkeypatch.setattr(module, "usable_cores", lambda: 16)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert module.choose_workers(asked, on_gpu) == found
    assert module.choose_workers(asked, on_gpu, augmented=True) == (16 if found == 8 else found)
