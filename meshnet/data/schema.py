"""A prepared dataset's names and fields: its rows, its ``prepared.json``, and volumes as views on the mapped file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshnet.errors import UserError
from meshnet.files import near

if TYPE_CHECKING:  # numpy too: the names below are imported by scripts that must answer --help at once
    import datasets
    import numpy as np
    import pyarrow

FORMAT_VERSION = 1
PREPARED, SPLITS, STATE, INFO = "prepared.json", "splits.json", "state.json", "dataset_info.json"
SHARDS = "shards"  # subfolder with one Arrow file for each case
VOLUMES = ("image", "mask", "mask_native")
PREPARED_KEYS = (
    "format_version", "source", "voxel_mm", "shape", "orientation", "scaling", "window",
    "channels", "classes", "groups", "box", "fingerprint",
)


def features(groups: Sequence[str], cascade: bool = False) -> "datasets.Features":
    """The columns of a prepared dataset with the group columns ``group_<name>``; for the second network of a
    ``cascade`` with ``inside_ml`` and ``outside_ml``, of the lesion in the region of the first one and outside it, and
    with what the case ``looks`` like, one of ``scans.contrast.CONTRASTS``, empty where that was not asked.

    A volume is one binary value, C order (nested lists overflow 32-bit offsets), with its shape and dtype beside it:
    ``image`` (C, X, Y, Z), ``mask`` (X, Y, Z) on the conformed grid, ``mask_native`` (X, Y, Z) on the scan's own.
    Large binary, so that a value may pass 2 GiB.
    """
    from datasets import Features, List, Value

    text, whole, real = Value("string"), Value("int64"), Value("float64")
    return Features({
        "case": text, "subject": text, "session": text,
        **{f"group_{name}": text for name in groups},
        "image": Value("large_binary"), "image_shape": List(whole), "image_dtype": text,
        "mask": Value("large_binary"), "mask_shape": List(whole), "mask_dtype": text,
        "mask_native": Value("large_binary"), "native_shape": List(whole),
        "native_affine": List(real), "conformed_affine": List(real),
        "lesion_voxels": whole, "lesion_ml": real, "head_box": List(whole),
        "image_paths": List(text), "mask_path": text, "image_sha256": List(text), "mask_sha256": text,
        "warnings": List(text), **({"inside_ml": real, "outside_ml": real, "looks": text} if cascade else {}),
    })


def volume(dataset: "datasets.Dataset", row: int, column: str) -> "np.ndarray":
    """A volume of row ``row`` as a read-only numpy view on the memory-mapped file: nothing is copied or decoded.

    ``image`` is (C, X, Y, Z) uint8 or float32, ``mask`` and ``mask_native`` (X, Y, Z) uint8.
    """
    import numpy as np

    if column not in VOLUMES:
        raise ValueError(f"column {column!r} is none of {VOLUMES}")
    if dataset._indices is not None:  # a selection: rows are numbered through it
        row = dataset._indices.column(0)[row].as_py()
    table = dataset.data
    native = column == "mask_native"
    shape = table.column("native_shape" if native else f"{column}_shape")[row].as_py()
    dtype = "uint8" if native else table.column(f"{column}_dtype")[row].as_py()
    view = np.frombuffer(_content(table.column(column).chunk(row)), dtype).reshape(shape)  # a shard, a row, a chunk
    view.flags.writeable = False  # the pages are mapped for reading only
    return view


def _content(array: "pyarrow.LargeBinaryArray") -> "pyarrow.Buffer":
    """The bytes of an array of one value, not copied; the value itself (``array[0]``) would be a copy."""
    assert len(array) == 1 and array.offset == 0
    return array.buffers()[2]


def read_own_json(path: Path, missing: str) -> object:
    """What prepare.py wrote as JSON. Raises UserError: ``missing`` where there is none, or for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); run prepare.py again") from error


def load_prepared(folder: str | Path) -> dict:
    """``prepared.json`` of a prepared dataset, checked. Raises UserError where it is missing or of another version."""
    path = Path(folder) / PREPARED
    prepared = read_own_json(path, f"{folder}: found no {PREPARED}, expected a prepared dataset; run prepare.py"
                             f"{near(folder)}")
    missing = [k for k in PREPARED_KEYS if k not in prepared] if isinstance(prepared, dict) else list(PREPARED_KEYS)
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; run prepare.py again")
    if prepared["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: found format version {prepared['format_version']}, expected {FORMAT_VERSION}; run prepare.py "
            "again"
        )
    return prepared


def check_values(prepared: dict, path: Path) -> None:
    """Raise UserError for values of ``prepared.json`` that nobody but an editor wrote."""
    number = lambda one: isinstance(one, int | float) and not isinstance(one, bool)
    names = lambda value: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    numbers = lambda value, count: isinstance(value, list) and len(value) == count and all(map(number, value))
    for key, right in (("voxel_mm", lambda value: number(value) and value > 0), ("channels", names), ("classes", names),
                       ("shape", lambda value: numbers(value, 3)), ("box", lambda value: numbers(value, 6))):
        if not right(prepared[key]):
            raise UserError(f"{path}: found {key} {prepared[key]!r}, which prepare.py does not write; run it again")
    looks = prepared.get("looks", {})
    if not isinstance(looks, dict) or not all(map(number, looks.values())):
        raise UserError(f"{path}: found looks {looks!r}, which prepare.py does not write; run it again")


def load_dataset(folder: str | Path) -> tuple["datasets.Dataset", dict]:
    """The memory-mapped rows of a prepared dataset and its ``prepared.json``. Raises UserError for a damaged folder."""
    prepared = load_prepared(folder)
    check_values(prepared, Path(folder) / PREPARED)
    import datasets
    import pyarrow

    try:
        return datasets.load_from_disk(str(folder), keep_in_memory=False), prepared
    except (OSError, ValueError, KeyError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{folder}: cannot be opened ({error}); run prepare.py again to repair it") from error


def union_box(boxes: Iterable[Sequence[int]]) -> list[int]:
    """The smallest box [x0, x1, y0, y1, z0, z1] around all the boxes of that form."""
    import numpy as np

    boxes = np.array(list(boxes))
    return [int(n) for n in np.where(np.arange(6) % 2 == 0, boxes.min(0), boxes.max(0))]
