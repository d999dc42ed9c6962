"""Files are written whole or not at all: a temporary name beside the target, fsync, rename. Locks and hashes too."""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from meshnet.errors import REMEDIES, UserError, number_of

PROBE = 1 << 20  # bytes that are written to ask a disk whether it takes any
MOST_BYTES = 143  # of a file name; less than 255, since encrypted home folders take no more
UMASK = os.umask(0o022)
os.umask(UMASK)


def temporary_name(name: str) -> str:
    """A hidden name beside a file called ``name``, with the same ending and at most as many bytes as fit."""
    hidden = f".tmp-{os.getpid()}-{name}"
    if len(os.fsencode(hidden)) <= MOST_BYTES:
        return hidden
    return f".tmp-{os.getpid()}-{hash_of(os.fsencode(name).hex())[:16]}{''.join(Path(name).suffixes[-2:])[-12:]}"


def near(path: str | Path) -> str:
    """``; did you mean data/tiny?`` for a path that is missing, where something beside it is nearly called so; "" where
    the path is there, or nothing is like it. The first part of the path that is missing decides, and what is offered
    has the rest of it too."""
    path = Path(path)
    try:
        missing = next((one for one in (*reversed(path.parents), path) if not one.exists()), None)
        if missing is None:
            return ""
        rest = path.relative_to(missing)
        beside = [one.name for one in missing.parent.iterdir()
                  if not one.name.startswith(".") and (one / rest).exists()]
    except (OSError, ValueError):  # a folder that may not be read, a name with a null byte
        return ""
    from difflib import get_close_matches

    like = [str(missing.with_name(one) / rest) for one in get_close_matches(missing.name, beside)]
    return f"; did you mean {' or '.join(like)}?" if like else ""


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on leaving without an error it is fsynced and renamed to ``path``.

    The temporary name keeps the ending (``.nii.gz``), since writers choose their format by it. On an error the
    temporary file is removed and ``path`` is as it was. An error of the disk is an OSError that names ``path``, in
    whatever words the library that was writing put it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with named(path, temporary):
            yield temporary
            temporary.chmod(0o666 & ~UMASK)  # some writers make files that only their owner can read
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a share that is away: what went wrong before is what is said
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Give an error of the disk the name of the file that was being written.

    Writers have words of their own for a full disk (``unexpected pos 64 vs 0``, ``encoder error -2``), or report it
    without a number. So after such an error the disk is asked, by a few more bytes at the end of ``temporary``.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None and temporary is not None:
            ask_disk(path, temporary, error)
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
        raise
    except Exception as error:  # writers have errors of their own (SafetensorError, struct.error); raised again
        if temporary is not None and not isinstance(error, MemoryError):
            ask_disk(path, temporary, error)
        raise


def ask_disk(path: Path, temporary: Path, error: Exception) -> None:
    """Raise an OSError about ``path`` if its disk takes no more, or if ``error`` says so in the words of a library."""
    number = number_of(error) if isinstance(error, OSError | RuntimeError) or "os error" in str(error) else None
    try:
        with open(temporary, "ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        number = found.errno
    if number in REMEDIES:
        raise OSError(number, os.strerror(number), str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk(root: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` that goes into linked folders as well, as data sets on several disks have them. A link to a folder of
    ``root`` itself, or back to one that it lies in, is not followed."""
    top, followed = os.path.join(os.path.realpath(root), ""), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        for link in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            target = os.path.join(os.path.realpath(os.path.join(folder, link)), "")
            if target in followed or target.startswith(top) or os.path.join(os.path.realpath(folder), "").startswith(
                    target) or top.startswith(target):
                folders.remove(link)
            followed.add(target)
        yield folder, folders, names


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all; ``errors`` as of ``open``, for foreign file names."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: str | Path, value: object, default: Callable | None = None) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=default) + "\n")


def csv_text(rows: Iterable[Sequence]) -> str:
    """``rows``, the titles among them, as CSV with Unix line ends; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: str | Path, rows: Iterable[Sequence]) -> None:
    """Write ``rows``, the titles among them, as CSV to ``path``, whole or not at all."""
    write_text(path, csv_text(rows))


def hash_of(value: object) -> str:
    """SHA-256 (64 hex digits) of a value's canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def try_lock(file: IO | int) -> bool:
    """Lock an open file until it is closed, by its last holder if several processes inherit it.

    Returns False at once where another process holds the lock.
    """
    import fcntl  # not on Windows, where scans are segmented all the same

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def lock(path: str | Path, taken: str) -> Iterator[None]:
    """Hold the lock file ``path``, which is made where it is missing.

    Raises:
        UserError: ``taken``, where another process holds it.
    """
    with open(path, "a") as file:
        if not try_lock(file):
            raise UserError(taken)
        yield
