"""Compiling the kernels: the library is built from source on first use and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from meshnet.machine import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")  # includes the headers in cpu/, so it is one source to the compiler
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast")


def build_library(folder: Path | None = None) -> Path | None:
    """Compile the source unless that has been done. Returns the library's path, or None where it cannot be built.

    Several processes may call this at once: each compiles to a file name of its own and renames it.

    Args:
        folder: where the library is kept; None means the user's cache folder.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    folder = folder or cache_folder()
    target = folder / f"kernels-{library_hash(compiler)}.so"
    if target.exists():
        return target
    native = ["-mcpu=native"] if platform.machine() in ("arm64", "aarch64") else ["-march=native"]
    return compile_library([compiler, *FLAGS, *native, str(SOURCE)], target)


def compile_library(command: list[str], target: Path) -> Path | None:
    """Run a compiler's ``command``, to which its output is added, into ``target``, whole or not at all; None where it
    fails."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, "-o", str(temporary)], check=True, capture_output=True, timeout=300)
        os.replace(temporary, target)
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def library_hash(compiler: str) -> str:
    """A hash of everything that the library depends on: source, flags, compiler and the CPU's features."""
    features = platform.processor() + platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    about = os.stat(compiler)
    sources = [SOURCE, *sorted((SOURCE.parent / "cpu").glob("*.h"))]
    parts = [*(path.read_text(encoding="utf-8") for path in sources), " ".join(FLAGS), os.path.realpath(compiler),
             str(about.st_size), str(about.st_mtime_ns), features]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
