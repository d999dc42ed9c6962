"""Compile ``gpu.cpp`` against the installed PyTorch, and load it."""

import ctypes
import hashlib
import importlib.util
import shutil
from pathlib import Path

from meshnet.kernels.build import COMPILERS, compile_library
from meshnet.machine import cache_folder

SOURCE = Path(__file__).with_name("gpu.cpp")


def build(hooks: bool) -> Path | None:
    """The compiled library, kept in the cache folder; None where there is no C++ compiler or it fails. torch itself is
    not imported, since the library with ``hooks`` must be loaded before it."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    torch = Path(importlib.util.find_spec("torch").origin).parent
    version = (torch / "version.py").read_text(encoding="utf-8")
    flags = ["-O1", "-shared", "-fPIC", "-std=c++20", *(["-DHOOKS"] if hooks else [])]
    parts = [SOURCE.read_text(encoding="utf-8"), version, str(torch), compiler, *flags]
    target = cache_folder() / f"simulated-gpu-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    include = torch / "include"
    return compile_library([compiler, *flags, "-I", str(include), "-I", str(include / "torch/csrc/api/include"),
                            str(SOURCE), "-L", str(torch / "lib"), "-lc10", *(["-ltorch_cpu"] if hooks else []),
                            f"-Wl,-rpath,{torch / 'lib'}"], target)


def load(hooks: bool) -> bool:
    """Put the simulated device into this process; False where it cannot be built. With ``hooks`` before torch is
    imported, and the process must then end by ``os._exit``."""
    path = build(hooks)
    if path is not None:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL if hooks else ctypes.DEFAULT_MODE)
    return path is not None
