"""Make a probability of 0.5 mean 0.5: one factor and one shift of the logits, fitted on synthetic heads.

``python benchmarks/trust/calibrate.py --model FOLDER --anatomy FOLDER --lesions FOLDER … --cases 40 --out FOLDER``

The factor multiplies all logits, the shift is added to that of the lesion; the heads are of anatomies that the network
was not trained on, all contrasts alike. What it was before and is after, bin by bin, is written to calibration.json.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script
from meshnet.files import write_json

BINS = np.linspace(0, 1, 11)
EACH = 4000  # voxels of the head taken of each scan


def collect(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and whether each voxel is lesion (N,), a random sample of the voxels that are not air."""
    from builtin_weights import CONTRASTS, make

    from meshnet.data.synthetic.labelmaps import find_maps
    from meshnet.inference.predict import predict_logits
    from meshnet.inference.scan import load_models, read_case
    from meshnet.scans.grid import conform_mask

    rng = np.random.default_rng(0)
    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    models = load_models([arguments.model], device="cpu")
    network, card = models[0]
    logits, truths = [], []
    for number in range(arguments.cases):
        contrast = CONTRASTS[number % len(CONTRASTS)]
        image, mask, _ = make(arguments.first + number, contrast, "as made", maps, masks)
        volume, _ = read_case([image], models).inputs[0][0]
        grid = replace(card.grids()[0], shape=volume.shape[1:])  # it may have been enlarged
        truth = np.asarray(conform_mask(mask, grid, {1: 1}, image, exact=False).dataobj) == 1
        found = predict_logits(network, volume, threads=1)
        places = np.flatnonzero((volume[0] > 0).ravel())
        places = rng.choice(places, min(EACH, len(places)), replace=False)
        logits.append(found.reshape(len(found), -1)[:, places].T)
        truths.append(truth.ravel()[places])
    return np.concatenate(logits), np.concatenate(truths)


def probability(logits: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """Of lesion (N,), from logits (N, K) times ``factor``, with ``shift`` added to the lesion's."""
    z = logits.astype(np.float64) * factor
    z[:, 1] += shift
    z -= z.max(1, keepdims=True)
    e = np.exp(z)
    return e[:, 1] / e.sum(1)


def fitted(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The factor and the shift for which what is lesion (N,) is least surprising, by logits (N, K)."""

    def surprise(values: np.ndarray) -> float:
        p = np.clip(probability(logits, *values), 1e-7, 1 - 1e-7)
        return -float(np.where(truth, np.log(p), np.log(1 - p)).mean())

    # From three points that are apart: scipy's own differ by 0.00025 in what begins at 0, and the search ends there.
    options = {"xatol": 1e-3, "fatol": 1e-6, "initial_simplex": [[1, 0], [0.7, 0], [1, 1]]}
    return tuple(map(float, minimize(surprise, [1.0, 0.0], method="Nelder-Mead", options=options).x))


def reliability(p: np.ndarray, truth: np.ndarray) -> list[dict]:
    """For each tenth of the probabilities: how many voxels, their mean, and the share that is lesion."""
    which = np.clip(np.digitize(p, BINS) - 1, 0, len(BINS) - 2)
    return [{"voxels": int((which == k).sum()), "said": round(float(p[which == k].mean()), 3),
             "is": round(float(truth[which == k].mean()), 3)} for k in range(len(BINS) - 1) if (which == k).any()]


def main() -> None:
    from meshnet.networks.build import load_model
    from meshnet.networks.folder import save_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--anatomy", required=True)
    parser.add_argument("--lesions", nargs="+", required=True)
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--first", type=int, default=9_400_000, help="seed of the first")
    parser.add_argument("--out", required=True, help="model folder to write")
    arguments = parser.parse_args()
    logits, truth = collect(arguments)
    factor, shift = fitted(logits, truth)
    network, card = load_model(arguments.model)
    network.head.weight.data *= factor
    network.head.bias.data *= factor
    network.head.bias.data[1] += shift
    save_model(arguments.out, network, card)
    told = {"factor": round(factor, 4), "shift": round(shift, 4), "voxels": len(truth),
            "before": reliability(probability(logits, 1, 0), truth),
            "after": reliability(probability(logits, factor, shift), truth)}
    write_json(Path(arguments.out) / "calibration.json", told)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    run_script(main)
