"""A table of cases: CSV (or TSV) with image columns, mask, subject, and whatever else may group them."""

import os
from collections.abc import Sequence
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing, matches
from meshnet.data.sources.ghosts import ghost_in
from meshnet.data.sources.text import read_table
from meshnet.errors import UserError

RESERVED = ("case", "subject", "session", "mask")
NOTHING = ("", "n/a", "na", "nan", "none", "null", "-", "#n/a")  # in any case of letters: an empty cell


def find_table(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """One case for each line.

    Columns: ``subject``, ``mask``, and the images: those that ``suffixes`` names, else ``image`` and ``image_*``;
    several are channels. ``case`` and ``session`` are optional, every other column can be a group.
    Paths are relative to the table. Lines without a mask are left out.
    """
    table = read_table(path, ("subject", "mask"), "\t,;" if path.endswith(".tsv") else ",;\t")
    columns = table.columns
    if not table.rows:
        raise UserError(f"{path}: found no lines below the header, expected one for each case; add them")
    images = list(suffixes) or [c for c in columns if c == "image" or c.startswith("image_")]
    missing = [c for c in ("subject", "mask", *images) if c not in columns]
    if missing or not images:
        raise UserError(
            f"{path}: found the columns {', '.join(columns)}, expected subject, mask and "
            f"{', '.join(suffixes) or 'image (several: image_T2w, image_FLAIR, …)'}; rename them, or name the image "
            "columns with --suffix"
        )
    folder = Path(path).parent
    listing = Listing([], [c.removeprefix("image_") for c in images], notes=table.notes)
    seen: dict[str, int] = {}
    for line, row in table.rows:
        where = f"{path}, line {line}"
        if reason := filters.rejects(row, need=True):
            listing.left_out.append((where, reason))
            continue
        if line in table.short and not all(row[c] for c in ("subject", "mask", *images)):
            reason = f"found {table.short[line]} values, expected {len(columns)} as the header has; complete the line"
            listing.failed.append((where, reason))
            continue
        if row["mask"].lower() in NOTHING:
            listing.left_out.append((where, "no mask"))
            continue
        unnamed = ["subject"] if row["subject"].lower() in ("", "n/a", "#n/a") else []  # Nan and NA may be initials
        if empty := unnamed + [c for c in images if row[c].lower() in NOTHING]:
            listing.failed.append((where, f"no {empty[0]}"))
            continue
        base = "_".join(p for p in (row["subject"], row.get("session", "")) if p)
        seen[base] = seen.get(base, 0) + 1
        name = row.get("case") or (base if seen[base] == 1 else f"{base}_{seen[base]}")
        groups = {c: row[c] for c in columns if c not in (*images, *RESERVED)}
        for column in (*images, "mask"):
            row[column] = _here(row[column], folder)
        files = tuple(str(folder / row[c]) for c in images)
        if any(ghost_in(f, folder) for f in (*files, str(folder / row["mask"]))):
            listing.left_out.append((where, "left behind by a system or an editor, no scan"))
            continue
        if not all(matches(filters.image_pattern, f, str(folder)) for f in files):
            listing.left_out.append((where, f"--image_pattern {filters.image_pattern}"))
            continue
        if not matches(filters.mask_pattern, str(folder / row["mask"]), str(folder)):
            listing.left_out.append((where, f"--mask_pattern {filters.mask_pattern}"))
            continue
        listing.cases.append(
            Case(name, row["subject"], files, str(folder / row["mask"]), row.get("session", ""), groups)
        )
    return listing


def _here(given: str, folder: Path) -> str:
    """A path of a table as this machine has it: written on Windows, or from the home folder or a variable on."""
    if "\\" in given and not (folder / given).exists():
        given = given.replace("\\", "/")
    if given.startswith(("~", "$")) and not (folder / given).exists():
        given = os.path.expanduser(os.path.expandvars(given))
    return given
