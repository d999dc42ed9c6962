"""What may be quicker on one GPU and slower on another: three switches of a training step.

``auto`` is measured once on a machine and kept in the cache folder. No GPU was available during development: what is
measured there has not been tried.
"""

import contextlib
import json
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional

from meshnet.files import write_json
from meshnet.machine import cache_folder

SIZE, REPEATS = 128, 5  # voxels of a side of the map that is measured, and times
PADS_BELOW, TRIES_BELOW = 0.9, 0.95  # of the time without: padding also takes memory, trying takes the first step
MULTIPLE = 8  # channels that tensor cores take at once, in half precision


@dataclass(frozen=True)
class Tuning:
    """``fold_bias``: a norm takes the bias of its convolution, so that nothing is added to the map. ``pad_channels``:
    maps have zeros up to a multiple of ``MULTIPLE`` channels. ``benchmark``: cuDNN tries its algorithms on the first
    step."""

    fold_bias: bool = True
    pad_channels: bool = False
    benchmark: bool = False

    def width(self, channels: int) -> int:
        """The channels of a map in memory."""
        return -(-channels // MULTIPLE) * MULTIPLE if self.pad_channels else channels


def choose_tuning(asked: dict[str, str], channels: int, dtype: torch.dtype, device: torch.device,
                  budget: int | None) -> Tuning:
    """The switches of a run.

    Args:
        asked: ``fold_bias``, ``pad_channels`` and ``cudnn_benchmark``, each ``auto``, ``true`` or ``false``. channels:
        of the maps. budget: bytes of a memory budget. With one, ``auto`` neither pads nor lets cuDNN try algorithms
        that want memory.
    """
    found = {"pad_channels": False, "cudnn_benchmark": False}
    if device.type == "cuda" and budget is None and any(asked[name] == "auto" for name in found):
        found = measured(channels, dtype, device)
    chosen = {name: found.get(name, True) if value == "auto" else value == "true" for name, value in asked.items()}
    return Tuning(chosen["fold_bias"], chosen["pad_channels"], chosen["cudnn_benchmark"])


def measured(channels: int, dtype: torch.dtype, device: torch.device) -> dict[str, bool]:
    """What is quicker on this GPU for maps of ``channels``, from the cache folder or measured now."""
    path = cache_folder() / "gpu-tuning.json"
    key = " ".join([torch.cuda.get_device_name(device), torch.__version__, str(torch.backends.cudnn.version()),
                    str(channels), str(dtype)])
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    found = kept.get(key) if isinstance(kept, dict) else None
    if not isinstance(found, dict) or set(found) != {"pad_channels", "cudnn_benchmark"}:
        found = decide(lambda width, tries: seconds(width, dtype, device, tries), channels)
        with contextlib.suppress(OSError):  # without a place to keep it, it is measured again next time
            write_json(path, {**(kept if isinstance(kept, dict) else {}), key: found})
    return found


def decide(time_of, channels: int) -> dict[str, bool]:
    """The switches by ``time_of(width, tries)``, the seconds of a convolution of so many channels."""
    plain, tried, wide = time_of(channels, False), time_of(channels, True), Tuning(pad_channels=True).width(channels)
    tries = tried < TRIES_BELOW * plain
    best = min(plain, tried)
    return {"cudnn_benchmark": tries,
            "pad_channels": wide != channels and time_of(wide, tries) < PADS_BELOW * (tried if tries else best)}


def seconds(width: int, dtype: torch.dtype, device: torch.device, tries: bool) -> float:
    """The median time of a convolution of ``width`` channels and its gradients on ``device``."""
    x = torch.randn(1, width, SIZE, SIZE, SIZE, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight = torch.randn(width, width, 3, 3, 3, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    times = []
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=tries, allow_tf32=True):
        for _ in range(REPEATS + 1):
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            y = functional.conv3d(x, weight, padding=1)
            torch.autograd.grad(y, [x, weight], y.detach())
            torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
