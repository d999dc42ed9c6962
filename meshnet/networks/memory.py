"""The memory of a training step of a MeshNet: which maps to keep, which to compute again, and an estimate in bytes.

A plain step keeps two maps per block, the outputs of convolution and activation, since both are needed for gradients.
With checkpointing a block keeps at most the convolution's output: norm and activation follow from it at little cost.
Blocks that keep nothing are convolved a second time, from the nearest kept output below. ``plan_checkpoints`` chooses
what to keep for a budget in bytes, with as few second convolutions as possible. The statistics of norms are updated
once.
"""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from meshnet.kernels import calls, normalise
from meshnet.networks import gpu_memory

PLANNED = 0.95  # share of a budget that is planned for maps; threads and libraries need the rest
LOSS_COPIES = 4  # logits, their gradient, and two intermediate results of a loss


# ---------------------------------------------------------------- plans

def plan_checkpoints(model: nn.Module, shape: Sequence[int], bytes_per_value: int, budget: int | None,
                     device: torch.device | None = None) -> tuple | None:
    """Which blocks of ``model`` (a MeshNet) keep their convolution's output for the backward pass.

    Args:
        shape: of the input, (B, C, X, Y, Z).
        bytes_per_value: of a map: 4 for float32, 2 for fp16 and bf16.
        budget: bytes that the step may add to what the process holds; None asks for the least memory with which no
            convolution is computed more than twice.
        device: where the step will run; None means where the model is.

    Returns:
        None if a plain step fits, so that nothing is computed twice. Else the numbers of the blocks that are kept: of
        the plans that fit, the one with the fewest second convolutions; if none fits, the one with the least memory.
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


def plan_on_gpu(model: nn.Module, shape: Sequence[int], bytes_per_value: int) -> gpu_memory.Plan:
    """What a step of ``model`` (a MeshNet) keeps on a CUDA device; arguments as ``plan_checkpoints``."""
    if not model.checkpointing and model.memory_budget is None:
        return gpu_memory.everything(len(model.blocks))
    sizes = gpu_memory.sizes_of(model, tuple(shape), bytes_per_value, model.tuning)
    return gpu_memory.choose(sizes, model.memory_budget)


def maps_kept(model: nn.Module, compiled: bool) -> int:
    """The number of maps that a plain step keeps per block: the outputs of convolution and activation, and in PyTorch
    a third one, where an activation needs its input or dropout its mask."""
    return 2 if compiled or not (model.arguments["dropout"] or model.arguments["activation"] != "relu") else 3


def goes_by_kernels(model: nn.Module, bytes_per_value: int, device: torch.device | None = None) -> bool:
    """Whether the kernels compute the convolutions of a step: in float32 on the CPU."""
    device = device or model.head.weight.device
    return device.type == "cpu" and bytes_per_value == 4 and calls.available()


def map_sizes(model: nn.Module, shape: tuple[int, ...], bytes_per_value: int) -> tuple[int, ...]:
    """The bytes of the input, of a map of each block, and of the logits (float32, as the loss sees them)."""
    batch, channels, *space = shape
    voxels = batch * int(torch.Size(space).numel())
    widths = [channels, *(block.conv.out_channels for block in model.blocks)]
    return (*(w * voxels * bytes_per_value for w in widths), model.head.out_channels * voxels * 4)


@functools.lru_cache(64)
def choose_plan(sizes: tuple[int, ...], budget: int | None, compiled: bool, kept: int = 2) -> tuple | None:
    """``plan_checkpoints`` for the bytes of ``map_sizes``; ``kept`` is the result of ``maps_kept``."""
    blocks = len(sizes) - 2
    if budget is not None and plain_peak(sizes, kept) <= budget:
        return None
    if blocks <= 12:
        plans = [p for n in range(blocks + 1) for p in itertools.combinations(range(blocks), n)]
    else:  # too many to try all of them: evenly spaced ones
        plans = [tuple(range(start, blocks, every)) for every in range(1, blocks + 1) for start in range(every)]
    costed = [(plan_peak(sizes, plan, compiled), second_convolutions(sizes, plan), plan) for plan in plans]
    fitting = [c for c in costed if budget is not None and c[0] <= budget]
    return min(fitting, key=lambda c: (c[1], c[0]))[2] if fitting else min(costed)[2]


def second_convolutions(sizes: Sequence[int], plan: Sequence[int]) -> int:
    """The amount of second convolutions under ``plan``: the bytes of the maps that they read."""
    return sum(sizes[block] for block in range(len(sizes) - 2) if block not in plan)


def plain_peak(sizes: Sequence[int], kept: int = 2) -> int:
    """The peak of a plain step in bytes: ``kept`` maps per block, the gradient on its way down, and the loss's own."""
    return kept * sum(sizes[1:-1]) + 3 * max(sizes[1:-1]) + LOSS_COPIES * sizes[-1]


def blocks_peak(sizes: Sequence[int], compiled: bool) -> int:
    """The peak in bytes of a step that keeps the output of each block, and computes a whole block again in its turn.

    The maps that one block then takes, with the kernels or PyTorch, were measured.
    """
    return sum(sizes[1:-1]) + (3 if compiled else 5) * max(sizes[1:-1]) + LOSS_COPIES * sizes[-1]


def plan_peak(sizes: Sequence[int], plan: Sequence[int], compiled: bool) -> int:
    """The peak of a step under ``plan`` in bytes, found by going through the step."""
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
    """The peak of ``checkpointing.activated`` in bytes, with ``beside`` bytes in use elsewhere.

    What that function adds to its ``held`` is added to this one, {block: bytes}.
    """
    peak = 0
    for b in range(max((b for b in held if b <= block), default=-1) + 1, block + 1):
        held[b] = maps[b]
        peak = max(peak, sum(held.values()) + beside + (maps[b - 1] if b else 0))
    return max(peak, sum(held.values()) + beside + maps[block])


def estimate_training_memory(model: nn.Module, batch: int, shape: Sequence[int], dtype: torch.dtype = torch.float32,
                             device: torch.device | None = None) -> int:
    """The bytes that one training step (forward, loss and backward) adds to what the process holds.

    Args:
        model: a MeshNet with ``checkpointing`` and ``memory_budget`` as they will be.
        batch: cases in one forward pass.
        shape: (X, Y, Z) of a case.
        dtype: of the maps.
        device: where the step will run; None means where the model is.

    Parameters, their gradients and the state of the optimizer are left out; they take less than 3 MB in the largest
    published MeshNet.
    """
    size = torch.empty((), dtype=dtype).element_size()
    whole = (batch, model.arguments["in_channels"], *shape)
    if (device or model.head.weight.device).type == "cuda":
        return gpu_memory.peak(gpu_memory.sizes_of(model, whole, size, model.tuning),
                               plan_on_gpu(model, whole, size))
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
    """The bytes that the compiled kernels need for themselves while they convolve one case."""
    box = tuple((0, n) for n in shape)
    return max(calls.column_bytes([block.conv.out_channels] * 2, [block.conv.dilation[0]], [box, box], shape)
               for block in model.blocks)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters of ``model``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
