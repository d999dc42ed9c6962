"""Calls of the compiled CPU kernels in ``kernels.cpp``. They are built on first use, if there is a C++ compiler.

The library is kept in the user's cache folder under a name made from the source, the compiler and this CPU's features.
Each time it is loaded, it is compared with numpy on a small case. If anything fails, ``available()`` is False and
callers use PyTorch instead. ``MESHNET_KERNELS=0`` in the environment switches the kernels off.

Convolutions take tensors or numpy arrays, so that a scan can be segmented without importing PyTorch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meshnet.config import ACTIVATIONS
from meshnet.kernels.build import build_library
from meshnet.machine import usable_cores

if TYPE_CHECKING:
    import torch
    Array = np.ndarray | torch.Tensor

# The numbers by which kernels.cpp knows activations (none 0, relu 1, elu 2, gelu 3) and outputs.
ACTIVATION_CODES = {name: code for code, name in enumerate(("none", *ACTIVATIONS))}
OUTPUTS = {"features": 0, "logits": 1, "probabilities": 2, "labels": 3}


class Request(ctypes.Structure):
    """``struct Request`` of kernels.cpp.

    The fields must have the order and the types of that struct: C++ finds them by their place in memory alone, so one
    that is added, moved or retyped here and not there is read as another. Pointers to arrays are ``c_void_p``; whoever
    fills them in keeps the arrays alive during the call.
    """

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
    """Let PyTorch do the work inside a ``with`` block, for comparisons."""
    global _switched_on
    before, _switched_on = _switched_on, False
    try:
        yield
    finally:
        _switched_on = before


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, loaded and checked, or None."""
    if os.environ.get("MESHNET_KERNELS", "1") == "0":
        return None
    path = build_library()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.meshnet_run.argtypes = loaded.meshnet_bytes.argtypes = [ctypes.POINTER(Request)]
        loaded.meshnet_bytes.restype = ctypes.c_int64
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        loaded.meshnet_classes.argtypes = [
            pointer, integer, ctypes.c_int64, pointer, pointer, integer, integer, pointer, integer]
        loaded.meshnet_weight_gradient.argtypes = [pointer] * 2 + [integer] * 3 + [pointer] * 2 + [integer]
        size = [integer, integer, ctypes.c_int64]  # batch, channels, voxels
        loaded.meshnet_statistics.argtypes = [pointer, *size, pointer, pointer, integer]
        loaded.meshnet_norm.argtypes = [pointer] * 2 + size + [pointer] * 2 + [integer] * 2
        loaded.meshnet_norm_sums.argtypes = [
            *[pointer] * 2, *size, *[pointer] * 3, integer, *[pointer] * 2, integer]
        loaded.meshnet_norm_backward.argtypes = [pointer] * 3 + size + [pointer] * 5 + [integer] * 2
    except (OSError, AttributeError):
        return None
    return loaded if agrees_with_numpy(loaded) else None


def integers(values: Sequence[int]) -> ctypes.Array:
    """``values`` as a C array of int."""
    return (ctypes.c_int * len(values))(*values)


def address(array: Array) -> int:
    """The address of the first number of ``array``."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def contiguous(array: Array) -> Array:
    """``array``, copied unless it is contiguous."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def thread_count() -> int:
    """PyTorch's number of threads. Where it is not imported, ``OMP_NUM_THREADS``, else the cores that may be used."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return usable_cores()


def pointers(arrays: Sequence[Array | None]) -> ctypes.Array:
    """The addresses of ``arrays`` as a C array."""
    return (ctypes.c_void_p * len(arrays))(*(None if a is None else address(a) for a in arrays))


@dataclass(frozen=True)
class MapNorm:
    """Group norm over whole maps: ``weight`` and ``bias`` (channels,) float32 or None, ``groups`` of channels with one
    mean and one variance each (0: every channel its own, which is instance norm)."""

    weight: Array | None
    bias: Array | None
    groups: int = 0
    eps: float = 1e-5


@dataclass(frozen=True)
class Column:
    """3×3×3 convolutions one after another, with equal zero padding; each field has one entry per layer.

    Weights are (out, in, 3, 3, 3) and biases (out,) or None, all on the CPU in float32. Activations are ``none`` or one
    of ``config.ACTIVATIONS``. ``norms`` is for ``run_normed``.
    """

    weights: Sequence[Array]
    biases: Sequence[Array | None]
    dilations: Sequence[int]
    activations: Sequence[str]
    norms: Sequence[MapNorm] = ()


def run_column(column: Column, volume: Array, out: Array, output: str = "features", *,
               head: tuple[Array, Array] | None = None, boxes: Sequence | None = None, at: Sequence[int] | None = None,
               pairs: Sequence[bool] | None = None, gaps: Sequence | None = None, threads: int | None = None,
               lib: ctypes.CDLL | None = None) -> None:
    """Compute ``column`` on ``volume`` (C, X, Y, Z), all layers at once plane by plane, and write into ``out``.

    Args:
        volume, out: on the CPU, contiguous; ``out`` is (K, *grid) float32, or (*grid) uint8 for ``labels``.
        output: ``features`` of the last layer, or ``logits``, ``probabilities`` or ``labels`` of ``head``.
        head: weight (K, C) and bias (K,) of the 1×1×1 convolution to the classes.
        boxes: the part of the input and of each layer that is computed, ((x0, x1), (y0, y1), (z0, z1)); None means all.
            Each box must hold what the next layer looks at, as far as the volume goes.
        at: where in ``out`` the last box begins; None means where it begins in the volume.
        pairs: for each layer, whether it computes planes in pairs, which is faster and takes more memory; None means
            that all do.
        gaps: the part of each box that is not computed: for each axis (a, b, c, d), a to b and c to d; None means none.
            The kernels copy the values beside a gap into it. ``boxes.air_gaps`` chooses gaps for which that is right.
        threads: None means ``thread_count``.
        lib: the library to use; None means ``library()``.
    """
    weights, volume = [contiguous(w) for w in column.weights], contiguous(volume)
    assert address(contiguous(out)) == address(out)
    assert all(str(array.dtype).endswith("float32") for array in (volume, *weights))
    if boxes is None:
        boxes = [tuple((0, n) for n in volume.shape[1:])] * (len(weights) + 1)
    widths = [volume.shape[0], *(w.shape[0] for w in weights)]
    request, keep = make_request(widths, column.dilations, boxes, tuple(volume.shape[1:]), pairs, gaps, threads)
    at = [side[0] for side in boxes[-1]] if at is None else at
    arrays = {"activations": integers([ACTIVATION_CODES[a] for a in column.activations]), "weights": pointers(weights),
              "biases": pointers(column.biases), "out_shape": integers(tuple(out.shape[-3:])), "out_at": integers(at)}
    for name, array in arrays.items():
        setattr(request, name, ctypes.cast(array, ctypes.c_void_p))
    request.volume, request.out, request.output = address(volume), address(out), OUTPUTS[output]
    if head is not None:
        request.head_weight, request.head_bias, request.classes = address(head[0]), address(head[1]), len(head[1])
    if (lib or library()).meshnet_run(ctypes.byref(request)):
        raise MemoryError("meshnet kernels: no memory for the layers' planes")
    del keep  # until here, since the request points to these arrays


def make_request(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 pairs: Sequence[bool] | None, gaps: Sequence | None, threads: int | None) -> tuple[Request, list]:
    """A request with its sizes filled in, and the arrays that it points to, which must live as long as it does.

    ``widths`` are the channels of the input and of each layer, ``shape`` is the volume's (X, Y, Z); the other arguments
    are those of ``run_column``.
    """
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
    """The bytes that ``run_column`` takes beside volume and result, mostly for the planes kept between layers.

    Arguments as ``make_request``.
    """
    request, keep = make_request(widths, dilations, boxes, shape, pairs, gaps, threads)
    found = library().meshnet_bytes(ctypes.byref(request))
    del keep
    return found + (1 << 20)


def choose_pairs(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 budget: int | None, gaps: Sequence | None = None, threads: int | None = None) -> list[bool]:
    """For each layer, whether it computes planes in pairs.

    Layers with the smallest dilations take the least memory for it, so they come first, as far as ``budget`` bytes go
    (None: all). Layers of one or two input channels never do, since they are convolved directly.
    """
    pairs = [inputs >= 3 for inputs in widths[:-1]]
    for layer in sorted(range(len(dilations)), key=lambda layer: -dilations[layer]):
        if budget is None or column_bytes(widths, dilations, boxes, shape, pairs, gaps, threads) <= budget:
            break
        pairs[layer] = False
    return pairs


def weight_gradient(x: Array, gradient: Array, dilation: int, threads: int | None = None,
                    lib: ctypes.CDLL | None = None) -> Array:
    """The gradient (out, in, 3, 3, 3) of a convolution's weights, the same bits for any number of threads.

    Args:
        x: the input (in, X, Y, Z), float32 on the CPU.
        gradient: of the output (out, X, Y, Z), float32 on the CPU.
        dilation, threads, lib: as in ``run_column``.
    """
    x, gradient = contiguous(x), contiguous(gradient)
    result = np.empty((gradient.shape[0], x.shape[0], 3, 3, 3), np.float32)
    shape = integers(tuple(x.shape[1:]))
    if (lib or library()).meshnet_weight_gradient(address(x), address(gradient), x.shape[0], gradient.shape[0],
                                                  dilation, ctypes.cast(shape, ctypes.c_void_p), address(result),
                                                  threads or thread_count()):
        raise MemoryError("meshnet kernels: no memory for the weights' gradient")
    return result if isinstance(x, np.ndarray) else sys.modules["torch"].from_numpy(result)


def agrees_with_numpy(lib: ctypes.CDLL) -> bool:
    """Whether ``lib`` computes what numpy computes in float64 on small cases: each way to convolve (few channels,
    columns in pairs, few rows), and the weights' gradient."""
    generator = np.random.default_rng(0)
    for channels, dilation in ((3, 1), (9, 2), (3, 3)):
        volume, weight, bias, gradient = (
            generator.standard_normal(shape, np.float32)
            for shape in ((channels, 4, 13, 21), (5, channels, 3, 3, 3), (5,), (5, 4, 13, 21)))
        out = np.full_like(gradient, np.nan)
        run_column(Column([weight], [bias], [dilation], ["elu"]), volume, out, threads=2, lib=lib)
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
