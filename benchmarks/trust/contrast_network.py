"""Train the network that tells T1w, T2w, FLAIR and DWI apart, on synthetic heads at 4 mm.

``python benchmarks/trust/contrast_network.py heads --anatomy FOLDER --lesions FOLDER … --cases 2600 --out HEADS``
``python benchmarks/trust/contrast_network.py train HEADS --out FOLDER``
``python benchmarks/trust/contrast_network.py check HEADS``

``heads`` makes every head as a file, so the same command resumes. ``train`` goes on from FOLDER's last epoch; in
the end it writes contrast.safetensors, and with ``--install`` puts it where the program and the page read it. ``check``
says how many heads of other anatomies the installed weights tell rightly, and how sure they are of them.
"""

import argparse
import base64
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import UserError, run_script
from meshnet.files import hash_of, whole_file, write_text
from meshnet.scans import contrast, contrast_network
from meshnet.scans.grid import Grid, conform

GRID = Grid(4.0, (48, 64, 60), "LIA", "middle", averaged=True)
WIDTHS = (1, 12, 20, 28)
EPOCHS, FINAL = 18, 5  # the last ones with stronger augmentation, and at a lower rate
BATCH, RATES = 16, (1e-2, 3e-3)
SURENESS = (0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.001)


def make_heads(arguments: argparse.Namespace) -> None:
    from meshnet.data.synthetic.from_folders import make_labelled_case
    from meshnet.data.synthetic.labelmaps import find_maps

    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.first + arguments.cases):
        path, name = folder / f"{seed}.npz", contrast_network.CLASSES[seed % 4]
        if path.exists():
            continue
        image, *_ = make_labelled_case(seed, 4.0, "every", maps, masks, contrasts={name: 1.0}, inverted=0.0)
        with whole_file(path) as temporary:
            np.savez_compressed(temporary, scan=np.asarray(conform(image, GRID, exact=False).dataobj), contrast=name)


def read_heads(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Scans (N, X, Y, Z) uint8 and the numbers of their contrasts (N,)."""
    files = [np.load(path) for path in sorted(Path(folder).glob("[0-9]*.npz"))]  # not those that are being written
    return np.stack([file["scan"] for file in files]), np.array(
        [contrast_network.CLASSES.index(str(file["contrast"])) for file in files])


def network():
    """The layers as PyTorch modules; ``forward`` is in ``classify``."""
    from torch import nn

    layers = [nn.Sequential(nn.Conv3d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(b), nn.ReLU())
              for a, b in pairwise(WIDTHS)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers), "last": nn.Linear(WIDTHS[-1], 4)})


def classify(net, x):
    """Logits (B, 4) of scans (B, 1, X, Y, Z) in which 1 is bright, as ``contrast_network.class_probabilities``."""
    from torch.nn import functional as F

    block, maps = contrast_network.BLOCK, net["layers"](x)
    short = [(block * n - size) for n, size in zip(maps.shape[2:], x.shape[2:])]
    bright = F.pad((x > contrast.AIR).float(), [side for n in reversed(short) for side in (0, n)])
    inside = (F.avg_pool3d(bright, block) > 0.5).float()
    return net["last"]((maps * inside).sum((2, 3, 4)) / (inside.sum((2, 3, 4)) + 1e-3))


def scaled(scans: np.ndarray):
    """uint8 (N, X, Y, Z) as half floats (N, 1, X, Y, Z) in which 1 is bright."""
    import torch

    found = []
    for scan in scans:
        x = scan / np.float32(255)
        top = np.quantile(x[x > contrast.AIR], contrast_network.BRIGHT) + 1e-3
        found.append(np.clip(x / top, 0, contrast_network.MOST).astype(np.float16))
    return torch.from_numpy(np.stack(found))[:, None]


def augmented(x, rng: np.random.Generator, strong: bool):
    """Scans (B, 1, X, Y, Z) with other sides, sizes, contrasts, ends, noise, places, bias fields and slices."""
    import torch
    from torch.nn import functional as F

    if rng.random() < 0.5:
        x = x.flip(2)
    if strong and rng.random() < 0.35:
        x = F.interpolate(x, scale_factor=float(rng.uniform(0.8, 1.25)), mode="trilinear")
    x = x ** torch.exp(torch.randn(len(x), 1, 1, 1, 1) * (0.22 if strong else 0.15))
    height = x.shape[3]
    if rng.random() < 0.3:
        x[:, :, :, int(height * rng.uniform(0.6, 1)):] = 0
    if rng.random() < 0.3:
        x[:, :, :, :int(height * rng.uniform(0, 0.3))] = 0
    if rng.random() < 0.3:
        x = x + torch.randn_like(x) * float(rng.uniform(0, 0.06 if strong else 0.04))
    if rng.random() < 0.5:
        x = torch.roll(x, [int(step) for step in rng.integers(-3, 4, 3)], [2, 3, 4])
    if rng.random() < 0.3:
        axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in x.shape[2:]], indexing="ij")
        x = x * torch.exp(sum(float(rng.normal(0, 0.3 if strong else 0.2)) * axis for axis in axes))
    if rng.random() < 0.25:
        shape = [1, 1, 1, 1, 1]
        shape[2 + int(rng.integers(3))] = 3
        x = F.conv3d(x, torch.tensor([0.25, 0.5, 0.25]).reshape(shape), padding=[n // 2 for n in shape[2:]])
    return x.clamp_min(0)


def train(arguments: argparse.Namespace) -> None:
    import torch
    from torch.nn import functional as F

    folder, net = Path(arguments.out), network()
    folder.mkdir(parents=True, exist_ok=True)
    scans, classes = read_heads(arguments.heads)
    scans, classes, state = scaled(scans), torch.from_numpy(classes), folder / "state.pt"
    steps, data = len(classes) // BATCH, hash_of([arguments.heads, len(classes), classes.tolist()])
    begun = torch.load(state, weights_only=True) if state.exists() else None
    if begun and begun["data"] != data:
        raise UserError(f"{state}: was begun with other heads, expected {arguments.heads}; give another --out")
    for strong, epochs, rate in ((False, EPOCHS, RATES[0]), (True, FINAL, RATES[1])):
        first = begun["epoch"] if begun and begun["strong"] == strong else 0
        if begun and begun["strong"] and not strong:
            continue
        optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=2e-2)
        course = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps * epochs + 5, pct_start=0.05 if strong else 0.3,
            div_factor=5 if strong else 25)
        if begun and begun["strong"] == strong:
            for one, name in ((net, "net"), (optimizer, "optimizer"), (course, "course")):
                one.load_state_dict(begun[name])
        for epoch in range(first, epochs):
            rng = np.random.default_rng([epoch, strong])
            torch.manual_seed(epoch)
            order, right = torch.from_numpy(rng.permutation(len(classes))), 0
            for step in range(steps):
                some = order[step * BATCH:(step + 1) * BATCH]
                found = classify(net.train(), augmented(scans[some].float(), rng, strong))
                loss = F.cross_entropy(found, classes[some], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                course.step()
                right += int((found.argmax(1) == classes[some]).sum())
            print(f"epoch {epoch + 1} of {epochs}: {right / (steps * BATCH):.3f} of augmented heads right", flush=True)
            with whole_file(state) as temporary:
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "strong": strong,
                            "course": course.state_dict(), "epoch": epoch + 1, "data": data}, temporary)
    pack(net.eval(), folder / "contrast.safetensors", arguments.install)


def pack(net, path: Path, install: bool) -> None:
    """The layers with batch norm folded into them, in eight bits with a scale for each output."""
    from safetensors.numpy import save

    values = {name: value.double().numpy() for name, value in net.state_dict().items()}
    found, folded = {}, []
    for n in range(len(WIDTHS) - 1):
        norm = {key: values[f"layers.{n}.1.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
        factor = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
        folded.append((values[f"layers.{n}.0.weight"] * factor.reshape(-1, 1, 1, 1, 1),
                       norm["bias"] - factor * norm["running_mean"]))
    for n, (weight, bias) in enumerate([*folded, (values["last.weight"], values["last.bias"])]):
        scale = np.abs(weight.reshape(len(weight), -1)).max(1) / 127
        rounded = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        found |= {f"{n}.weight": rounded, f"{n}.scale": scale.astype(np.float32), f"{n}.bias": bias.astype(np.float32)}
    content = save(found)
    for target in [path, *([contrast_network.WEIGHTS] if install else [])]:
        with whole_file(target) as temporary:
            Path(temporary).write_bytes(content)
    if install:
        from meshnet.sharing.to_web import PARTS

        write_text(PARTS / "contrast_weights.js", "// meshnet/scans/contrast.safetensors: the weights of the network "
                   f'in contrast.js.\nconst CONTRAST_WEIGHTS = "{base64.b64encode(content).decode()}";\n')


def check(arguments: argparse.Namespace) -> None:
    scans, classes = read_heads(arguments.heads)
    known = np.minimum(classes, 2)
    found = [contrast.likelihoods(scan, GRID.voxel_mm) or dict.fromkeys(contrast.CONTRASTS, 0.0) for scan in scans]
    values = np.array([list(one.values()) for one in found])
    sure = values.max(1)
    right = (values.argmax(1) == known) & (sure > 0)  # not where it is taken for no head
    print(f"{len(known)} heads, {right.mean():.3f} right: " + ", ".join(
        f"{name} {right[classes == n].mean():.3f}" for n, name in enumerate(contrast_network.CLASSES)))
    for low, high in pairwise(SURENESS):
        within = (sure >= low) & (sure < high)
        if within.any():
            print(f"probability {low:g} to {min(high, 1):g}: {within.sum()} heads, {right[within].mean():.3f} right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("heads", help="make heads")
    making.add_argument("--anatomy", required=True, help="folder of label maps")
    making.add_argument("--lesions", nargs="+", required=True, help="folders of lesion masks")
    making.add_argument("--cases", type=int, default=2600)
    making.add_argument("--first", type=int, default=0, help="the first seed")
    making.add_argument("--out", required=True, help="folder of the heads")
    training = commands.add_parser("train", help="train on heads")
    training.add_argument("heads", help="folder of heads")
    training.add_argument("--out", required=True, help="folder for state.pt and contrast.safetensors")
    training.add_argument("--install", action="store_true", help="put the weights into meshnet/ as well")
    checking = commands.add_parser("check", help="how many heads are told rightly")
    checking.add_argument("heads", help="folder of heads")
    arguments = parser.parse_args()
    {"heads": make_heads, "train": train, "check": check}[arguments.command](arguments)


if __name__ == "__main__":
    run_script(main)
