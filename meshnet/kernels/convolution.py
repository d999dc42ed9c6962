"""The dilated convolution and its gradients, by the compiled kernels (float32 on the CPU) or by PyTorch."""

import torch
from torch import nn
from torch.autograd.profiler import record_function

from meshnet.kernels import calls


def usable(x: torch.Tensor, weight: torch.Tensor | None = None) -> bool:
    """Whether the kernels can work on ``x`` (B, C, X, Y, Z), and convolve it with ``weight`` if given."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
            and (weight is None or (weight.dtype == torch.float32 and weight.shape[-1] == 3))
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing() and calls.available())


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int,
             purpose: str = "convolution") -> torch.Tensor:
    """The 3×3×3 convolution of ``x`` (B, in, X, Y, Z) with equal zero padding; a profile shows it as ``purpose``."""
    with record_function(purpose):
        if not usable(x, weight):
            with torch.no_grad():
                return nn.functional.conv3d(x, weight, bias, padding=dilation, dilation=dilation)
        out = torch.empty((x.shape[0], weight.shape[0], *x.shape[2:]))
        bias = None if bias is None else bias.detach().contiguous()
        column = calls.Column([weight.detach()], [bias], [dilation], ["none"])
        for one, result in zip(x.detach(), out):
            calls.run_column(column, one, result)
        return out


def gradients(x: torch.Tensor | None, weight: torch.Tensor, dilation: int, gradient: torch.Tensor,
              needs: tuple[bool, bool, bool]) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of ``convolve``'s input, weight and bias, each None unless ``needs`` asks for it.

    Args:
        x: the input (B, in, X, Y, Z). The kernels need it for the weight's gradient only: the input's gradient is the
            same convolution with the weights flipped and their channels exchanged.
        gradient: of the output (B, out, X, Y, Z).
    """
    if not usable(gradient, weight):
        return torch_gradients(x, weight, dilation, gradient, needs)
    grad_x = grad_weight = None
    if needs[0]:
        flipped = weight.detach().flip(2, 3, 4).transpose(0, 1).contiguous()
        grad_x = convolve(gradient, flipped, None, dilation, "gradient of the input")
    if needs[1]:
        with record_function("gradient of the weights"):
            grad_weight = sum(calls.weight_gradient(one, g, dilation) for one, g in zip(x.detach(), gradient))
    return grad_x, grad_weight, gradient.sum(dim=(0, 2, 3, 4)) if needs[2] else None


def torch_gradients(x: torch.Tensor, weight: torch.Tensor, dilation: int, gradient: torch.Tensor,
                    needs: tuple[bool, bool, bool],
                    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """``gradients`` by PyTorch."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [weight.shape[0]], [1] * 3, [dilation] * 3, [dilation] * 3, False, [0] * 3, 1, list(needs))


class Convolution(torch.autograd.Function):
    """``convolve`` as an operation of autograd, which keeps its input."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return convolve(x, weight, bias, dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        return *gradients(x, weight, ctx.dilation, gradient, tuple(ctx.needs_input_grad[:3])), None
