"""From a configuration to a run that is ready to train: network, card, accelerator, run folder."""

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from meshnet.config import SCORES, Config, identity
from meshnet.data import augment
from meshnet.data.reader import PreparedData
from meshnet.errors import TOKEN, Surroundings, UserError, decoration, surrounding
from meshnet.files import lock, write_json, write_text
from meshnet.machine import cpu_wanted, parse_size
from meshnet.networks import build, cascade
from meshnet.networks.card import CONFIG, Card
from meshnet.recipe import dump_config, read_begun, read_mapping
from meshnet.runs.folder import (
    CONFIG_YAML,
    CURVES,
    DONE,
    FAILED,
    LOCK,
    METRICS,
    STATES,
    TRACKING,
    check_same,
    git_commit,
    read_metrics,
    versions,
)
from meshnet.runs.place import check_environment
from meshnet.training.agree import by_main
from meshnet.training.loss import SegmentationLoss
from meshnet.training.optim import Schedule, build_ema, build_optimizer
from meshnet.training.precision import choose_precision
from meshnet.training.said import own_cases
from meshnet.training.start_from import start_from

SIZE_MULTIPLE = 32  # what the strided baselines need; MeshNet takes any size


def training_box(config: Config, data: PreparedData) -> list[int] | None:
    """The box (x0, x1, y0, y1, z0, z1) that training reads of every case; None for the whole volume.

    A MeshNet with instance or group norm always trains on the whole volume, as at inference, since the air around the
    head changes the statistics of its norms.
    """
    meshnet_of_whole = config.model.name == "meshnet" and config.model.norm in ("instance", "group")
    if config.data.crop == "none" or meshnet_of_whole:
        return None
    return data.box(1 if config.model.name == "meshnet" else SIZE_MULTIPLE)


def build_network(config: Config, data: PreparedData, box: list[int] | None, seed: int, init: str | None):
    """The network of a config for a data set, its weights drawn with ``seed``, or taken from the model ``init``."""
    shape = tuple(b - a for a, b in zip(box[::2], box[1::2])) if box else tuple(data.info["shape"])
    arguments = build.arguments_from_config(
        config.model, len(data.inputs), len(data.info["classes"]), shape)
    torch.manual_seed(seed)
    network = build.build(config.model.name, arguments)
    if config.training.memory_budget:
        network.memory_budget = parse_size(config.training.memory_budget, "training.memory_budget")
    if init:
        start_from(network, init, data.info)
    return network


def estimate_step(config: Config, data: PreparedData, network: torch.nn.Module, box: list[int] | None,
                  precision: str | None, device: torch.device | None = None) -> int | None:
    """Bytes that a training step of ``network`` will take beyond what the process holds; None for a network that is
    not a MeshNet, which cannot be estimated."""
    if config.model.name != "meshnet":
        return None
    from meshnet.networks.memory import estimate_training_memory

    shape = config.model.patch or ([b - a for a, b in zip(box[::2], box[1::2])] if box else data.info["shape"])
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    return estimate_training_memory(network, config.training.batch_size, shape, dtype, device)


def refuse_budget(accelerator, config: Config, data: PreparedData, network: torch.nn.Module,
                  box: list[int] | None) -> None:
    """Refuse a ``training.memory_budget`` that no step fits.

    Raises:
        UserError: with the least that can be asked for.
    """
    budget = network.memory_budget if config.model.name == "meshnet" else None
    if budget is None:
        return
    from meshnet.networks.gpu_memory import RESERVE

    precision, device = accelerator.mixed_precision, accelerator.device
    tune(accelerator, config, network)
    least = estimate_step(config, data, network, box, precision, device) + (RESERVE if device.type == "cuda" else 0)
    if least > budget:
        raise UserError(f"training.memory_budget: found {budget / 1e9:.2f} GB, expected at least {least / 1e9:.2f} GB "
                        f"for a step in {'float32' if precision == 'no' else precision} on batches of "
                        f"{config.training.batch_size}; raise it, or use fewer --model.channels, a smaller "
                        "--training.batch_size or --model.patch")


def layout_of(network: torch.nn.Module, device: torch.device) -> torch.memory_format:
    """How maps lie in memory: channels last, but on a GPU where group and instance norm of PyTorch's would copy each
    map into the other layout and back. A MeshNet computes its norms itself."""
    from torch.nn import GroupNorm, InstanceNorm3d

    from meshnet.networks.meshnet import MeshNet

    copies = any(isinstance(module, (GroupNorm, InstanceNorm3d)) for module in network.modules())
    if device.type == "cuda" and copies and not isinstance(network, MeshNet):
        return torch.contiguous_format
    return torch.channels_last_3d


def tune(accelerator, config: Config, network: torch.nn.Module) -> None:
    """Set what depends on the GPU, the same on every process."""
    if accelerator.device.type != "cuda" or config.model.name != "meshnet":
        return
    from meshnet.networks.gpu_tuning import choose_tuning
    from meshnet.training.gpu_check import agrees

    asked = {name: getattr(config.training, name) for name in ("fold_bias", "pad_channels", "cudnn_benchmark")}
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    if not by_main(accelerator, lambda: agrees(accelerator.device, dtype)):
        network.by_modules = True
        print("warning: a step on this GPU does not give what PyTorch's own modules give; those are used, which take "
              "more time and more memory than is foretold: please report the card and the versions", file=sys.stderr)
    network.tuning = by_main(accelerator, lambda: choose_tuning(
        asked, config.model.channels, dtype, accelerator.device, network.memory_budget))
    torch.backends.cudnn.benchmark = network.tuning.benchmark


def describe_memory(taken: int | None) -> str:
    """``estimate_step`` in words."""
    if taken is None:
        return "not estimated for this network; --profile measures it"
    return f"about {taken / 1e9:.2f} GB for a training step, in addition to the process itself"


def model_card(config: Config, data: PreparedData, box: list[int] | None, training_data: dict) -> Card:
    """The card that config.json holds: how a scan must look before it reaches the network, and what it trained on."""
    info = data.info
    same = {key: info[key] for key in ("channels", "classes", "voxel_mm", "shape", "orientation", "scaling", "window")}
    others = {key: info[key] for key in ("averaged", "centre", "marks", "first", "mirror") if key in info}  # newer ones
    return Card(**same, **others, crop=box, patch=config.model.patch or None, training_data=training_data)


def make_accelerator(config: Config, folder: Path, resume: bool = False):
    """Accelerate for this process, in the precision of ``choose_precision``.

    Args:
        resume: whether a run in the folder is continued, in the precision that it began with.

    Raises:
        UserError: for fp16 without a GPU, which Accelerate would silently run in float32; for more processes than GPUs.
        Surroundings: where a driver gave this process a GPU that is not there, instead of days on the CPU; where a run
            began in fp16 and no GPU is there to continue it.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    from meshnet.training.tracking import check_installed

    check_installed(config.tracking)
    check_environment(os.environ)
    refuse_shared_gpus()
    apple = torch.backends.mps.is_available()  # whose 3D convolutions have been wrong in PyTorch: the CPU then
    process = PartialState(cpu=cpu_wanted() or (apple and not torch.cuda.is_available()))
    begun_in = by_main(process, lambda: recorded_precision(folder)) if resume else None
    accelerator = Accelerator(
        mixed_precision=choose_precision(config.training.precision, process.device, begun_in),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.training.accumulation, sync_with_dataloader=False),
        log_with=config.tracking.trackers or None, project_dir=str(folder))
    promised = os.environ.get("CUDA_VISIBLE_DEVICES", "") if os.environ.get(TOKEN) else ""
    if promised and promised != "-1" and not cpu_wanted() and accelerator.device.type == "cpu":
        raise Surroundings(f"GPU {promised}: found none that PyTorch can use, expected the one this run was given; "
                           "check it (nvidia-smi), then run the same command again")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        if begun_in == "fp16":
            raise Surroundings(f"{folder}: found a run that began in fp16 and no GPU to continue it, expected one; "
                               "continue it where it began, or use another --run_dir")
        raise UserError("training.precision: found fp16 on a CPU, expected a GPU for it; use --training.precision bf16 "
                        "or no, or an accelerate configuration without fp16")
    return accelerator


def refuse_shared_gpus() -> None:
    """Refuse more processes on this machine than it has GPUs: NCCL joins no two of them on the same one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and not cpu_wanted() else 0
    if 0 < gpus < processes:
        raise UserError(f"torchrun or accelerate launch: found {processes} processes on this machine, expected at most "
                        f"one for each GPU that can be used ({gpus}); start {gpus}, or set ACCELERATE_USE_CPU=1 to "
                        "train on the CPU")


def recorded_precision(folder: Path) -> str | None:
    """The precision that the run in a folder began with; None where there is none."""
    path = folder / CONFIG_YAML
    found = read_mapping(path).get("run", {}).get("precision") if path.is_file() else None
    return found if found in ("no", "fp16", "bf16") else None


@contextlib.contextmanager
def open_run_folder(accelerator, folder: Path, config: Config, same: dict, where: dict, resume: bool,
                    allow_changed: bool) -> Iterator[bool]:
    """Lock a run folder while training; yields whether it already holds a run, to be continued. The main process
    decides for all, since the folder may look otherwise to another machine, or not be there.

    Args:
        same: the flat identity of the run; a folder whose run has another one is refused.
        where: what is recorded but may change (paths).

    Raises:
        UserError: if another process is training in it, its run has another configuration, or the processes would
            train in different precisions.
    """
    path = folder / CONFIG_YAML
    taken = f"{folder}: another process is training in it; wait for it or use another --run_dir"

    def claim() -> tuple[bool, str]:
        begun = path.is_file() and resume
        if begun:
            with surrounding():  # a driver starts every run with the settings it began with
                check_same(path, read_identity(path), same, allow_changed)
        folder.mkdir(parents=True, exist_ok=True)
        with surrounding():
            held.enter_context(lock(folder / LOCK, taken))
        for stray in (*folder.glob(".tmp-*"), *(folder / STATES).glob(".tmp-*")):  # of a killed run
            stray.unlink()
        if not resume:
            clear(folder)
        run = {**json.loads(json.dumps(same)),
               **{key: value for key, value in where.items() if key != "data"}, "data_path": where["data"],
               "git_commit": git_commit(), "versions": versions(),
               "processes": accelerator.num_processes, "device": str(accelerator.device)}
        write_text(path, dump_config(config, {"run": {key: value for key, value in run.items()
                                                  if key not in identity(config)}}))
        for name in (DONE, FAILED):  # last: on a full disk a finished run stays one
            (folder / name).unlink(missing_ok=True)
        return begun, accelerator.mixed_precision

    with contextlib.ExitStack() as held:
        begun, precision = by_main(accelerator, claim)
        if precision != accelerator.mixed_precision:
            raise UserError(f"training.precision: found {precision} on the first process and "
                            f"{accelerator.mixed_precision} on this one, whose GPU is another, expected one for all; "
                            f"use --training.precision {precision}")
        yield begun


def read_identity(path: Path) -> dict:
    """The flat identity recorded in a run's config.yaml."""
    run = read_mapping(path).get("run", {})
    keys = ("fold", "inner_fold", "seed", "init", "init_sha256", "split_hash", "data", "cases_per_step", "precision")
    return identity(read_begun(path)) | {key: run[key] for key in keys if key in run}


def clear(folder: Path) -> None:
    """Remove the files of an earlier run from ``folder``; other files stay."""
    shutil.rmtree(folder / STATES, ignore_errors=True)
    cascade.drop_first(folder, CONFIG)
    for path in [p for name in ("*.safetensors", METRICS, "*cases.csv", TRACKING, CONFIG) for p in folder.glob(name)]:
        path.unlink()


def assemble(accelerator, config: Config, folder: Path, seed: int, data: PreparedData, train: list[int],
             val: list[int], box: list[int] | None, card: Card, network: torch.nn.Module):
    """A ``Run`` with everything built, moved to the device and prepared by Accelerate.

    Args:
        train, val: cases, as indices into ``data``.
        box: (x0, x1, y0, y1, z0, z1) in voxels that training reads of every case; None: the whole volume.
    """
    from meshnet.networks.norms import synchronise
    from meshnet.training.run import Run, steps_per_epoch
    from meshnet.training.tracking import Tracker

    if accelerator.num_processes > 1 and config.training.sync_batch_norm:
        network = synchronise(network, accelerator.device)
    layout = layout_of(network, accelerator.device)
    network = network.to(accelerator.device, memory_format=layout)
    tune(accelerator, config, network)
    ema = build_ema(network, config.ema)
    optimizer = build_optimizer(network, config.optimizer)
    steps = steps_per_epoch(config, len(train), accelerator.num_processes)
    # fp16 may skip the first step, after which the schedule has moved and the optimizer has not.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
    # Not given to prepare(): Accelerate would step it once per process, and not on steps that fp16 skips.
    schedule = Schedule(optimizer, config.scheduler, steps, config.training.max_epochs, config.training.warmup_epochs)
    # From here on each process draws its own dropout; the weights are the same on all of them.
    torch.manual_seed(augment.case_seed(seed, accelerator.process_index, 1))
    model, prepared = accelerator.prepare(network, optimizer)
    criterion = SegmentationLoss(config.loss, len(data.info["classes"])).to(accelerator.device)
    transform = None
    if augment.is_on(config.augment):
        transform = augment.Augment(config.augment, data.info["voxel_mm"], data.info["orientation"], data.of_scan)
    tracker = Tracker(accelerator, config.tracking, folder, identity(config) | card.training_data)
    return Run(accelerator, config, folder, seed, data, train, val, box, card, network, model, prepared, schedule,
               criterion, ema, transform, tracker, layout=layout)


def mark_failed(folder: Path, reason: str) -> None:
    """Record why a run failed."""
    write_json(folder / FAILED, {"reason": reason, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def finish_run(run, say) -> None:
    """Write ``DONE`` where the run is finished, print the best score; only then close the trackers, draw the curves."""
    progress, main = run.progress, run.accelerator.is_main_process
    if main and progress.finished:
        half = progress.best_dice if progress.best_half is None else progress.best_half  # of an earlier version's run
        write_json(run.folder / DONE, {"epochs": progress.epoch, "best_epoch": progress.best_epoch, "val_dice": half,
                                       "score": progress.best_dice, "score_at": run.config.training.score_at,
                                       "threshold": progress.threshold})
    if main and progress.best_epoch > 0:
        say(outcome(run))
    run.tracker.end()
    if not main:
        return
    with decoration(f"{run.folder / CURVES}: not drawn", "nothing else depends on it"):
        from meshnet.runs import curves

        rows = read_metrics(run.folder)
        title = curves.title_of(run.folder, read_mapping(run.folder / CONFIG_YAML)["run"], run.config.model.name)
        curves.draw_run(rows, run.folder / CURVES, title, SCORES[run.config.training.score_at], run.progress.best_epoch)


def outcome(run) -> str:
    """How a run stands: ``runs/a: finished at epoch 30, best validation Dice 0.581 (epoch 28; 0.6 at threshold 0.37)``,
    of the threshold that decides, and where that is 0.5 of the best one as well."""
    progress = run.progress
    early = progress.finished and progress.epoch < run.config.training.max_epochs
    state = "stopped early" if early else "finished" if progress.finished else "stopped"
    at = "" if progress.threshold is None else f", threshold {progress.threshold:g}"
    row = next((row for row in read_metrics(run.folder) if row.get("epoch") == progress.best_epoch), {})
    if not at and row.get("val_threshold") not in (None, 0.5):
        at = f"; {row['val_dice_swept']:.3f} at threshold {row['val_threshold']:g}"
    return (f"{run.folder}: {state} at epoch {progress.epoch}, best validation Dice {progress.best_dice:.3f} (epoch "
            f"{progress.best_epoch}{at}){own_cases(run.train, run.val)}")
