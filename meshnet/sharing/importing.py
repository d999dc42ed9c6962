"""Import a network: brainchop's TensorFlow.js layout, a ``.pth`` file, or an ONNX file of this program becomes a model
folder."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import write_text
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST, drop_first
from meshnet.numbers import plain

HEAD_MM = 128  # a grid shorter than this along an axis is too small for a head
NORMALIZE = {("minmax", None, None): "minmax", ("quantile", 5, 95): "brainchop_quantile"}  # brainchop's _normalize
MIRROR = str.maketrans("LPI", "RAS")
RECIPE = "recipe.yaml"  # beside an imported model: its architecture, for train.py
# How the recipe of an interrupted import is known. Text on disk: older imports begin with it, so it stays as it is.
IMPORTED = "# Written by python -m meshnet.export import.\n"


def import_model(source: Path, out: Path, layout: Path | None = None, dilations: str | None = None,
                 activation: str | None = None, norm: str | None = None, channels: Sequence[str] | None = None,
                 classes: Sequence[str] | None = None, scaling: str | None = None, orientation: str | None = None,
                 voxel_mm: float | None = None) -> str:
    """Read a foreign network and write it as a model folder; returns what to tell the user.

    Args:
        source: brainchop's ``model.json``, a ``.pth`` file of plain weights, or what ``share.py onnx`` wrote.
        layout: brainchop's architecture file for a ``.pth`` (``model.json`` beside it where None).
        dilations, activation, norm: of a ``.pth``; ``dilations`` as text, such as ``1,2,4``.
        channels, classes, scaling, orientation, voxel_mm: what the network was trained on. None: as the card says
            that ``share.py tfjs`` wrote beside ``source``, else as ``imported_card`` assumes.

    Raises:
        UserError: for any other file, an ``out`` that holds something else, or an export whose card is missing.
    """
    import yaml

    from meshnet.networks.build import MESHNET_FIELDS
    from meshnet.networks.folder import save_model
    from meshnet.networks.memory import count_parameters

    check_free(out)
    given = {"channels": channels and list(channels), "orientation": orientation, "voxel_mm": voxel_mm,
             "scaling": scaling}
    given = {key: value for key, value in given.items() if value is not None}
    check_grid(given.get("orientation", "LIA"), given.get("voxel_mm", 1.0))
    if not source.is_file():
        found = "is a folder" if source.is_dir() else "not found"
        raise UserError(f"{source}: {found}; expected brainchop's model.json, a .pth file, or an ONNX file of "
                        "share.py onnx")
    known = {key: value for key, value in (("activation", activation), ("norm", norm)) if value}
    if dilations:
        known["dilations"] = parse_dilations(dilations)
    model, info, beside = read_source(source, layout, known)
    if beside and beside.first and (given or classes):
        raise UserError(f"{source}: found flags beside a cascade, whose cards say how both networks see a scan, "
                        "expected none; leave them out")
    if beside:
        card, said = corrected(beside, source, model, given, classes), ""
    else:
        said = assumptions(source, info, given)
        card = imported_card(source, model, info, classes=classes, **given)
    fields = {"name": "meshnet", **{key: model.arguments[key] for key in MESHNET_FIELDS}}
    drop_first(out, CONFIG)
    (out / CONFIG).unlink(missing_ok=True)  # an interrupted import must not leave another network's
    write_text(out / RECIPE, IMPORTED + yaml.safe_dump({"model": fields}, sort_keys=False))
    save_model(out, model, card)
    before = " (the second of a cascade)" if card.first else ""
    sets = 1 + len(card.own_weights)
    parameters = f"{sets} x " * (sets > 1) + f"{count_parameters(model) // sets:,} parameters"
    return (f"{out}: MeshNet{before}, {parameters}, {len(card.classes)} classes, "
            f"{card.orientation}, {card.scaling}, {plain(card.voxel_mm)} mm, threshold {plain(card.threshold)}, "
            f"smallest lesion {plain(card.min_lesion_mm3 / 1000)} mL; to fine-tune it: train.py --init {out} --recipe "
            f"recipes/finetune.yaml …{said}")


def read_source(source: Path, layout: Path | None, said: dict) -> tuple:
    """The network in a file, what a layout says of its grid and scaling, and the card that an export left with it (None
    without one). ``said``: arguments of a network in a ``.pth`` file, which go before those of its ``layout``."""
    info = {"shape": None, "normalize": None}
    if source.suffix == ".onnx":
        from meshnet.sharing.from_onnx import read_onnx

        model, card = read_onnx(source)
        return model, info, card
    if source.suffix == ".json":
        from meshnet.sharing.beside import read_beside
        from meshnet.sharing.tfjs import read_tfjs

        return *read_tfjs(source), read_beside(source)
    from meshnet.sharing.pth import read_layout, read_torch

    described = layout or source.with_name("model.json")
    known = read_layout(described) if layout or described.is_file() else {}
    info |= {key: known.pop(key) for key in list(info) if key in known}
    return read_torch(source, known | said), info, None


def assumptions(source: Path, info: dict, given: dict) -> str:
    """A line on what is assumed of a network without a card, for want of flags that were ``given``.

    Raises:
        UserError: for an export of this program, whose card must have been lost: it may be of any grid.
    """
    known = {"channels": "T1w", "voxel_mm": "1 mm", "orientation": "LIA", "scaling": "minmax"}
    missing = [key for key in known if key not in given]
    if info.get("ours") and missing:
        flags = ", ".join(f"--{key}" for key in missing)
        raise UserError(f"{source}: found no card.json beside it, expected the one that share.py tfjs wrote with it; "
                        f"copy the whole folder, or say how the network was trained with {flags}")
    assumed = [known[key] for key in missing if key != "scaling" or not info["normalize"]]
    assumed += ["threshold 0.5", "no smallest lesion"]
    flags = f"; correct it with {', '.join(f'--{key}' for key in missing)}" if missing else ""
    return f"\nassumed, since no card says it: {', '.join(assumed)}{flags}"


def corrected(card: Card, source: Path, model, given: dict, classes: Sequence[str] | None) -> Card:
    """The card that lay beside an export, with what flags say instead (``given``, ``classes``).

    Raises:
        UserError: for names that do not fit the network.
    """
    names, changes = list(classes or card.classes), dict(given)
    check_names(source, model, card.changed(channels=changes.get("channels", card.channels)).inputs, names)
    check_grid(card.orientation, card.voxel_mm)
    if card.marks:
        changes["marks"] = names[card.classes.index(card.marks)]
    if changes.get("voxel_mm", card.voxel_mm) != card.voxel_mm:
        changes["shape"] = None
    if changes.get("scaling", card.scaling) != card.scaling:
        changes |= {"window": None, "contrasts": {}}  # which the other scaling would have told apart
    if "orientation" in changes:
        changes["orientation"] = changes["orientation"].upper()
    known = card.training_data
    known = known if isinstance(known, dict) else {"source": known} if known else {}
    return card.changed(**changes, classes=names, training_data={**known, "imported_from": source.name})


def check_names(source: Path, model, channels: Sequence[str], classes: Sequence[str]) -> None:
    """Raise a UserError unless there is a name for each channel and class of the network."""
    inputs, outputs = model.arguments["in_channels"], model.arguments["classes"]
    if len(classes) != outputs or len(channels) != inputs:
        raise UserError(f"{source}: has {inputs} input channels and {outputs} classes, found {len(channels)} names in "
                        f"--channels and {len(classes)} in --classes")


def imported_card(source: Path, model, info: dict, channels: Sequence[str] = ("T1w",), classes: list[str] | None = None,
                  scaling: str | None = None, orientation: str = "LIA", voxel_mm: float = 1.0) -> Card:
    """The card of a foreign network without one.

    Args:
        source: its file; a colormap.json beside it names the classes unless ``classes`` does.
        model: the network that was read.
        info: ``shape`` and ``normalize`` as ``read_tfjs`` gives them.
        channels: what each input channel is.
        scaling: how intensities were scaled; None: as the file says, else min-max.

    Raises:
        UserError: for names that do not fit the network, or a scaling in the file that this program lacks.
    """
    asked = info["normalize"] or {"type": "minmax"}
    known = isinstance(asked, dict) and NORMALIZE.get(tuple(asked.get(key) for key in ("type", "min", "max")))
    scaling = scaling or known or None
    if scaling is None:
        raise UserError(f"{source}: found the scaling {json.dumps(asked)}, which is not supported; "
                        "choose with --scaling (quantile: 0.5 % to 99.5 % of the non-zero voxels)")
    names = classes or names_from_colormap(source.with_name("colormap.json"), model.arguments["classes"])
    check_names(source, model, channels, names)
    shape = info["shape"]
    if shape and min(shape) * voxel_mm < HEAD_MM:  # trained on subvolumes: not a grid for whole heads
        shape = None
    return Card(list(channels), names, voxel_mm=voxel_mm, shape=shape, orientation=orientation.upper(), scaling=scaling,
                training_data={"imported_from": source.name})


def check_free(out: Path) -> None:
    """Raise a UserError if ``out`` holds anything but an earlier import. An interrupted import leaves the recipe, which
    begins with ``IMPORTED``, and perhaps the weights."""
    check_folder(out)
    found = {path.name for path in out.iterdir() if not path.name.startswith(".tmp-")} if out.is_dir() else set()
    if CONFIG in found:
        known = read_card(out).training_data
        ours = isinstance(known, dict) and "imported_from" in known
    else:
        recipe = out / RECIPE
        ours = not found or (recipe.is_file() and recipe.read_bytes().startswith(IMPORTED.encode()))
    if found - {CONFIG, WEIGHTS, RECIPE, FIRST} or not ours:
        raise UserError(f"{out}: found something other than an imported model, expected an empty folder; give another")


def check_grid(orientation: str, voxel_mm: float) -> None:
    """Raise a UserError for an invalid orientation or voxel size."""
    if sorted("RAS".find(c.translate(MIRROR)) for c in orientation.upper()) != [0, 1, 2]:
        raise UserError(f"--orientation: found {orientation!r}, expected three axis codes such as LIA")
    if not 0 < voxel_mm < math.inf:
        raise UserError(f"--voxel_mm: found {voxel_mm}, expected millimetres above 0, such as 1")


def check_folder(out: Path) -> None:
    """Raise a UserError if ``out`` exists and is not a folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder to write to; give another name")


def parse_dilations(text: str) -> list[int]:
    """``1,2,4`` as numbers."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--dilations: found {text!r}, expected whole numbers such as 1,2,4,8,16,8,4,2,1")
    return [int(part) for part in parts]


def names_from_colormap(path: Path, classes: int) -> list[str]:
    """The names in brainchop's colormap.json where they fit, else ``class 1`` and so on after the background."""
    if path.is_file():
        try:
            labels = json.loads(path.read_text(encoding="utf-8")).get("labels")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            labels = None
        if isinstance(labels, list) and len(labels) == classes:
            return [str(label) for label in labels]
    return ["background", *(f"class {i}" for i in range(1, classes))]
