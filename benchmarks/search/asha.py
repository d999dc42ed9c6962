"""How much training does a search need to reach the best 1 %? Methods compared on a simulated clock.

Nothing is trained: learning curves over a search space come from asha_curves.py, made up for each seed or from a
table of real runs. Each method (asha_methods.py) runs with 1 to 500 workers until it has fully trained a configuration
of the best 1 %. ``work`` is workers x time until then, in epochs, so idle workers count.

    python benchmarks/search/asha.py run --methods ours random --seeds 30 --out results.jsonl
    python benchmarks/search/asha.py run --curves real --workers 1 4 16 --minutes 4 --out results.jsonl
    python benchmarks/search/asha.py table results.jsonl

The same command again computes only what is missing in the file. The other libraries (Syne Tune, Optuna, Orion) and
the table need the packages in benchmarks/search/peers.txt, in environments of their own.
"""

import argparse
import heapq
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from asha_curves import CURVES
from asha_methods import METHODS

WORKERS = (1, 4, 16, 64, 256, 500)


# ---------------------------------------------------------------- the clock
def simulate(method, problem, workers: int) -> float:
    """Time until a run of the best 1 % is trained to the end; NaN after 800 full trainings, or 4 for each worker."""
    never = max(800 / workers, 4) * problem.highest
    events: list[tuple] = []  # (time, order, work, epoch): a run has reached an epoch at which it is looked at
    idle, order, now = workers, 0, 0.0
    while True:
        while idle:
            work = method.next()
            if work is None:
                break
            idle -= 1
            first = next((epoch for epoch in work.looks if epoch > work.start), work.stop)
            order += 1
            heapq.heappush(events, (now + (first - work.start) * problem.pace(work.number), order, work, first))
        now, _, work, epoch = heapq.heappop(events)
        if epoch == problem.highest and problem.reached(work.units):
            return now
        if now > never:
            return math.nan
        goes_on = method.tell(work, epoch, problem.score(work.units, epoch, work.number))
        if epoch < work.stop and goes_on:
            then = next((look for look in work.looks if look > epoch), work.stop)
            order += 1
            heapq.heappush(events, (now + (then - epoch) * problem.pace(work.number), order, work, then))
        else:
            idle += 1


# ---------------------------------------------------------------- cells and tables
def run(arguments) -> None:
    """Simulate every cell (method, workers, seed) that the file does not have, and append it."""
    done, began = set(), time.monotonic()
    key = ("curves", "method", "workers", "seed")
    if arguments.out.exists():
        done = {tuple(json.loads(line)[name] for name in key) for line in arguments.out.open()}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for workers in arguments.workers:
            for name in arguments.methods:
                cell = (arguments.curves, name, workers, seed)
                if cell in done or time.monotonic() - began > 60 * arguments.minutes:
                    continue
                problem = CURVES[arguments.curves](seed)
                random.seed(seed)
                np.random.seed(seed)  # peers draw from the global state
                start = time.process_time()
                wall = simulate(METHODS[name](problem, seed, workers), problem, workers)
                row = {**dict(zip(key, cell)), "wall": wall, "work": wall * workers,
                       "seconds": round(time.process_time() - start, 2)}
                with arguments.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def table(arguments) -> None:
    """Print the medians over the seeds, of work and of time, for each kind of curves."""
    rows = [json.loads(line) for path in arguments.files for line in path.open()]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    workers = sorted({row["workers"] for row in rows})
    for curves in dict.fromkeys(row["curves"] for row in rows):
        for quantity in ("work", "wall"):
            print(f"\n{curves} curves, median {quantity} to the best 1 % (seeds)\n")
            print("| method | " + " | ".join(map(str, workers)) + " |")
            print("|---" * (len(workers) + 1) + "|")
            for name in methods:
                cells = []
                for count in workers:
                    values = [
                        math.inf if math.isnan(row[quantity]) else row[quantity]
                        for row in rows
                        if (row["curves"], row["method"], row["workers"]) == (curves, name, count)
                    ]
                    cells.append(f"{statistics.median(values):,.0f} ({len(values)})" if values else "")
                print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="simulate and append to a file")
    running.add_argument("--curves", choices=CURVES, default="made_up")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=["ours", "ours_random", "random"])
    running.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    running.add_argument("--seeds", type=int, default=30)
    running.add_argument("--first_seed", type=int, default=100, help="0 to 99 served to choose settings")
    running.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after so long")
    running.add_argument("--out", type=Path, default=Path("asha.jsonl"))
    running.set_defaults(act=run)
    showing = commands.add_parser("table", help="medians over the seeds")
    showing.add_argument("files", nargs="+", type=Path)
    showing.set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
