"""Calls of the compiled kernels for norm and activation of a training step, on PyTorch's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnet.kernels.calls import ACTIVATION_CODES, library, thread_count

if TYPE_CHECKING:
    import torch


def extent(y: torch.Tensor) -> tuple[int, int, int]:
    """Batch, channels and voxels of ``y`` (B, C, X, Y, Z), which has to be contiguous."""
    assert y.is_contiguous() and str(y.dtype) == "torch.float32"
    return y.shape[0], y.shape[1], y[0, 0].numel()


def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (C,), float64, of each channel of ``y`` (B, C, X, Y, Z)."""
    import torch

    mean, variance = torch.empty((2, y.shape[1]), dtype=torch.float64)
    if library().meshnet_statistics(y.data_ptr(), *extent(y), mean.data_ptr(), variance.data_ptr(),
                                    thread_count()):
        raise MemoryError("meshnet kernels: no memory for statistics")
    return mean, variance


def norm(y: torch.Tensor, z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, activation: str) -> None:
    """``z`` = activation(scale · y + shift), channel by channel; ``z`` may be ``y``."""
    assert z.is_contiguous() and z.shape == y.shape and str(scale.dtype) == str(shift.dtype) == "torch.float32"
    library().meshnet_norm(y.data_ptr(), z.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
                           ACTIVATION_CODES[activation], thread_count())


def norm_sums(y: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor,
              activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sums per channel (C,), float64: of the gradient before ``norm``'s activation, and of that times (y − mean).

    Arguments as ``norm`` and ``norm_backward``.
    """
    import torch

    grad_shift, grad_scale = torch.empty((2, y.shape[1]), dtype=torch.float64)
    assert extent(gradient) == extent(y)
    if library().meshnet_norm_sums(y.data_ptr(), gradient.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
                                   mean.data_ptr(), ACTIVATION_CODES[activation], grad_shift.data_ptr(),
                                   grad_scale.data_ptr(), thread_count()):
        raise MemoryError("meshnet kernels: no memory for sums")
    return grad_shift, grad_scale


def norm_backward(y: torch.Tensor, gradient: torch.Tensor, result: torch.Tensor, scale: torch.Tensor,
                  shift: torch.Tensor, mean: torch.Tensor, constant: torch.Tensor, slope: torch.Tensor,
                  activation: str) -> None:
    """``result`` = scale · (gradient before the activation − constant − slope · (y − mean)); it may be ``gradient``.

    ``y``, ``gradient`` (of ``norm``'s output) and ``result`` are (B, C, X, Y, Z), the others (C,), all float32.
    """
    assert extent(gradient) == extent(y) == extent(result)
    library().meshnet_norm_backward(
        y.data_ptr(), gradient.data_ptr(), result.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
        mean.data_ptr(), constant.data_ptr(), slope.data_ptr(), ACTIVATION_CODES[activation], thread_count())
