"""Exports of DICOM files, folders or zips with many series, as the scans of one call.

Nothing that is written names the patient: files are called after a hash of the study's identifier and the number of the
series, and dcm2niix leaves personal fields out of its JSON files.
"""

import lzma
import os
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from meshnet.cohort.dicom import convert, name_of
from meshnet.cohort.series import Series, choose, find_series, study_name
from meshnet.errors import UserError
from meshnet.files import hash_of
from meshnet.runs.place import Place, place
from meshnet.runs.shares import FOLDER, POLL, Claims
from meshnet.scans.naming import kinds_of

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, KeyError,
              struct.error)  # what a damaged one is met with, wherever the damage is
CONVERTED = "converted"  # the folder of the NIfTI files, below that of the masks
NOT_CONVERTED = ("no series for the model was found, or it could not be converted; the command's messages say why, and "
                 "may name the patient")


def dicom_cases(paths: Sequence[Path], out: Path, channels: Sequence[str], wanted: Sequence[str] = (),
                sources: bool = False) -> tuple[list[dict], list[dict]]:
    """The scans of exports: for each study the series for the model's channels, converted below ``out``; and a record
    of each export and study that gives none.

    Each case has ``scans``, ``mask``, ``picture``, ``probability``, ``seg``, ``remarks``, ``name``, and ``source``, the
    DICOM files of the first channel, which last only with ``sources`` where they came out of a zip. Each record has
    ``scan``, ``error``, ``key``, ``case``, without a word of the headers or paths. What was chosen and passed over is
    printed on standard error.

    Raises:
        UserError: where there is no scan at all: the first problem. In one task of an array there is then just no case,
            since others have some.
    """
    planned, export_of, problems, failed = {}, {}, [], []

    def fail(name: str, error: UserError, export: str) -> None:
        problems.append(error)
        failed.append({"scan": [name], "error": NOT_CONVERTED, "key": hash_of([name, export])[:24], "export": export,
                       "case": {"scans": [Path(name)]}})

    with ExitStack() as stack:
        for number, path in enumerate(paths, 1):
            export = hash_of(os.path.abspath(path))[:24]  # a number is one in this call alone, a path may name somebody
            try:
                root = unpacked(path, stack) if path.is_file() else path
                series = find_series(root)
            except UserError as error:
                apart = f"-{export[:6]}" if place().command else ""  # the tasks of an array each have a first one
                fail(f"export-{number}{apart}", error, export)
                continue
            for study in dict.fromkeys(one.study for one in series):
                mine = [one for one in series if one.study == study]
                try:
                    chosen = choose(mine, channels, wanted)
                except UserError as error:
                    fail(study_name(study), error, export)
                    continue
                tell(mine, chosen, channels)
                if name_of(chosen[0]) in planned:
                    print(f"warning: {name_of(chosen[0])}: found twice, the second is passed over", file=sys.stderr)
                planned.setdefault(name_of(chosen[0]), (chosen, sources and root != path))
                export_of.setdefault(name_of(chosen[0]), export)
        found = converted_by_all(planned, out, place())
    for name, (chosen, _) in planned.items():
        if isinstance(found[name], UserError):
            fail(study_name(chosen[0].study), found[name], export_of[name])
    cases = [found[name] | {"export": export_of[name]} for name in planned if not isinstance(found[name], UserError)]
    if not cases and place().count == 1:
        raise problems[0]
    for error in problems:
        print(f"error: {error}", file=sys.stderr)
    return cases, failed


def converted_by_all(planned: dict[str, tuple[list[Series], bool]], out: Path, where: Place) -> dict:
    """The case of each study, or the error that it ends with, by the study's name. Where several processes have the
    same exports each study is converted by one of them: this one begins with its own part, and waits for the others'.
    """
    names, found = list(planned), {}
    own = where.part(len(names))
    names = [*names[own], *names[own.stop:], *names[:own.start]]
    folder = out / FOLDER
    if where.shared:
        folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder) if where.shared else None
    try:
        while names:
            for name in list(names):
                if claims and not claims.take(f"convert-{name}"):
                    continue
                try:
                    found[name] = converted(planned[name][0], out, planned[name][1], where.command)
                except UserError as error:
                    found[name] = error
                finally:
                    if claims:
                        claims.release(f"convert-{name}")
                names.remove(name)
            if names:
                time.sleep(POLL)
    finally:
        if claims:
            claims.close()
    return found


def unpacked(path: Path, stack: ExitStack) -> Path:
    """The content of a zip, in a temporary folder that ends with ``stack``.

    Raises:
        UserError: where it is no zip, or the disk has no room for it.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshnet-dicom-")))
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > shutil.disk_usage(folder).free:
                raise UserError(f"{path}: unpacks to {size / 1e9:.1f} GB, expected less than what is free in {folder}; "
                                "set TMPDIR to another disk, or unpack it yourself")
            archive.extractall(folder)
    except BROKEN_ZIP as error:
        raise UserError(f"{path}: cannot be read as a zip ({error}), expected one of DICOM files without a password; "
                        "unpack it yourself") from None
    return folder


def tell(series: Sequence[Series], chosen: Sequence[Series], channels: Sequence[str]) -> None:
    """Print which series was taken for which channel, and why others were not."""
    name = study_name(chosen[0].study)
    for one, channel in zip(chosen, channels):
        kind = f"{one.kind() or 'of an unknown kind'}, " if len(kinds_of(channel)) > 1 else ""
        print(f"{name}: {one.shown}, {kind}{one.slices} slices, taken for {channel} (--series names another)",
              file=sys.stderr)
    others = [f"{one.number} ({one.why_not or one.kind() or 'of an unknown kind'})" for one in series
              if one not in chosen]
    if others:
        print(f"{name}: passed over: series {', '.join(others)}", file=sys.stderr)


def converted(chosen: Sequence[Series], out: Path, keeps: bool, command: str = "") -> dict:
    """One case: its series as NIfTI files, and the names of what will be written about it; ``keeps``: its DICOM files
    are copied."""
    name = name_of(chosen[0])
    scans, remarks = [], []
    for one in chosen:
        path, said = convert(one, out / CONVERTED, command)
        scans.append(path)
        remarks += said
    files = kept(chosen[0].files) if keeps else chosen[0].files
    mask = out / f"{name}_lesion.nii.gz"
    return {"scans": scans, "mask": mask, "picture": out / f"{name}_lesion.png", "name": name, "remarks": remarks,
            "probability": out / f"{name}_lesion_probability.nii.gz", "seg": out / f"{name}_lesion_seg.dcm",
            "source": files}


def kept(files: Sequence[Path]) -> list[Path]:
    """Copies of DICOM files that outlive the unpacked zip, in a folder that is removed when the program ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="meshnet-series-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [Path(shutil.copy(file, folder / f"{i:05d}.dcm")) for i, file in enumerate(files)]
