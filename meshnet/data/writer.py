"""A prepared dataset's folder: cases into shards by worker processes, then one ``datasets.Dataset`` with splits."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np

from meshnet.data.row import See, Settings, code_version, prepare_case, shard_name
from meshnet.data.schema import FORMAT_VERSION, INFO, PREPARED, SHARDS, SPLITS, STATE, features, union_box
from meshnet.data.shared import Shared
from meshnet.data.sources.case import Case
from meshnet.data.splits import make_splits
from meshnet.display import count
from meshnet.errors import UserError
from meshnet.files import hash_of, write_json
from meshnet.machine import usable_cores
from meshnet.runs.place import place

MEMORY_PER_WORKER = 2 * 2**30  # bytes; a case of two channels at 256³ peaks at 1.1 GiB
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def disk_faults(out: Path) -> Iterator[None]:
    """Turn a disk that is full, limited or read-only into a UserError about the output folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise UserError(
            f"{out}: cannot write ({os.strerror(error.errno)}), expected a writable folder with space; free some or "
            "choose another --out, then run the same command again: finished cases are kept"
        ) from error


def open_folder(path: str | Path) -> Path:
    """Make the output folder, or continue in it. Raises UserError if it holds other files or is not writable."""
    out = Path(path)
    if out.is_dir() and any(out.iterdir()) and not (out / PREPARED).is_file() and not (out / SHARDS).is_dir():
        raise UserError(f"{out}: found other files, expected an empty folder or a prepared dataset; choose another")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder; choose another --out")
    with disk_faults(out):
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
        if not os.access(out / SHARDS, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
        for stray in (out / SHARDS).glob(".tmp-*") if not place().shared else ():  # of a killed run
            stray.unlink()
    return out


def default_workers() -> int:
    """One for each CPU core, or fewer where memory is short."""
    cores = usable_cores()
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system says
        return cores
    return max(1, min(cores, free // MEMORY_PER_WORKER))


def prepare_cases(
    cases: Sequence[Case], settings: Settings, out: Path, workers: int | None, see: See | None = None
) -> tuple[list[str], list[tuple[str, str]], Shared]:
    """Prepare the cases that are not ready yet, in ``workers`` processes (None: as many as fit), and with the other
    processes of this command where a launcher, torchrun or SLURM has started several.

    ``see`` is for settings with a ``first``; other processes call it as well.

    Returns shard names in the order of cases, the failures as (mask path, reason), and what says which process writes
    the data set; the caller closes it.

    Raises UserError where the disk is full or a worker was killed; finished shards stay for the next run.
    """
    from tqdm import tqdm

    workers = workers or default_workers()
    version = code_version(any(c.loader == "synthetic" for c in cases))
    names = [shard_name(case, settings, version) for case in cases]
    waiting = [i for i, name in enumerate(names) if not (out / name).is_file()]
    if len(waiting) < len(cases):
        print(f"{out}: {len(cases) - len(waiting)} of {count(len(cases), 'case')} ready from an earlier run")
    elif (out / PREPARED).is_file():
        print(f"{out}: all cases are prepared again, since the settings, the files or the program changed")
    schema = features(settings.groups, settings.first is not None).arrow_schema
    shared = Shared(names, out, place())
    jobs = (None if i is None else (i, (cases[i], settings, schema, out / names[i], see)) for i in shared.take_all())
    pace = 0.1 if sys.stderr.isatty() else 30.0  # a line every half minute in a log file
    try:
        with disk_faults(out), tqdm(total=len(waiting), unit="case", desc="prepare", disable=not waiting,
                                    mininterval=pace) as bar:
            for i, fault in run_jobs(jobs, min(workers, len(waiting)), out):
                shared.finished(i, fault)
                bar.update()
    except BaseException:
        shared.close()
        raise
    failed = shared.failures()
    return [name for i, name in enumerate(names) if i not in failed], [failed[i] for i in sorted(failed)], shared


def run_jobs(jobs: Iterable[tuple[int, tuple] | None], workers: int, out: Path,
             ) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """``prepare_case`` on every job's arguments: (key, what it returned), as they end. One worker is this process.

    A None among the jobs says that the next one is not known yet: what is running is waited for first.
    """
    if workers <= 1:
        yield from ((job[0], prepare_case(*job[1])) for job in jobs if job)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes are the parallelism
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        futures: dict = {}
        try:
            for job in itertools.chain(jobs, [None]):
                if job:
                    futures[pool.submit(prepare_case, *job[1])] = job[0]
                while futures and (job is None or len(futures) > 2 * workers):
                    for future in wait(futures, return_when=FIRST_COMPLETED).done:
                        yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{out}: a worker process was killed, probably for lack of memory; run again with fewer --workers than "
                f"{workers}: finished cases are kept"
            ) from error
        except KeyboardInterrupt:  # a case may take long, and a shard is written whole or not at all
            for child in multiprocessing.active_children():
                child.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ignore Ctrl-C and a closed terminal, which the parent handles, and end with the parent, which cannot stop its
    workers when killed."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write_dataset(
    out: Path, shards: list[str], settings: Settings, source: dict, channels: list[str], classes: list[str], folds: dict
) -> dict:
    """Write the files that make one dataset of the shards: splits, prepared.json and what ``load_from_disk`` reads.

    Volumes are neither read nor copied. Shards that are no longer used are removed. Returns prepared.json's content.
    """
    rows = [small_columns(out / name) for name in shards]
    splits = make_splits(
        [r["subject"] for r in rows],
        [r["lesion_ml"] for r in rows],
        [[r[f"group_{g}"] for g in settings.groups] for r in rows],
        **folds,
    )
    volumes_ml = np.array([r["lesion_ml"] for r in rows])
    box = union_box(r["head_box"] for r in rows)
    sources = [[r["case"], r["subject"], r["image_sha256"], r["mask_sha256"]] for r in rows]
    identity = hash_of([FORMAT_VERSION, settings.identity, sources])
    size = list(settings.grid.size)
    prepared = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "voxel_mm": settings.grid.voxel_mm,
        "shape": size,
        "orientation": settings.grid.orientation,
        "centre": settings.grid.centre,
        "averaged": settings.grid.averaged,
        "scaling": settings.scaling,
        "window": list(settings.window) if settings.window else None,
        "channels": channels,
        **({"first": list(settings.first.classes), "first_network": list(settings.first.network)} if settings.first else
           {}),
        **({"mirror": True} if settings.first and settings.first.mirror else {}),
        **({"looks": looks} if (looks := Counter(r["looks"] for r in rows if r.get("looks"))) else {}),
        "classes": classes,
        "marks": None if settings.marks is None else classes[settings.marks],
        "groups": list(settings.groups),
        "labels": dict(settings.labels) if settings.labels else None,
        "box": box,
        "box_share": round(float(np.prod([box[1] - box[0], box[3] - box[2], box[5] - box[4]]) / np.prod(size)), 4),
        "cases": len(rows),
        "subjects": len({r["subject"] for r in rows}),
        "lesion_ml": f"{volumes_ml.min():.2f} to {volumes_ml.max():.2f} mL, median {np.median(volumes_ml):.2f}",
        "fingerprint": identity,
        "warnings": {r["case"]: r["warnings"] for r in rows if r["warnings"]},
    }
    for case, lines in prepared["warnings"].items():
        for line in lines:
            print(f"warning\t{case}: {line}", file=sys.stderr)
    say_lost(rows)
    with disk_faults(out):
        _write_dataset_files(out, shards, settings, identity)
        write_json(out / SPLITS, splits)
        write_json(out / PREPARED, prepared)
        for path in (out / SHARDS).glob("*.arrow"):
            if f"{SHARDS}/{path.name}" not in set(shards):
                path.unlink()
    return prepared


def say_lost(rows: list[dict]) -> None:
    """How much of the lesions the second network of a cascade, for which the cases were prepared, cannot mark."""
    lost = [row for row in rows if row.get("outside_ml")]
    if lost:
        ml, rest = (sum(row[name] for row in rows) for name in ("outside_ml", "inside_ml"))
        print(f"warning\t{ml:.2f} of {ml + rest:.2f} mL of the lesions, in {len(lost)} "
              f"of {count(len(rows), 'case')}, lie outside what the first network found; the second one cannot mark "
              "them", file=sys.stderr)


def _write_dataset_files(out: Path, shards: list[str], settings: Settings, identity: str) -> None:
    """``dataset_info.json`` and ``state.json``, as ``datasets.Dataset.save_to_disk`` writes them."""
    from datasets import DatasetInfo

    info = DatasetInfo(description="Prepared by prepare.py of MeshNet.",
                       features=features(settings.groups, settings.first is not None))
    write_json(out / INFO, {k: v for k, v in asdict(info).items() if v is not None})
    write_json(out / STATE, {
        "_data_files": [{"filename": s} for s in shards],
        "_fingerprint": identity[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    })


def small_columns(path: Path) -> dict:
    """A shard's row without its volumes, from the mapped file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as handle:
        batch = pa.ipc.open_stream(handle).read_next_batch()
        names = [f.name for f in batch.schema if not pa.types.is_large_binary(f.type)]
        return batch.select(names).to_pylist()[0]
