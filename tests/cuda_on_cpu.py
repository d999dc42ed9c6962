"""The operations of PyTorch's SyncBatchNorm, which exist for CUDA alone, on CPUs: by their formulas, in float64.

With them the code of a training step on a GPU runs on a CPU, so that its numbers can be compared.
"""

import contextlib
from unittest import mock

import torch

AXES = (0, 2, 3, 4)


def wide(values):
    return values.double().view(1, -1, 1, 1, 1)


def stats(x, eps):
    x = x.double()
    return x.mean(AXES).float(), torch.rsqrt(x.var(AXES, unbiased=False) + eps).float()


def elemt(x, weight, bias, mean, inverse, eps):
    y = (x.double() - wide(mean)) * wide(inverse)
    y = y if weight is None else y * wide(weight)
    return (y if bias is None else y + wide(bias)).to(x.dtype)


def elemt_out(x, weight, bias, mean, inverse, eps, *, out):
    return out.copy_(elemt(x, weight, bias, mean, inverse, eps))


def backward_reduce(g, x, mean, inverse, weight, input_g, weight_g, bias_g):
    g, x = g.double(), x.double()
    sums, products = g.sum(AXES), (g * (x - wide(mean))).sum(AXES)
    return sums.float(), products.float(), (products * inverse).float(), sums.float()


def backward_elemt(g, x, mean, inverse, weight, sums, products, count):
    assert count.dtype == torch.int32 and mean.dtype == inverse.dtype == sums.dtype == torch.float32
    total = count.double().sum()
    centred = wide(products) / total * wide(inverse).square() * (x.double() - wide(mean))
    scale = wide(inverse) if weight is None else wide(inverse) * wide(weight)
    return ((g.double() - wide(sums) / total - centred) * scale).to(x.dtype)


@contextlib.contextmanager
def steps_of_a_gpu():
    """Within it MeshNets are trained on CPUs as they are on GPUs."""
    from meshnet.networks import gpu_step

    library = torch.library.Library("aten", "IMPL", "CPU")
    for name, function in (("batch_norm_stats", stats), ("batch_norm_elemt", elemt),
                           ("batch_norm_elemt.out", elemt_out), ("batch_norm_backward_reduce", backward_reduce),
                           ("batch_norm_backward_elemt", backward_elemt)):
        library.impl(name, function)
    try:
        with mock.patch.object(gpu_step, "usable", lambda model, x: True):
            yield
    finally:
        library._destroy()
