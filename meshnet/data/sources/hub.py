"""Hugging Face datasets with ``Nifti`` columns: only the needed columns are read, and volumes one row at a time.

A dataset is a Hub name (its Parquet files are read in place, by range requests), a local folder or file of
Parquet, or a folder that ``save_to_disk`` wrote. Nifti values are structs {bytes, path}, single or in lists.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from meshnet.data.schema import STATE
from meshnet.data.sources.case import Case, Filters, Listing, Loaded
from meshnet.data.sources.ghosts import ghost_in
from meshnet.errors import UserError
from meshnet.scans.nifti import image_from_bytes, same_grid

MASK_COLUMNS = ("lesion", "mask", "label", "segmentation")
SUBJECT_COLUMNS = ("subject", "subject_id", "participant_id", "case")
SESSION_COLUMNS = ("session", "session_id")


def find_hub(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """Rows that have a mask and a scan in each of the columns ``suffixes`` (upper or lower case); volumes are not read.

    Mask, subject and session are the first columns there are of ``MASK_COLUMNS``, ``SUBJECT_COLUMNS`` and
    ``SESSION_COLUMNS``; the other scalar columns can be filtered on and grouped by. ``<suffix>_acquisition`` is the
    default group where there is one.
    """
    files = _files(path)
    listing, seen, acquisition = Listing([], list(suffixes)), {}, None
    for url, kind, stamp in files:
        columns, rows = _light_rows(url, kind)
        by_lower = {c.lower(): c for c in columns}
        wanted = [_column(url, by_lower, (s.lower(),), "--suffix") for s in suffixes]
        mask = _mask_column(url, by_lower, filters.mask_pattern)
        subject = _column(url, by_lower, SUBJECT_COLUMNS, "a subject column")
        session = next((by_lower[c] for c in SESSION_COLUMNS if c in by_lower), None)
        acquisition = by_lower.get(f"{wanted[0]}_acquisition".lower())
        for number, row in enumerate(rows):
            where = f"{url}#{number}"
            scalars = {k: "" if v is None else str(v) for k, v in row.items() if not isinstance(v, (dict, list))}
            reason = filters.rejects(scalars, need=True)
            if reason is None and row[mask] is None:
                reason = f"no {mask}"
            empty = [c for c in wanted if row[c] is None or row[c] == []]
            if reason or empty:
                listing.left_out.append((where, reason or f"no {empty[0]}"))
                continue
            name = "_".join(p for p in (scalars[subject], scalars.get(session, "")) if p)
            seen[name] = seen.get(name, 0) + 1
            groups = {k: v for k, v in scalars.items() if k not in (subject, session, mask)}
            name = name if seen[name] == 1 else f"{name}_{seen[name]}"
            scans = tuple(f"{where}/{c}" for c in wanted)
            origin = (url, kind, number, tuple(wanted), mask, stamp)
            ids = (name, scalars[subject], scans, f"{where}/{mask}", scalars.get(session, ""))
            listing.cases.append(Case(*ids, groups, loader="hub", origin=origin))
            listing.guess(f"the mask is the column {mask} (--mask_pattern says it otherwise), the patient the column "
                          f"{subject} (--subject says it otherwise)", name)
    listing.groups = [acquisition] if acquisition else []
    return listing


def load_hub(case: Case) -> Loaded:
    """One row's volumes. Where a column holds several scans in a row, the one on the mask's grid is taken."""
    url, kind, number, columns, mask_column, _ = case.origin
    row = _read_row(url, kind, number, [*columns, mask_column])
    mask_bytes = _content(row[mask_column], case.mask)
    mask = image_from_bytes(mask_bytes, case.mask, "mask")
    images, hashes = [], []
    for column, name in zip(columns, case.images):
        values = row[column] if isinstance(row[column], list) else [row[column]]
        found = [_content(v, name) for v in values]
        candidates = [(image_from_bytes(b, name), b) for b in found]
        if len(candidates) > 1:
            candidates = [c for c in candidates if same_grid(c[0], mask)]
        if len(candidates) != 1:
            raise UserError(
                f"{name}: {len(found)} scans, {len(candidates)} of them on the mask's grid, expected one; leave the "
                "row out with --exclude"
            )
        images.append(candidates[0][0])
        hashes.append(hashlib.sha256(candidates[0][1]).hexdigest())
    return Loaded(images, mask, hashes, hashlib.sha256(mask_bytes).hexdigest())


def _files(path: str) -> list[tuple[str, str, str]]:
    """(location, ``parquet`` or ``arrow``, a stamp that changes with the content) of a dataset's files."""
    local = Path(path)
    if local.exists():
        if (local / "dataset_dict.json").is_file():
            splits = json.loads((local / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            raise UserError(f"{path}: found the splits {', '.join(splits)}, expected one; give {path}/{splits[0]}")
        if (local / STATE).is_file():
            state = json.loads((local / STATE).read_text(encoding="utf-8"))
            found = [(local / f["filename"], "arrow") for f in state["_data_files"]]
        else:
            found = [(f, "parquet") for f in ([local] if local.is_file() else sorted(
                f for f in local.rglob("*.parquet") if not ghost_in(f, local)))]
        files = [(str(f), kind, f"{f.stat().st_size}-{f.stat().st_mtime_ns}") for f, kind in found]
    else:
        files = _remote_files(path)
    if not files:
        raise UserError(f"{path}: found no Parquet files, expected a dataset with Nifti columns; check the name")
    return files


def _remote_files(name: str) -> list[tuple[str, str, str]]:
    """``_files`` of a Hub dataset: the Parquet files of its training split where their names say so, else all."""
    from huggingface_hub import HfFileSystem

    from meshnet.hub import plain_errors

    system = HfFileSystem()
    try:
        with plain_errors(f"{name}: no local path; as a Hub dataset"):
            found = system.glob(f"datasets/{name}/**/*.parquet", detail=True)
    except (OSError, NotImplementedError, ValueError) as error:  # the file system's own, such as for odd names
        raise UserError(f"{name}: neither a local path nor a Hub dataset within reach ({error})") from error
    chosen = {p: i for p, i in found.items() if "train" in Path(p).name or "/train" in p} or found
    return [(f"hf://{p}", "parquet", str(i.get("blob_id") or i["size"])) for p, i in sorted(chosen.items())]


def _column(url: str, by_lower: dict[str, str], names: Sequence[str], what: str) -> str:
    """The first of ``names`` (lower case) that is a column, as the file spells it."""
    for name in names:
        if name in by_lower:
            return by_lower[name]
    raise UserError(f"{url}: found the columns {', '.join(by_lower.values())}, expected {what} ({', '.join(names)})")


def _mask_column(url: str, by_lower: dict[str, str], pattern: str | None) -> str:
    """The column of the masks: the first of ``MASK_COLUMNS`` that there is, or the one that a pattern matches."""
    if pattern is None:
        return _column(url, by_lower, MASK_COLUMNS, "a mask column")
    found = [name for name in by_lower.values() if fnmatchcase(name, pattern)]
    if len(found) != 1:
        raise UserError(f"--mask_pattern {pattern}: found {', '.join(found) or 'none'} of the columns "
                        f"{', '.join(by_lower.values())} in {url}, expected one; give a column's name")
    return found[0]


def _parquet(url: str):
    """A local or remote Parquet file, of which only what is asked for is read."""
    import fsspec
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(fsspec.open(url, "rb").open())


def _light_rows(url: str, kind: str) -> tuple[list[str], list[dict]]:
    """All rows of a file without bytes: scalars, and for Nifti values whether there is one (a dict or None)."""
    import pyarrow as pa

    from meshnet.hub import plain_errors

    try:
        if kind == "parquet":
            with plain_errors(url):
                file = _parquet(url)
            names = [file.schema.column(i).path for i in range(len(file.schema))]
            table = file.read(columns=[n for n in names if not n.endswith(".bytes")])
            return file.schema_arrow.names, table.to_pylist()
        with pa.memory_map(url) as handle:
            table = pa.ipc.open_stream(handle).read_all()
            rows = [{} for _ in range(table.num_rows)]
            for name, column in zip(table.column_names, table.columns):
                for row, value in zip(rows, _without_bytes(column)):
                    row[name] = value
            return table.column_names, rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{url}: cannot be read as {kind} ({error}); copy the data set again") from error


def _without_bytes(column) -> Iterator[object]:
    """Values of a column, with {} for each Nifti struct, whose bytes are not read."""
    import pyarrow as pa

    struct = pa.types.is_struct(column.type)
    if struct or (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)):
        for value in column:
            yield None if not value.is_valid else {} if struct else [{}] * len(value)
    else:
        yield from column.to_pylist()


def _read_row(url: str, kind: str, number: int, columns: list[str]) -> dict:
    """Row ``number`` of a file, counted from 0, with the volumes of ``columns``."""
    import pyarrow as pa

    if kind == "arrow":
        with pa.memory_map(url) as handle:
            return pa.ipc.open_stream(handle).read_all().select(columns).slice(number, 1).to_pylist()[0]
    file = _parquet(url)
    first = 0  # row of the row group
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number < first + rows:
            # A row at a time: a row group of whole heads would not fit in memory.
            batches = file.iter_batches(batch_size=1, row_groups=[group], columns=columns)
            for batch in itertools.islice(batches, number - first, None):
                return batch.to_pylist()[0]
        first += rows
    raise UserError(f"{url}: found {first} rows, expected row {number}; copy the data set again")


def _content(value: dict | None, name: str) -> bytes:
    """The bytes of a Nifti value, which holds them or the path of a file."""
    if value and value.get("bytes"):
        return value["bytes"]
    if not value or not value.get("path"):
        raise UserError(f"{name}: holds neither bytes nor a path; it was saved without its volumes; save it again")
    import fsspec

    from meshnet.hub import plain_errors

    try:
        with plain_errors(name), fsspec.open(value["path"], "rb") as handle:
            return handle.read()
    except (OSError, ValueError) as error:  # ValueError: a protocol that fsspec does not know
        raise UserError(f"{name}: cannot read {value['path']} ({error}); save the data set again") from error
