"""BIDS trees: lesion masks under ``derivatives/``, matched to the scans they were drawn on by the names' entities."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing, matches
from meshnet.data.sources.ghosts import is_ghost
from meshnet.data.sources.kinds import Kind, Sidecars, kind_of
from meshnet.data.sources.makers import predictions
from meshnet.data.sources.participants import read_participants
from meshnet.display import count
from meshnet.errors import UserError
from meshnet.files import walk as files_below

# Entities that say what a derived file is, not which scan it belongs to.
OF_THE_MASK = frozenset({"desc", "label", "res", "den", "atlas", "seg", "hemi"})
MODALITIES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "dwi", "adc", "trace", "swi", "ct", "inplaneT2")
OWN_SPACE = frozenset({"orig", "original", "native", "individual", "scanner", "self", "subject"})
ONE_FOLDER = "its own name and JSON file say of nothing what it is, while other masks in {} say that they are lesions"


@dataclass(frozen=True)
class BidsFile:
    """A NIfTI file of the tree and the parts of its name."""

    path: str
    entities: dict[str, str]
    words: tuple[str, ...]  # parts of the name without a dash: the suffix, and in a mask also the scan's suffix
    derivative: str  # its path from derivatives/ on, or ""

    @classmethod
    def parse(cls, path: str, derivative: str = "") -> "BidsFile":
        """By the parts of the file's name."""
        parts = os.path.basename(path).removesuffix(".gz").removesuffix(".nii").split("_")
        return cls(path, dict(part.split("-", 1) for part in parts if "-" in part),
                   tuple(part for part in parts if "-" not in part), derivative)

    @property
    def suffix(self) -> str:
        return self.words[-1] if self.words else ""

    @property
    def modality(self) -> str | None:
        """The suffix of the scan that a mask's name speaks of (``…_T2w_desc-lesion_mask``, ``desc-T1lesion_mask``)."""
        described = self.entities.get("desc", "")
        for name in MODALITIES:
            if name in self.words[:-1] or re.match(rf"{name.removesuffix('w')}w?lesion", described):
                return name
        return None

    @property
    def space(self) -> str | None:
        """The space that its name says, or None for the scan's own."""
        space = self.entities.get("space")
        return None if space is None or space.lower() in OWN_SPACE else space

    def value(self, entity: str) -> str | None:
        return self.suffix if entity == "suffix" else self.entities.get(entity)


def find_bids(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """Pairs of scan and mask in a BIDS tree, one for each lesion mask.

    What a mask is of, its JSON file says (``Type``), else its own name, else its folder's name; ``mask_pattern`` of
    ``filters`` says it instead. A scan must agree with every entity that the mask's name carries (subject, session,
    acquisition, run, space, …) where it is of the modality that the mask's name mentions, or the mask mentions none;
    scans of another modality must agree in subject, session and space. A mask that matches two scans fails;
    ``filters`` must choose one of them. Where a person drew masks, those of this program's models are left out unless
    ``mask_pattern`` names them. Entities and the columns of participants.tsv can be group columns; ``acq`` is
    one by default where it is known.
    """
    listing = Listing([], list(suffixes))
    sidecars = Sidecars()
    files = walk(path, sidecars)
    masks, scans, settled = _sorted_out(files, path, suffixes, filters, sidecars, listing)
    listing.notes += sidecars.notes
    if not masks and not listing.left_out:
        raise UserError(
            f"{path}: found no lesion mask, expected files such as derivatives/*/sub-*/*lesion_mask.nii.gz; check that "
            "it is the root of the data set, or name the masks with --mask_pattern"
        )
    people, notes = read_participants(Path(path) / "participants.tsv")
    listing.notes += notes
    names = Counter(case_name(m) for m, _ in masks)
    used, unmatched = set(), []
    for mask, kind in masks:
        subject, name = mask.entities["sub"], case_name(mask)
        chosen, reason, ambiguous, won = scans_of(mask, scans.get(subject, []), suffixes, filters.same)
        folders = {p for p in Path(mask.path).relative_to(path).parts[:-1] if p.startswith("sub-")}
        if folders - {f"sub-{subject}"}:
            reason, ambiguous = "its name and its folder name different subjects; correct one of them", True
        elif names[name] > 1:
            reason = (f"{names[name]} masks match the same scan; choose with --include or --exclude, or with "
                      "--mask_pattern")
            ambiguous = True
        if reason and not ambiguous and mask.modality in (None, *suffixes):
            unmatched.append(mask.path)
        if reason is None:
            groups = {**people.get(subject, {}), **{k: v for f in (*chosen[::-1], mask) for k, v in f.entities.items()}}
            reason = filters.rejects(groups, need=True, settled=settled)
        if reason:
            (listing.failed if ambiguous else listing.left_out).append((mask.path, reason))
            continue
        used.update(s.path for s in chosen)
        paths = tuple(s.path for s in chosen)
        listing.cases.append(Case(name, subject, paths, mask.path, mask.entities.get("ses", ""), groups))
        for words in (f"a lesion mask by {kind.why} (--mask_pattern says it otherwise)", *won):
            listing.guess(words, name)
    _refuse_shared_scans(listing)
    if unmatched and not (filters.include or filters.exclude or filters.image_pattern):
        listing.notes.append(f"{count(len(unmatched), 'lesion mask')} left out, since no scan agrees with the name, "
                             f"such as {Path(unmatched[0]).name}; --list says why")
    for scan in (s for group in scans.values() for s in group if s.path not in used):
        listing.left_out.append((scan.path, "no lesion mask belongs to it"))
    if any("acq" in c.groups for c in listing.cases):
        listing.groups = ["acq"]
        for case in listing.cases:
            case.groups.setdefault("acq", "none")
    return listing


def _sorted_out(
    files: Sequence[BidsFile], root: str, suffixes: Sequence[str], filters: Filters, sidecars: Sidecars,
    listing: Listing,
) -> tuple[list[tuple[BidsFile, Kind]], dict[str, list[BidsFile]], frozenset[str]]:
    """Lesion masks with what says so, scans by subject, and the entities of --include that masks alone have settled.

    What a filter or another kind leaves out goes to ``listing``.
    """
    masks, scans = [], []
    for file in files:
        kind = kind_of(file.entities, file.words, file.derivative, sidecars.kind(file.path, root))
        if filters.mask_pattern and matches(filters.mask_pattern, file.path, root):
            masks.append((file, Kind(True, True, f"--mask_pattern {filters.mask_pattern}")))
        elif kind and filters.mask_pattern:
            listing.left_out.append((file.path, f"--mask_pattern {filters.mask_pattern}"))
        elif kind and kind.lesion:
            masks.append((file, kind))
        elif kind:
            listing.left_out.append((file.path, f"no lesion by {kind.why}; if it is one, name it with --mask_pattern"))
        elif file.suffix in suffixes and not matches(filters.image_pattern, file.path, root):
            listing.left_out.append((file.path, f"--image_pattern {filters.image_pattern}"))
        elif file.suffix in suffixes:
            scans.append(file)
    if not filters.mask_pattern:  # the masks of a person, also where a filter below leaves them out
        made = predictions([mask.path for mask, _ in masks], root, sidecars, listing)
        masks = [pair for pair in masks if pair[0].path not in made]
    # An entity such as label-lesion is the masks': where it chooses among them, scans that lack it stay.
    settled = frozenset(k for k, values in filters.include.items()
                        if k in OF_THE_MASK and any(m.entities.get(k) in values for m, _ in masks))
    chosen, by_subject = [], defaultdict(list)
    for mask, kind in masks:
        needed = Filters({k: v for k, v in filters.include.items() if k in settled})
        if reason := filters.rejects(mask.entities) or needed.rejects(mask.entities, need=True):
            listing.left_out.append((mask.path, reason))
        else:
            chosen.append((mask, kind))
    spoken = {_derived(m) for m, kind in chosen if kind.sure}
    for mask, kind in [pair for pair in chosen if not pair[1].sure and _derived(pair[0]) in spoken]:
        reason = ONE_FOLDER.format("/".join(_derived(mask)))
        listing.left_out.append((mask.path, f"{reason}; if it is one, name it with --mask_pattern"))
        chosen.remove((mask, kind))
    for scan in scans:
        applies = {k for k, values in filters.include.items()
                   if k not in settled or any(s.entities.get(k) in values for s in scans)}
        if reason := filters.rejects(scan.entities, settled=settled - applies):
            listing.left_out.append((scan.path, reason))
        else:
            by_subject[scan.entities.get("sub", "")].append(scan)
    return chosen, by_subject, settled


def _refuse_shared_scans(listing: Listing) -> None:
    """Move cases of different masks on the very same scans to ``failed``."""
    counts = Counter(case.images for case in listing.cases)
    for case in [c for c in listing.cases if counts[c.images] > 1]:
        listing.cases.remove(case)
        listing.failed.append((case.mask, f"{counts[case.images]} masks match {Path(case.images[0]).name}; choose with "
                                          "--include or --exclude, or with --mask_pattern"))


def _derived(mask: BidsFile) -> tuple[str, ...]:
    """The data set below derivatives/ that a mask belongs to."""
    return tuple(mask.derivative.split("/")[:2])


def walk(root: str, sidecars: Sidecars) -> list[BidsFile]:
    """Every NIfTI file called ``sub-…`` below ``root``; not what systems and editors left behind."""
    files = []
    for folder, folders, names in files_below(root):
        folders[:] = sorted(f for f in folders if not is_ghost(f))
        names = sorted(n for n in names if not is_ghost(n))
        sidecars.add(folder, names)
        # Relative to the root: the data set itself may lie below a folder called "derivatives".
        inside = Path(folder).relative_to(root).parts
        for name in (n for n in names if n.startswith("sub-") and n.endswith((".nii", ".nii.gz"))):
            derivative = "/".join((*inside[inside.index("derivatives") :], name)) if "derivatives" in inside else ""
            files.append(BidsFile.parse(os.path.join(folder, name), derivative))
    return files


def scans_of(
    mask: BidsFile, scans: Sequence[BidsFile], suffixes: Sequence[str], same: Sequence[tuple[str, str]] = ()
) -> tuple[list[BidsFile], str | None, bool, list[str]]:
    """The scan of each suffix that a mask belongs to; or why there is none, and whether several match.

    The last value is in words what made a scan win over others.
    """
    chosen, won = [], []
    named = [s for s in scans if s.suffix in suffixes and _names_its_space(mask, s)]
    for suffix in suffixes:
        strict = mask.modality in (None, suffix)
        alike = [s for s in scans if s.suffix == suffix and _agree(mask, s, strict, same)]
        candidates = [s for s in alike if _one_space(mask, s, same)] or [s for s in alike if s in named]
        if not candidates and named:  # the mask's space is another channel's own one
            candidates = [s for s in alike if s.space is None]
        if not candidates:
            return [], _why_none(mask, alike, suffix), False, []
        # The scan with the fewest extra entities wins, then one in the mask's folder; else the user has to choose.
        ranks = [(_extra(mask, s), Path(s.path).parent != Path(mask.path).parent)
                 for s in candidates]
        best = [s for s, rank in zip(candidates, ranks) if rank == min(ranks)]
        if len(best) > 1:
            shown = ", ".join(Path(s.path).name for s in best[:3]) + (", …" if len(best) > 3 else "")
            reason = (f"{len(best)} {suffix} scans match it ({shown}); choose with --include or --exclude, or with "
                      "--image_pattern")
            return [], reason, True, []
        if mask.space and best[0].space is None and not any(a == "space" for a, _ in same):
            won.append(f"space-{mask.entities['space']} taken for the space of the scan itself, which names it "
                       "(--same space=… says it otherwise)")
        if len(candidates) > 1:
            losers = ", ".join(Path(s.path).name for s in candidates if s != best[0])
            won.append(f"{Path(best[0].path).name} won over {losers}, since its name is nearer to the mask's "
                       "(--image_pattern says it otherwise)")
        chosen += best
    return chosen, None, False, won


def _extra(mask: BidsFile, scan: BidsFile) -> int:
    """How many entities of a scan its mask's name lacks; the mask's own, such as desc-, are none of the scan."""
    return sum(k not in mask.entities or (k in OF_THE_MASK and mask.entities[k] != v) for k, v in scan.entities.items())


def _why_none(mask: BidsFile, alike: Sequence[BidsFile], suffix: str) -> str:
    """Why no scan belongs to a mask: the space where it alone is in the way."""
    if not alike:
        return f"no {suffix} scan agrees with it"
    other = alike[0].space
    return (f"no {suffix} scan agrees with it in space: the mask says {mask.space or 'none (the space of its scan)'}, "
            f"{Path(alike[0].path).name} {other or 'none'}; if they are on one grid, add --same space=none, or "
            "--same space=ENTITY for the entity of the scan that holds this value")


def _agree(mask: BidsFile, scan: BidsFile, strict: bool, same: Sequence[tuple[str, str]]) -> bool:
    """Whether a scan has what the mask's entities say, its space aside."""
    keys = set(mask.entities) - OF_THE_MASK - {"space"} if strict else {"sub", "ses"} & set(mask.entities)
    return all(mask.entities[k] == scan.entities.get(k) or _as_said(mask, scan, k, same) for k in keys)


def _one_space(mask: BidsFile, scan: BidsFile, same: Sequence[tuple[str, str]]) -> bool:
    """Whether both are in one space: a file without space- is in the scan's own, as is one that says space-orig."""
    return mask.space == scan.space or _as_said(mask, scan, "space", same)


def _as_said(mask: BidsFile, scan: BidsFile, key: str, same: Sequence[tuple[str, str]]) -> bool:
    """Whether ``--same`` makes a mask's entity agree with a scan."""
    return any(a == key and (b == "none" or (mask.value(key) is not None and mask.value(key) == scan.value(b)))
               for a, b in same)


def _names_its_space(mask: BidsFile, scan: BidsFile) -> bool:
    """Whether a mask's space is a word of the scan's own name: ``space-TRACE`` for ``rec-TRACE_dwi`` and ``trace``."""
    own = {scan.suffix.lower(), *(scan.entities.get(k, "").lower() for k in ("rec", "acq", "ce", "desc"))}
    return mask.space is not None and scan.space is None and mask.space.lower() in own


def case_name(mask: BidsFile) -> str:
    """The name of a mask without the entities that say that it is a mask."""
    return "_".join(f"{k}-{v}" for k, v in mask.entities.items() if k not in OF_THE_MASK)
