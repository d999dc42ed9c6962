"""How much training does a search need to reach the best 1 %? Methods compared on a simulated clock.

Nothing is trained: learning curves over a search space are made up for each seed (asha_curves.py, asha_skewed.py) or
those of real trainings (a table in asha_curves.py, LCBench in asha_lcbench.py). Each method (asha_methods.py) runs
with 1 to 500 workers until it has fully trained a configuration of the best 1 %. ``work`` is workers x time until then,
in epochs, so idle workers count.

    python benchmarks/search/asha.py run --methods ours random --seeds 30 --out results.jsonl
    python benchmarks/search/asha.py run --curves report --lcbench FOLDER --methods ours optuna_tpe --out results.jsonl
    python benchmarks/search/asha.py table results.jsonl

The same command again computes only what is missing in the file. Settings were chosen on ``choose``: LCBench's data
sets of ``asha_lcbench.CHOOSING`` and seeds 0 to 99 of the made-up curves. ``report`` has everything else. The other
libraries (Syne Tune, Optuna, Orion), the table and LCBench need the packages in benchmarks/search/peers.txt, in
environments of their own.
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

import asha_lcbench
import numpy as np
from asha_curves import Curves, RealCurves
from asha_methods import METHODS
from asha_skewed import Skewed

WORKERS = (1, 4, 16, 64, 256, 500)
CURVES = {"made_up": Curves, "real": RealCurves, "skewed": Skewed}
NOISY = ("", *asha_lcbench.NOISES)


# ---------------------------------------------------------------- problems
def problem_names(curves: list[str], folder: Path | None) -> list[str]:
    """Names of problems: those given, with ``choose`` and ``report`` spelt out."""
    if folder is None and any(name in ("choose", "report") or name.startswith("lcbench") for name in curves):
        sys.exit("--lcbench: missing, expected the folder with surrogate.onnx and tasks.json")
    found = []
    for name in curves:
        if name in ("choose", "report"):
            found += ["made_up"] if name == "choose" else ["made_up", "real", "skewed"]
            found += asha_lcbench.names(folder, name == "choose", NOISY)
        elif name.startswith(("lcbench_choose", "lcbench_report")):
            half, _, noise = name.partition("+")
            found += asha_lcbench.names(folder, half == "lcbench_choose", (noise,))
        else:
            found.append(name)
    return found


def make_problem(name: str, seed: int, folder: Path | None):
    """The problem of this name: one of ``CURVES``, or of LCBench."""
    return CURVES[name](seed) if name in CURVES else asha_lcbench.LCBench(name, seed, folder)


# ---------------------------------------------------------------- the clock
def simulate(method, problem, workers: int) -> float:
    """Time until a run of the best 1 % is trained to the end; NaN after ``limit``."""
    never = limit(problem.highest, workers)
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
            time_of = problem.pace(work.number, work.units) * (first - work.start)
            heapq.heappush(events, (now + time_of, order, work, first))
        now, _, work, epoch = heapq.heappop(events)
        if epoch == problem.highest and problem.reached(work.units):
            return now
        if now > never:
            return math.nan
        goes_on = method.tell(work, epoch, problem.score(work.units, epoch, work.number))
        if epoch < work.stop and goes_on:
            then = next((look for look in work.looks if look > epoch), work.stop)
            order += 1
            heapq.heappush(events, (now + (then - epoch) * problem.pace(work.number, work.units), order, work, then))
        else:
            idle += 1


def limit(highest: int, workers: int) -> float:
    """When a search is given up: after the time of 800 full trainings, or of 4 for each worker."""
    return max(800 / workers, 4) * highest


# ---------------------------------------------------------------- cells and tables
def run(arguments) -> None:
    """Simulate every cell (problem, method, workers, seed) that the file does not have, and append it."""
    done, began = set(), time.monotonic()
    key = ("curves", "method", "workers", "seed")
    if arguments.out.exists():
        done = {tuple(json.loads(line)[name] for name in key) for line in arguments.out.open()}
    problems = problem_names(arguments.curves, arguments.lcbench)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for workers in arguments.workers:
            for name in arguments.methods:
                for curves in problems:
                    cell = (curves, name, workers, seed)
                    if cell in done or time.monotonic() - began > 60 * arguments.minutes:
                        continue
                    problem = make_problem(curves, seed, arguments.lcbench)
                    random.seed(seed)
                    np.random.seed(seed)  # peers draw from the global state
                    start = time.process_time()
                    wall = simulate(METHODS[name](problem, seed, workers), problem, workers)
                    row = {**dict(zip(key, cell)), "wall": wall, "work": wall * workers,
                           "limit": workers * limit(problem.highest, workers),
                           "seconds": round(time.process_time() - start, 2)}
                    with arguments.out.open("a") as out:
                        out.write(json.dumps(row) + "\n")


def family(curves: str) -> str:
    """``lcbench-3945+1`` is of ``lcbench_report+1``; other problems are families of their own."""
    if not curves.startswith("lcbench-"):
        return curves
    task, _, noise = curves.removeprefix("lcbench-").partition("+")
    return ("lcbench_choose" if task in asha_lcbench.CHOOSING else "lcbench_report") + (f"+{noise}" if noise else "")


def table(arguments) -> None:
    """Print work to the best 1 % by family: the median of a family of made-up curves, the geometric mean of LCBench.

    A search that did not get there counts with what it was given. In brackets the number of studies and, with
    ``--against``, the ratio to the best of those methods on the same problems and seeds.
    """
    rows = [json.loads(line) for path in arguments.files for line in path.open()]
    methods = arguments.methods or list(dict.fromkeys(row["method"] for row in rows))
    workers = sorted({row["workers"] for row in rows})
    found = {}
    for row in rows:
        found.setdefault((family(row["curves"]), row["method"], row["workers"]), {})[row["curves"], row["seed"]] = (
            row["limit"] if math.isnan(row["work"]) else row["work"])
    for name in dict.fromkeys(family(row["curves"]) for row in rows):
        middle = statistics.geometric_mean if name.startswith("lcbench") else statistics.median
        print(f"\n{name}: {middle.__name__.replace('_', ' ')} of work to the best 1 %\n")
        print("| method | " + " | ".join(map(str, workers)) + " |")
        print("|---" * (len(workers) + 1) + "|")
        for method in methods:
            cells = []
            for count in workers:
                mine = found.get((name, method, count), {})
                ratios = []
                for peer in arguments.against:
                    other = found.get((name, peer, count), {})
                    both = [key for key in mine if key in other]
                    if peer != method and both:
                        ratios.append(middle(mine[key] for key in both) / middle(other[key] for key in both))
                text = f"{middle(mine.values()):,.0f} ({len(mine)}" if mine else ""
                cells.append(text + (f"; {max(ratios):.2f}" if ratios else "") + ")" * bool(mine))
            if any(cells):
                print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="simulate and append to a file")
    running.add_argument("--curves", nargs="+", default=["made_up"],
                         help="made_up, real, skewed, lcbench_choose, lcbench_report+0.5, ..., or choose or report")
    running.add_argument("--lcbench", type=Path, metavar="FOLDER", help="where LCBench's surrogate.onnx is")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=["ours", "ours_random", "random"])
    running.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    running.add_argument("--seeds", type=int, default=30)
    running.add_argument("--first_seed", type=int, default=100, help="0 to 99 served to choose settings")
    running.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after so long")
    running.add_argument("--out", type=Path, default=Path("asha.jsonl"))
    running.set_defaults(act=run)
    showing = commands.add_parser("table", help="medians and geometric means over problems and seeds")
    showing.add_argument("files", nargs="+", type=Path)
    showing.add_argument("--methods", nargs="+", help="rows of the table (default: all)")
    showing.add_argument("--against", nargs="*", default=[], help="methods to compare with")
    showing.set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
