"""Exchange models and data sets: the Hugging Face Hub, web pages, ONNX, brainchop's layout, .pth files.

    python share.py push RUN user/name [--public] [--licence mit] [--report FOLDER] [--space]
    python share.py pull user/name[@revision] [FOLDER] [--dataset]
    python share.py web MODEL PAGE [--scan scan.nii.gz] [--space user/name]
    python share.py onnx MODEL OUT.onnx
    python share.py tfjs MODEL OUT_FOLDER
    python share.py import model.json|model.pth OUT_FOLDER

MODEL is a model folder, a run folder, or the name of a built-in, published or Hub model. python share.py COMMAND --help
lists the flags.
"""

import argparse
from pathlib import Path

from meshnet.config import ACTIVATIONS, SCALINGS
from meshnet.display import command as typed
from meshnet.display import say_next
from meshnet.errors import OneLineParser, UserError, run_script


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("share.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    push = commands.add_parser("push", help="push a run, a model folder or a prepared data set to the Hub")
    push.add_argument("folder", type=Path, help="run folder, model folder or prepared data set")
    push.add_argument("repository", metavar="user/name", help="repository on the Hub; created if it does not exist")
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.add_argument("--licence", help="licence named in the card (default: mit; for data sets: other)")
    push.add_argument("--report", type=Path, metavar="FOLDER",
                      help="folder of a cross-validation, whose table goes into the card (default: the run's own)")
    push.add_argument("--space", action="store_true", help="push a page of share.py web as a static Space")
    pull = commands.add_parser("pull", help="download from the Hub into the cache, and copy to FOLDER if given")
    pull.add_argument("name", metavar="user/name[@revision]", help="or a published model of infer.py --list_models")
    pull.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="new or empty folder")
    pull.add_argument("--dataset", action="store_true", help="pull a prepared data set")
    onnx = commands.add_parser("onnx", help="write an ONNX file and measure how well it agrees with PyTorch")
    onnx.add_argument("model", help="model folder, run folder, or name of a model")
    onnx.add_argument("out", type=Path, help="file to write, such as model.onnx")
    onnx.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="precision of the convolutions")
    onnx.add_argument("--scan", nargs="+", type=Path, default=[], metavar="NIFTI",
                      help="compare on this scan (one file for each channel) instead of made-up volumes")
    tfjs = commands.add_parser("tfjs", help="write the layout that brainchop.org runs")
    tfjs.add_argument("model", help="model folder, run folder, or name of a model")
    tfjs.add_argument("out", type=Path, help="folder to write model.json and its binary to")
    add_web(commands)
    add_import(commands)
    return parser


def add_web(commands) -> None:
    """The flags of ``share.py web``."""
    web = commands.add_parser("web", help="write a web page that segments scans in the browser, where they lie")
    web.add_argument("model", help="model folder, run folder, or name of a model (a MeshNet)")
    web.add_argument("out", type=Path, metavar="PAGE", help="folder to write the page to; open its index.html")
    web.add_argument("--scan", nargs="+", type=Path, default=[], metavar="NIFTI",
                     help="say how many voxels of this scan's mask differ from infer.py's (one file for each channel)")
    web.add_argument("--title", help="title of the page (default: made from the model's channels and classes)")
    web.add_argument("--no-niivue", dest="niivue", action="store_false",
                     help="leave out the 3-D view, and NiiVue with it (1.1 MB)")
    web.add_argument("--space", metavar="user/name", help="also push the page as a static Space")
    web.add_argument("--public", action="store_true", help="make a new Space public (default: private)")
    web.add_argument("--notice", help="the line that is always in sight (default: research software, no diagnosis)")


def add_import(commands) -> None:
    """The flags of ``share.py import``."""
    take = commands.add_parser("import", help="turn a foreign MeshNet into a model folder")
    take.add_argument("source", type=Path, help="brainchop's model.json, a .pth file, or a file of share.py onnx")
    take.add_argument("out", type=Path, help="model folder to write")
    take.add_argument("--layout", type=Path, help=".pth: brainchop's architecture file (default: model.json beside it)")
    take.add_argument("--dilations", help=".pth: dilation of each block, such as 1,2,4,8,16,8,4,2,1")
    take.add_argument("--activation", choices=ACTIVATIONS, help=".pth: activation of the blocks (default: relu)")
    take.add_argument("--norm", choices=("none", "group", "instance"),
                      help=".pth: norm of the blocks, if it has no weights")
    take.add_argument("--channels", nargs="+", metavar="NAME",
                      help="name of each input channel (default: from card.json beside the file, else T1w)")
    take.add_argument("--classes", nargs="+", metavar="NAME",
                      help="class names, background first (default: from card.json or colormap.json)")
    take.add_argument("--orientation", help="axis codes of the training grid (default: from card.json, else LIA)")
    take.add_argument("--scaling", choices=SCALINGS,
                      help="intensity scaling in training (default: from card.json or the file, else minmax)")
    take.add_argument("--voxel_mm", type=float,
                      help="voxel size of the training grid (default: from card.json, else 1)")


def main() -> None:
    arguments = vars(make_parser().parse_args())
    command = arguments.pop("command")
    actions = {"push": push, "pull": pull, "web": web, "onnx": onnx, "tfjs": tfjs, "import": import_network}
    print(actions[command](**arguments))
    if todo := next_step(command, arguments):
        say_next(todo)


def next_step(command: str, arguments: dict) -> str:
    """What to do with what a command wrote; empty where an address or a
    folder is all that is printed."""
    out = arguments.get("out")
    if command == "web" and not arguments["space"]:
        return f"open {out / 'index.html'} in a browser"
    if command == "tfjs":
        page = out / "model.json"
        return f"load {page} in brainchop, or turn it back: {typed('python', 'share.py', 'import', page, 'FOLDER')}"
    if command == "onnx":
        return f"run {out} by ONNX Runtime, on scans conformed as its card says"
    if command == "import":
        return typed("python", "infer.py", "scan.nii.gz", "--model", out)
    return ""


def push(folder: Path, repository: str, public: bool, licence: str | None, report: Path | None, space: bool) -> str:
    """Push a folder; returns the address of the commit, or of the Space."""
    if space:
        from meshnet.sharing.to_web import push_space

        return push_space(folder, repository, not public)
    from meshnet.data.schema import PREPARED
    from meshnet.sharing.push import push_dataset, push_run

    if (folder / PREPARED).is_file():
        return push_dataset(folder, repository, not public, licence or "other")
    return push_run(folder, repository, not public, licence or "mit", report)


def pull(name: str, folder: Path | None, dataset: bool) -> Path:
    """Pull a model or a data set; returns its folder."""
    from meshnet import hub
    from meshnet.sharing.published import find

    found = find(name)
    source = Path(found) if found != name else hub.pull(name, "dataset" if dataset else "model")
    if folder:
        hub.copy_to(source, folder)
    return folder or source


def web(model: str, out: Path, scan: list[Path], title: str | None, notice: str | None, space: str | None,
        public: bool, niivue: bool) -> str:
    """Write a page, and push it as a Space if asked; returns what was written, how well it agrees with infer.py, and
    the Space's address, in words."""
    from meshnet.sharing.published import find
    from meshnet.sharing.to_web import compare, push_space, write_page

    if public and not space:
        raise UserError("--public: found without --space, expected the Space that is to be public; add --space "
                        "user/name")
    if space:
        from meshnet.hub import check_push

        check_push(space)  # before anything is written
    name = find(model)
    said = [write_page(name, out, title, notice, niivue)]
    if scan:
        said.append(compare(name, scan, out))
    if space:
        said.append(push_space(out, space, not public))
    return "\n".join(said)


def onnx(model: str, out: Path, precision: str, scan: list[Path]) -> str:
    """Write ONNX; returns how well it agrees with PyTorch, in words."""
    from meshnet.sharing.published import find
    from meshnet.sharing.to_onnx import export

    return export(find(model), out, precision, scan)


def tfjs(model: str, out: Path) -> str:
    """Write brainchop's layout; returns what was written and the settings for brainchop.org, in words."""
    from meshnet.networks.build import load_model
    from meshnet.sharing.importing import check_folder
    from meshnet.sharing.published import find
    from meshnet.sharing.tfjs import brainchop_fit, write_tfjs

    network, card = load_model(find(model))
    check_folder(out)
    write_tfjs(network, card, out)
    return f"{out}: model.json, its binary, colormap.json and card.json; {brainchop_fit(card)}"


def import_network(**arguments) -> str:
    """Import a foreign network; returns what was imported, in words."""
    from meshnet.sharing.importing import import_model

    return import_model(**arguments)


if __name__ == "__main__":
    run_script(main)
