"""DICOM files sorted into series, and the series that a model wants among them."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from meshnet.data.sources.ghosts import is_ghost
from meshnet.errors import UserError
from meshnet.files import hash_of, walk
from meshnet.scans.naming import kinds_of

PREAMBLE = 128  # bytes before the letters DICM
TAGS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "SeriesNumber",
        "SeriesDescription", "ProtocolName", "ImageType", "EchoTime", "RepetitionTime", "InversionTime",
        "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "Rows", "Columns", "SOPClassUID")
FEWEST_SLICES = 8  # of a series of a head
LOCALISER = re.compile(r"locali[sz]er|\bloc\b|scout|survey|three.?plane|3.?plane|aahead|smartbrain|topogram|surview",
                       re.IGNORECASE)
DERIVED = re.compile(r"\badc\b|apparent|\bfa\b|\beadc\b|exp(onential)?.?(adc|att)|colou?r|\bcbf\b|\bcbv\b|\bmtt\b|"
                     r"\bttp\b|tmax|perfusion map|\bmip\b|\bmpr\b|subtract|\bphase\b|\bpha\b|screen ?save|report|"
                     r"\bdose\b|fmri|\bt1 ?map|\bt2 ?map", re.IGNORECASE)
CONTRAST = re.compile(r"\bgd\b|\+c\b|\bce\b|post|contrast|\bkm\b|gado", re.IGNORECASE)
KINDS = (  # channel, words of a description, words that speak against it; the first that fits
    ("FLAIR", r"flair|dark.?fluid|\btirm\b", ""),
    ("ADC", r"\badc\b|apparent", ""),
    ("DWI", r"dwi|diff|\bep2d\b|trace|\bb ?(=|-)? ?(800|1000|1200)\b", ""),
    ("T2starw", r"t2 ?\*|t2.?star|\bswi\b|\bgre\b|hemo|fl2d", ""),
    ("T2w", r"t2", "map"),
    ("T1w", r"t1|mp.?rage|spgr|bravo|\btfl\b|\bfspgr\b", "map"),
    ("PDw", r"\bpd\b|proton", "fat"),
)


@dataclass
class Series:
    """The files of one series, what its headers say, and why it is passed over ("" where it may be wanted)."""

    uid: str
    study: str
    files: list[Path] = field(default_factory=list)
    header: dict = field(default_factory=dict)
    positions: list[float] = field(default_factory=list)  # of the slices along their normal, in mm
    planes: set = field(default_factory=set)
    frames: int = 0
    why_not: str = ""

    @property
    def number(self) -> int:
        return int(amount(self.header.get("SeriesNumber")))

    @property
    def slices(self) -> int:
        """How many places its frames lie at: those of several echoes or b-values lie at the same."""
        kinds = self.header.get("ImageType") or ()
        return len({round(place, 2) for place in self.positions}) if len(self.positions) == self.frames and (
            "MOSAIC" not in [str(part).upper() for part in kinds]) else self.frames

    @property
    def words(self) -> str:
        """Description and protocol."""
        return " ".join(str(self.header.get(name) or "") for name in ("SeriesDescription", "ProtocolName")).strip()

    @property
    def shown(self) -> str:
        """Number and description, as they are printed; not written anywhere."""
        return f"series {self.number} '{self.header.get('SeriesDescription') or 'without a description'}'"

    def kind(self) -> str | None:
        """The channel that it holds, by its description, else by its echo, repetition and inversion times."""
        if self.header.get("Modality") == "CT":
            return "CT"
        words = re.sub(r"[_/.-]+", " ", self.words).lower()
        for name, fits, against in KINDS:
            if re.search(fits, words) and not (against and re.search(against, words)):
                return name
        echo, repetition, inversion = (amount(self.header.get(name)) for name in
                                       ("EchoTime", "RepetitionTime", "InversionTime"))
        if echo > 70 and repetition > 2000:
            return "FLAIR" if inversion > 1500 else "T2w"
        return "T1w" if 0 < echo < 30 and (0 < repetition < 1000 or inversion > 0) else None


def amount(value) -> float:
    """A number of a header; 0 where there is none, or several, or something else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return 0.0
    return found if np.isfinite(found) else 0.0


def looks_like_dicom(path: Path) -> bool:
    """Whether a folder or zip holds DICOM files and no NIfTI file, by at most its first hundred files."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
    found = False
    for number, file in enumerate(files_below(path)):
        if file.name.lower().endswith((".nii", ".nii.gz")):
            return False
        found = found or is_dicom(file)
        if number > 100:
            break
    return found


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM file by its preamble; a DICOMDIR is none of images."""
    try:
        with open(path, "rb") as file:
            file.seek(PREAMBLE)
            return file.read(4) == b"DICM" and path.name.upper() != "DICOMDIR"
    except OSError:
        return False


def files_below(root: Path) -> Iterable[Path]:
    """The files below a folder in a fixed order, but for what systems leave behind."""
    for folder, folders, names in walk(root):
        folders[:] = sorted(name for name in folders if not is_ghost(name))
        yield from (Path(folder) / name for name in sorted(names) if not is_ghost(name))


def find_series(root: Path) -> list[Series]:
    """Every series of images below a folder.

    Raises:
        UserError: where there is no DICOM file, or pydicom is missing.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError("DICOM: pydicom is not installed; pip install -r requirements-dicom.txt") from None
    found: dict[str, Series] = {}
    seen = set()
    for path in files_below(root):
        if not is_dicom(path):
            continue
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*TAGS])
            uid, image = str(data.get("SeriesInstanceUID", "")), str(data.get("SOPInstanceUID", ""))
            if not uid or image in seen:  # exports hold files twice
                continue
            # Without a study each series is one: two patients' are not taken for one.
            one = found.get(uid) or Series(uid, str(data.get("StudyInstanceUID") or "") or uid)
            header = one.header or {name: data.get(name) for name in TAGS}
            add_geometry(one, data)
        except Exception:  # noqa: BLE001 - whatever pydicom says of a broken file, the others of its series count
            continue
        seen.add(image)
        one.files.append(path)
        one.header = header
        found[uid] = one
    if not found:
        raise UserError(f"{root}: found no DICOM file, expected the files of a series; check the path")
    for one in found.values():
        one.why_not = why_not(one)
    return sorted(found.values(), key=lambda one: (one.study, one.number, one.uid))


def add_geometry(one: Series, data) -> None:
    """Count a file's frames, and note where it lies; nothing is changed where its header is broken."""
    frames = int(data.get("NumberOfFrames") or 1)
    if data.get("ImageOrientationPatient") is not None and data.get("ImagePositionPatient") is not None:
        axes = np.array([float(v) for v in data.ImageOrientationPatient]).reshape(2, 3)
        normal = np.cross(*axes)
        position = float(normal @ np.array([float(v) for v in data.ImagePositionPatient]))
        one.planes.add(tuple(np.round(np.abs(normal), 1)))
        one.positions.append(position)
    one.frames += frames


def why_not(one: Series) -> str:
    """Why a series is passed over; "" where it is a series of images of a head."""
    kinds = [str(part).upper() for part in one.header.get("ImageType") or ()]
    words = re.sub(r"[_/.-]+", " ", one.words)
    if one.header.get("Modality") not in ("MR", "CT"):
        return f"no image ({one.header.get('Modality') or 'no modality'})"
    if "LOCALIZER" in kinds or LOCALISER.search(words) or len(one.planes) > 1:
        return "a localiser"
    if DERIVED.search(words) or {"ADC", "FA", "CBF", "CBV", "MTT", "TTP", "PHASE MAP", "P"} & set(kinds[2:]):
        return "a derived map"
    if "MPR" in kinds or "PROJECTION IMAGE" in kinds or "SECONDARY" in kinds:
        return "derived from another series"
    if one.frames < FEWEST_SLICES:
        return f"{one.frames} slice(s)"
    return ""


def choose(series: Sequence[Series], channels: Sequence[str], wanted: Sequence[str] = ()) -> list[Series]:
    """The series of a study for each of a model's channels.

    Of a channel that may be of several kinds ("T1w, T2w or FLAIR") the first kind that there is. Of several series that
    fit, one without contrast agent, then the one with the most slices, then the last acquired.

    Args:
        wanted: what ``--series`` names for each channel: a number, or a pattern of the description.

    Raises:
        UserError: where none fits a channel, with what there is.
    """
    if wanted and len(wanted) != len(channels):
        raise UserError(f"--series: found {len(wanted)} name(s), expected {len(channels)}, one for each channel "
                        f"({', '.join(channels)})")
    chosen = []
    for place, channel in enumerate(channels):
        if wanted:
            fit = [one for one in series if is_named(one, wanted[place])]
        else:
            fit = next(filter(None, (of_kind(series, kind) for kind in kinds_of(channel))), [])
        if not fit:
            there = "; ".join(f"{one.shown}: {one.why_not or one.kind() or 'of an unknown kind'}" for one in series)
            raise UserError(f"DICOM: found no series for {f'--series {wanted[place]}' if wanted else channel} among "
                            f"{there}; expected one; name it with --series NUMBER or --series PATTERN")
        chosen.append(max(fit, key=lambda one: (not CONTRAST.search(re.sub(r"[_-]+", " ", one.words)), one.frames,
                                                one.number)))
    return chosen


def of_kind(series: Sequence[Series], kind: str) -> list[Series]:
    """The series that hold a kind of scan; maps of diffusion only where they are what is asked for."""
    fit = [one for one in series if not one.why_not and one.kind() == kind]
    maps = [one for one in series if kind == "ADC" and one.kind() == "ADC" and one.frames >= FEWEST_SLICES]
    return fit or maps


def is_named(one: Series, name: str) -> bool:
    """Whether ``--series`` names this series: by its number, or by a pattern of its description."""
    if name.isdecimal():
        return one.number == int(name)
    described = str(one.header.get("SeriesDescription") or "").lower()
    return fnmatch.fnmatchcase(described, name.lower())


def missing_slices(positions: Sequence[float]) -> int:
    """How many slices a series lacks between its first and its last one, by gaps of twice the usual distance or more.
    """
    places = np.unique(np.round(positions, 2))
    if len(places) < 3:
        return 0
    steps = np.diff(places)
    return int(sum(round(step / np.median(steps)) - 1 for step in steps if step > 1.5 * np.median(steps)))


def study_name(study: str) -> str:
    """A name for a study that tells nothing about the patient, the same in every call."""
    return f"study-{hash_of(study)[:10]}"
