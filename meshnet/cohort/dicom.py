"""A series of DICOM files to a NIfTI file, by dcm2niix.

The file holds the volume that is to be segmented on a grid that agrees with the series' headers, and nothing about the
patient.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np

from meshnet import __version__
from meshnet.cohort.records import read_json
from meshnet.cohort.seg import frame_affines
from meshnet.cohort.series import Series, missing_slices, study_name
from meshnet.errors import UserError
from meshnet.files import hash_of, whole_file, write_json

PARTS = re.compile(r"_(ph|real|imaginary|phMag|ADC|Eq|MoCo|ROI\d+)[a-z0-9]*$")  # what dcm2niix adds to a name
MOST_OFF_MM = 0.5  # between dcm2niix's grid and the headers, without a word
BROKEN = (OSError, ValueError, TypeError, AttributeError, EOFError, nib.filebasedimages.ImageFileError)
SECONDS = 600.0  # that dcm2niix may take for a series


def name_of(one: Series) -> str:
    """A name for a series: its study, its number, and a hash, as one study may lie in several exports."""
    return f"{study_name(one.study)}_series-{one.number:03d}-{study_name(one.uid)[6:12]}"


def convert(one: Series, folder: Path, command: str = "") -> tuple[Path, list[str]]:
    """The NIfTI file of a series, and what is doubtful about it, in sentences. A file that is there already, made
    of files with the same content, is used.

    command: a name that all processes of one command share: what one of them could not convert the others do not try.

    Raises:
        UserError: where dcm2niix is missing, or makes no volume of the series.
    """
    target, beside = folder / f"{name_of(one)}.nii.gz", folder / f"{name_of(one)}.json"
    of = hash_of([__version__, sorted(digest(path) for path in one.files)])
    known = read_json(beside) or {}
    if known.get("of") == of and target.is_file() and "remarks" in known:
        return target, known["remarks"]
    if command and known.get("failed") == command and known.get("of") == of:
        raise UserError(f"DICOM: {one.shown} could not be converted by another process of this command, whose messages "
                        "say why; name another series with --series")
    try:
        remarks = convert_anew(one, target)
    except UserError:
        if command:
            write_json(beside, {"of": of, "failed": command})
        raise
    write_json(beside, {"of": of, "remarks": remarks})
    return target, remarks


def digest(path: Path) -> str:
    """The hash of a file's content: headers alone do not tell a file that was copied again from the damaged one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_anew(one: Series, target: Path) -> list[str]:
    """Write the NIfTI file of a series; what is doubtful about it.

    Raises:
        UserError: as ``convert``.
    """
    remarks = []
    if lacking := missing_slices(one.positions):
        remarks.append(f"{lacking} slice(s) of the series are missing: what lies there is interpolated or left out")
    with tempfile.TemporaryDirectory(prefix="meshnet-convert-") as place:
        printed, results = by_dcm2niix(one, Path(place))
        tilted = any("_Tilt" in path.stem for path in results)
        made = [path for path in results if not tilted or "_Tilt" not in path.stem]
        try:
            made, others = best_of(made)
        except BROKEN as error:
            raise UserError(f"DICOM: dcm2niix made nothing of {one.shown} that can be read ({type(error).__name__}); "
                            "name another series with --series") from None
        if made is None:
            line = next((line for line in printed.splitlines() if "rror" in line or "arning" in line), "no volume")
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
        remarks += others_remarks(others, int(np.prod(data.shape)), one) + said
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
    return remarks


def by_dcm2niix(one: Series, place: Path) -> tuple[str, list[Path]]:
    """What dcm2niix prints about a series, and the volumes that it makes of it in a folder.

    Raises:
        UserError: where it is missing, or does not come to an end.
    """
    try:
        import dcm2niix
    except ImportError:
        raise UserError("DICOM: dcm2niix is not installed; pip install -r requirements-dicom.txt") from None
    sources, results = place / "in", place / "out"
    sources.mkdir()
    results.mkdir()
    for number, file in enumerate(one.files):
        os.symlink(file.resolve(), sources / f"{number:06d}.dcm")
    command = [str(dcm2niix.bin), "-z", "n", "-b", "y", "-ba", "y", "-w", "1", "-f", "v", "-o", str(results),
               str(sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"DICOM: dcm2niix could not convert {one.shown} ({type(error).__name__}); convert it "
                        "yourself, or name another with --series") from None
    return done.stdout, sorted(results.glob("*.nii"))


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
        refuse_several(one, int(np.prod(data.shape[3:])))
    place = int(np.argmax(values))
    return data[..., place], [f"of {len(values)} volumes number {place + 1} was taken, of the largest b-value, "
                              f"{values[place]:g} s/mm2"]


def others_remarks(others: Sequence[int], voxels: int, one: Series) -> list[str]:
    """What is to be said of volumes that were not taken, as of another image size; ``others`` are their voxels.

    Raises:
        UserError: where one of them could be the right one as well, as with several echoes.
    """
    if any(2 * size >= voxels for size in others):
        refuse_several(one, len(others) + 1)
    return [f"the largest of {len(others) + 1} volumes of the series was taken"] if others else []


def refuse_several(one: Series, number: int) -> NoReturn:
    """Refuse a series of several volumes of which nothing says which is meant."""
    raise UserError(f"DICOM: {one.shown} holds {number} volumes, expected one, or one for each b-value; name another "
                    "series with --series, or convert it yourself")


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


def best_of(paths: Sequence[Path]) -> tuple[Path | None, list[int]]:
    """Of what dcm2niix made of a series the volume to segment, None where there is none; and the voxels of each other
    one of its kind: an evened one goes before its raw form, a magnitude before a phase or a map.
    """
    volumes = []
    for path in paths:
        shape = nib.load(path).shape
        if len(shape) >= 3 and min(shape[:3]) > 1:
            stem = path.stem
            corrected = "_Eq" in stem
            foreign = bool(PARTS.search(stem)) and not corrected
            volumes.append(((not foreign, corrected, int(np.prod(shape[:3]))), path))
    if not volumes:
        return None, []
    evened = {path.stem.split("_Eq")[0] for (_, corrected, _), path in volumes if corrected}
    best = max(volumes)
    return best[1], [key[2] for key, path in volumes if path != best[1] and key[0] == best[0][0]
                     and path.stem not in evened]
