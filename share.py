"""Hand a model or a data set on, or take one in: the Hugging Face Hub, ONNX, brainchop's layout, .pth.

    python share.py push RUN user/name [--public] [--licence mit] [--report FOLDER]
    python share.py pull user/name[@revision] [FOLDER] [--dataset]
    python share.py onnx MODEL OUT.onnx
    python share.py tfjs MODEL OUT_FOLDER
    python share.py import model.json|model.pth OUT_FOLDER

MODEL is a model or run folder, a built-in, published or Hub name. python share.py COMMAND --help lists the flags.
"""

import argparse
from pathlib import Path

from meshnet.errors import OneLineParser, run_script
from meshnet.scans.intensity import SCALINGS

ACTIVATIONS = ("relu", "elu", "gelu")


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("share.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    push = commands.add_parser("push", help="push a run, a model folder or a prepared data set to the Hub")
    push.add_argument("folder", type=Path)
    push.add_argument("repository", metavar="user/name")
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.add_argument("--licence", help="licence tag of the card (default: mit; other for data sets)")
    push.add_argument("--report", type=Path, metavar="FOLDER",
                      help="a cross-validation's folder, whose table goes into the card (the run's own by default)")
    pull = commands.add_parser("pull", help="download from the Hub into the cache, and to FOLDER if given")
    pull.add_argument("name", metavar="user/name[@revision]", help="or a published network of infer.py --list_models")
    pull.add_argument("folder", type=Path, nargs="?")
    pull.add_argument("--dataset", action="store_true", help="a prepared data set")
    onnx = commands.add_parser("onnx", help="write ONNX and print how far it agrees with PyTorch")
    onnx.add_argument("model", help="model or run folder, built-in, published or Hub name")
    onnx.add_argument("out", type=Path, help="OUT.onnx")
    onnx.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="what the network computes in")
    onnx.add_argument("--scan", nargs="+", type=Path, default=[], metavar="NIFTI",
                      help="compare on this scan (one file a channel), conformed as the model wants it")
    tfjs = commands.add_parser("tfjs", help="write the layout that brainchop.org runs")
    tfjs.add_argument("model", help="model or run folder, built-in, published or Hub name")
    tfjs.add_argument("out", type=Path, help="folder for model.json and its binary")
    add_import(commands)
    return parser


def add_import(commands) -> None:
    """The flags of ``share.py import``."""
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


def main() -> None:
    arguments = vars(make_parser().parse_args())
    command = arguments.pop("command")
    actions = {"push": push, "pull": pull, "onnx": onnx, "tfjs": tfjs, "import": take_in}
    print(actions[command](**arguments))


def push(folder: Path, repository: str, public: bool, licence: str | None, report: Path | None) -> str:
    """The address of the commit."""
    from meshnet.data.schema import PREPARED
    from meshnet.sharing.push import push_dataset, push_run

    if (folder / PREPARED).is_file():
        return push_dataset(folder, repository, not public, licence or "other")
    return push_run(folder, repository, not public, licence or "mit", report)


def pull(name: str, folder: Path | None, dataset: bool) -> Path:
    """The folder that holds what was pulled."""
    from meshnet import hub
    from meshnet.sharing.published import find

    found = find(name)
    source = Path(found) if found != name else hub.pull(name, "dataset" if dataset else "model")
    if folder:
        hub.copy_to(source, folder)
    return folder or source


def onnx(model: str, out: Path, precision: str, scan: list[Path]) -> str:
    """How far ONNX agrees with PyTorch, in words."""
    from meshnet.sharing.published import find
    from meshnet.sharing.to_onnx import export

    return export(find(model), out, precision, scan)


def tfjs(model: str, out: Path) -> str:
    """What was written, and what brainchop.org must be told."""
    from meshnet.networks.build import load_model
    from meshnet.sharing.importing import check_folder
    from meshnet.sharing.published import find
    from meshnet.sharing.tfjs import brainchop_fit, write_tfjs

    network, card = load_model(find(model))
    check_folder(out)
    write_tfjs(network, card, out)
    return f"{out}: model.json, its binary and colormap.json; {brainchop_fit(card)}"


def take_in(**arguments) -> str:
    """What was imported, in words."""
    from meshnet.sharing.importing import import_model

    return import_model(**arguments)


if __name__ == "__main__":
    run_script(main)
