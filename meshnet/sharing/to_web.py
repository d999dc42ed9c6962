"""A web page that segments scans by one model: plain files that work from a folder, a web server or a static Space.

The page computes what ``infer.py`` does (``page/*.js`` and the kernels as ``engine.wasm``), and its
Content-Security-Policy makes the browser refuse what it would send (``docs/browser.md`` has what that covers).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from meshnet import __version__
from meshnet.errors import UserError
from meshnet.files import write_text
from meshnet.inference.boxes import whole_box
from meshnet.kernels.wasm import MODULE, THREADED, record
from meshnet.networks.build import load_model
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST, read_first
from meshnet.networks.folder import find_weights
from meshnet.sharing.about import about_html, is_best, lead_of, marked_by

PARTS = Path(__file__).parent / "page"
STEPS = ("messages", "arrays", "extended", "cases", "inflate", "nifti", "resample", "intensity", "contrast_weights",
         "contrast", "naming", "grid", "mirror", "second", "veto", "checks", "mask", "quality", "boxes", "engine",
         "team", "segment", "dicom", "converter", "worker")  # what the worker is made of, in this order
PAGE = ("seal", "messages", "arrays", "cases", "viewer", "solid", "intake", "madeup", "report",
        "page")  # that the page loads
VENDOR = PARTS / "vendor"  # code of others, see vendored.json there
CLASSIC = {"import.meta.url": '""', "export default Module;": ""}  # what a module may say and a classic script may not
CSP = ("default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src blob:; style-src 'self'; "
       "img-src data: blob:; connect-src 'none'; form-action 'none'; base-uri 'none'; "
       "webrtc 'block'")  # of CSP 3, taken by no browser tried: see seal.js
NOTICE = "Research software. Not a medical device, not for diagnosis."
SCALINGS = ("conform_uint8", "minmax", "quantile", "window", "brainchop_quantile",
            "lesions_bright")  # those of intensity.js and grid.js
MOST_BYTES = 2e9  # of memory for a network, as in engine.js
MOST_PAGE = 3_500_000  # bytes
MODEL = "const MODEL = "  # how model.js begins
SIGN = "meshnet-page"  # in model.js, by which a page is known again


def write_page(name: str | Path, folder: str | Path, title: str | None = None, notice: str | None = None,
               niivue: bool = True) -> str:
    """Write the page of a model to ``folder``; returns what was written, in words.

    Args:
        name: a model or run folder, a weights file, a built-in or Hub name.
        title: of the page; None makes one from the card.
        notice: the line that is always in sight; None is ``NOTICE``.
        niivue: whether the page has a 3-D view, for which NiiVue lies in it (1.1 MB).

    Raises:
        UserError: for a model that cannot run in a page, or a folder that holds something else.
    """
    folder, weights = Path(folder), find_weights(name)
    card = read_card(weights.parent, weights.name)  # with the threshold of these weights, as load_model has it
    check_model(name, card, weights)
    check_target(folder)
    marked = marked_by(card)
    title = title or f"{marked[:1].upper()}{marked[1:]} on {' and '.join(card.channels)} scans"
    values = {"title": title, "notice": notice or NOTICE, "csp": CSP, "lead": lead_of(card),
              "wanted": " and ".join(f"a {one} scan" for one in card.channels),
              "solid": "" if niivue else "hidden",
              "several": ", one file for each channel" if len(card.channels) > 1 else ", also several scans"}
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    for key, value in values.items():
        page = page.replace(f"@{key}@", html.escape(value, quote=False).replace('"', "&quot;"))
    files = {"index.html": page.replace("@about@", about_html(weights, card)),
             "page.css": (PARTS / "page.css").read_text(encoding="utf-8"), "data.js": data_script(),
             "model.js": model_script(card, weights), "README.md": space_card(title, notice or NOTICE),
             "dcm2niix.js": converter_script(), "threads.js": threads_script(), "LICENSES.txt": licences(niivue),
             **({"niivue.js": niivue_script()} if niivue else {}),
             **{f"{one}.js": script(one) for one in PAGE}}
    size = sum(len(text.encode()) for text in files.values())
    if size > MOST_PAGE:
        fits = niivue and size - len(files["niivue.js"]) <= MOST_PAGE
        raise UserError(f"{name}: makes a page of {size / 1e6:.1f} MB, expected at most {MOST_PAGE / 1e6:g} MB; "
                        + ("leave the 3-D view out (--no-niivue)" if fits else "export it with python share.py onnx"))
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in sorted(files.items(), key=lambda file: file[0] == "index.html"):  # that one last
        write_text(folder / path, text)
    if not niivue:
        (folder / "niivue.js").unlink(missing_ok=True)  # of an earlier page
    need = max(plan_bytes(each) for each, _ in stages(card, weights))
    return (f"{folder / 'index.html'}: open it in a browser; {size / 1e6:.1f} MB in {len(files)} files, and about "
            f"{max(1, round(need / 1e6))} MB of memory for the network")


def stages(card: Card, weights: Path) -> list[tuple[Card, Path]]:
    """The networks of a model in the order in which they run, as card and weights: one, or the two of a cascade.

    Raises:
        UserError: where the first one of a cascade is missing, or does not fit the second one.
    """
    first = read_first(weights.parent, card)
    return [*([(first, weights.parent / FIRST / WEIGHTS)] if first else []), (card, weights)]


def check_model(name: str | Path, card: Card, weights: Path) -> None:
    """Raise UserError for what a page cannot run."""
    for each, path in stages(card, weights):
        check_network(each, path)
    load_model(name, weights.name)  # whether the weights belong to the card, and two networks to each other


def check_network(card: Card, weights: Path) -> None:
    """Raise UserError for a network, alone or one of a cascade, that a page cannot run."""
    if card.name != "meshnet":
        raise UserError(f"{weights.parent}: is a {card.name}, expected a MeshNet, the network that runs in a page; "
                        "export it with python share.py onnx")
    if card.scaling not in SCALINGS:
        raise UserError(f"{weights.parent}: has the scaling {card.scaling}, expected one of {', '.join(SCALINGS)} in a "
                        "page; use infer.py")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys() if "num_batches" not in key}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: not a whole safetensors file ({error}); copy it again") from None
    if kinds != {"F32"}:
        raise UserError(f"{weights}: holds {', '.join(sorted(kinds))}, expected F32 alone; save the weights in float32")
    need = plan_bytes(card)
    if need > MOST_BYTES:
        size = " x ".join(map(str, card.grids()[0].size))
        raise UserError(f"{weights.parent}: needs {need / 1e9:.1f} GB for a grid of {size}, expected at most "
                        f"{MOST_BYTES / 1e9:g} GB in a browser; use infer.py")


def plan_bytes(card: Card) -> int:
    """The least memory that the network takes for its whole grid: volume, result and what is kept between layers.

    With group or instance norm that is two whole maps, else the planes that the next layer looks at.
    """
    shape, arguments = card.grids()[0].size, card.arguments
    channels, dilations = arguments["channels"], arguments["dilations"]
    voxels, inputs, classes = int(np.prod(shape)), len(card.inputs), len(card.classes)
    if arguments.get("norm", "batch") in ("group", "instance"):
        return 4 * voxels * (inputs + 2 * channels + max(0, classes - channels))
    (x0, x1), *plane = whole_box(shape)
    area = int(np.prod([b - a + 2 * max(dilations) for a, b in plane]))
    planes = sum(min(x1 - x0, 2 * d + 1) * (channels if layer else inputs) for layer, d in enumerate(dilations))
    return 4 * (voxels * (inputs + classes) + planes * area)


def check_target(folder: Path) -> None:
    """Raise UserError for a folder that holds anything but a page."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder to write the page to; give another name")
    if folder.is_dir() and any(folder.iterdir()) and not is_page(folder):
        raise UserError(f"{folder}: is not empty and holds no page, expected a new folder; give another name")


def is_page(folder: Path) -> bool:
    """Whether a folder holds a page that this program wrote."""
    path = folder / "model.js"
    return (folder / "index.html").is_file() and path.is_file() and SIGN in path.read_text(encoding="utf-8")[:200]


def script(name: str) -> str:
    """A script without the lines that are comments, which are a tenth of it."""
    text = (PARTS / f"{name}.js").read_text(encoding="utf-8")
    return re.sub(r"^ *//.*\n", "", text, flags=re.MULTILINE)


def data_script() -> str:
    """The engine and the worker's source as JavaScript constants, since a page on disk cannot load other files."""
    source = "".join(script(name) for name in STEPS)
    engine = base64.b64encode(MODULE.read_bytes()).decode()
    return f"const ENGINE = {json.dumps(engine)};\nconst WORKER_SOURCE = {json.dumps(source)};\n"


def threads_script() -> str:
    """The engine for several threads, which a page loads where it may share memory between workers."""
    return f"const ENGINE_THREADS = {json.dumps(base64.b64encode(THREADED.read_bytes()).decode())};\n"


def converter_script() -> str:
    """dcm2niix, which a page loads when it is given DICOM files, as a JavaScript constant: its script, made a classic
    one, and its module, packed."""
    source = (VENDOR / "dcm2niix.js").read_text(encoding="utf-8")
    for found, instead in CLASSIC.items():
        if found not in source:
            raise ValueError(f"dcm2niix.js holds no {found!r}")
        source = source.replace(found, instead)
    wasm = base64.b64encode((VENDOR / "dcm2niix.wasm.gz").read_bytes()).decode()
    values = {"script": f"const makeDcm2niix = (() => {{\n{source}\nreturn Module;\n}})();\n", "wasm": wasm}
    return f"const DCM2NIIX = {json.dumps(values)};\n"


def niivue_script() -> str:
    """NiiVue, packed, as a JavaScript constant, which a page loads when its user asks for the 3-D view."""
    return f"const NIIVUE = {json.dumps(base64.b64encode((VENDOR / 'niivue.js.gz').read_bytes()).decode())};\n"


def model_script(card: Card, weights: Path) -> str:
    """The card and the weights as a JavaScript constant, and those of the first network of a cascade."""
    *first, (own, digest) = [packed(*each) for each in stages(card, weights)]
    build = {"by": SIGN, "version": __version__, "engine": record()["modules"][MODULE.name]["sha256"], "model": digest}
    values = {"build": build, **own}
    if first:
        (values[FIRST], build[FIRST]), = first
    return f"{MODEL}{json.dumps(values)};\n"


def packed(card: Card, weights: Path) -> tuple[dict, str]:
    """A network as a page holds it, and the SHA-256 of its weights."""
    from meshnet.networks.readme import public_card

    content = weights.read_bytes()
    own = public_card(card).changed(thresholds={}, **({} if is_best(weights) else {"metrics": {}}))  # of other files
    return {"card": own.to_dict(), "weights": base64.b64encode(content).decode()}, hashlib.sha256(content).hexdigest()


def unpack_model(page: Path, folder: Path) -> None:
    """Write the card and the weights that a page holds to ``folder``, as a model folder."""
    values = json.loads((page / "model.js").read_text(encoding="utf-8").removeprefix(MODEL).rstrip(";\n"))
    for place, each in ((folder, values), *([(folder / FIRST, values[FIRST])] if FIRST in values else [])):
        place.mkdir(exist_ok=True)
        (place / CONFIG).write_text(json.dumps(each["card"]), encoding="utf-8")
        (place / WEIGHTS).write_bytes(base64.b64decode(each["weights"]))


def licences(niivue: bool) -> str:
    """The licences of what the page is made of, with NiiVue or without."""
    from meshnet import ROOT

    path = ROOT / "LICENSE"  # not beside an installed package
    own = path.read_text(encoding="utf-8") if path.is_file() else "MeshNet: MIT License.\n"
    others = (VENDOR / "LICENSES.txt").read_text(encoding="utf-8")
    if not niivue:
        others = others[:others.index("NiiVue, in niivue.js")]
    parts = "dcm2niix (dcm2niix.js) and NiiVue (niivue.js)" if niivue else "dcm2niix (dcm2niix.js)"
    return ("This page consists of MeshNet, whose engine holds code compiled with libc++ (Apache-2.0 with LLVM "
            f"exceptions) and wasi-libc (MIT), and of {parts}.\n\n{own}\n{others}")


def space_card(title: str, notice: str) -> str:
    """README.md: what makes the folder a static Space on the Hugging Face Hub."""
    from meshnet.networks.readme import front_matter

    # With these headers the browser isolates the page, and lets its workers share memory.
    headers = {"cross-origin-embedder-policy": "require-corp", "cross-origin-opener-policy": "same-origin",
               "cross-origin-resource-policy": "cross-origin"}
    top = front_matter(title=title[:100], emoji="🧠", colorFrom="blue", colorTo="gray", sdk="static", pinned=False,
                       license="mit", custom_headers=headers)
    return (f"{top}\n# {title}\n\n{notice}\n\nOpen `index.html` in a browser: it segments scans there, and nothing is "
            "uploaded. Made with MeshNet.\n")


# ---------------------------------------------------------------------- how well it agrees

def compare(name: str | Path, scans: list[Path], page: Path) -> str:
    """How many voxels of a case's mask differ between ``infer.py`` with the model ``name`` and the ``page`` that was
    written of it, in words; Node runs the page's steps with the card and the weights in it.

    Raises:
        UserError: for a scan that cannot be segmented.
    """
    from meshnet.inference.scan import load_models, read_case, segment_case

    models = load_models([name], device="cpu")
    expected = segment_case(read_case(scans, models), models)
    node = shutil.which("node")
    if node is None:
        return "not compared with infer.py, since Node is not installed"
    with tempfile.TemporaryDirectory() as temporary:
        unpack_model(page, Path(temporary))
        mask = Path(temporary) / "mask.nii"
        request = {"what": "segment", "model": temporary, "engine": str(MODULE), "mask": str(mask),
                   "scans": [os.fspath(path) for path in scans]}
        done = subprocess.run([node, str(PARTS / "node.js")], input=json.dumps(request) + "\n", capture_output=True,
                              text=True, encoding="utf-8", check=False)
        answer = json.loads(done.stdout or "{}")
        if "volume_ml" not in answer:
            raise UserError(f"{scans[0]}: the page could not segment it ({answer.get('error', done.stderr[-200:])})")
        content, wanted = mask.read_bytes(), expected.mask.to_bytes()
    voxels = int(np.prod(expected.mask.shape))
    labels = (np.frombuffer(each[len(each) - voxels:], np.uint8) for each in (content, wanted))
    differ = int(np.count_nonzero(np.not_equal(*labels)))
    return (f"on {scans[0]} {differ} of {voxels} voxels differ from infer.py ({answer['volume_ml']:.2f} and "
            f"{expected.volume_ml:.2f} mL)")


# ---------------------------------------------------------------------- to a Space

def push_space(folder: str | Path, repository: str, private: bool = True) -> str:
    """Push a page as a static Space; returns its address and the commit's.

    Raises:
        UserError: for a folder that is no page, a refused token, a missing permission, or no network.
    """
    from meshnet.hub import check_push, upload

    folder = Path(folder)
    if not is_page(folder):
        raise UserError(f"{folder}: holds no page, expected one that share.py web wrote; write it first with python "
                        f"share.py web MODEL {folder}")
    check_push(repository)
    commit = upload(folder, repository, "space", private, ["*.html", "*.css", "*.js", "*.txt", "README.md"])
    return commit.partition("/commit/")[0]
