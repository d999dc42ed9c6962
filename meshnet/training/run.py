"""A run: what it consists of, and its progress."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from meshnet.config import Config
from meshnet.data.reader import PreparedData
from meshnet.inference.crop import Seen
from meshnet.networks.card import Card
from meshnet.training.leave import Leave
from meshnet.training.optim import Schedule


@dataclass
class Progress:
    """How far a run is; part of every resume point, so old names of fields must be read in ``loop.resume``."""

    epoch: int = 0  # finished epochs
    batches: int = 0  # batches of the current epoch that this process has done
    step: int = 0  # optimizer steps in all
    loss_sum: float = 0.0  # over this process's batches of the current epoch
    seconds: float = 0.0  # spent in the current epoch before this start
    best_dice: float = -1.0  # at the threshold of training.score_at
    best_epoch: int = -1
    best_dice_ema: float = -1.0
    best_rank: list[float] | None = None  # of the best epoch: ``keep.rank_of``; None: of an earlier version's run
    best_rank_ema: list[float] | None = None
    best_half: float | None = None  # of the best epoch, at 0.5
    threshold: float | None = None  # of the best epoch; None: 0.5
    threshold_ema: float | None = None
    threshold_last: float | None = None
    monitor_best: float | None = None
    monitor_epoch: int = 0
    skipped: int = 0  # optimizer steps of the current epoch that fp16 skipped
    skipped_in_row: int = 0  # up to now
    without_lesion: int = 0  # validated epochs in a row in which nothing was predicted
    losses: list[float] = dataclasses.field(default_factory=list)  # of all validations
    warned: bool = False  # of a collapse
    finished: bool = False


@dataclass
class Run:
    """Everything that a run consists of. ``network`` is the plain module, ``model`` the one that Accelerate prepared.

    ``seen`` is what ``predict.seen_by`` has found in the cases of ``val``, by their positions, so that each is looked
    at once and not in every epoch.

    ``train`` and ``val`` are cases, as indices into ``data``. ``box`` (x0, x1, y0, y1, z0, z1), in voxels, is what
    training reads of each; None for the whole volume.
    """

    accelerator: Accelerator
    config: Config
    folder: Path
    seed: int
    data: PreparedData
    train: list[int]
    val: list[int]
    box: list[int] | None
    card: Card
    network: torch.nn.Module
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    criterion: torch.nn.Module
    ema: torch.optim.swa_utils.AveragedModel | None
    augment: object | None
    tracker: object
    progress: Progress = dataclasses.field(default_factory=Progress)
    leave: Leave = dataclasses.field(default_factory=Leave)
    layout: torch.memory_format = torch.channels_last_3d  # of the maps
    seen: dict[int, Seen | None] = dataclasses.field(default_factory=dict)


def cases_per_step(config: Config, processes: int) -> int:
    """Cases in one optimizer step, over all processes."""
    return config.training.batch_size * config.training.accumulation * processes


def steps_per_epoch(config: Config, cases: int, processes: int) -> int:
    """Optimizer steps in an epoch of ``cases``; the last step is filled with cases from the start of the epoch."""
    return -(-cases // cases_per_step(config, processes))
