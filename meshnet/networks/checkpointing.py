"""A training step of a MeshNet that keeps some maps for the backward pass and computes the others again."""

from collections.abc import Sequence

import torch
from torch import nn

from meshnet.kernels import convolution, normalise


class CheckpointedMeshNet(torch.autograd.Function):
    """The blocks and the last layer of a MeshNet as one operation of autograd.

    Of the outputs of convolutions it keeps those of the blocks in ``plan``.
    """

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
                y = convolve_block(block, z)
                del z
                z, found = normalise.normalise(block, y, None, in_place=i not in plan)
                statistics.append(found)
                if i in plan:
                    kept.append(y)
                del y
            # A matrix product, since the library's convolution would first copy its input into another layout.
            logits = torch.matmul(head.weight[:, :, 0, 0, 0].to(dtype), z.flatten(2)).unflatten(2, z.shape[2:])
            if head.bias is not None:
                logits += head.bias.to(dtype)[:, None, None, None]
        ctx.statistics = statistics
        ctx.save_for_backward(x)
        ctx.kept = kept  # not saved by autograd, which would keep all of them until the end of the backward pass
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
            grad_x, grad_parameters = blocks_backward(ctx, x, held, gradient.to(ctx.dtype))
        names = [p for module in (*ctx.blocks, ctx.head) for p in module.parameters()]
        return (None, None, None, grad_x, *(grad_parameters.get(p) for p in names))


def run_checkpointed(blocks: Sequence[nn.Module], head: nn.Module, plan: tuple[int, ...],
                     x: torch.Tensor) -> torch.Tensor:
    """``head(blocks(x))`` for ``x`` (B, C, X, Y, Z): logits (B, K, X, Y, Z).

    ``plan`` are the numbers of the blocks whose convolution's output is kept for the backward pass.
    """
    parameters = [p for module in (*blocks, head) for p in module.parameters()]
    return CheckpointedMeshNet.apply(list(blocks), head, tuple(plan), x, *parameters)


def convolve_block(block: nn.Module, x: torch.Tensor, purpose: str = "convolution") -> torch.Tensor:
    """The convolution of ``block`` on ``x`` (B, C, X, Y, Z), in its type; a profile shows it as ``purpose``."""
    conv = block.conv
    bias = None if conv.bias is None else conv.bias.detach().to(x.dtype)
    return convolution.convolve(x, conv.weight.detach().to(x.dtype), bias, conv.dilation[0], purpose)


def blocks_backward(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], gradient: torch.Tensor,
                    ) -> tuple[torch.Tensor | None, dict[nn.Parameter, torch.Tensor]]:
    """The gradients of ``x`` and of each parameter.

    Args:
        held: {block: output of its convolution}, which is emptied on the way.
        gradient: of the logits (B, K, X, Y, Z).
    """
    blocks = ctx.blocks
    gradient, result = head_backward(ctx, x, held, gradient)
    for i in reversed(range(len(blocks))):
        gradient, found = normalise.normalise_backward(blocks[i], held.pop(i), ctx.statistics[i], gradient, True)
        result.update(found)
        conv = blocks[i].conv
        weight, dilation = conv.weight.detach().to(ctx.dtype), conv.dilation[0]
        wanted, needs_bias = i > 0 or x.requires_grad, conv.bias is not None
        z = activated(ctx, x, held, i - 1)
        if convolution.usable(gradient, weight):  # the input's gradient needs no input, so that is freed first
            _, grad_weight, grad_bias = convolution.gradients(z, weight, dilation, gradient, (False, True, needs_bias))
            del z
            gradient, *_ = convolution.gradients(None, weight, dilation, gradient, (wanted, False, False))
        else:
            gradient, grad_weight, grad_bias = convolution.gradients(z, weight, dilation, gradient,
                                                                (wanted, True, needs_bias))
            del z
        result[conv.weight] = grad_weight.to(conv.weight.dtype)
        if needs_bias:
            result[conv.bias] = grad_bias.to(conv.bias.dtype)
    return gradient, result


def activated(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], block: int) -> torch.Tensor:
    """The output of ``block`` computed again (-1: the input), for which missing convolutions are added to ``held``."""
    if block < 0:
        return x.to(ctx.dtype)
    if block not in held:
        held[block] = convolve_block(ctx.blocks[block], activated(ctx, x, held, block - 1), "convolution, again")
    return normalise.normalise(ctx.blocks[block], held[block], ctx.statistics[block])[0]


def head_backward(ctx, x: torch.Tensor, held: dict[int, torch.Tensor], gradient: torch.Tensor,
                  ) -> tuple[torch.Tensor, dict[nn.Parameter, torch.Tensor]]:
    """The gradients of the last layer's input and of its parameters. Arguments as ``blocks_backward``."""
    head, space = ctx.head, gradient.shape[2:]
    gradient = gradient.flatten(2)
    z = activated(ctx, x, held, len(ctx.blocks) - 1).flatten(2)
    grad_weight = sum(g @ one.t() for g, one in zip(gradient, z))
    del z
    result = {head.weight: grad_weight.to(head.weight.dtype)[:, :, None, None, None]}
    if head.bias is not None:
        result[head.bias] = gradient.sum(dim=(0, 2), dtype=torch.float32).to(head.bias.dtype)
    weight = head.weight.detach()[:, :, 0, 0, 0].t().to(gradient.dtype)
    return torch.matmul(weight, gradient).unflatten(2, space), result
