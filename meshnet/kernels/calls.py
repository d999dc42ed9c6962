"""The compiled CPU kernels of ``kernels.cpp``: built on first use where a C++ compiler is there, else left out.

The library is kept in the user's cache folder under a name made from the source, the compiler and this CPU's features.
It is compared with numpy on a small case each time it is loaded. Wherever anything fails, ``available()`` is False
and callers go PyTorch's own way. ``MESHNET_KERNELS=0`` in the environment switches the kernels off.

Convolutions take tensors or numpy arrays, so that a scan can be segmented without importing PyTorch.
"""


from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from meshnet.kernels.build import build_library

if TYPE_CHECKING:
    import torch
    Array = np.ndarray | torch.Tensor

ACTIVATIONS = {"none": 0, "relu": 1, "elu": 2, "gelu": 3}
OUTPUTS = {"features": 0, "logits": 1, "probabilities": 2, "labels": 3}


class Request(ctypes.Structure):
    """``struct Request`` of kernels.cpp, field by field."""

    _fields_ = [
        ("layers", ctypes.c_int), ("widths", ctypes.c_void_p), ("dilations", ctypes.c_void_p),
        ("activations", ctypes.c_void_p), ("pairs", ctypes.c_void_p), ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p), ("boxes", ctypes.c_void_p), ("gaps", ctypes.c_void_p), ("shape", ctypes.c_void_p),
        ("volume", ctypes.c_void_p), ("head_weight", ctypes.c_void_p), ("head_bias", ctypes.c_void_p),
        ("classes", ctypes.c_int), ("output", ctypes.c_int), ("threads", ctypes.c_int), ("out", ctypes.c_void_p),
        ("out_shape", ctypes.c_void_p), ("out_at", ctypes.c_void_p),
    ]


_switched_on = True


def available() -> bool:
    """Whether the kernels can be used in this process."""
    return _switched_on and library() is not None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """PyTorch's own way inside a ``with`` block, for comparisons."""
    global _switched_on
    before, _switched_on = _switched_on, False
    try:
        yield
    finally:
        _switched_on = before


@functools.cache
def library() -> ctypes.CDLL | None:
    """The checked library, or None."""
    if os.environ.get("MESHNET_KERNELS", "1") == "0":
        return None
    path = build_library()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.meshnet_run.argtypes = loaded.meshnet_bytes.argtypes = [ctypes.POINTER(Request)]
        loaded.meshnet_bytes.restype = ctypes.c_int64
        address, number, voxels = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        loaded.meshnet_weight_gradient.argtypes = [address] * 2 + [number] * 3 + [address] * 2 + [number]
        maps = [number, number, voxels]
        loaded.meshnet_statistics.argtypes = [address, *maps, address, address, number]
        loaded.meshnet_norm.argtypes = [address] * 2 + maps + [address] * 2 + [number] * 2
        loaded.meshnet_norm_sums.argtypes = [address] * 2 + maps + [address] * 3 + [number] + [address] * 2 + [number]
        loaded.meshnet_norm_backward.argtypes = [address] * 3 + maps + [address] * 5 + [number] * 2
    except (OSError, AttributeError):
        return None
    return loaded if agrees_with_numpy(loaded) else None


def integers(values: Sequence[int]) -> ctypes.Array:
    """``values`` as a C array of int."""
    return (ctypes.c_int * len(values))(*values)


def address(array: Array) -> int:
    """Where the numbers of ``array`` lie."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def contiguous(array: Array) -> Array:
    """``array``, copied unless it lies in one piece."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def thread_count() -> int:
    """PyTorch's number of threads; where it is not imported, ``OMP_NUM_THREADS`` or the CPUs this process may use."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pointers(arrays: Sequence[Array | None]) -> ctypes.Array:
    """The addresses of ``arrays`` as a C array."""
    return (ctypes.c_void_p * len(arrays))(*(None if a is None else address(a) for a in arrays))


def run_column(weights: Sequence[Array], biases: Sequence[Array | None], dilations: Sequence[int],
               activations: Sequence[str], volume: Array, out: Array, output: str = "features",
               boxes: Sequence | None = None, at: Sequence[int] | None = None,
               head: tuple[Array, Array] | None = None, pairs: Sequence[bool] | None = None,
               gaps: Sequence | None = None, threads: int | None = None, lib: ctypes.CDLL | None = None) -> None:
    """Stream ``volume`` (C, X, Y, Z) through 3×3×3 convolutions with equal zero padding and write into ``out``.

    Args:
        weights, biases, dilations, activations: one entry a layer; weights (out, in, 3, 3, 3), biases (out,) or None.
        out: (K, *grid) float32, or (*grid) uint8 for ``labels``; all tensors lie on the CPU, float32, contiguous.
        output: ``features`` of the last layer, or ``logits``, ``probabilities``, ``labels`` of the 1×1×1 ``head``
            (weight (K, C), bias (K,)).
        boxes: what of the input and of each layer is computed, ((x0, x1), (y0, y1), (z0, z1)); None means all.
            Each must hold what the next one looks at, as far as the volume goes.
        at: where in ``out`` the last box begins; None means where it lies in the volume.
        pairs: whether a layer computes planes in pairs, which is quicker and needs more room; None means all do.
        gaps: what of each box is not computed: for each axis (a, b, c, d), a to b and c to d; None means nothing.
            Copied there is what lies beside it, which ``boxes.air_gaps`` makes sure is the same on either side.
    """
    weights, volume = [contiguous(w) for w in weights], contiguous(volume)
    assert address(contiguous(out)) == address(out)
    assert all(str(array.dtype).endswith("float32") for array in (volume, *weights))
    if boxes is None:
        boxes = [tuple((0, n) for n in volume.shape[1:])] * (len(weights) + 1)
    widths = [volume.shape[0], *(w.shape[0] for w in weights)]
    request, keep = make_request(widths, dilations, boxes, tuple(volume.shape[1:]), pairs, gaps, threads)
    at = [side[0] for side in boxes[-1]] if at is None else at
    arrays = {"activations": integers([ACTIVATIONS[a] for a in activations]), "weights": pointers(weights),
              "biases": pointers(biases), "out_shape": integers(tuple(out.shape[-3:])), "out_at": integers(at)}
    for name, array in arrays.items():
        setattr(request, name, ctypes.cast(array, ctypes.c_void_p))
    request.volume, request.out, request.output = address(volume), address(out), OUTPUTS[output]
    if head is not None:
        request.head_weight, request.head_bias, request.classes = address(head[0]), address(head[1]), len(head[1])
    if (lib or library()).meshnet_run(ctypes.byref(request)):
        raise MemoryError("meshnet kernels: no memory for the layers' planes")
    del keep


def make_request(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 pairs: Sequence[bool] | None, gaps: Sequence | None, threads: int | None) -> tuple[Request, list]:
    """A request with its sizes, and what has to live as long as it. Arguments as ``run_column``; ``widths`` are the
    channels of the input and of each layer."""
    assert min(dilations) >= 1 and len(boxes) == len(widths) == len(dilations) + 1
    if gaps is None:
        gaps = [[(a, a, b, b) for a, b in box] for box in boxes]
    arrays = {"widths": integers(widths), "dilations": integers(dilations),
              "activations": integers([0] * len(dilations)), "shape": integers(shape),
              "pairs": integers([1] * len(dilations) if pairs is None else pairs),
              "boxes": integers([edge for box in boxes for side in box for edge in side]),
              "gaps": integers([edge for gap in gaps for side in gap for edge in side])}
    request = Request(layers=len(dilations), threads=threads or thread_count(), classes=2,
                      **{name: ctypes.cast(array, ctypes.c_void_p) for name, array in arrays.items()})
    return request, list(arrays.values())


def column_bytes(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 pairs: Sequence[bool] | None = None, gaps: Sequence | None = None, threads: int | None = None) -> int:
    """Memory that ``run_column`` takes beside volume and result: mostly the planes kept between layers."""
    request, keep = make_request(widths, dilations, boxes, shape, pairs, gaps, threads)
    found = library().meshnet_bytes(ctypes.byref(request))
    del keep
    return found + (1 << 20)


def choose_pairs(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 budget: int | None, gaps: Sequence | None = None, threads: int | None = None) -> list[bool]:
    """Which layers compute planes in pairs: those with the smallest dilations, which need the least room for it, as far
    as ``budget`` bytes go (None: all). Layers of one or two channels never do, since they are convolved directly."""
    pairs = [inputs >= 3 for inputs in widths[:-1]]
    for layer in sorted(range(len(dilations)), key=lambda layer: -dilations[layer]):
        if budget is None or column_bytes(widths, dilations, boxes, shape, pairs, gaps, threads) <= budget:
            break
        pairs[layer] = False
    return pairs


def weight_gradient(x: Array, gradient: Array, dilation: int, threads: int | None = None,
                    lib: ctypes.CDLL | None = None) -> Array:
    """The gradient (out, in, 3, 3, 3) of a convolution's weights from its input ``x`` (in, X, Y, Z) and the gradient
    (out, X, Y, Z) of its output, both float32 on the CPU. The same bits for any number of threads."""
    x, gradient = contiguous(x), contiguous(gradient)
    result = np.empty((gradient.shape[0], x.shape[0], 3, 3, 3), np.float32)
    shape = integers(tuple(x.shape[1:]))
    if (lib or library()).meshnet_weight_gradient(address(x), address(gradient), x.shape[0], gradient.shape[0],
                                                  dilation, ctypes.cast(shape, ctypes.c_void_p), address(result),
                                                  threads or thread_count()):
        raise MemoryError("meshnet kernels: no memory for the weights' gradient")
    return result if isinstance(x, np.ndarray) else sys.modules["torch"].from_numpy(result)


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
                           ACTIVATIONS[activation], thread_count())


def norm_sums(y: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor,
              activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel (C,), float64: the sum of the gradient before ``norm``'s activation, and of it times (y − mean)."""
    import torch

    grad_shift, grad_scale = torch.empty((2, y.shape[1]), dtype=torch.float64)
    assert extent(gradient) == extent(y)
    if library().meshnet_norm_sums(y.data_ptr(), gradient.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
                                   mean.data_ptr(), ACTIVATIONS[activation], grad_shift.data_ptr(),
                                   grad_scale.data_ptr(), thread_count()):
        raise MemoryError("meshnet kernels: no memory for sums")
    return grad_shift, grad_scale


def norm_backward(y: torch.Tensor, gradient: torch.Tensor, result: torch.Tensor, scale: torch.Tensor,
                  shift: torch.Tensor, mean: torch.Tensor, constant: torch.Tensor, slope: torch.Tensor,
                  activation: str) -> None:
    """``result`` = scale · (gradient before the activation − constant − slope · (y − mean)); it may be ``gradient``."""
    assert extent(gradient) == extent(y) == extent(result)
    library().meshnet_norm_backward(
        y.data_ptr(), gradient.data_ptr(), result.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
        mean.data_ptr(), constant.data_ptr(), slope.data_ptr(), ACTIVATIONS[activation], thread_count())


def agrees_with_numpy(lib: ctypes.CDLL) -> bool:
    """Whether ``lib`` computes what numpy does in float64 on small cases: each way to convolve (few channels, columns
    in pairs, few rows), and the weights' gradient."""
    generator = np.random.default_rng(0)
    for channels, dilation in ((3, 1), (9, 2), (3, 3)):
        volume, weight, bias, gradient = (
            generator.standard_normal(shape, np.float32)
            for shape in ((channels, 4, 13, 21), (5, channels, 3, 3, 3), (5,), (5, 4, 13, 21)))
        out = np.full_like(gradient, np.nan)
        run_column([weight], [bias], [dilation], ["elu"], volume, out, threads=2, lib=lib)
        padded = np.pad(volume.astype(float), ((0, 0), *[(dilation,) * 2] * 3))
        expected, expected_gradient = np.zeros(out.shape) + bias[:, None, None, None], np.empty(weight.shape)
        for tap in np.ndindex(3, 3, 3):
            part = padded[(slice(None), *(slice(t * dilation, t * dilation + n) for t, n in zip(tap, out.shape[1:])))]
            at = (slice(None), slice(None), *tap)
            expected += np.tensordot(weight[at], part, 1)
            expected_gradient[at] = np.tensordot(gradient, part, ((1, 2, 3),) * 2)
        expected = np.where(expected > 0, expected, np.expm1(np.minimum(expected, 0)))
        if not np.allclose(out, expected, atol=1e-3, rtol=1e-4):
            return False
        if not np.allclose(weight_gradient(volume, gradient, dilation, 2, lib), expected_gradient, atol=1e-2):
            return False
    return True
