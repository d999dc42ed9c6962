"""Compile ``gpu.cpp`` against the installed PyTorch, and load it."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from meshnet.machine import cache_folder

SOURCE = Path(__file__).with_name("gpu.cpp")
COMPILERS = ("g++", "clang++", "c++")


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
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    include = torch / "include"
    command = [compiler, *flags, "-I", str(include), "-I", str(include / "torch/csrc/api/include"), str(SOURCE), "-o",
               str(temporary), "-L", str(torch / "lib"), "-lc10", *(["-ltorch_cpu"] if hooks else []),
               f"-Wl,-rpath,{torch / 'lib'}"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        os.replace(temporary, target)
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def load(hooks: bool) -> bool:
    """Put the simulated device into this process; False where it cannot be built. With ``hooks`` before torch is
    imported, and the process must then end by ``os._exit``."""
    path = build(hooks)
    if path is not None:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL if hooks else ctypes.DEFAULT_MODE)
    return path is not None
