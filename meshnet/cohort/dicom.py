"""DICOM in: a folder, a zip or a patient's export with many series, to NIfTI files by dcm2niix.

Nothing that is written names the patient: files are called after a hash of the study's identifier and the number of the
series, and dcm2niix leaves personal fields out of its JSON files.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.cohort.seg import frame_affines
from meshnet.cohort.series import Series, choose, find_series, kinds_of, missing_slices, study_name
from meshnet.errors import UserError
from meshnet.files import hash_of, whole_file

CONVERTED = "converted"  # the folder of the NIfTI files, below that of the masks
PARTS = re.compile(r"_(ph|real|imaginary|phMag|ADC|Eq|MoCo|ROI\d+)[a-z0-9]*$")  # what dcm2niix adds to a name
MOST_OFF_MM = 0.5  # between dcm2niix's grid and the headers, without a word
NOT_CONVERTED = ("no series for the model was found, or it could not be converted; the command's messages say why, and "
                 "may name the patient")
BROKEN = (OSError, ValueError, TypeError, AttributeError, EOFError, nib.filebasedimages.ImageFileError)
SECONDS = 600.0  # that dcm2niix may take for a series


def dicom_cases(paths: Sequence[Path], out: Path, channels: Sequence[str], wanted: Sequence[str] = ()
                ) -> tuple[list[dict], list[dict]]:
    """The scans of exports: for each study the series for the model's channels, converted below ``out``; and a record
    of each export and study that gives none.

    Each case has ``scans``, ``mask``, ``picture``, ``probability``, ``seg``, ``remarks``, ``name``, and ``source``, the
    DICOM files of the first channel. Each record has ``scan``, ``error``, ``key``, ``case``, without a word of the
    headers or paths. What was chosen and passed over is printed on standard error.

    Raises:
        UserError: where there is no scan at all: the first problem.
    """
    cases, problems, failed = {}, [], []

    def fail(name: str, error: UserError) -> None:
        problems.append(error)
        failed.append({"scan": [name], "error": NOT_CONVERTED, "key": hash_of(name)[:24],
                       "case": {"scans": [Path(name)]}})

    with ExitStack() as stack:
        for number, path in enumerate(paths, 1):
            try:
                root = unpacked(path, stack) if path.is_file() else path
                series = find_series(root)
            except UserError as error:
                fail(f"export-{number}", error)
                continue
            for study in dict.fromkeys(one.study for one in series):
                mine = [one for one in series if one.study == study]
                try:
                    chosen = choose(mine, channels, wanted)
                    tell(mine, chosen, channels)
                    case = converted(chosen, out, root != path)
                except UserError as error:
                    fail(study_name(study), error)
                    continue
                if case["mask"] in cases:
                    print(f"warning: {case['name']}: found twice, the second is passed over", file=sys.stderr)
                cases.setdefault(case["mask"], case)
    if not cases:
        raise problems[0]
    for error in problems:
        print(f"error: {error}", file=sys.stderr)
    return list(cases.values()), failed


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
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as a zip ({error}), expected one of DICOM files without a password; "
                        "unpack it yourself") from None
    return folder


def tell(series: Sequence[Series], chosen: Sequence[Series], channels: Sequence[str]) -> None:
    """Print which series was taken for which channel, and why others were not."""
    name = study_name(chosen[0].study)
    for one, channel in zip(chosen, channels):
        kind = f"{one.kind() or 'of an unknown kind'}, " if len(kinds_of(channel)) > 1 else ""
        print(f"{name}: {one.shown}, {kind}{one.frames} slices, taken for {channel} (--series names another)",
              file=sys.stderr)
    others = [f"{one.number} ({one.why_not or one.kind() or 'of an unknown kind'})" for one in series
              if one not in chosen]
    if others:
        print(f"{name}: passed over: series {', '.join(others)}", file=sys.stderr)


def converted(chosen: Sequence[Series], out: Path, temporary: bool) -> dict:
    """One case: its series as NIfTI files, and the names of what will be written about it."""
    name = name_of(chosen[0])
    scans, remarks = [], []
    for one in chosen:
        path, said = convert(one, out / CONVERTED)
        scans.append(path)
        remarks += said
    files = chosen[0].files
    if temporary:  # of a zip: kept until the SEG object is written
        files = kept(files, out, name)
    mask = out / f"{name}_lesion.nii.gz"
    return {"scans": scans, "mask": mask, "picture": out / f"{name}_lesion.png", "name": name, "remarks": remarks,
            "probability": out / f"{name}_lesion_probability.nii.gz", "seg": out / f"{name}_lesion_seg.dcm",
            "source": files}


def name_of(one: Series) -> str:
    """A name for a series: its study, its number, and a hash, as one study may lie in several exports."""
    return f"{study_name(one.study)}_series-{one.number:03d}-{study_name(one.uid)[6:12]}"


def kept(files: Sequence[Path], out: Path, name: str) -> list[Path]:
    """Copies of DICOM files that outlive the unpacked zip, in a folder that is removed when the program ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="meshnet-series-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [Path(shutil.copy(file, folder / f"{i:05d}.dcm")) for i, file in enumerate(files)]


def convert(one: Series, folder: Path) -> tuple[Path, list[str]]:
    """The NIfTI file of a series, and what is doubtful about it, in sentences. A file that is there already is used.

    Raises:
        UserError: where dcm2niix is missing, or makes no volume of the series.
    """
    try:
        import dcm2niix
    except ImportError:
        raise UserError("DICOM: dcm2niix is not installed; pip install -r requirements-dicom.txt") from None
    target = folder / f"{name_of(one)}.nii.gz"
    remarks = []
    if lacking := missing_slices(one.positions):
        remarks.append(f"{lacking} slice(s) of the series are missing: what lies there is interpolated or left out")
    with tempfile.TemporaryDirectory(prefix="meshnet-convert-") as place:
        sources, results = Path(place) / "in", Path(place) / "out"
        sources.mkdir()
        results.mkdir()
        for number, file in enumerate(one.files):
            os.symlink(file.resolve(), sources / f"{number:06d}.dcm")
        command = [str(dcm2niix.bin), "-z", "n", "-b", "y", "-ba", "y", "-w", "1", "-f", "v", "-o", str(results),
                   str(sources)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS,
                                  check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"DICOM: dcm2niix could not convert {one.shown} ({type(error).__name__}); convert it "
                            "yourself, or name another with --series") from None
        tilted = any("_Tilt" in path.stem for path in results.glob("*.nii"))
        made = best_of([path for path in sorted(results.glob("*.nii")) if not tilted or "_Tilt" not in path.stem])
        if made is None:
            line = next((line for line in done.stdout.splitlines() if "rror" in line or "arning" in line), "no volume")
            raise UserError(f"DICOM: dcm2niix made no 3D volume of {one.shown} ({line.strip()[:200]}); name another "
                            "series with --series")
        if "_Eq" in made.stem:
            remarks.append("the distance between slices varies: dcm2niix made it even, which resamples the scan")
        try:
            image = nib.load(made)
            data, said = one_volume(np.asanyarray(image.dataobj), made, one)
            affine = image.affine
            own = own_affine(one.files, data.shape, affine)
        except BROKEN as error:
            raise UserError(f"DICOM: {one.shown} cannot be used ({type(error).__name__}: {str(error)[:200]}); name "
                            "another series with --series") from None
        remarks += said
        if tilted and own is None:
            raise UserError(f"DICOM: {one.shown} was taken with a tilted gantry, and its slices are not evenly spaced; "
                            "convert it yourself, or name another with --series")
        if tilted:
            affine = own
            remarks.append("the gantry was tilted: the scan's grid is sheared, as its slices lie")
        elif own is not None and (off := farthest(own, affine, data.shape)) > MOST_OFF_MM:
            remarks.append(f"dcm2niix puts the scan up to {off:.1f} mm off where its headers say")
        image = nib.Nifti1Image(data, affine, image.header)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        image.header["descrip"] = image.header["aux_file"] = image.header["db_name"] = b""
        with whole_file(target) as temporary:
            nib.save(image, temporary)
    return target, remarks


def one_volume(data: np.ndarray, made: Path, one: Series) -> tuple[np.ndarray, list[str]]:
    """Of a series (X, Y, Z) or (X, Y, Z, N) the volume to segment, and what is to be said about it: of several the
    first with the largest b-value, by the file of b-values that dcm2niix writes beside it.

    Raises:
        UserError: for several volumes without b-values.
    """
    if data.ndim == 3 or data.shape[3:] == (1,):
        return data.reshape(data.shape[:3]), []
    beside = made.with_suffix(".bval")
    values = [float(word) for word in beside.read_text(encoding="utf-8").split()] if beside.is_file() else []
    if data.ndim != 4 or len(values) != data.shape[3] or max(values) <= 0:
        raise UserError(f"DICOM: {one.shown} holds {int(np.prod(data.shape[3:]))} volumes, expected one, or one for "
                        "each b-value; name another series with --series, or convert it yourself")
    place = int(np.argmax(values))
    return data[..., place], [f"of {len(values)} volumes number {place + 1} was taken, of the largest b-value, "
                              f"{values[place]:g} s/mm2"]


def own_affine(files: Sequence[Path], shape: tuple[int, ...], like: np.ndarray) -> np.ndarray | None:
    """The affine (4, 4), voxel to RAS+ mm, of a volume of single-frame files, by the positions in their headers:
    sheared where the gantry was tilted. None where they do not make one evenly spaced stack of this shape.

    dcm2niix keeps a file's columns, rows and slices as the three axes and may flip each of them: as ``like``, its own
    affine, has it.
    """
    import pydicom

    tags = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"]
    headers = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags) for file in files]
    if any(tag not in header for header in headers for tag in tags) or len(headers) < 2:
        return None
    frames = frame_affines(headers)
    normal = frames[0][:3, 2]
    frames.sort(key=lambda one: float(one[:3, 3] @ normal))
    places = np.array([one[:3, 3] for one in frames])
    step = (places[-1] - places[0]) / (len(places) - 1)
    even = places[0] + np.arange(len(places))[:, None] * step
    if (int(headers[0].Columns), int(headers[0].Rows), len(frames)) != shape or np.abs(even - places).max() > 0.1:
        return None
    axes = np.stack([frames[0][:3, 1], frames[0][:3, 0], step], 1)
    found, corner = np.eye(4), places[0].copy()
    for axis in range(3):
        sign = 1.0 if axes[:, axis] @ like[:3, axis] > 0 else -1.0
        found[:3, axis] = sign * axes[:, axis]
        corner += (shape[axis] - 1) * axes[:, axis] * (sign < 0)
    found[:3, 3] = corner
    return found


def farthest(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between where two affines put a corner of a volume."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def best_of(paths: Sequence[Path]) -> Path | None:
    """Of what dcm2niix made of a series the volume to segment: an evened one before its raw form, a magnitude before a
    phase, the one with the most voxels before others."""
    volumes = []
    for path in paths:
        shape = nib.load(path).shape
        if len(shape) >= 3 and min(shape[:3]) > 1:
            stem = path.stem
            corrected = "_Eq" in stem
            foreign = bool(PARTS.search(stem)) and not corrected
            volumes.append(((not foreign, corrected, int(np.prod(shape[:3]))), path))
    return max(volumes)[1] if volumes else None
