"""Hand a network on, or take one in: ONNX, brainchop's TensorFlow.js layout, ``.pth``.

    python -m meshnet.export onnx MODEL OUT.onnx
    python -m meshnet.export tfjs MODEL OUT_FOLDER
    python -m meshnet.export import model.json|model.pth OUT_FOLDER
"""

import argparse
import json
import math
from pathlib import Path

from meshnet.errors import UserError, run_script
from meshnet.files import write_text

ACTIVATIONS = ("relu", "elu", "gelu")
HEAD_MM = 128  # no head fits into a grid that is shorter than this along an axis
NORMALIZE = {("minmax", None, None): "minmax", ("quantile", 5, 95): "brainchop_quantile"}  # brainchop's _normalize
MIRROR = str.maketrans("LPI", "RAS")
RECIPE = "recipe.yaml"  # beside an imported model: its architecture as train.py wants it
IMPORTED = "# Written by python -m meshnet.export import.\n"  # how the recipe of an interrupted import is known
SCALINGS = ("conform_uint8", "minmax", "quantile", "brainchop_quantile", "window")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m meshnet.export", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    onnx = commands.add_parser("onnx", help="write ONNX and print how far it agrees with PyTorch")
    onnx.add_argument("model", help="model or run folder, built-in or Hub name")
    onnx.add_argument("out", type=Path, help="OUT.onnx")
    onnx.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="what the network computes in")
    onnx.add_argument("--scan", nargs="+", type=Path, default=[], metavar="NIFTI",
                      help="compare on this scan (one file a channel), conformed as the model wants it")
    tfjs = commands.add_parser("tfjs", help="write the layout that brainchop.org runs")
    tfjs.add_argument("model", help="model or run folder, built-in or Hub name")
    tfjs.add_argument("out", type=Path, help="folder for model.json and its binary")
    take = commands.add_parser("import", help="make a model folder of a published MeshNet")
    take.add_argument("source", type=Path, help="brainchop's model.json, or a .pth file")
    take.add_argument("out", type=Path, help="model folder to write")
    take.add_argument("--layout", type=Path, help=".pth: brainchop's architecture file (default: model.json beside it)")
    take.add_argument("--dilations", help=".pth: 1,2,4,… one a block")
    take.add_argument("--activation", choices=ACTIVATIONS, help=".pth: activation of the blocks")
    take.add_argument("--norm", choices=("none", "group", "instance"), help=".pth: a norm that has no weights")
    take.add_argument("--channels", nargs="+", default=["T1w"], metavar="NAME", help="what each input channel is")
    take.add_argument("--classes", nargs="+", metavar="NAME", help="names, background first (default: colormap.json)")
    take.add_argument("--orientation", default="LIA", help="axis codes of the grid that it was trained on")
    take.add_argument("--scaling", choices=SCALINGS, help="intensity scaling that it was trained with (minmax)")
    take.add_argument("--voxel_mm", type=float, default=1.0, help="voxel size that it was trained on")
    return parser


def import_model(arguments: argparse.Namespace) -> str:
    """Read a foreign network and write it as a model folder; returns what to tell the user."""
    import yaml

    from meshnet.export_tfjs import read_tfjs
    from meshnet.export_torch import read_layout, read_torch
    from meshnet.networks.build import MESHNET_FIELDS
    from meshnet.networks.card import CARD
    from meshnet.networks.folder import save_model
    from meshnet.networks.meshnet import count_parameters

    source = arguments.source
    check_free(arguments.out)
    check_grid(arguments)
    if not source.is_file():
        found = "is a folder" if source.is_dir() else "not found"
        raise UserError(f"{source}: {found}; expected brainchop's model.json or a .pth file")
    info = {"shape": None, "normalize": None}
    if source.suffix == ".json":
        model, info = read_tfjs(source)
    else:
        beside = arguments.layout or source.with_name("model.json")
        layout = read_layout(beside) if arguments.layout or beside.is_file() else {}
        info |= {key: layout.pop(key) for key in list(info) if key in layout}
        if arguments.dilations:
            layout["dilations"] = parse_dilations(arguments.dilations)
        layout |= {key: getattr(arguments, key) for key in ("activation", "norm") if getattr(arguments, key)}
        model = read_torch(source, layout)
    card = imported_card(source, model, info, arguments.channels, arguments.classes, arguments.scaling,
                         arguments.orientation, arguments.voxel_mm)
    fields = {"name": "meshnet", **{key: model.arguments[key] for key in MESHNET_FIELDS}}
    (arguments.out / CARD).unlink(missing_ok=True)  # an interrupted import must not leave another network's
    write_text(arguments.out / RECIPE, IMPORTED + yaml.safe_dump({"model": fields}, sort_keys=False))
    save_model(arguments.out, model, card)
    return (f"{arguments.out}: MeshNet, {count_parameters(model):,} parameters, {len(card['classes'])} classes, "
            f"{card['orientation']}, {card['scaling']}; to fine-tune it: train.py --init {arguments.out} --recipe "
            f"{arguments.out / RECIPE} …")


def imported_card(source: Path, model, info: dict, channels: list[str], classes: list[str] | None = None,
                  scaling: str | None = None, orientation: str = "LIA", voxel_mm: float = 1.0) -> dict:
    """The card of a foreign network.

    Args:
        source: its file; a colormap.json beside it names the classes unless ``classes`` does.
        model: the network that was read.
        info: ``shape`` and ``normalize`` as ``read_tfjs`` gives them.
        channels: what each input channel is.
        scaling: how intensities were scaled; as the file says, else min-max, where None.

    Raises:
        UserError: for names that do not fit the network, or a scaling in the file that this program lacks.
    """
    asked = info["normalize"] or {"type": "minmax"}
    known = isinstance(asked, dict) and NORMALIZE.get(tuple(asked.get(key) for key in ("type", "min", "max")))
    scaling = scaling or known or None
    if scaling is None:
        raise UserError(f"{source}: asks for the scaling {json.dumps(asked)}, which this program does not have; "
                        "choose with --scaling (quantile: 0.5 % to 99.5 % of the non-zero voxels)")
    inputs, outputs = model.arguments["in_channels"], model.arguments["classes"]
    names = classes or class_names(source.with_name("colormap.json"), outputs)
    if len(names) != outputs or len(channels) != inputs:
        raise UserError(f"{source}: has {inputs} input channels and {outputs} classes, found {len(channels)} names in "
                        f"--channels and {len(names)} in --classes")
    shape = info["shape"]
    if shape and min(shape) * voxel_mm < HEAD_MM:  # trained on parts of a volume: no grid for a head
        shape = None
    return {"channels": channels, "classes": names, "voxel_mm": voxel_mm, "shape": shape,
            "orientation": orientation.upper(), "scaling": scaling, "training_data": {"imported_from": source.name}}


def check_free(out: Path) -> None:
    """Raise a UserError if ``out`` holds something that an import would write over; an earlier import may go, whole or
    interrupted (which leaves the recipe, that begins with ``IMPORTED``, and perhaps the weights)."""
    from meshnet.networks.card import CARD, WEIGHTS, read_card

    check_folder(out)
    found = {path.name for path in out.iterdir() if not path.name.startswith(".tmp-")} if out.is_dir() else set()
    if CARD in found:
        known = read_card(out)["training_data"]
        ours = isinstance(known, dict) and "imported_from" in known
    else:
        recipe = out / RECIPE
        ours = not found or (recipe.is_file() and recipe.read_bytes().startswith(IMPORTED.encode()))
    if found - {CARD, WEIGHTS, RECIPE} or not ours:
        raise UserError(f"{out}: holds something that is no imported model, expected an empty folder; give another one")


def check_grid(arguments: argparse.Namespace) -> None:
    """Raise a UserError for an orientation or a voxel size that no grid has."""
    if sorted("RAS".find(c.translate(MIRROR)) for c in arguments.orientation.upper()) != [0, 1, 2]:
        raise UserError(f"--orientation: found {arguments.orientation!r}, expected three axis codes such as LIA")
    if not 0 < arguments.voxel_mm < math.inf:
        raise UserError(f"--voxel_mm: found {arguments.voxel_mm}, expected millimetres above 0, such as 1")


def check_folder(out: Path) -> None:
    """Raise a UserError if ``out`` is there and no folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder to write to; give another name")


def parse_dilations(text: str) -> list[int]:
    """``1,2,4`` as numbers."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--dilations: found {text!r}, expected whole numbers such as 1,2,4,8,16,8,4,2,1")
    return [int(part) for part in parts]


def class_names(path: Path, classes: int) -> list[str]:
    """The names in brainchop's colormap.json where they fit, else ``class 1`` and so on after the background."""
    if path.is_file():
        try:
            labels = json.loads(path.read_text(encoding="utf-8")).get("labels")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            labels = None
        if isinstance(labels, list) and len(labels) == classes:
            return [str(label) for label in labels]
    return ["background", *(f"class {i}" for i in range(1, classes))]


def read_scan(paths: list[Path], card: dict):
    """The conformed scan (C, X, Y, Z) in float32, 0..1, as the network of ``card`` sees it."""
    import numpy as np

    from meshnet.scans.grid import Grid, conform
    from meshnet.scans.nifti import read_image

    if len(paths) != len(card["channels"]):
        raise UserError(f"--scan: found {len(paths)} files, expected {len(card['channels'])} "
                        f"({', '.join(card['channels'])})")
    images = [read_image(path) for path in paths]
    grid = Grid.from_card(card)
    window = tuple(card["window"]) if card["window"] else None
    conformed = [conform(image, grid, card["scaling"], window, images[0]) for image in images]
    volume = np.stack([np.asarray(image.dataobj, np.float32) for image in conformed])
    return volume / 255 if card["scaling"] == "conform_uint8" else volume


def export_onnx(arguments: argparse.Namespace) -> str:
    """Write ONNX and measure it; returns what to tell the user."""
    from meshnet.export_onnx import compare, trial_volumes, write_onnx
    from meshnet.networks.build import load_model

    model, card = load_model(arguments.model)
    if arguments.out.is_dir():
        raise UserError(f"{arguments.out}: is a folder, expected a file to write, such as model.onnx")
    scan = [read_scan(arguments.scan, card)] if arguments.scan else []
    write_onnx(model, card, arguments.out, arguments.precision)
    parity = compare(model, arguments.out, scan or trial_volumes(len(card["channels"])))
    where = "the scan" if scan else "two made-up volumes"
    dice = "no class but background on either side" if parity["dice"] is None else f"Dice {parity['dice']:.6f}"
    return (f"{arguments.out}: {arguments.precision}, {arguments.out.stat().st_size:,} bytes; against PyTorch on "
            f"{where}: largest logit difference {parity['relative_difference']:.2e} of the largest logit, {dice}")


def brainchop_fit(card: dict) -> str:
    """What brainchop.org's entry for this network must say, or what it cannot give the network."""
    wanted = f"{card['orientation']}, {card['voxel_mm']:g} mm, {card['scaling']}, {' + '.join(card['channels'])}"
    given = card["orientation"] == "LIA" and card["voxel_mm"] == 1 and len(card["channels"]) == 1
    # A conformed scan reaches from 0 to 255, so that min-max changes nothing.
    quantiles = {"minmax": "false", "conform_uint8": "false", "brainchop_quantile": "true"}.get(card["scaling"])
    if given and quantiles:
        return f"for brainchop.org: enableTranspose true, enableQuantileNorm {quantiles}"
    return (f"it was trained on {wanted}, and brainchop.org gives it one LIA volume of 1 mm, scaled min-max or by "
            "quantiles: expect other masks there")


def main() -> None:
    arguments = make_parser().parse_args()
    if arguments.command == "import":
        print(import_model(arguments))
    elif arguments.command == "onnx":
        print(export_onnx(arguments))
    else:
        from meshnet.export_tfjs import write_tfjs
        from meshnet.networks.build import load_model

        model, card = load_model(arguments.model)
        check_folder(arguments.out)
        write_tfjs(model, card, arguments.out)
        print(f"{arguments.out}: model.json, its binary and colormap.json; {brainchop_fit(card)}")


if __name__ == "__main__":
    run_script(main)
