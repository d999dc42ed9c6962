"""A case, a listing of cases, the volumes of a case, and the filters that choose among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from meshnet.errors import UserError

if TYPE_CHECKING:  # not for ``prepare.py --help``, which answers at once
    import nibabel as nib

FORMATS = ("bids", "msd", "kits", "nnunet", "table", "hub", "synthetic")


@dataclass(frozen=True)
class Case:
    """One scan, of one or more channels, with its mask; the files have not been read yet."""

    case: str  # unique in the listing
    subject: str
    images: tuple[str, ...]  # one file for each channel, or one 4D file; for other loaders their own references
    mask: str
    session: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # every column that --group may name
    loader: str = "files"  # files, synthetic or hub
    channels_last: bool = False  # the one image is 4D and its last axis is channels
    origin: tuple = ()  # what else the loader needs


@dataclass
class Listing:
    """What was found: the cases, and a (path, reason) for everything that is not one."""

    cases: list[Case]
    channels: list[str]  # names
    classes: list[str] | None = None  # the source's names of the mask values 1, 2, …
    left_out: list[tuple[str, str]] = field(default_factory=list)  # by a filter, or without a matching scan or mask
    failed: list[tuple[str, str]] = field(default_factory=list)  # what the user has to correct
    groups: list[str] = field(default_factory=list)  # the source's own default for --group


@dataclass
class Loaded:
    """A case's volumes: one image (X, Y, Z) for each channel, the mask (X, Y, Z), and hashes of their files."""

    images: list[nib.Nifti1Image]
    mask: nib.Nifti1Image
    image_sha256: list[str]
    mask_sha256: str
    groups: dict[str, str] = field(default_factory=dict)  # columns known only after reading


@dataclass(frozen=True)
class Filters:
    """``--include`` and ``--exclude``: entity (or column) name → values."""

    include: dict[str, frozenset[str]] = field(default_factory=dict)
    exclude: dict[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def parse(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Filters:
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
        """Why a file with these entities is left out, or None. ``need``: it must have those that --include names."""
        for name, values in self.exclude.items():
            if entities.get(name) in values:
                return f"--exclude {name}={entities[name]}"
        for name, values in self.include.items():
            if (name in entities or need) and entities.get(name) not in values:
                return f"--include {name}={','.join(sorted(values))}, found {entities.get(name, 'none')}"
        return None


def subject_in(path: str) -> str | None:
    """The BIDS subject that a file's own name carries (``sub-M2001_…`` → ``M2001``), else None."""
    found = re.match(r"sub-([A-Za-z0-9]+)_", Path(path).name)
    return found[1] if found else None
