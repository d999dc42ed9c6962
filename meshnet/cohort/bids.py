"""Scans of a BIDS tree, and what is written about them: a derivative data set with its sidecars and its table."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from meshnet import __version__
from meshnet.cohort.records import read_json
from meshnet.data.sources.bids import BidsFile, scans_of, walk
from meshnet.data.sources.case import Filters, matches
from meshnet.data.sources.kinds import Sidecars
from meshnet.data.sources.participants import read_participants
from meshnet.display import count
from meshnet.errors import UserError
from meshnet.files import write_json, write_text
from meshnet.runs.place import place
from meshnet.runs.shares import key_of

BIDS_VERSION = "1.10.0"
# The order of entities in a name, by BIDS; label and desc are the mask's own.
ENTITIES = ("sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo",
            "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "seg", "res", "den",
            "label", "desc")
MASK, PROBABILITY = "mask", "probseg"
DESCRIPTION, IGNORED = "dataset_description.json", ".bidsignore"
SIDE = ("Half of the scan that holds at least nine tenths of the marked volume, left or right of the middle of the "
        "head by the axes that the file's header declares; both where neither does. It is no statement about anatomy: "
        "a wrong header gives a wrong side.")
AGREEMENT = ("How well the mask agrees with that of the mirrored scan, or the masks of several models with each other, "
             "0 to 1: (2 a + 1 mL) / (b + c + 1 mL) of b and c mL with a in both; n/a without --agreement")
COLUMNS = {  # of lesions.tsv: what its JSON file says about each
    "participant_id": {"Description": "The participant, as in participants.tsv of the source data set"},
    "session_id": {"Description": "The session, where the source has sessions"},
    "source": {"Description": "The scan that was segmented, relative to the source data set"},
    "mask": {"Description": "The mask, relative to this data set"},
    "volume_ml": {"Description": "Volume of all marked voxels, as the model marks them", "Units": "mL"},
    "lesions": {"Description": "Number of 26-connected marked parts, after the model's cleaning"},
    "largest_ml": {"Description": "Volume of the largest part", "Units": "mL"},
    "side": {"Description": SIDE, "Levels": {"left": "left half", "right": "right half", "both": "both halves"}},
    "quality": {"Description": "Where QualityLearned: how likely the mask has a Dice of at least 0.3, or marks at "
                               "most 1 mL in a head without a lesion; else the Dice to be expected if the "
                               "probabilities are right (of an empty mask for ranking)"},
    "agreement": {"Description": AGREEMENT},
    "warnings": {"Description": "What is doubtful about the scan or its mask, in sentences"},
    "error": {"Description": "Why the scan could not be segmented; n/a where it was"},
}


class NoScan(UserError):
    """A tree without a scan of the wanted suffix."""


@dataclass(frozen=True)
class BidsCase:
    """A scan of a BIDS tree: one file for each channel, and the entities of the first one's name."""

    scans: tuple[Path, ...]
    entities: dict[str, str]

    def name(self, *, label: str = "lesion", desc: str | None = None, suffix: str = MASK) -> str:
        """The name, without an ending, of a file derived from the scan."""
        entities = self.entities | {"label": label} | ({"desc": desc} if desc else {})
        return "_".join([*(f"{key}-{entities[key]}" for key in ENTITIES if key in entities), suffix])

    def folder(self) -> PurePath:
        """The folder of what is derived from it, relative to the derivative data set."""
        session = [f"ses-{self.entities['ses']}"] if "ses" in self.entities else []
        return PurePath(f"sub-{self.entities['sub']}", *session, self.scans[0].parent.name)


@dataclass
class Found:
    """The scans of a tree, and (path, reason) of what is not one of them or cannot be decided."""

    cases: list[BidsCase]
    left_out: list[tuple[str, str]]
    failed: list[tuple[str, str]]
    notes: list[str]
    suffix: str = ""  # of the first channel
    without: list[str] = field(default_factory=list)  # subjects and sessions that have no scan of it


def find_scans(root: str | Path, suffixes: Sequence[str], filters: Filters, participants: Sequence[str] = (),
               sessions: Sequence[str] = ()) -> Found:
    """The scans of a BIDS tree with the first of ``suffixes``, each with its other channels.

    Channels are of the same subject, session and space; of several that could be one the name nearest to the first
    channel's wins. ``filters`` work as in ``prepare.py``. Scans under ``derivatives/``, ``sourcedata/`` and ``code/``
    are not taken.

    Raises:
        UserError: for a tree without such scans, and for a participant that it lacks.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, expected a BIDS data set; check the path")
    found = Found([], [], [], [], suffixes[0])
    files = [file for file in walk(str(root), Sidecars()) if not aside(file, root)]
    people, notes = read_participants(root / "participants.tsv")
    found.notes += notes
    wanted, sessions = [name.removeprefix("sub-") for name in participants], [s.removeprefix("ses-") for s in sessions]
    there = {file.entities.get("sub") for file in files}
    if missing := [name for name in wanted if name not in there]:
        raise UserError(f"--participant-label {missing[0]}: found no sub-{missing[0]} in {root}, expected one of "
                        f"{shown(sorted(filter(None, there)))}")
    asked = [file for file in files if file.entities.get("sub") and (not wanted or file.entities["sub"] in wanted)
             and (not sessions or file.entities.get("ses") in sessions)]
    scans = [file for file in asked if file.suffix in suffixes]
    found.without = sorted({visit(file) for file in asked} - {visit(file) for file in scans
                                                              if file.suffix == suffixes[0]})
    kept: dict[str, list[BidsFile]] = {}
    for file in scans:
        groups = {**people.get(file.entities["sub"], {}), **file.entities}
        reason = None if matches(filters.image_pattern, file.path, str(root)) else "--image_pattern"
        if reason := reason or filters.rejects(groups):
            found.left_out.append((file.path, reason))
        else:
            kept.setdefault(file.entities["sub"], []).append(file)
    for first in [file for group in kept.values() for file in group if file.suffix == suffixes[0]]:
        assemble(first, kept[first.entities["sub"]], suffixes, filters, people, found)
    if not found.cases and not found.failed:
        first = [why for path, why in found.left_out if BidsFile.parse(path).suffix == suffixes[0]]
        if first:
            raise NoScan(f"{root}: found {count(len(first), f'{suffixes[0]} scan')}, but left out all of them: "
                         f"{shown(sorted(set(first)))}; check --suffix, --include and --exclude")
        raise NoScan(f"{root}: found no {suffixes[0]} scan that the filters keep among {len(files)} NIfTI file(s) "
                        "called sub-…, expected some; check --suffix, --include and --exclude")
    found.cases.sort(key=lambda case: str(case.scans[0]))
    return found


def visit(file: BidsFile) -> str:
    """The subject of a file, and its session where it has one."""
    return "_".join(f"{key}-{file.entities[key]}" for key in ("sub", "ses") if key in file.entities)


def aside(file: BidsFile, root: Path) -> bool:
    """Whether a file lies where a raw data set keeps what is no part of it."""
    return bool({"derivatives", "sourcedata", "code"} & set(Path(file.path).relative_to(root).parts[:-1]))


def shown(names: Sequence[str], most: int = 6) -> str:
    """Some of the names, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def assemble(first: BidsFile, scans: Sequence[BidsFile], suffixes: Sequence[str], filters: Filters, people: dict,
             found: Found) -> None:
    """Add the case of which ``first`` is the first channel to ``found``, or why it is none."""
    chosen = [first]
    if len(suffixes) > 1:
        like = BidsFile(first.path, first.entities, (first.suffix, MASK), "")
        others, reason, ambiguous, _ = scans_of(like, scans, suffixes[1:], filters.same)
        if reason:
            reason = reason.partition(": the mask says")[0]  # of the space that both have, if it is that
            (found.failed if ambiguous else found.left_out).append((first.path, reason))
            return
        chosen += others
    groups = {**people.get(first.entities["sub"], {}),
              **{key: value for file in chosen[::-1] for key, value in file.entities.items()}}
    if reason := filters.rejects(groups, need=True):
        found.left_out.append((first.path, reason))
        return
    found.cases.append(BidsCase(tuple(Path(file.path) for file in chosen), dict(first.entities)))


def plan(cases: Sequence[BidsCase], root: Path, out: Path, desc: str | None = None) -> list[dict]:
    """The files of each case: ``scans`` and ``mask``, ``probability``, ``picture`` and ``sidecar`` in ``out``.

    Raises:
        UserError: where two scans have one mask, or ``out`` holds the mask of another scan.
    """
    names = Counter(case.folder() / case.name(desc=desc) for case in cases)
    if twice := next((name for name, count in names.items() if count > 1), None):
        both = [str(case.scans[0]) for case in cases if case.folder() / case.name(desc=desc) == twice]
        raise UserError(f"{both[1]}: its mask would have the name of that of {both[0]}; segment them in two commands "
                        "with different -o or --desc")
    planned = []
    own = range(len(cases))[place().part(len(cases))]  # each process asks for the files of its own part
    for number, case in enumerate(cases):
        folder = out / case.folder()
        mask = folder / f"{case.name(desc=desc)}.nii.gz"
        sidecar = folder / f"{case.name(desc=desc)}.json"
        if number in own:
            check_source(sidecar, uris(case, root))
        figures = out / f"sub-{case.entities['sub']}" / "figures" / f"{case.name(desc=desc)}.png"
        planned.append({"scans": list(case.scans), "mask": mask, "sidecar": sidecar, "picture": figures, "bids": case,
                        "source": case.scans[0].relative_to(root).as_posix(),
                        "probability": folder / f"{case.name(desc=desc, suffix=PROBABILITY)}.nii.gz"})
    return planned


def uris(case: BidsCase, root: Path) -> list[str]:
    """The BIDS URIs of a case's scans, in the data set that ``DatasetLinks`` calls raw."""
    return [f"bids:raw:{scan.relative_to(root).as_posix()}" for scan in case.scans]


def check_source(sidecar: Path, sources: list[str]) -> None:
    """Refuse a mask's name that an earlier command gave to the mask of another scan."""
    try:
        earlier = json.loads(sidecar.read_text(encoding="utf-8")).get("Sources")
    except (OSError, ValueError, AttributeError):
        return
    if earlier and earlier != sources:
        raise UserError(f"{sidecar}: is of the mask of {', '.join(earlier)}, expected {', '.join(sources)}; give "
                        "another -o, or a --desc that tells the two apart")


def describe(out: Path, root: Path, models: Sequence[dict] | None) -> None:
    """``dataset_description.json`` with ``models`` beside those that it names; None: with those that made the masks in
    ``out`` and no others. Nothing is written where it says that already. One that another program wrote is left as it
    is, and that is said.
    """
    path = out / DESCRIPTION
    said = read_json(path)
    by = said["GeneratedBy"][0] if said and isinstance(said.get("GeneratedBy"), list) and said["GeneratedBy"] else {}
    if path.is_file() and (not isinstance(by, dict) or by.get("Name") != "MeshNet"):
        print(f"note: {path}: was not written by this program, and is left as it is", file=sys.stderr)
        return
    listed = unique(by.get("Models", []))
    if models is None:
        wanted = unique([model for _, sidecar in sidecars(out) for model in sidecar.get("Models", [])])
    else:
        wanted = unique([*models, *listed])
    if by.get("Version") != __version__ or listed != wanted:
        write_description(out, root, wanted)


def unique(models: Sequence[dict]) -> list[dict]:
    """The models, each once, in a fixed order."""
    return [json.loads(text) for text in sorted({json.dumps(model, sort_keys=True) for model in models})]


def write_description(out: Path, root: Path, model: list[dict]) -> None:
    """``dataset_description.json``, the names that a validator passes over, and the dictionary of the table."""
    source = read_json(root / DESCRIPTION) or {}
    doi = source.get("DatasetDOI")
    write_json(out / DESCRIPTION, {
        "Name": f"MeshNet lesion masks of {source.get('Name') or root.resolve().name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **({"License": source["License"]} if source.get("License") else {}),
        "GeneratedBy": [{"Name": "MeshNet", "Version": __version__,
                         "Description": "Lesions marked by a MeshNet. Research software, not for diagnosis.",
                         "Models": model}],
        "SourceDatasets": [{"URL": str(doi)}] if doi else [],
        "DatasetLinks": {"raw": relative(root, out)},
    })
    write_text(out / IGNORED, "lesions.tsv\nlesions.json\nreport*.html\nsub-*/figures\n")
    write_json(out / "lesions.json", COLUMNS)


def relative(path: Path, start: Path) -> str:
    """``path`` as seen from ``start``, with forward slashes."""
    return PurePath(os.path.relpath(path.resolve(), start.resolve())).as_posix()


def write_sidecars(planned: dict, root: Path, models: list[dict], result: dict, settings: dict) -> None:
    """The JSON files of a mask, and of its probabilities where they were written."""
    sources = uris(planned["bids"], root)
    common = {"Sources": sources, "SpatialReference": sources[0], "Models": models, **settings}
    write_json(planned["sidecar"], {
        "Type": "Lesion", "Description": "Lesions that the model marks, on the scan's own grid. Research only.",
        **common,
        "VolumeML": result["volume_ml"], "Lesions": result["lesions"], "LargestML": result["largest_ml"],
        "Side": result.get("side"), "SideDescription": SIDE, "Quality": result.get("quality"),
        "QualityLearned": result.get("quality_from", {}).get("learned"),
        **({"Agreement": result["agreement"]} if "agreement" in result else {}), "Warnings": result["warnings"],
        "Remarks": result["remarks"], "ManuallyDrawn": False})
    if "probability" in result:
        write_json(planned["probability"].with_name(planned["probability"].name.removesuffix(".nii.gz") + ".json"),
                   {"Type": "Lesion", "Description": "Probability of lesion, 0 to 1. Research only.", **common})


def sidecars(out: Path) -> Iterator[tuple[Path, dict]]:
    """The sidecars of the masks in ``out``, and what they say; those that cannot be read are passed over."""
    for path in sorted(out.glob(f"sub-*/**/*label-lesion*_{MASK}.json")):
        if said := read_json(path):
            yield path, said


def rows_of(out: Path, failures: Sequence[dict] = ()) -> list[dict]:
    """The rows of lesions.tsv from the sidecars of the masks in ``out``, and from the records of what failed.

    Of a scan that failed at the last try there is no other row, although an earlier mask of it may be there.
    """
    rows, again = [], {failure.get("key") for failure in failures}
    for path, said in sidecars(out):
        mask = path.with_suffix("").with_suffix(".nii.gz")
        if "VolumeML" in said and mask.is_file() and key_of(mask, out) not in again:
            parts = dict(part.split("-", 1) for part in path.stem.split("_") if "-" in part)
            rows.append({"participant_id": f"sub-{parts['sub']}",
                         "session_id": f"ses-{parts['ses']}" if "ses" in parts else None,
                         "source": said["Sources"][0].split(":", 2)[2], "mask": mask.relative_to(out).as_posix(),
                         "volume_ml": said["VolumeML"], "lesions": said["Lesions"], "largest_ml": said["LargestML"],
                         "side": said.get("Side"), "quality": said.get("Quality"),
                         "agreement": said.get("Agreement"), "warnings": "; ".join(said["Warnings"] + said["Remarks"]),
                         "error": None})
    rows += [{**dict.fromkeys(COLUMNS), "participant_id": failure["subject"], "session_id": failure.get("session"),
              "source": failure["source"], "error": failure["error"]} for failure in failures]
    return sorted(rows, key=lambda row: (row["participant_id"], row["session_id"] or "", row["source"]))


def write_table(out: Path, rows: Sequence[dict]) -> None:
    """``lesions.tsv``: a line for each scan; what is not known is n/a, as BIDS has it."""
    lines = ["\t".join(COLUMNS)]
    for row in rows:
        cells = [row.get(column) for column in COLUMNS]
        lines.append("\t".join("n/a" if cell in (None, "") else " ".join(str(cell).split()) for cell in cells))
    write_text(out / "lesions.tsv", "\n".join(lines) + "\n", errors="backslashreplace")  # names in foreign bytes
