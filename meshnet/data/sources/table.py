"""A table of cases: CSV (or TSV) with image columns, mask, subject, and whatever else may group them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing
from meshnet.errors import UserError

RESERVED = ("case", "subject", "session", "mask")


def find_table(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """One case for each line.

    Columns: ``subject``, ``mask``, and the images: those that ``suffixes`` names, else ``image`` and ``image_*``;
    several are channels. ``case`` and ``session`` are optional, every other column can be a group.
    Paths are relative to the table. Lines without a mask are left out.
    """
    rows = _read(Path(path))
    columns = list(rows[0])
    images = list(suffixes) or [c for c in columns if c == "image" or c.startswith("image_")]
    missing = [c for c in ("subject", "mask", *images) if c not in columns]
    if missing or not images:
        raise UserError(
            f"{path}: found the columns {', '.join(columns)}, expected subject, mask and "
            f"{', '.join(suffixes) or 'image (several: image_T2w, image_FLAIR, …)'}; rename them, or name the image "
            "columns with --suffix"
        )
    folder = Path(path).parent
    listing = Listing([], [c.removeprefix("image_") for c in images])
    seen: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        if reason := filters.rejects(row, need=True):
            listing.left_out.append((where, reason))
            continue
        if not row["mask"]:
            listing.left_out.append((where, "no mask"))
            continue
        if empty := [c for c in ("subject", *images) if not row[c]]:
            listing.failed.append((where, f"no {empty[0]}"))
            continue
        base = "_".join(p for p in (row["subject"], row.get("session", "")) if p)
        seen[base] = seen.get(base, 0) + 1
        name = row.get("case") or (base if seen[base] == 1 else f"{base}_{seen[base]}")
        groups = {c: row[c] for c in columns if c not in (*images, *RESERVED)}
        files = tuple(str(folder / row[c]) for c in images)
        listing.cases.append(
            Case(name, row["subject"], files, str(folder / row["mask"]), row.get("session", ""), groups)
        )
    return listing


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = [{(k or "").strip(): (v or "").strip() if isinstance(v, str) else "" for k, v in r.items()}
                    for r in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}), expected CSV in UTF-8; save it again") from error
    if not rows:
        raise UserError(f"{path}: found no lines below the header, expected one for each case")
    return rows
