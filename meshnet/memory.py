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

from meshnet.kernels import calls, convolution, normalise

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
    sizes, kept = sizes_of(model, tuple(shape), bytes_per_value), maps_kept(model, compiled)
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


def sizes_of(model: nn.Module, shape: tuple[int, ...], bytes_per_value: int) -> tuple[int, ...]:
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
    peak = max(peak, recall_peak(maps, held, len(maps) - 1, 0))
    for block in reversed(range(len(maps))):
        gradient = maps[block]
        peak = max(peak, sum(held.values()) + gradient + (0 if compiled else 4 * gradient // normalise.PARTS))
        del held[block]
        if block:
            peak = max(peak, recall_peak(maps, held, block - 1, gradient))
            beside = maps[block - 1] if compiled else 2 * maps[block - 1]
            peak = max(peak, sum(held.values()) + gradient + beside)
    return peak + LOSS_COPIES * sizes[-1]


def recall_peak(maps: Sequence[int], held: dict[int, int], block: int, beside: int) -> int:
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
    sizes = sizes_of(model, whole, size)
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


# ---------------------------------------------------------------- the step itself

class Column(torch.autograd.Function):
    """Blocks and head of a MeshNet as one function, which keeps the convolutions' outputs that its plan names."""

    @staticmethod
    def forward(ctx, blocks: Sequence[nn.Module], head: nn.Module, plan: tuple[int, ...], x: torch.Tensor,
                *parameters: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.blocks, ctx.head, ctx.plan, ctx.count, ctx.dtype = blocks, head, plan, len(parameters), dtype
        kept, statistics = [], []
        with torch.autocast(kind, enabled=False):
            z = x.to(dtype)
            for i, block in enumerate(blocks):
                y = convolve(block, z)
                del z
                z, found = normalise.normalise(block, y, None, in_place=i not in plan)
                statistics.append(found)
                if i in plan:
                    kept.append(y)
                del y
            # As a product, since the library's convolution would copy its whole input into its own layout first.
            logits = torch.matmul(head.weight[:, :, 0, 0, 0].to(dtype), z.flatten(2)).unflatten(2, z.shape[2:])
            if head.bias is not None:
                logits += head.bias.to(dtype)[:, None, None, None]
        ctx.statistics = statistics
        ctx.save_for_backward(x)
        ctx.kept = kept  # not saved by autograd, which would hold all of them until the end of the backward pass
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        if ctx.kept is None:
            raise RuntimeError("Trying to backward through a checkpointed MeshNet a second time: what it kept is gone")
        x, = ctx.saved_tensors
        held = dict(zip(ctx.plan, ctx.kept))
        ctx.kept = None
        with torch.autocast(x.device.type, enabled=False):
            of_x, of_parameters = walk_back(ctx, x, held, gradient.to(ctx.dtype))
        names = [p for module in (*ctx.blocks, ctx.head) for p in module.parameters()]
        return (None, None, None, of_x, *(of_parameters.get(p) for p in names))


def run_column(blocks: Sequence[nn.Module], head: nn.Module, plan: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """``head(blocks(x))``, keeping for the backward pass what ``plan`` says."""
    parameters = [p for module in (*blocks, head) for p in module.parameters()]
    return Column.apply(list(blocks), head, tuple(plan), x, *parameters)


def convolve(block: nn.Module, x: torch.Tensor, purpose: str = "convolution") -> torch.Tensor:
    """The convolution of ``block``, in the type of ``x``."""
    conv = block.conv
    bias = None if conv.bias is None else conv.bias.detach().to(x.dtype)
    return convolution.convolve(x, conv.weight.detach().to(x.dtype), bias, conv.dilation[0], purpose)


def walk_back(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], gradient: torch.Tensor):
    """The gradients of ``x`` and of each parameter; ``held`` is emptied on the way."""
    blocks = ctx.blocks
    gradient, result = head_backward(ctx, x, held, gradient)
    for i in reversed(range(len(blocks))):
        gradient, found = normalise.normalise_backward(blocks[i], held.pop(i), ctx.statistics[i], gradient, True)
        result.update(found)
        conv = blocks[i].conv
        weight, dilation = conv.weight.detach().to(ctx.dtype), conv.dilation[0]
        wanted, needs_bias = i > 0 or x.requires_grad, conv.bias is not None
        z = activated(ctx, x, held, i - 1)
        if convolution.usable(gradient, weight):  # the input's gradient needs no input: let go of it first
            _, of_weight, of_bias = convolution.gradients(z, weight, dilation, gradient, (False, True, needs_bias))
            del z
            gradient, *_ = convolution.gradients(None, weight, dilation, gradient, (wanted, False, False))
        else:
            gradient, of_weight, of_bias = convolution.gradients(z, weight, dilation, gradient,
                                                                (wanted, True, needs_bias))
            del z
        result[conv.weight] = of_weight.to(conv.weight.dtype)
        if needs_bias:
            result[conv.bias] = of_bias.to(conv.bias.dtype)
    return gradient, result


def activated(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], block: int) -> torch.Tensor:
    """The output of ``block`` once more (-1: the input). Convolutions that this takes are put into ``held``."""
    if block < 0:
        return x.to(ctx.dtype)
    if block not in held:
        held[block] = convolve(ctx.blocks[block], activated(ctx, x, held, block - 1), "convolution, again")
    return normalise.normalise(ctx.blocks[block], held[block], ctx.statistics[block])[0]


def head_backward(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], gradient: torch.Tensor):
    """The gradient of the head's input, and those of its parameters."""
    head, space = ctx.head, gradient.shape[2:]
    gradient = gradient.flatten(2)
    z = activated(ctx, x, held, len(ctx.blocks) - 1).flatten(2)
    of_weight = sum(g @ one.t() for g, one in zip(gradient, z))
    del z
    result = {head.weight: of_weight.to(head.weight.dtype)[:, :, None, None, None]}
    if head.bias is not None:
        result[head.bias] = gradient.sum(dim=(0, 2), dtype=torch.float32).to(head.bias.dtype)
    weight = head.weight.detach()[:, :, 0, 0, 0].t().to(gradient.dtype)
    return torch.matmul(weight, gradient).unflatten(2, space), result
