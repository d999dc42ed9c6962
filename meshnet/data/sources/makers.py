"""Who made a mask of a BIDS tree: a person, or this program, whose masks are no truth to train on unless asked for."""

from collections.abc import Sequence
from pathlib import Path

from meshnet.data.sources.case import Listing
from meshnet.data.sources.kinds import Sidecars
from meshnet.data.sources.text import read_json
from meshnet.display import count
from meshnet.errors import UserError

PROGRAM = "MeshNet"  # its name in GeneratedBy of a derivative data set
DESCRIPTION = "dataset_description.json"
DRAWN = "ManuallyDrawn"  # in the JSON file of a mask: true where a person drew or corrected it


def predictions(masks: Sequence[str], root: str, sidecars: Sidecars, listing: Listing) -> set[str]:
    """Those of the masks of a tree that a model of this program made, which go to ``listing.left_out``.

    None of them in a tree that holds no others. Both is said in a note.
    """
    folders: dict[Path, bool] = {}
    ours = [path for path in masks if _is_prediction(path, root, sidecars, folders)]
    if not ours:
        return set()
    such = f"such as {Path(ours[0]).name}"
    if len(ours) == len(masks):
        listing.notes.append(f"every lesion mask ({len(ours)}) was made by a model of this program, {such}: what is "
                             "trained on them learns its faults; correct them first")
        return set()
    listing.left_out += [(path, f"made by a model of this program; --mask_pattern takes it, or {DRAWN} true in its "
                                "JSON file") for path in ours]
    listing.notes.append(f"{count(len(ours), 'mask')} left out, made by a model of this program, {such}; "
                         f"--mask_pattern takes them, or {DRAWN} true in the JSON file of one that was corrected")
    return set(ours)


def _is_prediction(path: str, root: str, sidecars: Sidecars, folders: dict[Path, bool]) -> bool:
    """Whether a model of this program made a mask: by its JSON file, its data set, or else its header."""
    said = sidecars.value(path, root, DRAWN, lambda value: isinstance(value, bool))
    if said is not None:
        return not said
    return _by_program(Path(path).parent, Path(root), folders) or _is_signed(path)


def _by_program(folder: Path, root: Path, folders: dict[Path, bool]) -> bool:
    """Whether the nearest description of a data set, from a folder up to below the root, names this program."""
    if folder == root or folder == folder.parent:
        return False
    if folder not in folders:
        path, made = folder / DESCRIPTION, None
        if path.is_file():
            try:
                made = read_json(str(path), "an object")[0].get("GeneratedBy", [])
            except (UserError, OSError, AttributeError):
                made = []
        folders[folder] = _by_program(folder.parent, root, folders) if made is None else isinstance(made, list) and any(
            isinstance(by, dict) and by.get("Name") == PROGRAM for by in made)
    return folders[folder]


def _is_signed(path: str) -> bool:
    """Whether a mask's header says that this program wrote it, as of ``infer.py`` without ``--format bids``."""
    import nibabel as nib

    from meshnet.scans.nifti import BAD_CONTENT
    from meshnet.scans.ours import SIGNATURE

    try:
        return bytes(nib.load(path).header["descrip"].item()).startswith(SIGNATURE)
    except (*BAD_CONTENT, KeyError, EOFError):
        return False
