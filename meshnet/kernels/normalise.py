"""Norm and activation of a block with their gradients, by the compiled kernels (float32 on the CPU) or by PyTorch.

Nothing here records a graph but ``NormActivation``; ``networks.checkpointing`` decides what is kept for the backward
pass.
"""

import torch
from torch import nn
from torch.autograd.profiler import record_function

from meshnet.config import ACTIVATIONS
from meshnet.kernels import norm_calls
from meshnet.kernels.convolution import usable

ACTIVATION_LAYERS = dict(zip(ACTIVATIONS, (nn.ReLU, nn.ELU, nn.GELU), strict=True))
ACTIVATION_NAMES = {layer: name for name, layer in ACTIVATION_LAYERS.items()}
TORCH_FORWARDS = (nn.BatchNorm3d.forward, nn.InstanceNorm3d.forward, nn.GroupNorm.forward)
PARTS = 8  # of the channels: PyTorch computes gradients part by part, to take little memory
ACTIVATION_GRADIENTS = {
    "relu": lambda g, x: torch.ops.aten.threshold_backward(g, x, 0),
    "elu": lambda g, x: torch.ops.aten.elu_backward(g, 1.0, 1.0, 1.0, False, x),
    "gelu": lambda g, x: torch.ops.aten.gelu_backward(g, x),
}


def activation_of(block: nn.Module) -> str:
    """The name of ``block``'s activation."""
    return ACTIVATION_NAMES[type(block.act)]


def by_channel(block: nn.Module) -> bool:
    """Whether norm and activation of ``block`` are a scale, a shift and a function of each channel, with statistics of
    the batch or of each case.

    A norm whose ``forward`` may do something else, such as exchanging statistics with other processes, computes itself.
    So the class of the norm must have PyTorch's own ``forward``, or say by its attribute ``scales_channels`` that its
    ``forward`` does no more. A subclass with another ``forward`` must not inherit that: only the class itself is asked.
    """
    norm = getattr(block, "norm", None)
    if norm is None:
        return True
    kind = type(norm)
    known = kind.forward in TORCH_FORWARDS or vars(kind).get("scales_channels", False)
    return known and (isinstance(norm, nn.BatchNorm3d) or per_case(norm))


def per_case(norm: nn.Module | None) -> bool:
    """Whether ``norm`` treats each channel of each case separately: instance norm, and group norm with one group per
    channel. It then equals batch norm on a single case with the channels of all cases (``maps``)."""
    if isinstance(norm, nn.InstanceNorm3d):
        return not norm.track_running_stats
    return isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels


def maps(norm: nn.Module | None, y: torch.Tensor) -> torch.Tensor:
    """``y`` (B, C, X, Y, Z), as (1, B · C, X, Y, Z) where ``norm`` is ``per_case``."""
    return y.reshape(1, -1, *y.shape[2:]) if per_case(norm) else y


def weight_and_bias(norm: nn.Module, channels: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight and bias of ``norm`` (channels,) for the channels of ``maps``; None where it has none."""
    return tuple(None if p is None else p.detach().repeat(channels // len(p)) for p in (norm.weight, norm.bias))


def norm_gradients(norm: nn.Module, grad_weight: torch.Tensor, grad_bias: torch.Tensor,
                       ) -> dict[nn.Parameter, torch.Tensor]:
    """The gradients of the parameters of ``norm``, from the gradients of what ``weight_and_bias`` returns."""
    pairs = ((norm.weight, grad_weight), (norm.bias, grad_bias))
    return {p: found.view(-1, len(p)).sum(0).to(p.dtype) for p, found in pairs}


def without_state(block: nn.Module) -> bool:
    """Whether ``normalise`` can compute ``block`` a second time without updating any running statistics."""
    norm = getattr(block, "norm", None)
    return by_channel(block) or isinstance(norm, nn.GroupNorm) or (
        isinstance(norm, nn.InstanceNorm3d) and not norm.track_running_stats)


def normalise(block: nn.Module, y: torch.Tensor, statistics: tuple | None, in_place: bool = False,
              ) -> tuple[torch.Tensor, tuple]:
    """Norm and activation of ``block``, without a graph.

    Args:
        y: the output of the block's convolution, (B, C, X, Y, Z).
        statistics: mean and 1 / standard deviation for each channel of ``maps``, as an earlier call returned them. None
            means to compute them and to update the running ones, as the module itself does.
        in_place: ``y`` may be overwritten.

    Returns:
        The result, of the shape of ``y``, and the statistics (empty where there is no norm, or it computes itself).
    """
    norm = getattr(block, "norm", None)
    with torch.no_grad(), record_function("norm and activation"):
        if not by_channel(block):
            return block.act(norm(y)), ()
        if norm is not None and statistics is None:
            refuse_single_values(norm, y)
        shape, y = y.shape, maps(norm, y)
        if usable(y) and y.is_contiguous():
            if norm is not None and statistics is None:
                statistics = kernel_statistics(norm, y)
            z = y if in_place else torch.empty_like(y)
            norm_calls.norm(y, z, *scale_and_shift(block, y.shape[1], statistics), activation_of(block))
            return z.view(shape), statistics or ()
        if norm is None:
            return block.act(y if in_place else y.clone()), ()
        if statistics is None:
            z, *statistics = torch_norm(norm, y)
        else:
            z = before_activation(block, y, statistics, slice(None))
        return block.act(z).view(shape), tuple(statistics)


def uses_batch(norm: nn.Module) -> bool:
    """Whether ``norm`` computes its statistics from the batch, rather than using the running ones."""
    return per_case(norm) or norm.training or norm.running_mean is None


def refuse_single_values(norm: nn.Module, y: torch.Tensor) -> None:
    """Raise ValueError, as PyTorch's norms do, where statistics would be those of a single value."""
    values = y[0, 0].numel() if isinstance(norm, nn.InstanceNorm3d) else y.numel() // y.shape[1]
    if values == 1 and uses_batch(norm):
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")


def count_batch(norm: nn.Module) -> float:
    """Count a training batch, as ``nn.BatchNorm3d`` does. Returns the momentum with which the running statistics move
    towards it (0 where the block is only being recomputed, or has none)."""
    if per_case(norm) or getattr(norm, "recomputing", False):
        return 0.0
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


def torch_norm(norm: nn.Module, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``norm`` of ``maps`` by PyTorch, with mean and 1 / standard deviation."""
    momentum, batch = count_batch(norm), uses_batch(norm)
    running = (None, None) if per_case(norm) else (norm.running_mean, norm.running_var)
    z, mean, inverse = torch.native_batch_norm(
        y, *weight_and_bias(norm, y.shape[1]), *running, batch, momentum, norm.eps)
    return z, *((mean, inverse) if batch else running_statistics(norm))


def running_statistics(norm: nn.BatchNorm3d) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and 1 / standard deviation, (C,)."""
    return norm.running_mean.clone(), torch.rsqrt(norm.running_var + norm.eps)


def kernel_statistics(norm: nn.Module, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation (C,) of ``maps``, by the kernels; the running statistics are updated."""
    momentum = count_batch(norm)
    if not uses_batch(norm):
        return running_statistics(norm)
    mean, variance = norm_calls.channel_statistics(y)
    if not per_case(norm) and norm.training and norm.running_mean is not None:
        count = y.numel() // y.shape[1]
        norm.running_mean.lerp_(mean.float(), momentum)
        norm.running_var.lerp_((variance * (count / (count - 1))).float(), momentum)
    return mean.float(), torch.rsqrt(variance + norm.eps).float()


def scale_and_shift(block: nn.Module, channels: int, statistics: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of ``block`` as ``scale · y + shift``, each (channels,); 1 and 0 where it has no norm."""
    norm = getattr(block, "norm", None)
    if norm is None:
        return torch.ones(channels), torch.zeros(channels)
    (mean, inverse), (weight, bias) = statistics, weight_and_bias(norm, channels)
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def before_activation(block: nn.Module, y: torch.Tensor, statistics: tuple, part: slice) -> torch.Tensor:
    """The input of the activation of ``block``, for the channels ``part``, in new memory."""
    if not statistics:
        return y[:, part].clone()
    scale, shift = (v[part].to(y.dtype)[None, :, None, None, None]
                    for v in scale_and_shift(block, y.shape[1], statistics))
    return torch.addcmul(shift, y[:, part], scale)


def normalise_backward(block: nn.Module, y: torch.Tensor, statistics: tuple, gradient: torch.Tensor,
                       in_place: bool = False) -> tuple[torch.Tensor, dict[nn.Parameter, torch.Tensor]]:
    """The gradients of ``y`` and of the norm's parameters.

    Args:
        y, statistics: input and statistics of ``normalise``.
        gradient: of its result.
        in_place: ``gradient`` may be overwritten.
    """
    if not by_channel(block):
        parameters = list(block.norm.parameters())
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            grad_y, *others = torch.autograd.grad(block.act(block.norm(leaf)), [leaf, *parameters], gradient)
        return grad_y, dict(zip(parameters, others))
    shape, norm = y.shape, getattr(block, "norm", None)
    y, gradient = maps(norm, y), maps(norm, gradient)
    if usable(y) and y.is_contiguous():
        with record_function("gradient of norm and activation"):
            grad_y, found = kernel_normalise_backward(block, y, statistics, gradient.contiguous(), in_place)
    else:
        grad_y, found = torch_normalise_backward(block, y, statistics, gradient if in_place else gradient.clone())
    return grad_y.view(shape), found


def kernel_normalise_backward(block: nn.Module, y: torch.Tensor, statistics: tuple, gradient: torch.Tensor,
                              in_place: bool) -> tuple[torch.Tensor, dict]:
    """``normalise_backward`` by the kernels."""
    norm, activation, channels = getattr(block, "norm", None), activation_of(block), y.shape[1]
    scale, shift = scale_and_shift(block, channels, statistics)
    (mean, constant, slope), found = torch.zeros((3, channels)), {}
    if norm is not None:
        mean, inverse = statistics
        grad_shift, grad_scale = norm_calls.norm_sums(y, gradient, scale, shift, mean, activation)
        if norm.weight is not None:
            found = norm_gradients(norm, grad_scale * inverse, grad_shift)
        if uses_batch(norm):
            count = y.numel() // channels
            constant = (grad_shift / count).float()
            slope = (grad_scale * inverse.double() ** 2 / count).float()
    result = gradient if in_place else torch.empty_like(gradient)
    norm_calls.norm_backward(y, gradient, result, scale, shift, mean, constant, slope, activation)
    return result, found


def torch_normalise_backward(block: nn.Module, y: torch.Tensor, statistics: tuple, gradient: torch.Tensor,
                             ) -> tuple[torch.Tensor, dict]:
    """``normalise_backward`` by PyTorch, in place, some channels at a time."""
    norm, activation_backward = getattr(block, "norm", None), ACTIVATION_GRADIENTS[activation_of(block)]
    weight = None if norm is None else weight_and_bias(norm, y.shape[1])[0]
    grad_weight, grad_bias = [], []
    for part in channel_parts(y.shape[1]):
        g = activation_backward(gradient[:, part], before_activation(block, y, statistics, part))
        if norm is not None:
            running = (None, None) if uses_batch(norm) else (norm.running_mean[part], norm.running_var[part])
            has_weight = weight is not None
            g, w, b = torch.ops.aten.native_batch_norm_backward(
                g, y[:, part], weight[part] if has_weight else None, *running, *(s[part] for s in statistics),
                uses_batch(norm), norm.eps, [True, has_weight, has_weight])
            grad_weight.append(w)
            grad_bias.append(b)
        gradient[:, part] = g
    if weight is None:
        return gradient, {}
    return gradient, norm_gradients(norm, torch.cat(grad_weight), torch.cat(grad_bias))


def channel_parts(channels: int) -> list[slice]:
    """The channels in at most ``PARTS`` parts."""
    step = -(-channels // PARTS)
    return [slice(a, min(channels, a + step)) for a in range(0, channels, step)]


class NormActivation(torch.autograd.Function):
    """``normalise`` as an operation of autograd, for a block that is ``by_channel``; keeps its input."""

    @staticmethod
    def forward(ctx, block: nn.Module, y: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        z, statistics = normalise(block, y, None)
        ctx.save_for_backward(y, *statistics)
        ctx.block, ctx.parameters = block, parameters
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        y, *statistics = ctx.saved_tensors
        grad_y, found = normalise_backward(ctx.block, y, tuple(statistics), gradient)
        return None, grad_y, *(found[p] for p in ctx.parameters)
