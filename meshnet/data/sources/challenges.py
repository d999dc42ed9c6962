"""Folder layouts of segmentation challenges: Medical Segmentation Decathlon, KiTS, nnU-Net raw."""

import json
from collections.abc import Sequence
from pathlib import Path

from meshnet.data.sources.case import Case, Filters, Listing, subject_in
from meshnet.errors import UserError

KITS_CLASSES = ["kidney", "tumour", "cyst"]  # mask values 1, 2, 3


def find_msd(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """Decathlon: ``dataset.json`` lists image and label; a 4D image's last axis is the modalities, in their order.

    ``suffixes`` keeps those modalities, by name.
    """
    root, description = _dataset_json(path)
    names = _numbered(description.get("modality"), root / "dataset.json", "modality")
    kept = _chosen(names, suffixes)
    training = description.get("training")
    pairs = training if isinstance(training, list) else [training]
    if not all(isinstance(p, dict) and {"image", "label"} <= set(p) for p in pairs):
        raise UserError(f"{root / 'dataset.json'}: expected a list 'training' of image and label pairs; repair it")
    listing = Listing([], [names[i] for i in kept], _classes(description))
    for pair in pairs:
        image, mask = (str(root / pair[k]) for k in ("image", "label"))
        name = Path(image).name.removesuffix(".gz").removesuffix(".nii")
        _add(listing, filters, name, (image,), mask, channels_last=len(names) > 1, origin=(len(names), tuple(kept)))
    for item in description.get("test") or []:
        scan = item["image"] if isinstance(item, dict) else item
        listing.left_out.append((str(root / scan), "a test scan without a mask"))
    return listing


def find_kits(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """KiTS: ``case_00000/imaging.nii.gz`` beside ``segmentation.nii.gz``, in the folder or its ``data`` folder."""
    if suffixes:
        raise UserError("--suffix: KiTS has one scan for each case; leave the flag out")
    root = next((r for r in (Path(path), Path(path) / "data") if any(r.glob("case_*"))), None)
    if root is None:
        raise UserError(f"{path}: found no case_* folder, expected KiTS's case_00000/imaging.nii.gz")
    listing = Listing([], ["CT"], KITS_CLASSES)
    for folder in sorted(f for f in root.glob("case_*") if f.is_dir()):
        files = {n: folder / f"{n}.nii.gz" for n in ("imaging", "segmentation")}
        if missing := [str(f.name) for f in files.values() if not f.is_file()]:
            listing.left_out.append((str(folder), f"no {' and no '.join(missing)}"))
        else:
            _add(listing, filters, folder.name, (str(files["imaging"]),), str(files["segmentation"]))
    return listing


def find_nnunet(path: str, suffixes: Sequence[str], filters: Filters) -> Listing:
    """nnU-Net raw: ``imagesTr/NAME_0000.nii.gz`` (one file for each channel) and ``labelsTr/NAME.nii.gz``.

    ``suffixes`` keeps those channels, by name.
    """
    root, description = _dataset_json(path)
    names = _numbered(description.get("channel_names", description.get("modality")), root / "dataset.json",
                      "channel_names")
    kept = _chosen(names, suffixes)
    ending = description.get("file_ending", ".nii.gz")
    if ending not in (".nii", ".nii.gz"):
        raise UserError(f"{root / 'dataset.json'}: found file_ending {ending!r}, expected .nii.gz or .nii; convert it")
    listing = Listing([], [names[i] for i in kept], _classes(description))
    masks = {f.name.removesuffix(ending): f for f in sorted((root / "labelsTr").glob(f"*{ending}"))}
    for name, mask in masks.items():
        images = tuple(str(root / "imagesTr" / f"{name}_{i:04d}{ending}") for i in kept)
        _add(listing, filters, name, images, str(mask))
    for image in sorted((root / "imagesTr").glob(f"*_0000{ending}")):
        if image.name.removesuffix(f"_0000{ending}") not in masks:
            listing.left_out.append((str(image), "no mask in labelsTr"))
    return listing


def _add(listing, filters, name, images, mask, **options) -> None:
    subject = subject_in(images[0]) or name
    entities = {"case": name, "subject": subject}
    if reason := filters.rejects(entities, need=True):
        listing.left_out.append((mask, reason))
    else:
        listing.cases.append(Case(name, subject, images, mask, **options))


def _dataset_json(path: str) -> tuple[Path, dict]:
    root = Path(path)
    if root.name == "dataset.json":
        root = root.parent
    try:
        description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{root}: found no dataset.json, expected the data set's folder; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{root / 'dataset.json'}: cannot be read as JSON ({error}); repair it") from error
    if not isinstance(description, dict):
        raise UserError(f"{root / 'dataset.json'}: found a {type(description).__name__}, expected an object; repair it")
    return root, description


def _numbered(names: object, path: Path, key: str) -> list[str]:
    """``{"0": "FLAIR", "1": "T1w"}`` as a list, in the order of the numbers."""
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(str(i) for i in range(len(names))) or not names:
        raise UserError(f"{path}: found {key} {names!r}, expected names by number, such as {{\"0\": \"T2w\"}}")
    return [str(names[k]) for k in sorted(names, key=int)]


def _chosen(names: list[str], suffixes: Sequence[str]) -> list[int]:
    if unknown := [s for s in suffixes if s not in names]:
        raise UserError(f"--suffix: found {unknown[0]!r}, expected channels of the data set: {', '.join(names)}")
    return [names.index(s) for s in suffixes] or list(range(len(names)))


def _classes(description: dict) -> list[str] | None:
    """Names of the mask values 1, 2, … by {"1": "tumour"} or {"tumour": 1}; None where values leave gaps."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        return None
    by_value = {}
    for key, value in labels.items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if isinstance(number, (int, str)) and str(number).isdigit():
            by_value[int(number)] = str(name)
    values = [v for v in sorted(by_value) if v > 0]
    return [by_value[v] for v in values] if values == list(range(1, len(values) + 1)) and values else None
