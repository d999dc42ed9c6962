"""How likely a mask is of use: learned from synthetic heads, by contrast, and written into the model's card.

``python benchmarks/trust/quality.py RESULTS.jsonl … --model FOLDER``

The lines are those of ``builtin_weights.py``, of heads that the card's table does not hold, measured with the decision
and the veto that are in force: what is chosen after that needs a new quality. A logistic regression of whether a head
has a Dice of at least 0.3 (without a lesion: at most 1 mL marked) on ``scans.quality.Evidence.values``, one for masks
and one for empty ones. Printed: how well it ranks in cross-validation, beside the Dice to be expected if the
probabilities are right.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from builtin_weights import read
from decision import decided, evidence_of, ranked, succeeded
from veto import regress

from meshnet.errors import UserError, run_script
from meshnet.files import write_json
from meshnet.networks.card import CONFIG, QUALITY, Card, card_from, read_card
from meshnet.scans.contrast import CONTRASTS as LOOKS
from meshnet.scans.quality import COUNTS, Learned

PENALTY = 1.0  # on the squares of the weights of values of variance 1
FOLDS = 10


def learn(rows: list[dict], card: Card, looks: str) -> Learned:
    """The regressions of heads that look alike.

    Raises:
        UserError: where too few of them have a mask, or none.
    """
    decision, seen = card.decision(looks, veto=True), {name: [] for name in COUNTS}
    for row in rows:
        of = decided(row, decision)
        values = evidence_of(row, decision)[0].values()
        seen["marked" if of[2] else "empty"].append((values, succeeded(row, of)))
    found = {}
    for name, some in seen.items():
        if len(some) <= COUNTS[name]:
            raise UserError(f"{looks}: found {len(some)} heads with {name} masks, expected more than {COUNTS[name]}; "
                            "measure more heads")
        values, right = (np.array(column) for column in zip(*some))
        weights, bias = regress(values, right, np.ones(len(right)), PENALTY)
        found[name] = [round(float(value), 5) for value in (bias, *weights)]
    return Learned(**found)


def compare(rows: list[dict], card: Card) -> str:
    """How well quality ranks, if the probabilities are right, and learned from other heads."""
    seeds = sorted({row["seed"] for row in rows})
    fold = {seed: k % FOLDS for k, seed in enumerate(np.random.default_rng(0).permutation(seeds).tolist())}
    found = []
    for looks in LOOKS:
        some, decision = [row for row in rows if row["looks"] == looks], card.decision(looks, veto=True)
        for k in range(FOLDS):
            apart = [row for row in some if fold[row["seed"]] == k]
            learned = apart and learn([row for row in some if fold[row["seed"]] != k], card, looks)
            found += [(row, decided(row, decision), decided(row, decision, learned)) for row in apart]
    return (f"AUC {ranked([(row, right) for row, right, _ in found])} if the probabilities are right, "
            f"{ranked([(row, own) for row, _, own in found])} learned, in cross-validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="lines of builtin_weights.py")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in read(path) if row["healthy"] or row["ml"] > 0.05]
    path, card = arguments.model / CONFIG, read_card(arguments.model)
    values = json.loads(path.read_text(encoding="utf-8"))
    for looks in LOOKS:
        learned = learn([row for row in rows if row["looks"] == looks], card, looks)
        own = values.setdefault("contrasts", {}).setdefault(looks, {})
        own[QUALITY] = {name: list(getattr(learned, name)) for name in COUNTS}
    card_from(values, path)  # whether this model may look at the contrast
    print(compare(rows, card))
    write_json(path, values)


if __name__ == "__main__":
    run_script(main)
