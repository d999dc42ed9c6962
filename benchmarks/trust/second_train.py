"""Train the second network of a built-in cascade on the heads of ``second_heads.py``.

``python benchmarks/trust/second_train.py --data FOLDER … --first MODEL --out FOLDER --minutes 88``
``torchrun --nproc_per_node 2 benchmarks/trust/second_train.py … --mirror --weights FOLDER --minutes 100``

Patches of 2 mm voxels, drawn where something is to be learned, one process on each core. Each process has a share of
the heads, which may be made meanwhile, and all take the mean of their weights every few steps. The rate falls by the
clock, and batch norm's statistics stay in the last part of the time. The state is written every half minute, so the
same command goes on. At the end ``--out`` is a cascade with the running mean of the weights, whose decision is still to
be chosen (``decision.py``).
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from second_patches import draw_patch, mine, read_head

from meshnet.errors import UserError, run_script
from meshnet.files import whole_file
from meshnet.networks.card import WEIGHTS, read_card
from meshnet.networks.cascade import network_of, of_contrast
from meshnet.networks.folder import read_weights

CLASSES = ["background", "lesion", "white matter disease"]
ARGUMENTS = {"channels": 16, "classes": 3, "dilations": [1, 2, 4, 4, 2, 1], "norm": "batch"}
EDGE, BATCH = 4, 2  # voxels; those at the edge do not count, since they see too little
LAST_RATE, DECAY = 1e-4, 0.998
EVERY = 10  # steps after which all processes take the mean of their weights
KINDS = {"T1w": 2.4, "T2w": 1.5, "FLAIR": 1.0, "DWI": 1.1, "random": 0.5}  # how often a head is taken
# Shares of patches around a lesion, disease, and what the first network or the grey value makes suspicious; the weights
# of the classes and of both losses. Many lesions at first, so that anything is learned; then what is nearer to a scan.
WAYS = {"early": ((0.5, 0.1, 0.3), (1.0, 2.0, 1.0), 3.0, 0.7), "late": ((0.3, 0.06, 0.39), (1.0, 1.2, 0.8), 5.0, 0.5)}


def kinds_of(given: list[str]) -> dict[str, float]:
    """What ``--kinds`` says, names and numbers in turn.

    Raises:
        UserError: for another name, or no number above 0.
    """
    found = dict(zip(given[::2], given[1::2]))
    if len(given) % 2 or not found.keys() <= KINDS.keys() or not all(
            number.replace(".", "", 1).isdigit() and float(number) > 0 for number in found.values()):
        raise UserError(f"--kinds: found {' '.join(given)}, expected some of {', '.join(KINDS)}, each with a number "
                        "above 0, as T1w 1 T2w 0.2")
    return {kind: float(number) for kind, number in found.items()}


class Heads:
    """The heads of one process in some folders; those that are made while it trains are taken as they come.

    kinds: how often a head of each contrast is drawn; most: how many are kept, those that were read last; share: this
    process's number, and of how many.
    """

    def __init__(self, folders: list[Path], mirror: bool, kinds: dict[str, float], most: int,
                 share: tuple[int, int] = (0, 1)):
        if most < 1:
            raise UserError(f"--most: found {most}, expected at least 1 head")
        self.folders, self.mirror, self.kinds, self.most = folders, mirror, kinds, most
        self.rank, self.several = share
        self.seen, self.taken = set(), []
        self.read()
        if not self.taken:
            raise UserError(f"--data: found no head of {', '.join(kinds)} in {len(self.seen)} files, expected some; "
                            "make them with second_heads.py")

    def read(self, most: int | None = None) -> None:
        """Read at most ``most`` files that were not read before, each named by its seed."""
        files = [path for folder in self.folders for path in sorted(folder.glob("*.npz")) if path not in self.seen
                 and path.stem.isdigit() and int(path.stem) % self.several == self.rank]  # half a file's begins with .
        for path in files[:most]:
            self.seen.add(path)
            if head := read_head(path, self.mirror, self.kinds):
                self.taken = [*self.taken, head][-self.most:]

    def draw(self, rng: np.random.Generator, count: int, network: torch.nn.Module | None = None) -> list[dict]:
        """Some heads, whose places a ``network`` may change (``mine``)."""
        weights = np.array([head["weight"] for head in self.taken])
        drawn = [self.taken[k] for k in rng.choice(len(weights), count, p=weights / weights.sum())]
        for head in drawn if network is not None else ():
            mine(rng, network, head)
        return drawn


def average(network: torch.nn.Module) -> None:
    """Give the networks of all processes the mean of their weights."""
    for value in network.state_dict().values():
        if value.dtype.is_floating_point:
            distributed.all_reduce(value)
            value /= distributed.get_world_size()


def loss_of(logits: torch.Tensor, truth: torch.Tensor, way: tuple) -> torch.Tensor:
    """Cross-entropy, and Dice of lesion and of lesion with disease, within the patches' edges."""
    _, weights, entropy, overlap = way
    inner = (..., *[slice(EDGE, -EDGE)] * 3)
    logits, truth = logits[inner], truth[inner]
    loss = entropy * functional.cross_entropy(logits, truth, torch.tensor(weights), reduction="none").mean()
    share = logits.softmax(1)
    for found, there in ((share[:, 1], truth == 1), (share[:, 1] + share[:, 2], truth > 0)):
        if there.sum() > 20:
            loss = loss + overlap * (1 - (2 * (found * there).sum() + 1) / (found.sum() + there.sum() + 1))
    return loss


def train(arguments: argparse.Namespace, network: torch.nn.Module) -> dict:
    """The running mean of the trained weights."""
    rng, way, path = np.random.default_rng(), WAYS[arguments.way], arguments.out / "state.pt"
    first = list(network_of(arguments.first / WEIGHTS))  # another one is another training
    rank, several = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if several > 1:
        distributed.init_process_group("gloo")
    heads = Heads(arguments.data, arguments.mirror, kinds_of(arguments.kinds) if arguments.kinds else KINDS,
                  arguments.most, (rank, several))
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-3)
    seconds, step, mean = 0.0, 0, {name: value.clone() for name, value in network.state_dict().items()}
    if path.is_file():
        state = torch.load(path, weights_only=True)
        if state.get("first") != first:
            raise UserError(f"{path}: found a training behind another first network, expected that of --first "
                            f"{arguments.first}; name another folder with --out")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, step, mean = state["seconds"], state["step"], state["mean"]
    begun, saved, losses = time.monotonic() - seconds, time.monotonic(), []
    while True:
        seconds = time.monotonic() - begun
        share = min(1.0, seconds / (60 * arguments.minutes))
        if several > 1 and step % EVERY == 0:
            average(network)
            now = torch.tensor(share)
            distributed.broadcast(now, 0)  # so that all end with the same step
            share = float(now)
        elif several > 1:
            share = min(share, 1 - 1e-9)
        if rank == 0 and (share == 1 or time.monotonic() - saved > 30):
            with whole_file(path) as temporary:
                torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "seconds": seconds,
                            "step": step, "mean": mean, "first": first}, temporary)
            print(f"step {step}, {seconds:.0f} s, {len(heads.taken)} heads, loss {np.mean(losses or [0]):.4f}",
                  flush=True)
            saved, losses = time.monotonic(), []
        if share == 1:
            return mean
        for group in optimizer.param_groups:
            group["lr"] = LAST_RATE + (arguments.rate - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)) * min(
                1, (step + 1) / 50)  # a float of Python's, as the state is read without unpickling
        if step % EVERY == 0:
            heads.read(EVERY)
        taken = heads.draw(rng, BATCH, network if arguments.mine else None)
        network.train(share < arguments.frozen)
        drawn = [draw_patch(rng, head, way[0]) for head in taken]
        alike = [one for one in drawn if one[1].shape == drawn[0][1].shape]  # a region may be smaller than a patch
        given, truth = (torch.from_numpy(np.stack(one)) for one in zip(*alike))
        loss = loss_of(network(given), truth, way)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                mean[name].lerp_(value, 1 - min(DECAY, (step + 1) / (step + 10)))
            else:
                mean[name].copy_(value)


def take(network: torch.nn.Module, weights: dict) -> None:
    """Start from ``weights``, of a network with as many input channels or the first of these; others count nothing
    yet."""
    for name, value in network.state_dict().items():
        if value.dim() > 1 and value.shape[1] < weights[name].shape[1]:
            raise UserError(f"--weights: found a network of {weights[name].shape[1]} input channels, expected at most "
                            f"{value.shape[1]}; add --mirror")
        if value.shape != weights[name].shape:
            value[:, weights[name].shape[1]:] = 0
        value[:, :weights[name].shape[1]].copy_(weights[name]) if value.dim() > 1 else value.copy_(weights[name])


def weights_in(folder: Path, contrast: str | None) -> dict:
    """The tensors of the second network in a cascade's ``folder``: its weights for ``contrast``, or the common ones.

    Raises:
        UserError: where it has none of its own for that.
    """
    own = read_card(folder).own_weights
    if contrast is not None and contrast not in own:
        raise UserError(f"--contrast: found {contrast}, expected one for which {folder} has weights of its own "
                        f"({', '.join(own) or 'none'}); leave it out")
    return of_contrast(read_weights(folder / WEIGHTS), contrast)


def main() -> None:
    from meshnet.networks.build import build
    from meshnet.networks.card import CONFIG
    from meshnet.networks.folder import save_weights

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of second_heads.py")
    parser.add_argument("--first", type=Path, required=True, help="the first network, a model folder")
    parser.add_argument("--way", choices=tuple(WAYS), default="early", help="how patches are drawn and weighed")
    parser.add_argument("--minutes", type=float, default=88)
    parser.add_argument("--rate", type=float, default=0.01, help="the first learning rate")
    parser.add_argument("--frozen", type=float, default=0.6, help="share of the time from which batch norm's "
                        "statistics stay")
    parser.add_argument("--mirror", action="store_true", help="the network is given the mirror image as well")
    parser.add_argument("--weights", type=Path, help="a cascade to start from, with or without the mirror image")
    parser.add_argument("--contrast", help="the one of whose own weights in it to start, where it has such")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="KIND NUMBER",
                        help="how often heads of a contrast are taken, others never: T1w 1 T2w 0.2")
    parser.add_argument("--mine", action="store_true", help="draw patches where the network is wrong, and as many of "
                        "a small lesion as of a large one")
    parser.add_argument("--most", type=int, default=2000, help="heads in memory of each process, 4 MB each")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.contrast and not arguments.weights:
        raise UserError(f"--contrast: found {arguments.contrast} without --weights, expected a cascade there; name one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build("meshnet", {**ARGUMENTS, "in_channels": 8 if arguments.mirror else 4})
    with torch.no_grad():
        network.head.bias[1:] -= 3  # most voxels are background
        if arguments.weights:
            take(network, weights_in(arguments.weights, arguments.contrast))
    network.load_state_dict(train(arguments, network))
    if int(os.environ.get("RANK", 0)):
        return
    first = read_card(arguments.first)
    card = first.changed(classes=CLASSES, arguments=network.arguments, voxel_mm=2.0, shape=[96, 128, 120],
                         shifted=False, first=first.classes[1:], mirror=arguments.mirror, threshold=0.5, sure=0,
                         contrasts={}, training_data={}, metrics={})
    (arguments.out / "first").mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(arguments.first / name, arguments.out / "first" / name)
    save_weights(arguments.out / WEIGHTS, network.state_dict())
    (arguments.out / CONFIG).write_text(json.dumps(card.to_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
