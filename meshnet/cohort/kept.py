"""What is kept where a mask would be written: files that this program did not write, and masks of other scans."""

import os
from pathlib import Path

from meshnet.errors import UserError


def check_output(case: dict, overwrite: bool, probability: bool, picture: bool, record: dict | None = None) -> None:
    """Refuse to write a file that does not fit into its folder, or to replace one that this program did not write, or
    that is of another scan.

    Args:
        case: with ``scans``, ``mask``, ``probability`` and ``picture``, the paths of its files.
        overwrite: replace whatever is there.
        probability, picture: whether these are written besides the mask.
        record: what an earlier command has kept of the mask.

    Raises:
        UserError: naming the file.
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
        raise UserError(f"{foreign[0]}: exists and was not written by this program (a mask drawn by hand?), so it is "
                        "kept; --overwrite replaces it, -o writes elsewhere")
    if is_of_another(case, record):
        raise UserError(f"{mask}: exists and is the mask of another scan, or of {case['scans'][0]} before it was "
                        "changed, so it is kept; name another file with -o, or --overwrite replaces it")


def is_of_another(case: dict, record: dict | None = None) -> bool:
    """Whether the mask that is there was made of another scan than that of ``case``.

    A mask that is named after the one scan beside it is that scan's, and so is one of a data set, where each scan has a
    name of its own, and one whose ``record`` names this scan: those may have changed since.
    """
    from meshnet.scans.ours import of_another_scan

    scans, mask = case["scans"], case["mask"]
    if "bids" in case or "source" in case or (len(scans) == 1 and _there(mask.parent) == _there(scans[0].parent)
                                              and mask.name.startswith(scans[0].name.partition(".nii")[0])):
        return False
    if record and [_there(Path(path)) for path in record.get("scan", ())] == [_there(path) for path in scans]:
        return False
    return of_another_scan(mask, scans)


def _there(path: Path) -> str:
    return os.path.realpath(path)
