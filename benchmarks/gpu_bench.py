"""What the parts of ``benchmarks/gpu.py`` share: rows of results with their marks, clocks, and one training step."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """Rows of results. ``big``: on a GPU, in full size. ``simulated``: memory is that of the simulated GPU."""

    def __init__(self, big: bool, simulated: bool):
        import torch

        self.big, self.simulated, self.rows = big, simulated, []
        self.device = torch.device("cuda" if big else "cpu")
        self.size = 256 if big else 12

    def add(self, what: str, value, least: float | None = None, most: float | None = None, unit: str = "") -> None:
        """A measured value, with the ``least`` or ``most`` that passes, if any."""
        mark = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else ""
        good = (least is None or value >= least) and (most is None or value <= most)
        self.rows.append({"what": f"{what}{', ' + unit if unit else ''}", "value": value, "mark": mark,
                          "result": "" if not mark else "pass" if good else "FAIL"})

    def true(self, what: str, good: bool) -> None:
        """Something that must be so."""
        self.rows.append({"what": what, "value": "yes" if good else "no", "mark": "yes",
                          "result": "pass" if good else "FAIL"})

    def skip(self, what: str, why: str) -> None:
        self.rows.append({"what": f"{what} ({why})", "value": "-", "mark": "", "result": "skipped"})

    def speed(self, what: str, value: float, least: float | None = None, most: float | None = None,
              unit: str = "") -> None:
        """``add``, with a mark on a GPU alone: a CPU's speed says nothing here."""
        self.add(what, value, least if self.big else None, most if self.big else None, unit)

    def seconds(self, work, repeats: int = 3) -> float:
        """The median time of ``work``, after a first call."""
        import torch

        wait = torch.cuda.synchronize if self.big else (lambda: None)
        work()
        times = []
        for _ in range(repeats if self.big else 1):
            wait()
            started = time.perf_counter()
            work()
            wait()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]

    @contextlib.contextmanager
    def half(self, kind=None):
        """Autocast in half precision: fp16 on a GPU, bf16 on a CPU."""
        import torch

        with torch.autocast(self.device.type, kind or (torch.float16 if self.big else torch.bfloat16)):
            yield


def make(bench: Bench, arguments: dict, budget: float | None):
    """A MeshNet on the device, with a budget in GB."""
    import torch

    from meshnet.networks.meshnet import MeshNet

    torch.manual_seed(0)
    model = MeshNet(**{"channels": 26 if bench.big else 5, **arguments}).to(
        bench.device, memory_format=torch.channels_last_3d)
    model.memory_budget = None if budget is None else int(budget * 1e9)
    return model


def one_step(bench: Bench, model, kind, size: int | None = None, scale: float = 1024.0):
    """Forward, loss and backward on one made-up case; the loss."""
    import torch

    from meshnet.config import LossConfig
    from meshnet.training.loss import SegmentationLoss

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, *[size or bench.size] * 3, generator=generator).to(bench.device)
    criterion = SegmentationLoss(LossConfig(), 2).to(bench.device)
    model.zero_grad()
    with bench.half(kind) if kind is not torch.float32 else contextlib.nullcontext():
        logits = model(x.contiguous(memory_format=torch.channels_last_3d))
    loss = criterion(logits, (x[:, 0] > 0.97).to(torch.uint8))
    (loss * scale).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    return loss.detach()


def run(bench: Bench, *words, environment: dict | None = None) -> int:
    """The exit code of one of the project's commands."""
    found = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, timeout=200, check=False,
                           env={**os.environ, **(environment or {})})
    return found.returncode
