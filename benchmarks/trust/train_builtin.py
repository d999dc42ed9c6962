"""The last training of the built-in weights: prepared heads drawn by contrast, for a given time.

``python benchmarks/trust/train_builtin.py --data FOLDER … --init WEIGHTS --out FOLDER --minutes 45``

Unlike ``train.py`` it draws each step's head so that ``--t1w`` of them are T1w, turned round by what was drawn rather
than by a guess, lets the rate fall with the clock, and gives the lesion's Dice more weight than that of the fluid.
Every ``--every`` steps the weights and their running mean are written; the same command goes on from there.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.data.reader import PreparedData
from meshnet.data.synthetic.case import PRESETS
from meshnet.networks.build import build, load_model
from meshnet.networks.folder import save_model
from meshnet.scans.contrast import inside_head

WEIGHTS = torch.tensor([0.6, 1.5, 0.7, 0.7])  # of the classes, in the cross-entropy


def contrast_of(seed: int) -> str:
    """The contrast of the head of that seed, as ``from_folders`` draws it from the preset ``every``."""
    shares = PRESETS["every"].contrasts
    values = np.array(list(shares.values()))
    return str(np.random.default_rng([seed, 1, 23]).choice(list(shares), p=values / values.sum()))


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
    parser.add_argument("--t1w", type=float, default=0.38)
    parser.add_argument("--rate", type=float, default=0.007)
    parser.add_argument("--last_rate", type=float, default=0.0003)
    parser.add_argument("--every", type=int, default=100)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(int(time.time()))
    sets = [PreparedData(folder) for folder in arguments.data]
    heads = [(d, i, contrast_of(int(row["case"].split("-")[1]))) for d in sets for i, row in enumerate(d.rows)]
    groups = [[h for h in heads if (h[2] == "T1w") == wanted] for wanted in (True, False)]
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
        data, index, _ = groups[0 if t1w else 1][rng.integers(len(groups[0 if t1w else 1]))]
        image, mask = data.image(index), data.read(index, "mask")
        if t1w:
            image = np.where(inside_head(image[0]), 1 - image, image).astype(np.float32)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[::-1]
        if rng.random() < 0.5:
            image = image ** np.float32(np.exp(rng.normal(0, 0.2)))
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
        keep = min(0.995, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            mean[key].lerp_(value, 1 - keep)
        if step % arguments.every == 0 or time.time() >= end:
            torch.save({"model": network.state_dict(), "mean": mean, "optimizer": optimizer.state_dict(), "step": step},
                       state.with_suffix(".tmp"))
            state.with_suffix(".tmp").replace(state)
            averaged = build("meshnet", network.arguments)
            averaged.load_state_dict(mean)
            save_model(out, averaged, card)
            line = {"step": step, "rate": group["lr"], "t1w": round(float(np.mean(losses[True] or [0])), 4),
                    "others": round(float(np.mean(losses[False] or [0])), 4), "clock": time.strftime("%H:%M:%S")}
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            losses = {True: [], False: []}


if __name__ == "__main__":
    main()
