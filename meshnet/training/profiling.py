"""Where the time and the memory of a training step go: what ``train.py --profile`` prints.

A step is divided in two ways: by phase (read, forward, loss, backward, optimizer) with the memory of each as the system
sees it, and by operation with PyTorch's profiler, in which the compiled kernels appear by the names that
``kernels.convolution`` and ``kernels.normalise`` give them.
"""

import contextlib
import ctypes
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from meshnet.config import Config, TrackingConfig
from meshnet.data.batches import TrainingCases, batches_of_rank, epoch_order, load_batches
from meshnet.data.reader import PreparedData
from meshnet.training import assemble, loop
from meshnet.training.run import Run

WARM_UP, STEPS = 1, 3  # steps before the measurement and steps measured
OPERATIONS = 12  # number of operations listed


class Watch:
    """Seconds and memory of named phases: ``with watch("forward"): …``. Memory is what the allocator of a GPU
    holds, or on a CPU the process, in bytes above ``start``."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.memory = device, {}, {}
        self.start = self.held()

    def held(self, peak: bool = False) -> int:
        """Bytes held now, or at most since ``reset_peak``. 0 where the system does not report it."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(self.device)
        try:
            with open("/proc/self/status", encoding="ascii") as handle:
                key = "VmHWM:" if peak else "VmRSS:"
                return next(int(line.split()[1]) * 1024 for line in handle if line.startswith(key))
        except OSError:
            return 0

    def reset_peak(self) -> None:
        """Start measuring the highest value again."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as handle:
            handle.write("5")

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.reset_peak()
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault(phase, []).append(time.perf_counter() - began)
        self.memory.setdefault(phase, []).append((self.held(True) - self.start, self.held() - self.start))

    def peak(self) -> int:
        """The highest memory of any phase, bytes above the start."""
        return max(peak for phases in self.memory.values() for peak, _ in phases)

    def table(self) -> str:
        """A line for each phase: median seconds, share of the step, peak memory and memory held at its end."""
        middle = {phase: statistics.median(seconds) for phase, seconds in self.seconds.items()}
        whole = sum(middle.values())
        lines = [f"{'phase':12}{'seconds':>9}{'share':>7}{'peak GB':>9}{'kept GB':>9}"]
        for phase, seconds in middle.items():
            peak, kept = (max(values) / 1e9 for values in zip(*self.memory[phase]))
            lines.append(f"{phase:12}{seconds:9.3f}{seconds / whole:7.0%}{peak:9.2f}{kept:9.2f}")
        return "\n".join([*lines, f"{'step':12}{whole:9.3f}{1:7.0%}{self.peak() / 1e9:9.2f}"])


def profile_training(config: Config, cases: PreparedData, train: list[int], box: list[int] | None, seed: int,
                     network: torch.nn.Module) -> str:
    """``profile_step`` for a configuration, on the device and in the precision that training would use. Nothing is
    kept; arguments as for ``assemble``."""
    config = dataclasses.replace(config, tracking=TrackingConfig())
    with tempfile.TemporaryDirectory() as folder:
        accelerator = assemble.make_accelerator(config, Path(folder))
        estimated = assemble.estimate_step(config, cases, network, box, accelerator.mixed_precision, accelerator.device)
        card = assemble.model_card(config, cases, box, {})
        run = assemble.assemble(accelerator, config, Path(folder), seed, cases, train, [], box, card, network)
        return profile_step(run, estimated)


def profile_step(run: Run, estimated: int | None) -> str:
    """Train a few steps on the first cases of ``run``; a report of where their time and memory went.

    Args:
        run: newly assembled; its network is trained here, so it must not be used afterwards.
        estimated: bytes that a step was expected to take, to be compared with what it took.
    """
    size = run.config.training.batch_size
    cases = TrainingCases(run.data, run.box, run.config.model.patch, run.seed, run.augment)
    order = epoch_order(run.train, run.seed, 0, size * (WARM_UP + 2 * STEPS))
    batches = load_batches(cases, batches_of_rank(order, size, 0, 1)[:WARM_UP + 2 * STEPS], 0, 0)
    loop.begin_training(run)
    for _ in range(WARM_UP):
        loop.train_batch(run, next(batches))
    return_freed_memory()
    watch = Watch(run.accelerator.device)
    for _ in range(STEPS):
        with watch("read"):
            batch = next(batches)
        loop.train_batch(run, batch, watch)
        del batch
    activities = [torch.profiler.ProfilerActivity.CPU]
    if watch.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for batch in batches:
            loop.train_batch(run, batch)
    parts = [watch.table(), "", operations_table(profiler.key_averages(), watch.device.type)]
    if estimated is not None:
        parts += ["", f"memory of a step: {watch.peak() / 1e9:.2f} GB used, {estimated / 1e9:.2f} GB estimated "
                  f"({estimated / max(1, watch.peak()):.2f})"]
    return "\n".join(parts)


def return_freed_memory() -> None:
    """Let glibc return the freed memory that it keeps, which would hide what a step allocates."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def operations_table(averages, device: str) -> str:
    """The operations that took most of a step, without the operations that they call."""
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    timed = sorted(((getattr(event, key), event.count, event.key) for event in averages), reverse=True)
    whole = sum(microseconds for microseconds, *_ in timed) or 1
    lines = [f"{'operation':44}{'seconds':>9}{'share':>7}{'calls':>7}"]
    for microseconds, count, name in timed[:OPERATIONS]:
        lines.append(f"{name[:43]:44}{microseconds * 1e-6 / STEPS:9.3f}{microseconds / whole:7.0%}{count / STEPS:7.0f}")
    return "\n".join(lines)
