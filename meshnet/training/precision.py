"""The precision of a training step: what ``training.precision: auto`` means on this machine."""

import os

import torch

# The compute capability from which NVIDIA's cards multiply in each format on tensor cores: Volta, and Ampere.
FLOAT16_CORES, BFLOAT16_CORES = (7, 0), (8, 0)


def choose_precision(asked: str, device: torch.device | None, begun_in: str | None = None) -> str:
    """``no`` (float32), ``fp16`` or ``bf16``.

    Args:
        asked: ``training.precision``. Anything but ``auto`` is what it says.
        device: where the step runs; None: a CPU.
        begun_in: what a run that is continued began with, which ``auto`` keeps, on whatever card it is continued.

    ``auto`` takes fp16 or bf16 from a launcher that says one of them (``accelerate launch`` with a configuration file;
    its ``no`` is also what it says without one). Otherwise a GPU decides, by what it is good at: bf16 where it has
    tensor cores for it, since that costs what fp16 does and needs no loss scale, fp16 where it has them for that alone,
    and float32 on older ones and on CPUs.
    """
    if asked != "auto":
        return asked
    if begun_in:
        return begun_in
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if told in ("fp16", "bf16"):
        return told
    if device is None or device.type != "cuda":
        return "no"
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= BFLOAT16_CORES else "fp16" if capability >= FLOAT16_CORES else "no"
