"""Files are written whole or not at all: a temporary name beside the target, fsync, rename."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

UMASK = os.umask(0o022)
os.umask(UMASK)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on leaving without an error it is fsynced and renamed to ``path``.

    The temporary name keeps the ending (``.nii.gz``), since writers choose their format by it. On an error the
    temporary file is removed and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)  # some writers make files that only their owner can read
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object, default: Callable | None = None) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=default) + "\n")
