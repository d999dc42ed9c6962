"""Folder layouts of segmentation challenges: Medical Segmentation Decathlon, KiTS, nnU-Net raw."""

import os
from collections.abc import Sequence
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing, matches, subject_in
from meshnet.data.sources.ghosts import ghost_in, is_ghost
from meshnet.data.sources.text import read_json
from meshnet.errors import UserError

BACKGROUND = ("background", "bg", "clear", "nothing", "none", "unlabeled", "unlabelled", "air")
KITS_CLASSES = ["kidney", "tumour", "cyst"]  # mask values 1, 2, 3
DATASET = "dataset.json"
LEFT_BEHIND = "left behind by a system or an editor, no scan"


def find_msd(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """Decathlon: ``dataset.json`` lists image and label; a 4D image's last axis is the modalities, in their order.

    ``suffixes`` keeps those modalities, by name.
    """
    root, description, notes = _dataset_json(path)
    names = _numbered(description.get("modality"), root / DATASET, "modality")
    kept = _chosen(names, suffixes)
    listing = Listing([], [names[i] for i in kept], _classes(description, root / DATASET, notes), notes=notes)
    tests = _tests(root, description, listing)
    for image, mask in _training(root, description):
        name = Path(image).name.removesuffix(".gz").removesuffix(".nii")
        _add(listing, filters, root, name, (image,), mask, tests, channels_last=len(names) > 1,
             origin=(len(names), tuple(kept)))
    _check_count(root, description, listing)
    return listing


def find_kits(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """KiTS: ``case_00000/imaging.nii.gz`` beside ``segmentation.nii.gz``, in the folder or its ``data`` folder."""
    if suffixes:
        raise UserError("--suffix: KiTS has one scan for each case; leave the flag out")
    roots = {r: sorted(f for f in r.glob("case_*") if f.is_dir() and not is_ghost(f.name))
             for r in (Path(path), Path(path) / "data")}
    root = next((r for r, folders in roots.items() if folders), None)
    if root is None:
        raise UserError(f"{path}: found no case_* folder, expected KiTS's case_00000/imaging.nii.gz; check the path")
    listing = Listing([], ["CT"], KITS_CLASSES)
    for folder in roots[root]:
        files = {n: folder / f"{n}.nii.gz" for n in ("imaging", "segmentation")}
        if missing := [str(f.name) for f in files.values() if not f.is_file()]:
            listing.left_out.append((str(folder), f"no {' and no '.join(missing)}"))
        else:
            _add(listing, filters, root, folder.name, (str(files["imaging"]),), str(files["segmentation"]))
    return listing


def find_nnunet(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """nnU-Net raw: ``imagesTr/NAME_0000.nii.gz`` (one file for each channel) and ``labelsTr/NAME.nii.gz``.

    Where ``dataset.json`` lists its cases, as ``dataset`` or ``training``, those are the cases, with the files that it
    names, wherever they lie. ``suffixes`` keeps those channels, by name.
    """
    root, description, notes = _dataset_json(path)
    names = _numbered(description.get("channel_names", description.get("modality")), root / DATASET, "channel_names")
    kept = _chosen(names, suffixes)
    ending = description.get("file_ending", ".nii.gz")
    if str(ending).removeprefix(".") not in ("nii", "nii.gz"):
        raise UserError(f"{root / DATASET}: found file_ending {ending!r}, expected .nii.gz or .nii; convert it")
    ending = f".{str(ending).removeprefix('.')}"
    listing = Listing([], [names[i] for i in kept], _classes(description, root / DATASET, notes), notes=notes)
    tests = _tests(root, description, listing)
    folder = {f.name.removesuffix(ending): str(f) for f in _files(root / "labelsTr", ending)}
    listed = description.get("dataset") or description.get("training")
    if description.get("dataset"):
        found = _listed(root, description["dataset"], len(names))
    elif listed:
        found = [(Path(mask).name.removesuffix(ending), _channels(image, len(names), ending), mask)
                 for image, mask in _training(root, description)]
    else:
        found = [(name, [str(root / "imagesTr" / f"{name}_{i:04d}{ending}") for i in range(len(names))], mask)
                 for name, mask in folder.items()]
    for name, images, mask in found:
        _add(listing, filters, root, name, tuple(images[i] for i in kept), mask, tests)
    masks = {os.path.realpath(mask) for _, _, mask in found}
    unnamed = [mask for mask in folder.values() if os.path.realpath(mask) not in masks]
    if listed and unnamed:
        listing.left_out += [(mask, f"{DATASET} does not list it") for mask in unnamed]
        listing.notes.append(f"{root / DATASET}: lists {len(found)} case(s), and {len(unnamed)} mask(s) of labelsTr "
                             "are not among them and are left out; remove the list to take what the folders hold")
    images = {os.path.realpath(i) for _, names, _ in found for i in names}
    for image in _files(root / "imagesTr", f"_0000{ending}"):
        if os.path.realpath(image) not in images:
            listing.left_out.append((str(image), f"{DATASET} does not list it" if listed else "no mask in labelsTr"))
    _check_count(root, description, listing)
    return listing


def _add(listing, filters, root, name, images, mask, tests=frozenset(), **options) -> None:
    """A case of a listing, or the reason why it is none; paths below ``root`` are compared with the patterns."""
    subject = subject_in(images[0]) or name
    entities = {"case": name, "subject": subject}
    if any(ghost_in(p, root) for p in (*images, mask)):
        listing.left_out.append((mask, LEFT_BEHIND))
    elif {os.path.realpath(p) for p in images} & tests:
        listing.failed.append((mask, f"{DATASET} lists its scan for training and for testing; remove it from one"))
    elif not all(matches(filters.image_pattern, p, str(root)) for p in images):
        listing.left_out.append((mask, f"--image_pattern {filters.image_pattern}"))
    elif not matches(filters.mask_pattern, mask, str(root)):
        listing.left_out.append((mask, f"--mask_pattern {filters.mask_pattern}"))
    elif reason := filters.rejects(entities, need=True):
        listing.left_out.append((mask, reason))
    else:
        listing.cases.append(Case(name, subject, images, mask, **options))
        listing.guess(f"the patient is {'sub- of the file name' if subject_in(images[0]) else 'the whole case name'} "
                      "(--subject says it otherwise)", name)


def _files(folder: Path, ending: str) -> list[Path]:
    """The files of a folder with this ending that no system or editor left behind."""
    return [f for f in sorted(folder.glob(f"*{ending}")) if not is_ghost(f.name)]


def _dataset_json(path: str) -> tuple[Path, dict, list[str]]:
    """The data set's folder, what its ``dataset.json`` says, and notes on how that was read."""
    root = Path(path)
    if root.name == DATASET:
        root = root.parent
    if not (root / DATASET).is_file():
        raise UserError(f"{root}: found no {DATASET}, expected the data set's folder; check the path")
    description, note = read_json(root / DATASET, "an object that describes the data set")
    if not isinstance(description, dict):
        raise UserError(f"{root / DATASET}: found a {type(description).__name__}, expected an object; repair it")
    return root, description, [note] if note else []


def _path(root: Path, given: object, key: str) -> str:
    """A path of ``dataset.json``: relative to its folder, or absolute, or with variables as nnU-Net has them."""
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise UserError(f"{root / DATASET}: found {str(given)[:60]!r} in {key}, expected the path of a file; repair it")
    return str(root / os.path.expandvars(given.strip().replace("\\", "/")))


def _training(root: Path, description: dict) -> list[tuple[str, str]]:
    """(image, label) of the list ``training``."""
    pairs = description.get("training")
    if not isinstance(pairs, list) or not all(isinstance(p, dict) and {"image", "label"} <= set(p) for p in pairs):
        raise UserError(f"{root / DATASET}: expected a list 'training' of image and label pairs; repair it")
    return [(_path(root, p["image"], "training"), _path(root, p["label"], "training")) for p in pairs]


def _listed(root: Path, cases: object, channels: int) -> list[tuple[str, list[str], str]]:
    """(name, images, label) of nnU-Net 2's key ``dataset``."""
    where = f"{root / DATASET}: 'dataset'"
    if not isinstance(cases, dict):
        raise UserError(f"{where}: found a {type(cases).__name__}, expected cases by their names; repair it")
    found = []
    for name, case in cases.items():
        images = case.get("images") if isinstance(case, dict) else None
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or "label" not in case:
            raise UserError(f'{where}: found {str(case)[:60]!r} for {name}, expected {{"images": […], "label": …}}; '
                            "repair it")
        if len(images) != channels:
            raise UserError(f"{where}: found {len(images)} image(s) for {name}, expected {channels}, one for each of "
                            "channel_names; repair it")
        found.append((name, [_path(root, i, "dataset") for i in images], _path(root, case["label"], "dataset")))
    return found


def _channels(image: str, channels: int, ending: str) -> list[str]:
    """The files of a scan that a list names without its channels; as it is named, where that is the one file."""
    stem = image.removesuffix(ending)
    files = [f"{stem}_{i:04d}{ending}" for i in range(channels)]
    if stem.endswith("_0000"):
        files = [f"{stem.removesuffix('_0000')}_{i:04d}{ending}" for i in range(channels)]
    return [image] if channels == 1 and os.path.isfile(image) and not os.path.isfile(files[0]) else files


def _tests(root: Path, description: dict, listing: Listing) -> frozenset[str]:
    """The real paths of the list ``test``; each of them is left out."""
    found, tests = [], description.get("test") or []
    for item in tests if isinstance(tests, list) else []:
        given = item.get("image") if isinstance(item, dict) else item
        found += [_path(root, g, "test") for g in (given if isinstance(given, list) else [given])]
    listing.left_out += [(scan, "a test scan without a mask") for scan in found]
    return frozenset(map(os.path.realpath, found))


def _check_count(root: Path, description: dict, listing: Listing) -> None:
    """Say where ``numTraining`` is another number than the cases that were found, of whatever fate."""
    said = description.get("numTraining")
    reasons = [why for _, why in (*listing.left_out, *listing.failed)]
    found = len(listing.cases) + sum(why.startswith(("--", "dataset.json lists its scan")) for why in reasons)
    if str(said).isdigit() and int(said) != found:
        listing.notes.append(f"{root / DATASET}: found {found} case(s), expected {said} as numTraining says; check "
                             "that the copy is complete, or correct the number")


def _numbered(names: object, path: Path, key: str) -> list[str]:
    """``{"0": "FLAIR", "1": "T1w"}`` as a list, in the order of the numbers."""
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(str(i) for i in range(len(names))) or not names:
        raise UserError(f"{path}: found {key} {names!r}, expected names by number, such as {{\"0\": \"T2w\"}}")
    return [str(names[k]) for k in sorted(names, key=int)]


def _chosen(names: list[str], suffixes: Sequence[str]) -> list[int]:
    if unknown := [s for s in suffixes if s not in names]:
        raise UserError(f"--suffix: found {unknown[0]!r}, expected channels of the data set: {', '.join(names)}")
    return [names.index(s) for s in suffixes] or list(range(len(names)))


def _classes(description: dict, where: Path, notes: list[str]) -> list[str] | None:
    """Names of the mask values 1, 2, … by {"1": "tumour"} or {"tumour": 1}; None where values leave gaps."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        return None
    by_value = {}
    for key, value in labels.items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if isinstance(number, (int, str)) and str(number).isdigit():
            by_value[int(number)] = str(name)
    if len(by_value) > 1 and by_value.get(0, "background").lower() not in BACKGROUND and any(
            name.lower() in BACKGROUND for name in by_value.values()):
        raise UserError(f"{where}: found {by_value[0]!r} for the value 0 in labels, expected the background; prepare "
                        "masks where 0 is the background, and correct the file")
    values = [v for v in sorted(by_value) if v > 0]
    if ignored := [v for v in values if by_value[v].lower() == "ignore"]:
        notes.append(f"{where}: labels has the value {ignored[0]} to be ignored, which training does not know; "
                     "--labels says which values are lesion, and that one becomes background")
        return None
    return [by_value[v] for v in values] if values == list(range(1, len(values) + 1)) and values else None
