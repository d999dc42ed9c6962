"""Where scans and their lesion masks come from: pairs are listed without reading a volume, and read one at a time.

The formats stand in files of their own: ``sources_bids``, ``sources_folders`` (msd, kits, nnunet), ``sources_table``
and ``sources_hub``; ``synthetic`` is here.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.scans.nifti import read_image, split_channels

FORMATS = ("bids", "msd", "kits", "nnunet", "table", "hub", "synthetic")
SYNTHETIC_SEEDS = 10_000  # case seeds a --synthetic_seed; two of those never share a case


@dataclass(frozen=True)
class Case:
    """One scan, of one or more channels, with its mask; nothing of it has been read yet."""

    case: str  # unique in the listing
    subject: str
    images: tuple[str, ...]  # a file a channel, or one 4D file; other loaders' references
    mask: str
    session: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # every column that --group could name
    loader: str = "files"  # files, synthetic or hub
    channels_last: bool = False  # the one image is 4D and its last axis is channels
    origin: tuple = ()  # what the loader needs beside


@dataclass
class Listing:
    """What was found: cases, and for what is not among them a (path, reason) each."""

    cases: list[Case]
    channels: list[str]  # names
    classes: list[str] | None = None  # names the source gives to mask values 1, 2, …
    left_out: list[tuple[str, str]] = field(default_factory=list)  # by choice, or without a partner
    failed: list[tuple[str, str]] = field(default_factory=list)  # something the user has to mend
    groups: list[str] = field(default_factory=list)  # the source's own default for --group


@dataclass
class Loaded:
    """A case's volumes: ``images`` one a channel, each (X, Y, Z), ``mask`` (X, Y, Z); hashes of what they came from."""

    images: list[nib.Nifti1Image]
    mask: nib.Nifti1Image
    image_sha256: list[str]
    mask_sha256: str
    groups: dict[str, str] = field(default_factory=dict)  # columns known only now


@dataclass(frozen=True)
class Filters:
    """``--include`` and ``--exclude``: entity (or column) name → values."""

    include: dict[str, frozenset[str]] = field(default_factory=dict)
    exclude: dict[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def parse(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> "Filters":
        """From ``["acq=tse3", "run=1,2"]``; naming an entity again adds values. Raises UserError for another form."""
        parsed = []
        for flag, items in (("--include", include), ("--exclude", exclude)):
            values: dict[str, frozenset[str]] = {}
            for item in items:
                name, _, wanted = item.partition("=")
                if not name or not wanted:
                    raise UserError(f"{flag}: found {item!r}, expected ENTITY=VALUE, such as acq=tse3")
                values[name] = values.get(name, frozenset()) | frozenset(wanted.split(","))
            parsed.append(values)
        return Filters(*parsed)

    def rejects(self, entities: dict[str, str], need: bool = False) -> str | None:
        """Why a file with these entities is left out, or None. ``need``: it must have what --include names."""
        for name, values in self.exclude.items():
            if entities.get(name) in values:
                return f"--exclude {name}={entities[name]}"
        for name, values in self.include.items():
            if (name in entities or need) and entities.get(name) not in values:
                return f"--include {name}={','.join(sorted(values))}, found {entities.get(name, 'none')}"
        return None


def find_cases(form: str, path: str | None, suffixes: Sequence[str], filters: Filters, **options) -> Listing:
    """List the cases of a source. ``options`` go to ``synthetic`` (cases, voxel_mm, seed, preset).

    Raises UserError where nothing can be found there.
    """
    if form == "synthetic":
        return find_synthetic(**options)
    if form == "hub":
        from meshnet.sources_hub import find_hub as find
    elif not Path(path).exists():
        raise UserError(f"{path}: no such file or folder, expected a {form} data set; check the path")
    elif form == "bids":
        from meshnet.sources_bids import find_bids as find
    elif form == "table":
        from meshnet.sources_table import find_table as find
    else:
        from meshnet import sources_folders

        find = {"msd": sources_folders.find_msd, "kits": sources_folders.find_kits,
                "nnunet": sources_folders.find_nnunet}[form]
    listing = find(path, suffixes, filters)
    return checked(listing)


def checked(listing: Listing) -> Listing:
    """Sort a listing and move to ``failed`` what cannot be a case: a missing file, a mask of another subject."""
    cases, names = [], set()
    for case in sorted(listing.cases, key=lambda c: c.case):
        reason = _fault(case)
        if case.case in names:
            reason = f"two cases are called {case.case}; give each its own name"
        names.add(case.case)
        if reason:
            listing.failed.append((case.mask, reason))
        else:
            cases.append(case)
    listing.cases = cases
    listing.left_out.sort()
    listing.failed.sort()
    return listing


def _fault(case: Case) -> str | None:
    if case.loader != "files":
        return None
    for path in (*case.images, case.mask):
        if not Path(path).is_file():
            return f"{path}: no such file"
    subjects = {subject_in(p) for p in (*case.images, case.mask)} - {None}
    if len(subjects) > 1:
        return f"scan and mask are of different subjects ({', '.join(sorted(subjects))}); pair each with its own"
    return None


def subject_in(path: str) -> str | None:
    """The BIDS subject that a file's own name carries (``sub-M2001_…`` → ``M2001``), else None."""
    found = re.match(r"sub-([A-Za-z0-9]+)_", Path(path).name)
    return found[1] if found else None


def find_synthetic(cases: int, voxel_mm: float, seed: int, preset: str) -> Listing:
    """Synthetic cases, one a seed: case i of ``seed`` is drawn from ``seed * 10,000 + i``."""
    from meshnet.synthetic import PRESETS

    if not 1 <= cases <= SYNTHETIC_SEEDS or seed < 0:
        raise UserError(
            f"--cases {cases} --synthetic_seed {seed}: expected 1 to {SYNTHETIC_SEEDS} cases and a seed of at least 0"
        )
    listed = []
    for number in range(seed * SYNTHETIC_SEEDS, seed * SYNTHETIC_SEEDS + cases):
        name = f"synthetic-{number:06d}"
        reference = f"synthetic:seed={number},voxel_mm={voxel_mm:g},preset={preset}"
        listed.append(Case(name, name, (reference,), reference, loader="synthetic", origin=(number, voxel_mm, preset)))
    classes = ["lesion", "fluid"] if preset in PRESETS and PRESETS[preset].fluid else None
    return Listing(listed, ["T2w" if preset == "demo" else "synthetic"], classes)


def signature(case: Case) -> list:
    """What changes when a case's files change, without reading them: paths, sizes, modification times.

    Empty for the other loaders: their ``origin`` says it all.
    """
    if case.loader != "files":
        return []
    stats = [(p, Path(p).stat()) for p in (*case.images, case.mask)]
    return [[p, s.st_size, s.st_mtime_ns] for p, s in stats]


def load_case(case: Case, channels: int) -> Loaded:
    """Read a case's volumes. Raises UserError for every bad file, and where it has not ``channels`` channels."""
    if case.loader == "synthetic":
        loaded = _load_synthetic(case)
    elif case.loader == "hub":
        from meshnet.sources_hub import load_hub

        loaded = load_hub(case)
    else:
        images = [read_image(p, channels=case.channels_last) for p in case.images]
        if case.channels_last:
            images = _picked(case, split_channels(images[0]))
        hashes = [sha256_file(p) for p in case.images]
        loaded = Loaded(images, read_image(case.mask, "mask"), hashes, sha256_file(case.mask))
    if len(loaded.images) != channels:
        raise UserError(
            f"{case.images[0]}: found {len(loaded.images)} channel(s), expected {channels} as in the rest of the data "
            "set; leave the case out or correct the data set's list of channels"
        )
    return loaded


def _picked(case: Case, images: list[nib.Nifti1Image]) -> list[nib.Nifti1Image]:
    total, kept = case.origin
    if len(images) != total:
        raise UserError(
            f"{case.images[0]}: found {len(images)} channel(s) on its last axis, expected {total} as the data set "
            "declares; correct one of them"
        )
    return [images[i] for i in kept]


def _load_synthetic(case: Case) -> Loaded:
    from meshnet.synthetic import make_case

    seed, voxel_mm, preset = case.origin
    image, mask, info = make_case(seed, voxel_mm, preset)
    hashes = [hashlib.sha256(np.ascontiguousarray(i.dataobj)).hexdigest() for i in (image, mask)]
    groups = {k: str(v) for k, v in info.items() if k in ("contrast", "extracted", "lesions")}
    return Loaded([image], mask, hashes[:1], hashes[1], groups)


def sha256_file(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
