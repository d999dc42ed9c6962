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
from collections.abc import Sequence
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
        ("activations", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("biases", ctypes.c_void_p),
        ("air", ctypes.c_void_p), ("boxes", ctypes.c_void_p), ("shape", ctypes.c_void_p), ("volume", ctypes.c_void_p),
        ("head_weight", ctypes.c_void_p), ("head_bias", ctypes.c_void_p), ("classes", ctypes.c_int),
        ("output", ctypes.c_int), ("threads", ctypes.c_int), ("out", ctypes.c_void_p), ("out_shape", ctypes.c_void_p),
        ("out_at", ctypes.c_void_p),
    ]


def available() -> bool:
    """Whether the kernels can be used in this process."""
    return library() is not None


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
        loaded.meshnet_run.argtypes = [ctypes.POINTER(Request)]
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
               boxes: Sequence | None = None, air: Sequence[torch.Tensor] | None = None,
               at: Sequence[int] | None = None, head: tuple[torch.Tensor, torch.Tensor] | None = None,
               threads: int | None = None, lib: ctypes.CDLL | None = None) -> None:
    """Stream ``volume`` (C, X, Y, Z) through 3×3×3 convolutions with equal zero padding and write into ``out``.

    Args:
        weights, biases, dilations, activations: one entry a layer; weights (out, in, 3, 3, 3), biases (out,) or None.
        out: (K, *grid) float32, or (*grid) uint8 for ``labels``; all tensors lie on the CPU, float32, contiguous.
        output: ``features`` of the last layer, or ``logits``, ``probabilities``, ``labels`` of the 1×1×1 ``head``
            (weight (K, C), bias (K,)).
        boxes: what of the input and of each layer is computed, ((x0, x1), (y0, y1), (z0, z1)); None means all.
        air: the constant (C,) of the input and of each layer but the last outside those boxes; None means zero.
        at: where in ``out`` the last box begins; None means where it lies in the volume.
    """
    weights = [w.contiguous() for w in weights]
    volume = volume.contiguous()
    assert out.is_contiguous() and all(t.dtype == torch.float32 for t in (volume, *weights))
    shape = tuple(volume.shape[1:])
    if boxes is None:
        boxes = [tuple((0, n) for n in shape)] * (len(weights) + 1)
    at = [side[0] for side in boxes[-1]] if at is None else at
    keep = [integers([volume.shape[0], *(w.shape[0] for w in weights)]), integers(dilations),
            integers([ACTIVATIONS[a] for a in activations]), pointers(weights), pointers(biases),
            None if air is None else pointers(air), integers([edge for box in boxes for side in box for edge in side]),
            integers(shape), integers(tuple(out.shape[-3:])), integers(at)]
    head_weight, head_bias = head if head else (None, None)
    request = Request(
        len(weights), *(ctypes.cast(a, ctypes.c_void_p) if a is not None else None for a in keep[:8]),
        volume.data_ptr(), None if head is None else head_weight.data_ptr(),
        None if head is None else head_bias.data_ptr(), 0 if head is None else head_weight.shape[0], OUTPUTS[output],
        threads or torch.get_num_threads(), out.data_ptr(), *(ctypes.cast(a, ctypes.c_void_p) for a in keep[8:]))
    if (lib or library()).meshnet_run(ctypes.byref(request)):
        raise MemoryError("meshnet kernels: no memory for the layers' planes")


def column_bytes(widths: Sequence[int], dilations: Sequence[int], boxes: Sequence, shape: Sequence[int]) -> int:
    """Memory that ``run_column`` takes beside volume and result: the planes kept between layers. ``widths`` as in
    ``Request``: the channels of the input and of each layer."""
    total = 4 << 20
    for channels, dilation, box, after in zip(widths, dilations, boxes, boxes[1:]):
        (a, b), rows, columns = after
        pad = -(-dilation // 16) * 16
        plane = (rows[1] - rows[0] + 2 * dilation) * (-(-(columns[1] - columns[0]) // 16) * 16 + 2 * pad) + 80
        slots = max(1, min(2 * dilation + 1, box[0][1] - box[0][0]))
        beyond = max(0, a - dilation) < box[0][0] or min(shape[0], b + dilation) > box[0][1]
        total += 4 * channels * plane * (slots + beyond)
    return total


def agrees_with_torch(lib: ctypes.CDLL) -> bool:
    """Whether ``lib`` computes what PyTorch does on a small case with both of its paths."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn((3, 4, 13, 21), generator=generator)
    weight, bias = torch.randn((5, 3, 3, 3, 3), generator=generator), torch.randn((5,), generator=generator)
    out = torch.empty((5, 4, 13, 21))
    for dilation in (1, 3):
        run_column([weight], [bias], [dilation], ["elu"], volume, out, threads=2, lib=lib)
        with torch.no_grad():
            expected = torch.nn.functional.elu(torch.nn.functional.conv3d(
                volume[None], weight, bias, padding=dilation, dilation=dilation)[0])
        if not torch.allclose(out, expected, atol=1e-3, rtol=1e-4):
            return False
    return True
