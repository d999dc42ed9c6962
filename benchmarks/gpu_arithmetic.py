"""How long a training step would take on an A100 and an H100, by arithmetic: no GPU is used.

    python benchmarks/gpu_arithmetic.py --budgets 12GB 8GB 6GB

The operations of a step on the simulated GPU are counted. Each is taken to last as long as its multiplications at 40 %
of the card's rate in half precision, or its bytes at 80 % of its memory's, whichever is longer. cuDNN may be far from
that with 26 channels; what the script shows is the ratio of a step with a budget to a plain one. """

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARDS = {"A100 40 GB": (312e12, 1.555e12), "A100 80 GB": (312e12, 2.039e12), "H100": (989e12, 3.35e12)}  # NVIDIA's
PHASES = ("forward", "loss", "backward", "optimizer")
RATE, BANDWIDTH, LAUNCH = 0.4, 0.8, 5e-6  # shares that are reached; seconds that a kernel takes at least


def count(settings: list[str]) -> list[list]:
    """The operations of each step, as lists of (phase, name, bytes, operations)."""
    base = "--log --set model.channels=26 training.precision=fp16 "
    ran = subprocess.run([sys.executable, "-m", "benchmarks.simulated.whole_step", "--lines"], cwd=ROOT, check=True,
                         capture_output=True, text=True, input="\n".join(base + more for more in settings))
    return [[line for line in json.loads(out)["log"] if line[0] in PHASES] for out in ran.stdout.splitlines()]


def seconds(log: list, rate: float, bandwidth: float) -> float:
    """The time of a step."""
    return sum(max(flops / (RATE * rate), moved / (BANDWIDTH * bandwidth), LAUNCH) for _, _, moved, flops in log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", default=["12GB", "8GB", "6GB"])
    budgets = parser.parse_args().budgets
    logs = count(["", *(f"training.memory_budget={budget}" for budget in budgets)])
    print(f"{'MeshNet-26, 256³, fp16':24}{'TFLOP':>8}{'GB moved':>10}" + "".join(f"{card:>22}" for card in CARDS))
    for name, log in zip(["plain", *budgets], logs):
        flops, moved = sum(line[3] for line in log) / 1e12, sum(line[2] for line in log) / 1e9
        times = [(seconds(log, *card), seconds(logs[0], *card)) for card in CARDS.values()]
        shown = "".join(f"{own:12.3f} s ({own / plain:.2f})" for own, plain in times)
        print(f"{name:24}{flops:8.2f}{moved:10.0f}{shown}")


if __name__ == "__main__":
    main()
