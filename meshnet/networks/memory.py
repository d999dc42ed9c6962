"""The memory of a training step: what to keep for the backward pass, what to compute again, and what it will take.

A plain step keeps two maps a block, the convolution's output and the activation's, since both have a gradient to give.
Here a block keeps the convolution's output at most: norm and activation follow from it at little cost. Blocks whose
output is not kept are convolved a second time, from the nearest output below that is. Which ones to keep is chosen for
a budget in bytes (``plan_checkpoints``), with the fewest second convolutions. The norms' statistics move once.
"""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from meshnet.kernels import calls, normalise

PLANNED = 0.95  # the share of a budget that maps are planned into: threads and libraries take some for themselves
LOSS_COPIES = 4  # logits, their gradient, and what a loss makes of them on the way


# ---------------------------------------------------------------- plans

def plan_checkpoints(model: nn.Module, shape: Sequence[int], bytes_per_value: int, budget: int | None,
                     device: torch.device | None = None) -> tuple | None:
    """Which blocks of ``model`` (a MeshNet) keep their convolution's output for the backward pass.

    Args:
        shape: of the input, (B, C, X, Y, Z).
        bytes_per_value: of a map: 4 for float32, 2 for fp16 and bf16.
        budget: bytes that the step may take above what the process held before it; None asks for the least memory
            that computes no convolution more than twice.
        device: where the step will run; None means where the model is.

    Returns:
        None if a plain step fits (nothing is computed twice), else the kept blocks' numbers; of the plans that fit the
        one with the fewest second convolutions. If none fits, the plan that needs least.
    """
    compiled = goes_by_kernels(model, bytes_per_value, device)
    if budget is not None:
        budget = int(budget * PLANNED)
        if compiled:
            budget -= working_bytes(model, shape[2:])
    sizes, kept = map_sizes(model, tuple(shape), bytes_per_value), maps_kept(model, compiled)
    if model.recomputes_exactly:
        return choose_plan(sizes, budget, compiled, kept)
    return None if budget is not None and plain_peak(sizes, kept) <= budget else ()


def maps_kept(model: nn.Module, compiled: bool) -> int:
    """Maps that a plain step keeps for a block: the convolution's output and the activation's, and what PyTorch keeps
    between them where an activation or dropout needs its own input or mask."""
    return 2 if compiled or not (model.arguments["dropout"] or model.arguments["activation"] != "relu") else 3


def goes_by_kernels(model: nn.Module, bytes_per_value: int, device: torch.device | None = None) -> bool:
    """Whether a step's convolutions go by the compiled kernels: float32 on the CPU."""
    device = device or model.head.weight.device
    return device.type == "cpu" and bytes_per_value == 4 and calls.available()


def map_sizes(model: nn.Module, shape: tuple[int, ...], bytes_per_value: int) -> tuple[int, ...]:
    """Bytes of the input and of each block's map, then of the logits (float32, as the loss sees them)."""
    batch, channels, *space = shape
    voxels = batch * int(torch.Size(space).numel())
    widths = [channels, *(block.conv.out_channels for block in model.blocks)]
    return (*(w * voxels * bytes_per_value for w in widths), model.head.out_channels * voxels * 4)


@functools.lru_cache(64)
def choose_plan(sizes: tuple[int, ...], budget: int | None, compiled: bool, kept: int = 2) -> tuple | None:
    """``plan_checkpoints`` from the maps' bytes and what ``maps_kept`` says."""
    blocks = len(sizes) - 2
    if budget is not None and plain_peak(sizes, kept) <= budget:
        return None
    if blocks <= 12:
        plans = [p for n in range(blocks + 1) for p in itertools.combinations(range(blocks), n)]
    else:  # too many to look at all: evenly spaced ones
        plans = [tuple(range(start, blocks, every)) for every in range(1, blocks + 1) for start in range(every)]
    costed = [(plan_peak(sizes, plan, compiled), second_convolutions(sizes, plan), plan) for plan in plans]
    fitting = [c for c in costed if budget is not None and c[0] <= budget]
    return min(fitting, key=lambda c: (c[1], c[0]))[2] if fitting else min(costed)[2]


def second_convolutions(sizes: Sequence[int], plan: Sequence[int]) -> int:
    """How much is convolved twice, as the sum of the maps that those convolutions read."""
    return sum(sizes[block] for block in range(len(sizes) - 2) if block not in plan)


def plain_peak(sizes: Sequence[int], kept: int = 2) -> int:
    """Bytes at the height of a plain step: ``kept`` maps a block, the gradient on its way down, and the loss's own."""
    return kept * sum(sizes[1:-1]) + 3 * max(sizes[1:-1]) + LOSS_COPIES * sizes[-1]


def blocks_peak(sizes: Sequence[int], compiled: bool) -> int:
    """Bytes at the height of a step that keeps each block's output and computes a block again, norm and activation
    included, when its turn comes: what one block takes then, by the kernels or by PyTorch, was measured."""
    return sum(sizes[1:-1]) + (3 if compiled else 5) * max(sizes[1:-1]) + LOSS_COPIES * sizes[-1]


def plan_peak(sizes: Sequence[int], plan: Sequence[int], compiled: bool) -> int:
    """Bytes at the height of a step under ``plan``, found by walking through it."""
    maps, peak, live = sizes[1:-1], 0, 0
    for block, size in enumerate(maps):  # forward: input and output of a convolution, or its output and activation
        before = maps[block - 1] if block else sizes[0]
        peak = max(peak, live + size + max(before, size))
        live += size if block in plan else 0
    held = {block: maps[block] for block in plan}
    peak = max(peak, recompute_peak(maps, held, len(maps) - 1, 0))
    for block in reversed(range(len(maps))):
        gradient = maps[block]
        peak = max(peak, sum(held.values()) + gradient + (0 if compiled else 4 * gradient // normalise.PARTS))
        del held[block]
        if block:
            peak = max(peak, recompute_peak(maps, held, block - 1, gradient))
            beside = maps[block - 1] if compiled else 2 * maps[block - 1]
            peak = max(peak, sum(held.values()) + gradient + beside)
    return peak + LOSS_COPIES * sizes[-1]


def recompute_peak(maps: Sequence[int], held: dict[int, int], block: int, beside: int) -> int:
    """Bytes at the height of ``activated``; ``held`` then has what that puts there."""
    peak = 0
    for b in range(max((b for b in held if b <= block), default=-1) + 1, block + 1):
        held[b] = maps[b]
        peak = max(peak, sum(held.values()) + beside + (maps[b - 1] if b else 0))
    return max(peak, sum(held.values()) + beside + maps[block])


def estimate_training_memory(model: nn.Module, batch: int, shape: Sequence[int], dtype: torch.dtype = torch.float32,
                             device: torch.device | None = None) -> int:
    """Bytes that one training step takes above what the process held before: forward, loss and backward.

    Args:
        model: a MeshNet with ``checkpointing`` and ``memory_budget`` as they will be.
        batch: cases in one forward pass.
        shape: (X, Y, Z) of a case.
        dtype: what the maps are computed in.
        device: where; None means where the model is.

    Parameters, gradients and the optimiser's state are left out: below 3 MB for the largest published MeshNet.
    """
    size = torch.empty((), dtype=dtype).element_size()
    whole = (batch, model.arguments["in_channels"], *shape)
    sizes = map_sizes(model, whole, size)
    plan = model.checkpoint_plan(whole, size, device)
    compiled = goes_by_kernels(model, size, device)
    if plan is None:
        peak = plain_peak(sizes, maps_kept(model, compiled))
    elif model.recomputes_exactly:
        peak = plan_peak(sizes, plan, compiled)
    else:
        peak = blocks_peak(sizes, compiled and all(map(normalise.by_channel, model.blocks)))
    return peak + (working_bytes(model, shape) if compiled else 0)


def working_bytes(model: nn.Module, shape: Sequence[int]) -> int:
    """What the compiled kernels take for themselves while they convolve one case."""
    box = tuple((0, n) for n in shape)
    return max(calls.column_bytes([block.conv.out_channels] * 2, [block.conv.dilation[0]], [box, box], shape)
               for block in model.blocks)


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in ``model``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
