"""The page's engine (WebAssembly) against onnxruntime-web, and whether it computes what it should, in one run.

    python benchmarks/speed/browser_engine.py --out engine.jsonl --scan T2w.nii.gz \\
        --published model.json --published_scan t1_256.nii.gz --reference labels_reference.nii.gz
    python benchmarks/speed/browser_engine.py --small --out small.jsonl

Runs in Node, whose engine is Chromium's; onnxruntime-web is looked for in NODE_PATH (``npm install onnxruntime-web``).
Both engines have one thread and are timed in turn, in CPU seconds. Each part is kept in ``--out``, which a second run
goes on with. Ends with 1 where a mark is missed. ``--small``: every part on small volumes, in seconds.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.speed import measure

SINGLE = "meshnet16-synthetic"  # a built-in network that sees the scan alone
MOST_OF_TIME = 0.45  # of onnxruntime-web's
MOST_BYTES, MOST_APART = 2e9, 1e-4
MODULE_BYTES = 20e6  # that the module takes for itself
NODE = Path(__file__).with_name("browser_engine.js")


def ask(request: dict) -> dict:
    """What ``browser_engine.js`` finds, and what share of the machine others used meanwhile."""
    others = measure.Elsewhere()
    done = subprocess.run([shutil.which("node") or "node", str(NODE), json.dumps(request)], capture_output=True,
                          text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"browser_engine.js: ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return {**json.loads(done.stdout), "elsewhere": round(others.share(), 2)}


def save(folder: Path, **arguments) -> Path:
    """A MeshNet of random weights, the same ones each time, as a model folder."""
    import torch

    from meshnet.networks.card import Card
    from meshnet.networks.folder import save_model
    from meshnet.networks.meshnet import MeshNet

    torch.manual_seed(0)
    save_model(folder, MeshNet(**arguments), Card(["T2w"], ["background", "lesion"]))
    return folder


def grey(path: Path) -> np.ndarray:
    """A scan (1, X, Y, Z) in 0 to 1, float32."""
    import nibabel as nib

    data = np.asarray(nib.load(path).dataobj, np.float32)
    return ((data - data.min()) / (data.max() - data.min()))[None]


def made_up(side: int) -> np.ndarray:
    """A volume (1, X, Y, Z) of noise with air around it."""
    volume = np.zeros((1, side, side, side), np.float32)
    inner = slice(side // 6, side - side // 6)
    volume[0, inner, inner, inner] = np.random.default_rng(0).random([inner.stop - inner.start] * 3, np.float32)
    return volume


# ---------------------------------------------------------------------- parts: what was found, and whether it is enough

def against(model: Path, side: int, options: argparse.Namespace, folder: Path) -> tuple[dict, bool]:
    """Both engines on the whole of a volume of ``side`` voxels, in turn."""
    from meshnet.networks.build import load_model
    from meshnet.sharing.to_onnx import write_onnx

    write_onnx(*load_model(model), folder / "model.onnx")
    found = ask({"what": "against", "model": str(model), "onnx": str(folder / "model.onnx"), "side": side,
                 "rounds": options.rounds})
    ours, theirs = (statistics.median(found[name]) for name in ("ours", "onnxruntime_web"))
    found["of_its_time"] = round(ours / theirs, 3)
    return found, found["of_its_time"] <= MOST_OF_TIME or options.small


def threads(model: Path, volume: np.ndarray, folder: Path) -> tuple[dict, bool]:
    """Whether two threads give the bits of one."""
    volume.tofile(folder / "volume")
    request = {"what": "network", "model": str(model), "volume": str(folder / "volume"),
               "shape": list(volume.shape[1:])}
    answers = [ask({**request, "threads": n, "out": str(folder / f"by{n}")}) for n in (1, 2)]
    same = (folder / "by1").read_bytes() == (folder / "by2").read_bytes()
    return {"same_bits": same, "cpu_seconds": [one["seconds"] for one in answers]}, same


def largest(options: argparse.Namespace, folder: Path) -> tuple[dict, bool]:
    """The memory of MeshNet-26 on a scan of 256³."""
    volume = made_up(32) if options.small else grey(options.scan)
    volume.tofile(folder / "volume")
    model = save(folder / "model", channels=26)
    found = ask({"what": "network", "model": str(model), "volume": str(folder / "volume"),
                 "shape": list(volume.shape[1:]), "out": str(folder / "out")})
    return found | {"shape": list(volume.shape[1:])}, found["plan"] <= MOST_BYTES and (
        found["bytes"] <= MOST_BYTES + MODULE_BYTES)


def published(options: argparse.Namespace, folder: Path) -> tuple[dict, bool]:
    """Labels of brainchop's published network, of every voxel and of the head's box, that are not the reference's."""
    import nibabel as nib

    from meshnet.sharing.importing import import_model

    import_model(options.published, folder / "model", channels=["T1w"], orientation="LIA", voxel_mm=1.0)
    volume, reference = grey(options.published_scan), np.asarray(nib.load(options.reference).dataobj)
    volume.tofile(folder / "volume")
    found = {}
    for name, whole in (("whole", True), ("head", False)):
        answer = ask({"what": "network", "model": str(folder / "model"), "volume": str(folder / "volume"),
                      "shape": list(volume.shape[1:]), "out": str(folder / "out"), "whole": whole})
        labels = np.fromfile(folder / "out", np.float32).reshape(-1, *reference.shape).argmax(0)
        found[name] = {"labels_differ": int(np.count_nonzero(labels != reference)), "of": reference.size,
                       "cpu_seconds": answer["seconds"], "bytes": answer["bytes"]}
    return found, not any(one["labels_differ"] for one in found.values())


def exact(volume: np.ndarray, folder: Path) -> tuple[dict, bool]:
    """The largest difference from PyTorch's probabilities, of the built-in network."""
    import torch

    from meshnet.networks.build import load_model
    from meshnet.networks.folder import BUILT_IN

    network, _ = load_model(BUILT_IN / SINGLE)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(volume)[None]).softmax(1)[0].numpy()
    volume.tofile(folder / "volume")
    ask({"what": "network", "model": str(BUILT_IN / SINGLE), "volume": str(folder / "volume"),
         "shape": list(volume.shape[1:]), "out": str(folder / "out")})
    apart = float(np.abs(np.fromfile(folder / "out", np.float32).reshape(expected.shape) - expected).max())
    return {"apart": apart}, apart <= MOST_APART


def parts(options: argparse.Namespace) -> dict:
    """Each part as a function of a folder, or the reason why it is left out."""
    from meshnet.networks.folder import BUILT_IN

    side, small = (24, 20) if options.small else (128, 64)
    five = {"channels": 5}
    found = {
        "MeshNet-5 against": lambda f: against(save(f / "model", **five), side, options, f),
        "built-in against": lambda f: against(BUILT_IN / SINGLE, small, options, f),
        "built-in exact": lambda f: exact(made_up(small), f),
        "MeshNet-5 threads": lambda f: threads(save(f / "model", **five), made_up(small), f),
        "built-in threads": lambda f: threads(BUILT_IN / SINGLE, made_up(small), f),
        "MeshNet-26 memory": lambda f: largest(options, f),
        "published labels": lambda f: published(options, f),
    }
    if without := no_peer():
        found |= dict.fromkeys(("MeshNet-5 against", "built-in against"), without)
    if not options.scan and not options.small:
        found["MeshNet-26 memory"] = "--scan was not given"
    if not (options.published and options.published_scan and options.reference):
        found["published labels"] = "--published, --published_scan and --reference were not all given"
    return found


def no_peer() -> str:
    """Why there is nothing to compare with; "" where there is."""
    if importlib.util.find_spec("onnx") is None:
        return "onnx is not installed (pip install -r requirements-export.txt)"
    folders = filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))
    there = any((Path(folder) / "onnxruntime-web").is_dir() for folder in folders)
    return "" if there else "onnxruntime-web is not in NODE_PATH (npm install onnxruntime-web)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a line for each part, with which a second run goes on")
    parser.add_argument("--rounds", type=int, default=5, help="of both engines, in turn")
    parser.add_argument("--scan", type=Path, help="a head of 256³, for MeshNet-26")
    parser.add_argument("--published", type=Path, help="brainchop's model.json of the 5-channel network")
    parser.add_argument("--published_scan", type=Path, help="its conformed T1w")
    parser.add_argument("--reference", type=Path, help="its labels there, as TensorFlow.js gives them")
    parser.add_argument("--small", action="store_true", help="small volumes, and the time decides nothing")
    options = parser.parse_args()
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    known = {line["part"]: line for line in map(json.loads, lines)}
    for name, part in parts(options).items():
        if isinstance(part, str):
            print(f"{name}: left out, {part}")
            continue
        if name not in known:
            with tempfile.TemporaryDirectory() as folder:
                found, enough = part(Path(folder))
            known[name] = {"part": name, "enough": bool(enough), "load": round(os.getloadavg()[0], 1), **found}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
        line = known[name]
        print(f"{name}: {'ok' if line['enough'] else 'MISSED'}, "
              + ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("part", "enough")), flush=True)
    sys.exit(0 if all(line["enough"] for line in known.values()) else 1)


if __name__ == "__main__":
    main()
