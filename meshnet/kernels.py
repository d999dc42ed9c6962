"""The compiled CPU kernels of ``kernels.cpp``: built on first use where a C++ compiler is there, else left out.

The library is kept in the user's cache folder under a name made from the source, the compiler and this CPU's features.
It is compared with PyTorch on a small case each time it is loaded. Wherever anything fails, ``available()`` is False
and callers go PyTorch's own way. ``MESHNET_KERNELS=0`` in the environment switches the kernels off.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast")
ACTIVATIONS = {"none": 0, "relu": 1, "elu": 2, "gelu": 3}
OUTPUTS = {"features": 0, "logits": 1, "probabilities": 2, "labels": 3}


class Request(ctypes.Structure):
    """``struct Request`` of kernels.cpp, field by field."""

    _fields_ = [
        ("layers", ctypes.c_int), ("widths", ctypes.c_void_p), ("dilations", ctypes.c_void_p),
        ("activations", ctypes.c_void_p), ("pairs", ctypes.c_void_p), ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p), ("boxes", ctypes.c_void_p), ("shape", ctypes.c_void_p),
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
    path = build()
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
    return loaded if agrees_with_torch(loaded) else None


def build(folder: Path | None = None) -> Path | None:
    """Compile the source unless that has been done; the library's path, or None where it cannot be built.

    Several processes may call this at once: each compiles under a name of its own and renames.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    folder = folder or cache_folder()
    target = folder / f"kernels-{fingerprint(compiler)}.so"
    if target.exists():
        return target
    temporary = folder / f".{target.name}.{os.getpid()}"
    native = ["-mcpu=native"] if platform.machine() in ("arm64", "aarch64") else ["-march=native"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, *FLAGS, *native, str(SOURCE), "-o", str(temporary)], check=True,
                       capture_output=True, timeout=300)
        os.replace(temporary, target)
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def cache_folder() -> Path:
    """Where built libraries are kept: ``MESHNET_CACHE``, else the user's cache folder."""
    if "MESHNET_CACHE" in os.environ:
        return Path(os.environ["MESHNET_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshnet"


def fingerprint(compiler: str) -> str:
    """A hash over what the library depends on: source, flags, compiler and the CPU's features."""
    features = platform.processor() + platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    about = os.stat(compiler)
    parts = [SOURCE.read_text(encoding="utf-8"), " ".join(FLAGS), os.path.realpath(compiler), str(about.st_size),
             str(about.st_mtime_ns), features]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def integers(values: Sequence[int]) -> ctypes.Array:
    """``values`` as a C array of int."""
    return (ctypes.c_int * len(values))(*values)


def pointers(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array:
    """The addresses of ``tensors`` as a C array."""
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def run_column(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], dilations: Sequence[int],
               activations: Sequence[str], volume: torch.Tensor, out: torch.Tensor, output: str = "features",
               boxes: Sequence | None = None, at: Sequence[int] | None = None,
               head: tuple[torch.Tensor, torch.Tensor] | None = None, pairs: Sequence[bool] | None = None,
               threads: int | None = None, lib: ctypes.CDLL | None = None) -> None:
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
    """
    weights = [w.contiguous() for w in weights]
    volume = volume.contiguous()
    assert out.is_contiguous() and all(t.dtype == torch.float32 for t in (volume, *weights))
    if boxes is None:
        boxes = [tuple((0, n) for n in volume.shape[1:])] * (len(weights) + 1)
    widths = [volume.shape[0], *(w.shape[0] for w in weights)]
    request, keep = make_request(widths, dilations, boxes, tuple(volume.shape[1:]), pairs, threads)
    at = [side[0] for side in boxes[-1]] if at is None else at
    arrays = {"activations": integers([ACTIVATIONS[a] for a in activations]), "weights": pointers(weights),
              "biases": pointers(biases), "out_shape": integers(tuple(out.shape[-3:])), "out_at": integers(at)}
    for name, array in arrays.items():
        setattr(request, name, ctypes.cast(array, ctypes.c_void_p))
    request.volume, request.out, request.output = volume.data_ptr(), out.data_ptr(), OUTPUTS[output]
    if head is not None:
        request.head_weight, request.head_bias, request.classes = head[0].data_ptr(), head[1].data_ptr(), len(head[1])
    if (lib or library()).meshnet_run(ctypes.byref(request)):
        raise MemoryError("meshnet kernels: no memory for the layers' planes")
    del keep


def make_request(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 pairs: Sequence[bool] | None, threads: int | None) -> tuple[Request, list]:
    """A request with its sizes, and what has to live as long as it. Arguments as ``run_column``; ``widths`` are the
    channels of the input and of each layer."""
    arrays = {"widths": integers(widths), "dilations": integers(dilations),
              "activations": integers([0] * len(dilations)), "shape": integers(shape),
              "pairs": integers([1] * len(dilations) if pairs is None else pairs),
              "boxes": integers([edge for box in boxes for side in box for edge in side])}
    request = Request(layers=len(dilations), threads=threads or torch.get_num_threads(), classes=2,
                      **{name: ctypes.cast(array, ctypes.c_void_p) for name, array in arrays.items()})
    return request, list(arrays.values())


def column_bytes(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 pairs: Sequence[bool] | None = None) -> int:
    """Memory that ``run_column`` takes beside volume and result: mostly the planes kept between layers."""
    request, keep = make_request(widths, dilations, boxes, shape, pairs, None)
    found = library().meshnet_bytes(ctypes.byref(request))
    del keep
    return found + (1 << 20)


def choose_pairs(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int],
                 budget: int | None) -> list[bool]:
    """Which layers compute planes in pairs: those with the smallest dilations, which need the least room for it, as far
    as ``budget`` bytes go (None: all)."""
    pairs = [True] * len(dilations)
    for layer in sorted(range(len(dilations)), key=lambda layer: -dilations[layer]):
        if budget is None or column_bytes(widths, dilations, boxes, shape, pairs) <= budget:
            break
        pairs[layer] = False
    return pairs


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, dilation: int, threads: int | None = None,
                    lib: ctypes.CDLL | None = None) -> torch.Tensor:
    """The gradient (out, in, 3, 3, 3) of a convolution's weights from its input ``x`` (in, X, Y, Z) and the gradient
    (out, X, Y, Z) of its output, both float32 on the CPU. The same bits for any number of threads."""
    x, gradient = x.contiguous(), gradient.contiguous()
    result = torch.empty((gradient.shape[0], x.shape[0], 3, 3, 3))
    shape = integers(tuple(x.shape[1:]))
    if (lib or library()).meshnet_weight_gradient(x.data_ptr(), gradient.data_ptr(), x.shape[0], gradient.shape[0],
                                                  dilation, ctypes.cast(shape, ctypes.c_void_p), result.data_ptr(),
                                                  threads or torch.get_num_threads()):
        raise MemoryError("meshnet kernels: no memory for the weights' gradient")
    return result


def extent(y: torch.Tensor) -> tuple[int, int, int]:
    """Batch, channels and voxels of ``y`` (B, C, X, Y, Z), which has to be contiguous."""
    assert y.is_contiguous() and y.dtype == torch.float32
    return y.shape[0], y.shape[1], y[0, 0].numel()


def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (C,), float64, of each channel of ``y`` (B, C, X, Y, Z)."""
    mean, variance = torch.empty((2, y.shape[1]), dtype=torch.float64)
    if library().meshnet_statistics(y.data_ptr(), *extent(y), mean.data_ptr(), variance.data_ptr(),
                                    torch.get_num_threads()):
        raise MemoryError("meshnet kernels: no memory for statistics")
    return mean, variance


def norm(y: torch.Tensor, z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, activation: str) -> None:
    """``z`` = activation(scale · y + shift), channel by channel; ``z`` may be ``y``."""
    assert z.is_contiguous() and z.shape == y.shape and scale.dtype == shift.dtype == torch.float32
    library().meshnet_norm(y.data_ptr(), z.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
                           ACTIVATIONS[activation], torch.get_num_threads())


def norm_sums(y: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor,
              activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel (C,), float64: the sum of the gradient before ``norm``'s activation, and of it times (y − mean)."""
    of_shift, of_scale = torch.empty((2, y.shape[1]), dtype=torch.float64)
    assert extent(gradient) == extent(y)
    if library().meshnet_norm_sums(y.data_ptr(), gradient.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
                                   mean.data_ptr(), ACTIVATIONS[activation], of_shift.data_ptr(), of_scale.data_ptr(),
                                   torch.get_num_threads()):
        raise MemoryError("meshnet kernels: no memory for sums")
    return of_shift, of_scale


def norm_backward(y: torch.Tensor, gradient: torch.Tensor, result: torch.Tensor, scale: torch.Tensor,
                  shift: torch.Tensor, mean: torch.Tensor, constant: torch.Tensor, slope: torch.Tensor,
                  activation: str) -> None:
    """``result`` = scale · (gradient before the activation − constant − slope · (y − mean)); it may be ``gradient``."""
    assert extent(gradient) == extent(y) == extent(result)
    library().meshnet_norm_backward(
        y.data_ptr(), gradient.data_ptr(), result.data_ptr(), *extent(y), scale.data_ptr(), shift.data_ptr(),
        mean.data_ptr(), constant.data_ptr(), slope.data_ptr(), ACTIVATIONS[activation], torch.get_num_threads())


def agrees_with_torch(lib: ctypes.CDLL) -> bool:
    """Whether ``lib`` computes what PyTorch does on a small case: either way to convolve, and the weights' gradient."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn((3, 4, 13, 21), generator=generator)
    weight, bias = torch.randn((5, 3, 3, 3, 3), generator=generator), torch.randn((5,), generator=generator)
    gradient, out = torch.randn((5, 4, 13, 21), generator=generator), torch.empty((5, 4, 13, 21))
    for dilation in (1, 3):
        run_column([weight], [bias], [dilation], ["elu"], volume, out, threads=2, lib=lib)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # the first call may come from within one
            expected = torch.nn.functional.elu(torch.nn.functional.conv3d(
                volume[None], weight, bias, padding=dilation, dilation=dilation)[0])
            expected_gradient = torch.ops.aten.convolution_backward(
                gradient[None], volume[None], weight, [5], [1] * 3, [dilation] * 3, [dilation] * 3, False, [0] * 3, 1,
                [False, True, False])[1]
        if not torch.allclose(out, expected, atol=1e-3, rtol=1e-4):
            return False
        if not torch.allclose(weight_gradient(volume, gradient, dilation, 2, lib), expected_gradient, atol=1e-2):
            return False
    return True
