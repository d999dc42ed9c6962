"""Which epoch to keep: by the validation Dice at its best threshold, or at 0.5? Trainings on synthetic strokes.

``python benchmarks/trust/threshold.py --out /tmp/threshold [--runs 20] [--at_most 5]``

Each run trains once with its own seed and fold and remembers every epoch. Both rules then choose from the same epochs:
the paper's takes the highest validation Dice at 0.5 and tests at 0.5; the other takes the highest validation Dice at
any threshold and tests at that threshold. A finished run is a line of results.jsonl, so the same command continues;
``--at_most`` ends a call after so many runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet import ROOT
from meshnet.errors import run_script
from meshnet.files import write_text

RECIPE = ROOT / "recipes" / "demo.yaml"


def prepare(folder: Path, cases: int, voxel_mm: float) -> None:
    """Synthetic cases, once."""
    if not (folder / "prepared.json").is_file():
        subprocess.run([sys.executable, ROOT / "prepare.py", "--format", "synthetic", "--cases", str(cases),
                        "--voxel_mm", str(voxel_mm), "--workers", "1", "--out", folder], check=True, cwd=ROOT)


def train(data: Path, folder: Path, seed: int, epochs: int, flags: list[str]) -> dict:
    """One training, and the test Dice of the epoch that each rule chooses."""
    import torch

    from meshnet.crossval.scoring import score_probabilities
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.inference.predict import predict
    from meshnet.training import keep, loop
    from train import main

    seen, runs = [], []

    def remember(run, *arguments, **named):
        row = keep.validate_and_keep(run, *arguments, **named)
        seen.append((row, {key: value.clone() for key, value in run.network.state_dict().items()}))
        runs.append(run)
        return row

    loop.validate_and_keep = remember
    fold = seed % 3
    sys.argv = ["train.py", "--recipe", str(RECIPE), "--data", str(data), "--run_dir", str(folder), "--seed", str(seed),
                "--fold", str(fold), "--no-resume", "--training.max_epochs", str(epochs),
                "--training.validate_every", "1", "--data.workers", "0", *flags]
    assert not main()
    run = runs[-1]
    splits = load_splits(data / "splits.json")
    tests = run.data.indices(fold_subjects(splits, fold, 0)["test"])
    scores = {"seed": seed, "epochs": epochs}
    for rule, name in (("half", "val_dice"), ("best", "val_dice_swept")):
        place = max(range(len(seen)), key=lambda k: (seen[k][0][name], -k))
        row, weights = seen[place]
        run.network.load_state_dict(weights)
        threshold = 0.5 if rule == "half" else row["val_threshold"]
        card = run.card.changed(threshold=threshold)
        with torch.no_grad():
            found = [predict(run.network.eval(), run.data.image(index)) for index in tests]
        dice = [score_probabilities(each, card, run.data, index)["dice"] for each, index in zip(found, tests)]
        scores[rule] = {"epoch": place + 1, "threshold": threshold, "val": row[name], "test": float(np.mean(dice))}
    return scores


def table(rows: list[dict]) -> str:
    """The comparison as Markdown."""
    lines = ["| seed | at 0.5: epoch, test Dice | best threshold: epoch, threshold, test Dice |", "|---|---|---|"]
    for row in rows:
        half, best = row["half"], row["best"]
        lines.append(f"| {row['seed']} | {half['epoch']}, {half['test']:.3f} | {best['epoch']}, "
                     f"{best['threshold']:g}, {best['test']:.3f} |")
    tests = {rule: [row[rule]["test"] for row in rows] for rule in ("half", "best")}
    gained = [best - half for half, best in zip(*tests.values())]
    lines += ["", f"{len(rows)} runs: median test Dice {statistics.median(tests['half']):.3f} at 0.5, "
              f"{statistics.median(tests['best']):.3f} at the best threshold; median difference "
              f"{statistics.median(gained):+.3f}; higher in {sum(g > 0 for g in gained)}, lower in "
              f"{sum(g < 0 for g in gained)} runs"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the data, runs and results")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--at_most", type=int, default=1000, help="runs in this call")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--voxel_mm", type=float, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    arguments, flags = parser.parse_known_args()
    results = arguments.out / "results.jsonl"
    prepare(arguments.out / "data", arguments.cases, arguments.voxel_mm)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    todo = [seed for seed in range(arguments.runs) if seed not in {row["seed"] for row in rows}]
    for seed in todo[:arguments.at_most]:
        rows.append(train(arguments.out / "data", arguments.out / "run", seed, arguments.epochs, flags))
        write_text(results, "".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    run_script(main)
