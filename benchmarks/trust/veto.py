"""The veto of a cascade: learned from synthetic heads, by contrast, and written into the model's card.

``python benchmarks/trust/veto.py heads --model FOLDER --anatomy FOLDER --lesions FOLDER … --out heads.jsonl``
``python benchmarks/trust/veto.py try heads.jsonl … --model FOLDER --least T1w 0.2 T2w 0.35 --sure T1w 0.75 T2w 0.65``
``python benchmarks/trust/veto.py fit heads.jsonl … --model FOLDER --least T1w 0.2 T2w 0.35 --sure T1w 0.75 T2w 0.65``

A line of the first one is a head with the values (``meshnet.scans.veto``) of all that the second network finds there
from the card's threshold on, and how much of each is right; a head with ``--sclerosis`` or ``--plaques`` has lesions as
in multiple sclerosis, which count as right. ``fit`` is a logistic regression of whether a part is right: what is right
with less than ``--least`` probability is taken back. A file that is named several times counts that many times. ``try``
says what that changes, in five-fold cross-validation.
"""

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from builtin_weights import CONTRASTS, HEALTHY, make, read
from second_heads import SMALLEST_MM3, drawer, plaques

from meshnet.errors import UserError, run_script
from meshnet.files import write_json
from meshnet.networks.card import CONFIG, QUALITY, VETO
from meshnet.scans.contrast import CONTRASTS as LOOKS
from meshnet.scans.veto import parts_of, values_of

RIGHT = 0.2  # share of a part in lesions, from which it is right
PENALTY = 10.0  # on the squares of the weights of values of variance 1
MOST_ML, EACH = 5.0, 0.1  # a part counts by the root of its mL, at most so many, and every part by so much
FOLDS = 5
SURE = 0.5  # parts that nowhere reach it are not looked at, unless the card's decision leaves them


def values_on(models: list, image: nib.Nifti1Image, mask: nib.Nifti1Image) -> dict:
    """What a head looks like, its mL and number of lesions, and the parts found on it: [values, mL, share that is
    right, highest probability, true lesions that it touches]."""
    from scipy import ndimage

    from meshnet.inference.cascade import second_probabilities, second_volume
    from meshnet.inference.scan import read_case
    from meshnet.scans import checks
    from meshnet.scans.grid import conform_mask
    from meshnet.scans.mask import slices

    (network, card), case = models[0], read_case([image], models)
    second, decision = case.seconds[0], card.decision(case.contrast)
    given = second_volume(network.first, case.inputs[0], second, card.voxel_mm, card.across)
    grid = checks.fitted(card.grids()[0], image, "head")[0]
    truth = np.asarray(conform_mask(mask, grid, {1: 1}, image, exact=False).dataobj) == 1
    each = card.voxel_mm ** 3 / 1000
    lesions, count = ndimage.label(truth, np.ones((3, 3, 3)))
    row = {"looks": case.contrast, "threshold": decision.threshold, "ml": float(truth.sum() * each), "n": count}
    if given is None:
        return {**row, "parts": []}
    found = second_probabilities(models[0], given, second[0].shape[1:], case.contrast)
    inside = slices(given[1])
    seen, found, lesions = given[0][(slice(None), *inside)], found[(slice(None), *inside)], lesions[inside]
    marked = [card.classes.index(name) for name in (card.marks or card.classes[1], *decision.also)]
    deciding = found[marked].sum(0, dtype=np.float32)
    beside = found[[k for k in range(1, len(found)) if k not in marked]].sum(0, dtype=np.float32)
    parts = []
    for box, own, around in parts_of(deciding, decision.threshold, min(SURE, decision.sure)):
        values = values_of((own, around), deciding[box], beside[box], seen[(slice(None), *box)], card.voxel_mm)
        there = lesions[box][own]
        parts.append([[round(value, 5) for value in values], float(own.sum() * each), float((there > 0).mean()),
                      float(deciding[box][own].max()), np.unique(there[there > 0]).tolist()])
    return {**row, "parts": parts}


def measure(arguments: argparse.Namespace) -> None:
    from meshnet.data.synthetic import from_folders, lesionmasks
    from meshnet.data.synthetic.labelmaps import find_maps
    from meshnet.inference.models import load_models

    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    models = load_models([arguments.model], device="cpu")
    if arguments.sclerosis:
        lesionmasks.VOLUME_MM3 = (SMALLEST_MM3, lesionmasks.VOLUME_MM3[1])
        from_folders.draw_strokes = drawer(maps[0], sclerosis_alone=True)
    if arguments.plaques:
        from_folders.draw_strokes = plaques(maps[0])
    kind = {"sclerosis": arguments.sclerosis, "plaques": arguments.plaques}
    done = {(row["seed"], row["contrast"], *(row.get(name, False) for name in kind)) for row in read(arguments.out)}
    with Path(arguments.out).open("a", encoding="utf-8") as file:
        for number in range(arguments.cases):
            seed = arguments.first + number * (HEALTHY if arguments.healthy else 1)
            for contrast in ["FLAIR"] if any(kind.values()) else arguments.contrasts:
                if (seed, contrast, *kind.values()) in done:
                    continue
                image, mask, _ = make(seed, contrast, "as made", maps, masks)
                row = {"seed": seed, "contrast": contrast, **kind, **values_on(models, image, mask)}
                file.write(json.dumps(row) + "\n")
                file.flush()


def regress(values: np.ndarray, right: np.ndarray, weights: np.ndarray,
            penalty: float = PENALTY) -> tuple[np.ndarray, float]:
    """Weights and bias of the logit that a part is right: the least loss with a ``penalty``.

    Args:
        values: (N, D).
        right: (N,) boolean.
        weights: (N,), how much each counts.
    """
    from scipy.optimize import minimize

    middle, spread = values.mean(0), values.std(0) + 1e-6
    scaled = (values - middle) / spread

    def loss(found):
        score = scaled @ found[1:] + found[0]
        slope = weights * (1 / (1 + np.exp(-score)) - right)
        return ((weights * (np.logaddexp(0, score) - right * score)).sum() + penalty / 2 * (found[1:] ** 2).sum(),
                np.concatenate([[slope.sum()], scaled.T @ slope + penalty * found[1:]]))

    found = minimize(loss, np.zeros(values.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[1:] / spread, float(found[0] - (found[1:] * middle / spread).sum())


def learn(rows: list[dict]) -> tuple[np.ndarray, float]:
    """``regress`` of all parts of some heads."""
    values, ml, right = (np.array(column) for column in list(zip(*(part for row in rows for part in row["parts"])))[:3])
    return regress(values, right > RIGHT, np.sqrt(np.minimum(ml, MOST_ML)) + EACH)


def scores(row: dict, kept: list) -> tuple[float, float | None, float]:
    """Dice, lesion F1 (None without a lesion) and mL marked of a head where some of its parts are ``kept``."""
    ml, right = (sum(part[1] * (part[2] if k else 1) for part in kept) for k in (0, 1))
    touched, false = {number for part in kept for number in part[4]}, sum(not part[4] for part in kept)
    dice = 2 * right / (ml + row["ml"]) if ml + row["ml"] else 1.0
    return dice, 2 * len(touched) / (len(touched) + row["n"] + false) if row["n"] else None, ml


def told(rows: list[dict], keep) -> str:
    """What heads have in the mean of whose parts those are kept that ``keep(number of the head, part)`` says."""
    every = [(row, scores(row, [part for part in row["parts"] if keep(k, part)])) for k, row in enumerate(rows)]
    ill = [found for row, found in every if row["ml"] > 0.05]
    healthy = np.array([found[2] for row, found in every if not row["n"]])
    dice, f1 = (np.mean([found[k] for found in ill]) for k in (0, 1))
    value = 0.8 * (dice + f1) / 2 + 0.2 * np.mean(1 / (1 + healthy))
    return (f"Dice {dice:.3f}, F1 {f1:.3f}, {np.sum(healthy > 1)} of {len(healthy)} healthy heads over 1 mL, 90 % "
            f"{np.quantile(healthy, 0.9):.2f} mL, value {value:.3f}")


def compare(rows: list[dict], least: dict[str, float], sures: dict[str, float], folder: Path) -> None:
    """Print what each contrast's heads have without and with a veto that was learned from other heads."""
    card = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for contrast in CONTRASTS:
        looks = next(name for name in LOOKS if contrast in name)
        some = [row for row in rows if row["looks"] == looks]
        if looks not in least or not some:
            continue
        sure, seeds = card["contrasts"][looks].get("sure", card["sure"]), sorted({row["seed"] for row in some})
        lower = sures.get(looks, sure)
        fold = {seed: k % FOLDS for k, seed in enumerate(np.random.default_rng(0).permutation(seeds).tolist())}
        found = [learn([row for row in some if fold[row["seed"]] != k]) for k in range(FOLDS)]
        own = [row for row in some if row["contrast"] == contrast]
        border = np.log(least[looks] / (1 - least[looks]))

        def stays(k, part, own=own, found=found, fold=fold, border=border):
            weights, bias = found[fold[own[k]["seed"]]]
            return np.dot(weights, part[0]) + bias >= border

        print(f"{contrast}, without: {told(own, lambda k, part, sure=sure: part[3] >= sure)}")
        print(f"{contrast}, with: "
              f"{told(own, lambda k, part, lower=lower, stays=stays: part[3] >= lower and stays(k, part))}")


def fit(rows: list[dict], least: dict[str, float], sures: dict[str, float], folder: Path) -> None:
    """Write the veto for each of the contrasts in ``least`` into the card of ``folder``, with the ``sure`` of some."""
    path = folder / CONFIG
    card = json.loads(path.read_text(encoding="utf-8"))
    for looks, share in least.items():
        some = [row for row in rows if row["looks"] == looks]
        parts, own = [part for row in some for part in row["parts"]], card["contrasts"].get(looks)
        if not parts or own is None:
            raise UserError(f"{looks}: found {len(parts)} parts, expected some, and settings for it in {path}; measure "
                            "more heads")
        if others := {row["threshold"] for row in some} - {own.get("threshold", card.get("threshold"))}:
            raise UserError(f"{looks}: found heads measured from {min(others)} on, expected the threshold of {path}; "
                            "measure them again")
        weights, bias = learn(some)
        bias -= np.log(share / (1 - share))
        own.pop(QUALITY, None)  # was learned with another veto
        card["contrasts"][looks][VETO] = {"bias": round(bias, 5), "weights": np.round(weights, 5).tolist(),
                                          **({"sure": sures[looks]} if looks in sures else {})}
        print(f"{looks}: {len(parts)} parts, {np.mean([part[2] > RIGHT for part in parts]):.2f} of them right, "
              f"{np.mean([np.dot(weights, part[0]) + bias < 0 for part in parts]):.2f} taken back")
    write_json(path, card)


def shares(given: list[str], flag: str = "--least") -> dict[str, float]:
    """What ``--least`` or ``--sure`` says, contrast and probability in turn, by what scans look like."""
    names = {name: next(looks for looks in LOOKS if name in looks) for name in CONTRASTS}
    found = {}
    for name, share in zip(given[::2], given[1::2]):
        if name not in names or not share.replace(".", "", 1).isdigit() or not 0 < float(share) < 1:
            raise UserError(f"{flag}: found {name} {share}, expected one of {', '.join(names)} and a probability "
                            "between 0 and 1")
        if names[name] in found:
            raise UserError(f"{flag}: found {names[name]} twice, expected it once; FLAIR and DWI are decided alike")
        found[names[name]] = float(share)
    if not found or len(given) % 2:
        raise UserError(f"{flag}: found {' '.join(given) or 'nothing'}, expected contrasts and probabilities in turn, "
                        "as T1w 0.2 T2w 0.35")
    return found


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for what ``heads`` cannot do."""
    if not (arguments.anatomy and arguments.lesions and arguments.out):
        raise UserError("heads: found no --anatomy, --lesions or --out, expected all of them")
    if arguments.healthy and (arguments.sclerosis or arguments.plaques or arguments.first % HEALTHY):
        raise UserError(f"--healthy: found --first {arguments.first}, expected a multiple of {HEALTHY}, since every "
                        f"{HEALTHY}th head is healthy, and no --sclerosis or --plaques")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("heads", "try", "fit"))
    parser.add_argument("results", nargs="*", help="lines of heads, for try and fit")
    parser.add_argument("--model", type=Path, required=True, help="model folder of a cascade")
    parser.add_argument("--anatomy", help="label maps that the model was not trained on")
    parser.add_argument("--lesions", nargs="+", help="folders of lesion masks")
    parser.add_argument("--contrasts", nargs="+", choices=CONTRASTS, default=CONTRASTS)
    parser.add_argument("--cases", type=int, default=100, help="heads of each contrast")
    parser.add_argument("--first", type=int, default=9_600_000, help="seed of the first")
    parser.add_argument("--healthy", action="store_true", help="heads without a stroke alone")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sclerosis", action="store_true", help="FLAIR heads with multiple sclerosis")
    kind.add_argument("--plaques", action="store_true", help="FLAIR heads with its plaques, and with white matter "
                      "disease as on any head")
    parser.add_argument("--least", nargs="+", default=[], help="contrast and probability, in turn; FLAIR is with DWI")
    parser.add_argument("--sure", nargs="+", default=[], help="contrast and the decision's sure where the veto counts")
    parser.add_argument("--out", help="lines to write")
    arguments = parser.parse_args()
    if arguments.what == "heads":
        check(arguments)
        measure(arguments)
        return
    what = compare if arguments.what == "try" else fit
    sures = shares(arguments.sure, "--sure") if arguments.sure else {}
    if low := [share for share in sures.values() if share < SURE]:
        raise UserError(f"--sure: found {min(low)}, expected at least {SURE}, below which no part was measured")
    what([row for path in arguments.results for row in read(path)], shares(arguments.least), sures, arguments.model)


if __name__ == "__main__":
    run_script(main)
