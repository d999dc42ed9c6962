"""BIDS trees: lesion masks under ``derivatives/``, matched to the scans they were drawn on by the names' entities."""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing
from meshnet.errors import UserError

# Entities that say what a derived file is, not which scan it belongs to.
OF_THE_MASK = frozenset({"desc", "label", "res", "den", "atlas", "seg", "hemi"})
MASK_SUFFIXES = frozenset({"mask", "msk", "roi", "dseg", "lesion", "lesionmask"})
MODALITIES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "dwi", "adc", "trace", "swi", "ct", "inplaneT2")


@dataclass(frozen=True)
class BidsFile:
    """A NIfTI file of the tree and the parts of its name."""

    path: str
    entities: dict[str, str]
    words: tuple[str, ...]  # parts of the name without a dash: the suffix, and in a mask also the scan's suffix
    derivative: str  # its path from derivatives/ on, or ""

    @property
    def suffix(self) -> str:
        return self.words[-1] if self.words else ""

    @property
    def is_mask(self) -> bool:
        """A lesion mask: under derivatives/, with a mask's suffix, and a lesion by its name or folder (or ``msk``)."""
        lesion = "lesion" in self.derivative.lower() or self.suffix == "msk"
        return bool(self.derivative) and self.suffix in MASK_SUFFIXES and lesion

    @property
    def modality(self) -> str | None:
        """The suffix of the scan that a mask's name speaks of (``…_T2w_desc-lesion_mask``, ``desc-T1lesion_mask``)."""
        described = self.entities.get("desc", "")
        for name in MODALITIES:
            if name in self.words[:-1] or re.match(rf"{name.removesuffix('w')}w?lesion", described):
                return name
        return None


def find_bids(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """Pairs of scan and mask in a BIDS tree, one for each lesion mask.

    A scan must agree with every entity that the mask's name carries (subject, session, acquisition, run, space, …)
    where it is of the modality that the mask's name mentions, or the mask mentions none; scans of another modality must
    agree in subject, session and space. A mask that matches two scans fails; ``filters`` must choose one of them.
    Entities and the columns of participants.tsv can be group columns; ``acq`` is one by default where it is known.
    """
    listing = Listing([], list(suffixes))
    scans: dict[str, list[BidsFile]] = {}
    masks = []
    for file in walk(path):
        wanted = file.is_mask or file.suffix in suffixes
        if wanted and (reason := filters.rejects(file.entities)):
            listing.left_out.append((file.path, reason))
        elif file.is_mask:
            masks.append(file)
        elif wanted:
            scans.setdefault(file.entities.get("sub", ""), []).append(file)
    if not masks and not listing.left_out:
        raise UserError(
            f"{path}: found no lesion mask, expected files such as derivatives/*/sub-*/*lesion_mask.nii.gz; check that "
            "it is the root of the data set"
        )
    people = read_participants(Path(path) / "participants.tsv")
    names = Counter(case_name(m) for m in masks)
    used = set()
    for mask in masks:
        subject = mask.entities["sub"]
        chosen, reason, ambiguous = scans_of(mask, scans.get(subject, []), suffixes)
        if f"sub-{subject}" not in Path(mask.path).parts[:-1]:
            reason, ambiguous = "its name and its folder name different subjects; correct one of them", True
        elif names[case_name(mask)] > 1:
            reason = f"{names[case_name(mask)]} masks match the same scan; choose with --include or --exclude"
            ambiguous = True
        if reason is None:
            groups = {**people.get(subject, {}), **{k: v for f in (*chosen[::-1], mask) for k, v in f.entities.items()}}
            reason = filters.rejects(groups, need=True)
        if reason:
            (listing.failed if ambiguous else listing.left_out).append((mask.path, reason))
            continue
        used.update(s.path for s in chosen)
        files = tuple(s.path for s in chosen)
        listing.cases.append(Case(case_name(mask), subject, files, mask.path, mask.entities.get("ses", ""), groups))
    for scan in (s for group in scans.values() for s in group if s.path not in used):
        listing.left_out.append((scan.path, "no lesion mask belongs to it"))
    if any("acq" in c.groups for c in listing.cases):
        listing.groups = ["acq"]
        for case in listing.cases:
            case.groups.setdefault("acq", "none")
    return listing


def walk(root: str) -> list[BidsFile]:
    """Every NIfTI file called ``sub-…`` below ``root``, hidden folders aside."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        # Relative to the root: the data set itself may lie below a folder called "derivatives".
        inside = Path(folder).relative_to(root).parts
        for name in sorted(n for n in names if n.startswith("sub-") and n.endswith((".nii", ".nii.gz"))):
            parts = name.removesuffix(".gz").removesuffix(".nii").split("_")
            entities = dict(p.split("-", 1) for p in parts if "-" in p)
            words = tuple(p for p in parts if "-" not in p)
            derivative = "/".join((*inside[inside.index("derivatives") :], name)) if "derivatives" in inside else ""
            files.append(BidsFile(os.path.join(folder, name), entities, words, derivative))
    return files


def scans_of(
    mask: BidsFile, scans: Sequence[BidsFile], suffixes: Sequence[str]
) -> tuple[list[BidsFile], str | None, bool]:
    """The scan of each suffix that a mask belongs to; or why there is none, and whether several match."""
    chosen = []
    for suffix in suffixes:
        strict = mask.modality in (None, suffix)
        candidates = [s for s in scans if s.suffix == suffix and _agree(mask, s, strict)]
        if not candidates:
            return [], f"no {suffix} scan agrees with it", False
        # The scan with the fewest extra entities wins, then one in the mask's folder; else the user has to choose.
        ranks = [(len(set(s.entities) - set(mask.entities)), Path(s.path).parent != Path(mask.path).parent)
                 for s in candidates]
        best = [s for s, rank in zip(candidates, ranks) if rank == min(ranks)]
        if len(best) > 1:
            shown = ", ".join(Path(s.path).name for s in best[:3]) + (", …" if len(best) > 3 else "")
            return [], f"{len(best)} {suffix} scans match it ({shown}); choose with --include or --exclude", True
        chosen += best
    return chosen, None, False


def _agree(mask: BidsFile, scan: BidsFile, strict: bool) -> bool:
    keys = set(mask.entities) - OF_THE_MASK if strict else {"sub", "ses"}
    # A file without space- is in the scan's own space, so both must have it or both must lack it.
    return mask.entities.get("space") == scan.entities.get("space") and all(
        mask.entities.get(k) == scan.entities.get(k) for k in keys if k in mask.entities
    )


def case_name(mask: BidsFile) -> str:
    """The name of a mask without the entities that say that it is a mask."""
    return "_".join(f"{k}-{v}" for k, v in mask.entities.items() if k not in OF_THE_MASK)


def read_participants(path: Path) -> dict[str, dict[str, str]]:
    """participants.tsv as {subject without ``sub-``: {column: value}}; empty where there is none."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    if rows and "participant_id" not in rows[0]:
        raise UserError(f"{path}: found the columns {', '.join(rows[0])}, expected participant_id among them")
    return {
        r["participant_id"].removeprefix("sub-"): {k: v or "" for k, v in r.items() if k and k != "participant_id"}
        for r in rows
    }
