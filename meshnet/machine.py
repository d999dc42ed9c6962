"""The machine that the program runs on: its cores, its memory, sizes in words, the cache folder; packages left out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from meshnet.errors import UserError

SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def cache_folder() -> Path:
    """Where built libraries and downloaded models are kept: ``MESHNET_CACHE``, else the user's cache folder."""
    if "MESHNET_CACHE" in os.environ:
        return Path(os.environ["MESHNET_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshnet"


def cpu_wanted() -> bool:
    """Whether the environment asks for the CPU although there may be a GPU (``ACCELERATE_USE_CPU``)."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")


def usable_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_bytes() -> int:
    """Memory that the process holds now (0 where the system does not report it)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def parse_size(text: str, where: str) -> int:
    """``2GB``, ``1.5GiB``, ``800MB`` in bytes (a GB is 10⁹), or a UserError that names ``where``."""
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([A-Za-z]+)\s*", text)
    if not match or match[2].upper() not in SIZE_UNITS:
        raise UserError(f"{where}: found {text!r}, expected a size such as 2GB or 800MB")
    return int(float(match[1]) * SIZE_UNITS[match[2].upper()])


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Meanwhile an import of the package ``name`` fails, as if it were not installed; not if it was imported before."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]
