"""The memory of a training step on a GPU: what to keep, what to compute again, and the peak in bytes.

``peak`` goes through ``gpu_step`` and the loss map by map, so it is that of all tensors. cuDNN's workspaces and what
the allocator rounds up are not in it; a budget leaves ``RESERVE`` for them. """

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from meshnet.networks.gpu_tuning import Tuning

RESERVE = 520_000_000  # bytes of a budget that are left for cuDNN and the allocator
SMALL = 10_000_000  # bytes for what is not a map: weights, their gradients and averages, the optimizer
CONVOLUTION, RECOMPUTED, FROM_MAPS = 10, 4, 2  # work in reads or writes of a map: a second convolution, an output
# computed again, and the norm computed again for the gradient of its activation


class Plan(NamedTuple):
    """What a step keeps: ``convolved`` and ``active``, the numbers of the blocks whose convolution's output and whose
    own output are kept. ``reuse``: an output that the gradient of the weights needed is held until the activation below
    it has its gradient, which spares that a norm and costs a map."""

    convolved: tuple[int, ...]
    active: tuple[int, ...] = ()
    reuse: bool = True


class Sizes(NamedTuple):
    """Bytes of the ``image`` as it comes (float32) and in the type of the maps, of each block's map, and of the logits
    in that type and in float32; ``labels``: of a number for each voxel in a byte. ``restless``: the activation's
    gradient needs the norm's result, whatever is kept."""

    image: int
    input: int
    maps: tuple[int, ...]
    logits: int
    scores: int
    labels: int
    restless: bool = False


def sizes_of(model: nn.Module, shape: Sequence[int], itemsize: int, tuning: Tuning) -> Sizes:
    """The sizes for ``model`` on an input of ``shape`` (B, C, X, Y, Z), with ``itemsize`` bytes a value of a map."""
    batch, channels, *space = shape
    voxels = batch * int(torch.Size(space).numel())
    classes, arguments = model.head.out_channels, model.arguments
    restless = arguments["activation"] == "gelu" or (arguments["activation"] == "elu" and arguments["dropout"] > 0)
    return Sizes(channels * voxels * 4, channels * voxels * itemsize,
                 tuple(tuning.width(block.conv.out_channels) * voxels * itemsize for block in model.blocks),
                 classes * voxels * itemsize, classes * voxels * 4, voxels, restless)


def everything(blocks: int) -> Plan:
    """The plan of a plain step, which computes nothing twice."""
    return Plan(tuple(range(blocks)), tuple(range(blocks)))


def choose(sizes: Sizes, budget: int | None) -> Plan:
    """The plan with the least work of those whose tensors and ``RESERVE`` fit ``budget`` bytes; if none does, or
    without a budget, the one with the least memory."""
    costed = plans(sizes)
    fitting = [c for c in costed if budget is not None and c[0] + RESERVE <= budget]
    return min(fitting, key=lambda c: (c[1], c[0]))[2] if fitting else min(costed)[2]


@functools.lru_cache(16)
def plans(sizes: Sizes) -> list[tuple[int, int, Plan]]:
    """Every plan that is considered, as (peak, work, plan)."""
    blocks = len(sizes.maps)
    if blocks <= 12:
        chosen = [c for n in range(blocks + 1) for c in itertools.combinations(range(blocks), n)]
    else:  # too many to try all of them: evenly spaced ones
        chosen = [tuple(range(start, blocks, every)) for every in range(1, blocks + 1) for start in range(every)]
    found = [Plan(tuple(range(blocks)), tuple(range(n))) for n in range(blocks, 0, -1)]
    found += [Plan(c, (), reuse) for c in chosen for reuse in (True, False)]
    return [(peak(sizes, plan), work(sizes, plan), plan) for plan in found]


def work(sizes: Sizes, plan: Plan) -> int:
    """What ``plan`` computes twice, in bytes that are read or written."""
    again = sum(CONVOLUTION * size for block, size in enumerate(sizes.maps) if block not in plan.convolved)
    again += sum(RECOMPUTED * size for block, size in enumerate(sizes.maps) if block not in plan.active)
    return again + (0 if plan.reuse else sum(FROM_MAPS * size for size in sizes.maps))


def peak(sizes: Sizes, plan: Plan) -> int:
    """The most bytes of tensors at once in a step under ``plan``, beyond what is held between steps."""
    maps, held, most = sizes.maps, sizes.image + sizes.labels, 0
    below = sizes.input
    for block, size in enumerate(maps):  # forward: a convolution's input and output, then its output and the block's
        most = max(most, held + below + size)
        if block in plan.convolved:
            held += size
            most = max(most, held + size)
        held += size if block in plan.active else 0
        below = 0 if block in plan.active else size
    most = max(most, held + below + sizes.logits)
    most = max(most, held + sizes.logits + loss_bytes(sizes))
    return max(most, backward_peak(sizes, plan, held + sizes.logits)) + SMALL  # autograd holds the logits' gradient


def loss_bytes(sizes: Sizes) -> int:
    """What the loss adds to the logits: scores in float32, their logarithms of probabilities and gradients, and the
    labels as 64-bit numbers."""
    return 3 * sizes.scores + 8 * sizes.labels


def backward_peak(sizes: Sizes, plan: Plan, held: int) -> int:
    """The peak of the backward pass, with ``held`` bytes at its start: kept maps, image, logits and their gradient."""
    maps, most = sizes.maps, 0
    convolved, active = set(plan.convolved), set(plan.active)

    def see(beside: int) -> None:
        nonlocal most
        most = max(most, held + beside)

    def output(block: int, beside: int) -> int:
        """``gpu_step.Step.output``: bytes of what it returns that are not in ``held`` before."""
        nonlocal held
        if block < 0:
            see(beside + sizes.input)
            return sizes.input
        if block in active:
            active.remove(block)
            held -= maps[block]
            return maps[block]
        if block not in convolved:
            below = output(block - 1, beside)
            see(beside + below + maps[block])
            held += maps[block]
            convolved.add(block)
        see(beside + maps[block])
        return maps[block]

    top = len(maps) - 1
    z = output(top, 0)
    see(z + maps[top] + sizes.logits)  # the last layer's gradient, and the logits' in another layout
    gradient = maps[top]
    for block in range(top, -1, -1):
        z = z if plan.reuse else 0
        again = maps[block] if sizes.restless or not z else 0
        see(gradient + z + again)
        see(2 * gradient)  # of the norm's result and of its input; the convolution's output is in ``held``
        held -= maps[block]
        convolved.discard(block)
        z = output(block - 1, gradient)
        size = maps[block - 1] if block else sizes.image
        see(gradient + (z + size if plan.reuse else max(z, size)))
        gradient = size
    return most
