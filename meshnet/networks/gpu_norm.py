"""Norm, activation and dropout of a block with their gradients, on GPUs.

Batch, instance and group norm are all a scale and a shift of each channel, with statistics of some cases and channels.
So one way serves them all: the operations that PyTorch's SyncBatchNorm is made of (``batch_norm_stats``, ``…_elemt``,
``…_backward_reduce``, ``…_backward_elemt``), which have fast kernels for maps whose channels lie last, in half
precision with statistics in float32. Between them the sums of a norm over groups or processes are combined, a few
numbers each.

Maps are those of convolutions without a bias where the norm takes it (``takes_bias``): a norm with statistics of the
batch removes it again, and any other adds it by its shift. Nothing here records a graph.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from meshnet.kernels.normalise import activation_of, count_batch, per_case, refuse_single_values, uses_batch

SMALLEST = 1e-12  # of a norm's weights, where a sum over a group is divided by them
aten = torch.ops.aten


@dataclass
class Kept:
    """What the backward pass needs of a block beside its maps.

    ``mean`` and ``inverse`` (1 / standard deviation) have a row (C,) for the whole batch, or for each case; they are
    float32, and of the convolution without its bias. ``offset`` is there where the norm is one over groups: how far a
    channel's own mean is from it, over the variance. ``noise`` (B, C, 1, 1, 1) is what dropout multiplies with.
    """

    mean: list[torch.Tensor]
    inverse: list[torch.Tensor]
    offset: list[torch.Tensor | None]
    noise: torch.Tensor | None = None


def usable(block: nn.Module) -> bool:
    """Whether the norm of ``block`` is one of those that are computed here."""
    norm = getattr(block, "norm", None)
    if isinstance(norm, nn.InstanceNorm3d):
        return not norm.track_running_stats
    return norm is None or isinstance(norm, (nn.BatchNorm3d, nn.GroupNorm))


def takes_bias(block: nn.Module) -> bool:
    """Whether the bias of the convolution of ``block`` can be left to its norm."""
    return getattr(block, "norm", None) is not None


def widened(values: torch.Tensor | None, width: int) -> torch.Tensor | None:
    """``values`` (C,) in float32, with zeros up to ``width``."""
    if values is None:
        return None
    values = values.detach().float()
    return values if len(values) == width else functional.pad(values, (0, width - len(values)))


def rows(norm: nn.Module | None, *maps: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The parts of ``maps`` (B, C, X, Y, Z) that have statistics of their own: everything, or each case."""
    if not (per_case(norm) or isinstance(norm, nn.GroupNorm)):
        return [maps]
    return [tuple(m[case:case + 1] for m in maps) for case in range(len(maps[0]))]


# ---------------------------------------------------------------- forward

def forward(block: nn.Module, y: torch.Tensor, bias: torch.Tensor | None, kept: Kept | None = None,
            into: torch.Tensor | None = None) -> tuple[torch.Tensor, Kept]:
    """Norm, activation and dropout.

    Args:
        y: the output of the convolution (B, C, X, Y, Z), without its bias where the norm takes it.
        bias: that bias; None where the convolution has none, or has added it.
        kept: of an earlier call on the same ``y``. None means to compute statistics and to update the running ones.
        into: where the result is written, for example ``y`` itself; None means new memory.
    """
    z, kept = before_activation(block, y, bias, kept, into)
    activation = activation_of(block)
    if activation == "relu":
        z.relu_()
    elif activation == "elu":
        functional.elu_(z)
    else:
        aten.gelu_(z)
    if kept.noise is not None:
        z.mul_(kept.noise)
    return z, kept


def before_activation(block: nn.Module, y: torch.Tensor, bias: torch.Tensor | None, kept: Kept | None = None,
                      into: torch.Tensor | None = None) -> tuple[torch.Tensor, Kept]:
    """The norm alone. Arguments as ``forward``."""
    norm = getattr(block, "norm", None)
    if kept is None:
        kept = measure(block, y, bias)
    if norm is None:
        return (y if into is y else y.clone(memory_format=torch.preserve_format)), kept
    z = torch.empty_like(y) if into is None else into
    weight, shift = widened(norm.weight, y.shape[1]), widened(norm.bias, y.shape[1])
    for (part, out), mean, inverse in zip(rows(norm, y, z), kept.mean, kept.inverse):
        torch.batch_norm_elemt(part, weight, shift, mean, inverse, norm.eps, out=out)
    return z, kept


def measure(block: nn.Module, y: torch.Tensor, bias: torch.Tensor | None) -> Kept:
    """The statistics of ``y``, with the running ones updated, and what dropout draws."""
    norm, channels = getattr(block, "norm", None), block.conv.out_channels
    kept = Kept([], [], [], draw_noise(block, y, channels))
    if norm is None:
        return kept
    if isinstance(norm, nn.BatchNorm3d) or per_case(norm):
        refuse_single_values(norm, y)
    bias = widened(bias, y.shape[1])
    for part, in rows(norm, y):
        for values, found in zip((kept.mean, kept.inverse, kept.offset), statistics(norm, part, bias, channels)):
            values.append(found)
    return kept


def draw_noise(block: nn.Module, y: torch.Tensor, channels: int) -> torch.Tensor | None:
    """What ``nn.Dropout3d`` multiplies ``y`` with, drawn as it draws; None without dropout."""
    dropout = getattr(block, "dropout", None)
    if dropout is None or not dropout.training or dropout.p == 0:
        return None
    noise = y.new_empty((y.shape[0], channels, 1, 1, 1)).bernoulli_(1 - dropout.p).div_(1 - dropout.p)
    return functional.pad(noise, (0, 0, 0, 0, 0, 0, 0, y.shape[1] - channels))


def statistics(norm: nn.Module, part: torch.Tensor, bias: torch.Tensor | None, channels: int):
    """Mean and 1 / standard deviation by which ``part`` is normalised, and the ``Kept.offset``."""
    if isinstance(norm, nn.BatchNorm3d) and not uses_batch(norm):
        mean, inverse = norm.running_mean, torch.rsqrt(norm.running_var + norm.eps)
        mean, inverse = widened(mean, part.shape[1]), widened(inverse, part.shape[1])
        return (mean if bias is None else mean - bias), inverse, None
    mean, inverse = torch.batch_norm_stats(part, norm.eps)
    if isinstance(norm, nn.GroupNorm) and norm.num_groups < channels:
        return over_groups(norm, mean, inverse, bias, channels)
    if isinstance(norm, nn.BatchNorm3d):
        mean, inverse = update_running(norm, part, mean, inverse, bias)
    return mean, inverse, None


def variance_of(inverse: torch.Tensor, eps: float) -> torch.Tensor:
    """The variance of which ``inverse`` is 1 / sqrt(variance + eps)."""
    return (inverse.square().reciprocal() - eps).clamp_(min=0)


def over_groups(norm: nn.GroupNorm, mean: torch.Tensor, inverse: torch.Tensor, bias: torch.Tensor | None,
                channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The statistics of groups of channels, from those of the channels."""
    width, own, each = len(mean), mean, channels // norm.num_groups
    variance = variance_of(inverse, norm.eps)
    biased = mean if bias is None else mean + bias
    biased, variance = (v[:channels].view(norm.num_groups, each) for v in (biased, variance))
    mean = biased.mean(1, keepdim=True)
    variance = (variance + (biased - mean).square()).mean(1, keepdim=True)
    mean, inverse = (widened(v.expand(-1, each).reshape(-1), width)
                     for v in (mean, torch.rsqrt(variance + norm.eps)))
    mean = mean if bias is None else mean - bias
    return mean, inverse, (own - mean) * inverse.square()


def update_running(norm: nn.BatchNorm3d, part: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor,
                   bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation over all processes of a norm; the running statistics move towards them."""
    count = part.numel() // part.shape[1]
    variance = variance_of(inverse, norm.eps)
    if processes(norm) > 1:
        mean, variance, count = over_processes(mean, variance, count)
        inverse = torch.rsqrt(variance + norm.eps)
    momentum = count_batch(norm)
    if norm.training and norm.running_mean is not None and momentum:
        channels = len(norm.running_mean)
        shifted = mean if bias is None else mean + bias
        norm.running_mean.lerp_(shifted[:channels], momentum)
        norm.running_var.lerp_(variance[:channels] * (count / max(1, count - 1)), momentum)
    return mean, inverse


def processes(norm: nn.Module) -> int:
    """Over how many processes the statistics of ``norm`` are."""
    return torch.distributed.get_world_size() if getattr(norm, "over_processes", False) else 1


def over_processes(mean: torch.Tensor, variance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, variance and number of values over all processes, each of which has ``count`` values."""
    mine = torch.cat([mean, variance])
    every = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, mine)
    means, variances = torch.stack(every).view(len(every), 2, -1).unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0), count * len(every)


# ---------------------------------------------------------------- backward

def activation_backward(block: nn.Module, y: torch.Tensor, z: torch.Tensor | None, bias: torch.Tensor | None,
                        kept: Kept, gradient: torch.Tensor) -> None:
    """``gradient``, of the result of ``forward``, becomes in place that of the norm's result.

    ``z`` is that result; where it is None, or an activation's gradient does not follow from it, the norm is computed
    again from ``y``.
    """
    activation = activation_of(block)
    if kept.noise is not None:
        gradient.mul_(kept.noise)
    known = z is not None and (activation == "relu" or (activation == "elu" and kept.noise is None))
    x = z if known else before_activation(block, y, bias, kept)[0]
    if activation == "relu":
        aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
    elif activation == "elu":
        aten.elu_backward.grad_input(gradient, 1.0, 1.0, 1.0, known, x, grad_input=gradient)
    else:
        aten.gelu_backward.grad_input(gradient, x, grad_input=gradient)


def norm_backward(block: nn.Module, y: torch.Tensor, kept: Kept, gradient: torch.Tensor):
    """The gradient of ``y`` from that of the norm's result, which may be overwritten; those of the norm's parameters,
    {parameter: (C,)}; and that of the bias that the norm takes (None without a norm: then it is the sum of the
    first)."""
    norm = getattr(block, "norm", None)
    if norm is None:
        return gradient, {}, None
    channels, width = block.conv.out_channels, y.shape[1]
    weight = widened(norm.weight, width)
    parts = rows(norm, y, gradient)
    found = []
    for case, ((part, g), mean, inverse, offset) in enumerate(zip(parts, kept.mean, kept.inverse, kept.offset)):
        sums = torch.batch_norm_backward_reduce(g, part, mean, inverse, weight, True, False, False)[:2]
        both, safe, of_bias = input_gradient(norm, part, mean, inverse, offset, weight, sums, channels)
        found.append((sums[1] * inverse, sums[0], of_bias))
        grad_y = torch.batch_norm_backward_elemt(g, part, mean, inverse, safe, *both)
        if len(parts) > 1:
            gradient[case:case + 1] = grad_y
    grad_weight, grad_shift, grad_bias = (sum(v[1:], v[0])[:channels] for v in zip(*found))
    result = gradient if len(parts) > 1 else grad_y
    if norm.weight is None:
        return result, {}, grad_bias
    found = {norm.weight: grad_weight.to(norm.weight.dtype), norm.bias: grad_shift.to(norm.bias.dtype)}
    return result, found, grad_bias


def input_gradient(norm: nn.Module, part: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor,
                   offset: torch.Tensor | None, weight: torch.Tensor | None, sums: tuple, channels: int):
    """What ``batch_norm_backward_elemt`` needs, from the ``sums`` of a part's gradient, and of gradient times centred
    value, over each channel: sums and counts for the statistics, and weights; and the gradient of the bias."""
    count = part.numel() // part.shape[1]
    if isinstance(norm, nn.BatchNorm3d) and not uses_batch(norm):  # the statistics are constants
        nothing, scale = torch.zeros_like(mean), inverse if weight is None else inverse * weight
        return (nothing, nothing, counts(part, count)), weight, scale * sums[0]
    if offset is None:
        if processes(norm) > 1:
            both = torch.cat(sums)
            torch.distributed.all_reduce(both)
            sums = both.view(2, -1).unbind(0)
        return (*sums, counts(part, count, processes(norm))), weight, torch.zeros_like(mean)
    # Over a group, the sums are those of the weighted gradient; what they are divided by is multiplied with again.
    each, both = channels // norm.num_groups, torch.stack(sums)
    gain = torch.ones_like(mean) if weight is None else weight.masked_fill(weight == 0, SMALLEST)
    weighted = gain * both
    totals = weighted[:, :channels].view(2, -1, each).sum(2, keepdim=True).expand(-1, -1, each).reshape(2, -1)
    if totals.shape[1] < len(mean):
        totals = functional.pad(totals, (0, len(mean) - totals.shape[1]))
    bias = inverse * (weighted[0] - torch.addcmul(totals[0], totals[1], offset) / each)
    return (*(totals / gain).unbind(0), counts(part, count, each)), gain, bias


def counts(like: torch.Tensor, count: int, times: int = 1) -> torch.Tensor:
    """``count`` values ``times`` over, as the kernels add them up; one number could exceed 32 bits."""
    return torch.full((times,), count, dtype=torch.int32, device=like.device)
