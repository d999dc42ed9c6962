"""The last training of the built-in weights: prepared heads drawn by contrast, for a given time.

``python benchmarks/trust/train_builtin.py --data FOLDER … --init WEIGHTS --out FOLDER --minutes 45``

Unlike ``train.py`` it draws each step's head so that ``--t1w`` of them are T1w, turned round by what was drawn rather
than by a guess, and ``--extracted`` of them brain-extracted; it changes the heads more (``vary``), lets the rate fall
with the clock, and gives the lesion's Dice more weight than that of the fluid. Every ``--every`` steps the weights and
their running mean are written; the same command goes on from there. Folders of ``--data`` that are not finished yet
are looked for again then.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.data.reader import PreparedData
from meshnet.data.synthetic.case import PRESETS
from meshnet.networks.build import build, load_model
from meshnet.networks.folder import save_model
from meshnet.scans.contrast import inside_head
from meshnet.scans.mask import box_of

WEIGHTS = torch.tensor([0.6, 1.5, 0.7, 0.7])  # of the classes, in the cross-entropy


def drawn(seed: int) -> tuple[bool, bool]:
    """Whether the head of that seed is T1w, and brain-extracted, as ``from_folders`` draws it from ``every``."""
    preset, rng = PRESETS["every"], np.random.default_rng([seed, 1, 23])
    values = np.array(list(preset.contrasts.values()))
    t1w = str(rng.choice(list(preset.contrasts), p=values / values.sum())) == "T1w"
    rng.random()  # old or fresh
    return t1w, bool(rng.random() < preset.extracted)


def groups_of(folders: list[str]) -> dict[tuple[bool, bool], list]:
    """The heads (data set, row) of those folders that are finished, by what ``drawn`` says of them."""
    groups = {}
    for data in (PreparedData(folder) for folder in folders if (Path(folder) / "prepared.json").exists()):
        for index, row in enumerate(data.rows):
            groups.setdefault(drawn(int(row["case"].split("-")[1])), []).append((data, index))
    return groups


def vary(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``image`` (1, X, Y, Z) and ``mask`` (X, Y, Z) mirrored, turned, with another lesion contrast, coil and noise."""
    image = image[0]
    if rng.random() < 0.5:
        image, mask = image[::-1], mask[::-1]
    if rng.random() < 0.5:
        turn = Rotation.from_rotvec(rng.normal(0, 0.07, 3)).as_matrix() * rng.normal(1, 0.05, 3)
        middle = (np.array(mask.shape) - 1) / 2
        shift = middle - turn @ middle + rng.normal(0, 1, 3)
        image = ndimage.affine_transform(image, turn, shift, order=1)
        mask = ndimage.affine_transform(mask, turn, shift, order=0)
    lesion = mask == 1
    if lesion.any() and rng.random() < 0.5:
        box = tuple(slice(max(0, a - 6), b + 6) for a, b in box_of(lesion))
        part = image[box]
        brain = ((part > 0) & (mask[box] != 1) & (mask[box] != 2)).astype(np.float32)
        around = ndimage.uniform_filter(part * brain, 9) / (ndimage.uniform_filter(brain, 9) + np.float32(1e-3))
        soft = ndimage.uniform_filter(lesion[box].astype(np.float32), 2)
        image = image.copy()
        image[box] += soft * np.float32(np.clip(np.exp(rng.normal(-0.1, 0.4)), 0.4, 1.8) - 1) * (part - around)
    head = image > 0
    if rng.random() < 0.3:
        coil = sum(rng.normal(0, 0.15) * np.linspace(-1, 1, n).reshape(np.roll((-1, 1, 1), axis)) ** power
                   for axis, n in enumerate(image.shape) for power in (1, 2))
        image = image * np.exp(coil.astype(np.float32))
    if rng.random() < 0.2:
        image = ndimage.gaussian_filter1d(image, rng.uniform(0.3, 0.9), int(rng.integers(3)))
    if rng.random() < 0.3:
        image = image + head * rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.04))
    image = np.clip(image, 0, 1)
    if rng.random() < 0.5:
        image = image ** np.float32(np.exp(rng.normal(0, 0.2)))
    return image[None], mask


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy, plus 1 minus the soft Dice of the lesion, and a quarter of the fluid's."""
    loss = functional.cross_entropy(logits, target, WEIGHTS)
    probability = logits.softmax(1)
    for label, weight in ((1, 1.0), (2, 0.25)):
        truth = (target == label).float()
        if truth.any():
            guess = probability[:, label]
            loss = loss + weight * (1 - (2 * (guess * truth).sum() + 1) / (guess.sum() + truth.sum() + 1))
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--t1w", type=float, default=0.4)
    parser.add_argument("--extracted", type=float, default=0.4)
    parser.add_argument("--rate", type=float, default=0.007)
    parser.add_argument("--last_rate", type=float, default=0.0003)
    parser.add_argument("--every", type=int, default=100)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(int(time.time()))
    groups = groups_of(arguments.data)
    trained, card = load_model(arguments.init)
    network, state, step = trained.train(), out / "state.pt", 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        network.load_state_dict(kept["model"])
        step = kept["step"]
    mean = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=0.001)
    if state.exists():
        mean = kept["mean"]
        optimizer.load_state_dict(kept["optimizer"])
    begin, left = time.time(), arguments.minutes * 60
    end, losses = begin + left, {True: [], False: []}
    while time.time() < end:
        t1w = rng.random() < arguments.t1w
        among = groups[t1w, bool(rng.random() < arguments.extracted)]
        data, index = among[rng.integers(len(among))]
        image, mask = data.image(index), data.read(index, "mask")
        if t1w:
            image = np.where(inside_head(image[0]), 1 - image, image).astype(np.float32)
        image, mask = vary(rng, image, mask)
        share = (time.time() - begin) / left
        for group in optimizer.param_groups:
            group["lr"] = (arguments.last_rate + (arguments.rate - arguments.last_rate) * 0.5
                           * (1 + math.cos(math.pi * share))) * min(1, (step + 1) / 30)
        loss = loss_of(network(torch.from_numpy(np.ascontiguousarray(image))[None]),
                       torch.from_numpy(np.ascontiguousarray(mask)).long()[None])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses[t1w].append(float(loss.detach()))
        keep = min(0.998, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            mean[key].lerp_(value, 1 - keep)
        if step % arguments.every == 0 or time.time() >= end:
            torch.save({"model": network.state_dict(), "mean": mean, "optimizer": optimizer.state_dict(), "step": step},
                       state.with_suffix(".tmp"))
            state.with_suffix(".tmp").replace(state)
            averaged = build("meshnet", network.arguments)
            averaged.load_state_dict(mean)
            save_model(out, averaged, card)
            line = {"step": step, "clock": time.strftime("%H:%M:%S"), "heads": sum(map(len, groups.values())),
                    "rate": group["lr"], "t1w": round(float(np.mean(losses[True] or [0])), 4),
                    "others": round(float(np.mean(losses[False] or [0])), 4)}
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            losses, groups = {True: [], False: []}, groups_of(arguments.data)


if __name__ == "__main__":
    main()
