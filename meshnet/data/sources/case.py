"""A case, a listing of cases, the volumes of a case, and the filters that choose among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
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
    guesses: dict[str, list[str]] = field(default_factory=dict)  # what was taken for a meaning: cases it was done for
    notes: list[str] = field(default_factory=list)  # what the user should know though nothing is wrong with a case
    together: list[list[str]] = field(default_factory=list)  # subjects that may be one patient: one fold for each list

    def guess(self, words: str, case: str) -> None:
        """Note that ``words`` were taken for granted for a case; ``--list`` prints it."""
        self.guesses.setdefault(words, []).append(case)


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
    """What a user says about the files: entity (or column) name → values, patterns of paths, and equivalences."""

    include: dict[str, frozenset[str]] = field(default_factory=dict)
    exclude: dict[str, frozenset[str]] = field(default_factory=dict)
    image_pattern: str | None = None
    mask_pattern: str | None = None
    same: tuple[tuple[str, str], ...] = ()  # (entity of the mask, entity of the scan that has the same value, or none)

    @staticmethod
    def parse(include: Sequence[str] = (), exclude: Sequence[str] = (), image_pattern: str | None = None,
              mask_pattern: str | None = None, same: Sequence[str] = ()) -> Filters:
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
        pairs = tuple((a, b) for a, _, b in (item.partition("=") for item in same))
        if wrong := [item for item, pair in zip(same, pairs) if not all(re.fullmatch("[A-Za-z0-9]+", p) for p in pair)]:
            raise UserError(f"--same: found {wrong[0]!r}, expected ENTITY=ENTITY, such as space=rec, or ENTITY=none")
        return Filters(*parsed, image_pattern, mask_pattern, pairs)

    def rejects(
        self, entities: dict[str, str], need: bool = False, settled: frozenset[str] = frozenset()
    ) -> str | None:
        """Why a file with these entities is left out, or None. ``need``: it must have those that --include names.

        ``settled`` entities are not looked at.
        """
        for name, values in self.exclude.items():
            if name not in settled and entities.get(name) in values:
                return f"--exclude {name}={entities[name]}"
        for name, values in self.include.items():
            if name not in settled and (name in entities or need) and entities.get(name) not in values:
                return f"--include {name}={','.join(sorted(values))}, found {entities.get(name, 'none')}"
        return None


def matches(pattern: str | None, path: str, root: str) -> bool:
    """Whether a path is of a pattern (``*`` matches ``/`` as well): by its name, or as a whole below ``root``."""
    if pattern is None:
        return True
    inside = PurePath(path)
    inside = inside.relative_to(root) if inside.is_relative_to(root) else inside
    return fnmatchcase(inside.name, pattern) or fnmatchcase(inside.as_posix(), pattern.removeprefix("./"))


def subject_in(path: str) -> str | None:
    """The BIDS subject that a file's own name carries (``sub-M2001_…`` → ``M2001``), else None."""
    found = re.match(r"sub-([A-Za-z0-9]+)_", Path(path).name)
    return found[1] if found else None
