"""What is kept where a mask would be written: files that this program did not write, and masks of other scans."""

import os
from collections.abc import Sequence
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import hash_of


class Refused(UserError):
    """A mask that is there may not be replaced, so that it is still what the folder's record of it tells."""


def check_output(case: dict, overwrite: bool, probability: bool, picture: bool, record: dict | None = None) -> None:
    """Refuse to write a file that does not fit into its folder, or to replace one that this program did not write, or
    that is of another scan.

    Args:
        case: with ``scans``, ``mask``, ``probability`` and ``picture``, the paths of its files.
        overwrite: replace whatever is there.
        probability, picture: whether these are written besides the mask.
        record: what an earlier command has kept of the mask.

    Raises:
        UserError: naming the file; ``Refused`` where there is one.
    """
    from meshnet.scans.ours import is_ours

    mask = case["mask"]
    longest = case["probability"] if probability else mask
    known = hasattr(os, "pathconf") and mask.parent.is_dir()
    limit = os.pathconf(mask.parent, "PC_NAME_MAX") if known else 255
    if len(os.fsencode(longest.name)) > limit:
        raise UserError(f"{case['scans'][0]}: its mask would have a name of {len(os.fsencode(longest.name))} bytes, "
                        f"expected at most {limit}; give a shorter one with -o")
    if overwrite:
        return
    foreign = [path for path in (mask, longest) if path.exists() and not is_ours(path)]
    if picture and case["picture"].exists() and not mask.exists():  # else it is the mask's
        from meshnet.scans.overlay import is_drawn

        foreign += [] if is_drawn(case["picture"]) else [case["picture"]]
    if foreign:
        raise Refused(f"{foreign[0]}: exists and was not written by this program (a mask drawn by hand?), so it is "
                        "kept; --overwrite replaces it, -o writes elsewhere")
    if is_of_another(case, record):
        raise Refused(f"{mask}: exists and is the mask of another scan, of other channels, or of {case['scans'][0]} "
                        "before it was changed, so it is kept; give another folder with -o, or --overwrite replaces it")


def is_out_of_date(case: dict, record: dict | None = None) -> bool:
    """Whether the mask that is there was made of anything else than what the scan of ``case`` holds now.

    A scan that cannot be read is what its mask was made of, but where the ``record`` names another file.
    """
    from meshnet.scans.ours import of_another_scan, scan_mark

    scans = case["scans"]
    return of_another_scan(case["mask"], scans) or (names(record, scans) is False and not scan_mark(scans))


def is_of_another(case: dict, record: dict | None = None) -> bool:
    """Whether the mask that is there was made of another scan than that of ``case``, and may not be replaced.

    A mask that is named after the one scan beside it is that scan's, and so is one of a data set, where each scan has a
    name of its own, and one whose ``record`` names this scan: those may have changed since.
    """
    scans, mask = case["scans"], case["mask"]
    if "bids" in case or "source" in case or (len(scans) == 1 and _there(mask.parent) == _there(scans[0].parent)
                                              and mask.name.startswith(scans[0].name.partition(".nii")[0])):
        return False
    return not names(record, scans) and is_out_of_date(case, record)


def names(record: dict | None, scans: Sequence[str | Path]) -> bool | None:
    """Whether a record is of the files ``scans``; None where it does not say: one of an earlier version holds nothing
    but the paths as they were typed, and a relative one may be any folder's."""
    said = (record or {}).get("scan") or [""]
    where = (record or {}).get("where") or (where_of(said) if all(map(os.path.isabs, said)) else "")
    return where == where_of(scans) if where else None


def where_of(scans: Sequence[str | Path]) -> str:
    """Letters that tell the files of a case from those in other places, whatever folder a command is started in."""
    return hash_of([_there(path) for path in scans])[:24]


def _there(path: str | Path) -> str:
    return os.path.realpath(path)
