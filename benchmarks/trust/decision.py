"""What makes a lesion: chosen on synthetic heads by Dice, lesion F1 and what is marked in healthy ones; and the tables.

``python benchmarks/trust/decision.py choose RESULTS.jsonl --model FOLDER``
``python benchmarks/trust/decision.py table RESULTS.jsonl … --model FOLDER --out summary.json``

The lines are those of ``builtin_weights.py``. ``choose`` writes threshold, ``sure`` and least size into the model's
config.json, for each contrast that a scan may look like. ``table`` measures the decision that is written there, on
heads of other seeds.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from builtin_weights import CONTRASTS, THRESHOLDS, VOXEL_MM, WAYS, read

from meshnet.errors import UserError, run_script
from meshnet.files import write_json
from meshnet.networks.card import CONFIG, read_card
from meshnet.scans.contrast import CONTRASTS as LOOKS
from meshnet.scans.mask import Decision
from meshnet.scans.quality import Evidence, Learned

SURE = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SMALLEST = (0.0, 100.0, 300.0, 1000.0, 2000.0)  # mm³
SIZES = ((0, 1), (1, 5), (5, 20), (20, 1000))  # mL
ML = VOXEL_MM ** 3 / 1000
NEAR = 0.01  # of the best value, about a standard error of what it gains over its neighbours


def decided(row: dict, decision: Decision, learned: Learned | None = None) -> tuple[float, float | None, float, float]:
    """Dice, lesion F1 (None without a lesion), mL marked and ``quality`` of a head; ``learned`` is that of the card."""
    evidence, kept = evidence_of(row, decision)
    right = sum(part[3] for part in kept) * ML
    touched = {number for part in kept for number in part[4]}
    false = sum(not part[4] for part in kept)
    ml = evidence.marked_ml
    dice = 2 * right / (ml + row["ml"]) if ml + row["ml"] else 1.0
    f1 = 2 * len(touched) / (len(touched) + row["n"] + false) if row["n"] else None
    return dice, f1, ml, learned.of(evidence) if learned else evidence.dice()


def evidence_of(row: dict, decision: Decision) -> tuple[Evidence, list]:
    """What the quality of a head's mask is made of, and the parts of that mask."""
    parts = row["parts"][f"{decision.threshold:g}"]
    kept = [part for part in parts if part[0] * ML * 1000 >= decision.min_lesion_mm3
            and (decision.sure <= decision.threshold or part[1] >= decision.sure)]
    ml, within = (sum(part[k] for part in kept) * ML for k in (0, 2))
    return Evidence(row["sum"] * ML, within, ml, max((part[0] for part in kept), default=0) * ML,
                    sum(part[0] for part in parts) * ML - ml), kept


def value_of(rows: list[dict], decision: Decision) -> float:
    """The mean over heads: of Dice and lesion F1 where there is a stroke, else 1 / (1 + mL marked)."""
    values = []
    for row in rows:
        dice, f1, ml, _ = decided(row, decision)
        values.append(1 / (1 + ml) if row["healthy"] else (dice + f1) / 2)
    return float(np.mean(values))


def choose(rows: list[dict]) -> tuple[Decision, float, float]:
    """The decision, its value, and that of the best: of all within ``NEAR`` of it the one with the highest threshold,
    since outlines of generated lesions hardly say where a person would draw them; then the one of the best value."""
    every = [Decision(threshold, sure, smallest) for threshold in THRESHOLDS for sure in SURE for smallest in SMALLEST
             if not 0 < sure <= threshold]
    values = [value_of(rows, one) for one in every]
    best = max(values)
    near = [(one.threshold, value, one) for one, value in zip(every, values) if value >= best - NEAR]
    found = max(near, key=lambda one: one[:2])
    return found[2], found[1], best


def write_choice(rows: list[dict], folder: Path) -> None:
    """Choose for all heads and for each contrast that they look like, and write it into config.json."""
    path = folder / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    if vetoes := [looks for looks, one in values.get("contrasts", {}).items() if "veto" in one]:
        raise UserError(f"{path}: found a veto for {vetoes[0]}, expected none, since it counts in the results and "
                        "depends on what is chosen here; remove it, measure, choose, and learn it after that (veto.py)")
    own, *_ = choose(rows)
    kept = {looks: {key: one[key] for key in ("also", "first_share", "own_weights", "mentions") if key in one}
            for looks, one in values.get("contrasts", {}).items()}  # in the probabilities already, or no decision
    values |= {"threshold": own.threshold, "sure": own.sure, "min_lesion_mm3": own.min_lesion_mm3, "contrasts": {}}
    for looks in LOOKS:
        some = [row for row in rows if row["looks"] == looks]
        found, value, best = choose(some)
        print(looks, len(some), "heads:", found, f"value {value:.3f}, best {best:.3f}, as for all "
              f"{value_of(some, own):.3f}")
        values["contrasts"][looks] = {"threshold": found.threshold, "sure": found.sure,
                                      "min_lesion_mm3": found.min_lesion_mm3, **kept.get(looks, {})}
    print("all:", own)
    write_json(path, values)


def mean(values: list) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def summary(rows: list[tuple]) -> dict:
    """Mean Dice and F1, both by size, and the mL marked in healthy heads, of (row, what was decided)."""
    ill = [(row, found) for row, found in rows if row["ml"] > 0.05]
    healthy = [found[2] for row, found in rows if row["healthy"]]
    sized = [[found for row, found in ill if low <= row["ml"] < high] for low, high in SIZES]
    return {"cases": len(ill), "dice": mean([found[0] for _, found in ill]), "f1": mean([found[1] for _, found in ill]),
            "dice_by_ml": [mean([found[0] for found in one]) for one in sized],
            "f1_by_ml": [mean([found[1] for found in one]) for one in sized], "healthy": len(healthy),
            "healthy_median_ml": round(float(np.median(healthy)), 2) if healthy else None,
            "healthy_p90_ml": round(float(np.quantile(healthy, 0.9)), 2) if healthy else None}


def succeeded(row: dict, found: tuple) -> bool:
    """Whether what was ``decided`` of a head is of use: a Dice of at least 0.3, or at most 1 mL in a healthy one."""
    return found[2] <= 1 if row["healthy"] else found[0] >= 0.3


def ranked(rows: list[tuple]) -> float | None:
    """The share of pairs of a success and a failure in which the success has the higher quality."""
    good, bad = ([found[3] for row, found in rows if succeeded(row, found) == wanted] for wanted in (True, False))
    if not good or not bad:
        return None
    apart = np.array(good)[:, None] - np.array(bad)
    return round(float((apart > 0).mean() + (apart == 0).mean() / 2), 3)


def table(rows: list[dict], folder: Path) -> dict:
    """By contrast, by way of scanning, by label map, and how well the quality ranks and the contrast is told."""
    card = read_card(folder)
    found = [(row, decided(row, card.decision(row["looks"], veto=True), card.quality(row["looks"]))) for row in rows]
    plain = [one for one in found if one[0]["way"] == "as made"]
    ill = [one for one in found if one[0]["ml"] > 0.05]
    seeds = {row["seed"] for row in rows if row["way"] != "as made"}  # heads that were scanned in every way
    of = lambda name: [one for one in plain if one[0]["contrast"] == name]
    dice = lambda some: mean([each[0] for _, each in some])
    ways = {name: {way: dice([one for one in ill if (one[0]["contrast"], one[0]["way"]) == (name, way)
                              and one[0]["seed"] in seeds]) for way in WAYS} for name in CONTRASTS}
    numbers = sorted({row["map"] for row in rows})
    return {"contrasts": {name: summary(of(name)) for name in CONTRASTS}, "ways": ways,
            "maps": {str(number + 17): dice([one for one in ill if one[0]["map"] == number
                                             and one[0]["way"] == "as made"]) for number in numbers},
            "told": {name: mean([row["looks"] is not None and name in row["looks"] for row, _ in of(name)])
                     for name in CONTRASTS},
            "quality_auc": ranked([one for one in plain if one[0]["healthy"] or one[0]["ml"] > 0.05])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("choose", "table"))
    parser.add_argument("results", nargs="+", help="lines of builtin_weights.py")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", help="JSON file for the tables")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in read(path) if row["healthy"] or row["ml"] > 0.05]
    if arguments.what == "choose":
        write_choice(rows, arguments.model)
        return
    found = table(rows, arguments.model)
    print(json.dumps(found, indent=1))
    if arguments.out:
        write_json(arguments.out, found)


if __name__ == "__main__":
    run_script(main)
