"""How long does search.py take to decide what a free worker trains next, with many trials in the ledger?

``python benchmarks/search/asha_deciding.py [--trials 10000] [--decisions 200]``

A study of the paper's space is filled with ``--trials`` trials and scores like those of real runs (many promoted, some
failed). Then each decision is timed: choosing the job (a promotion or new parameters) and writing it to the ledger, as
the driver does between two runs. The model sampler fits its model once for each batch of proposals, in the background;
when a study is resumed, the first batch is started at once. ``resuming`` is the time for that, including imports and
the wait for the batch. ``--pause``: seconds between decisions, in which trials run.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script
from meshnet.recipe import load_search
from meshnet.search.asha import Asha, geometric_rungs
from meshnet.search.ledger import Ledger
from meshnet.search.sampler import SAMPLERS, make_sampler
from meshnet.search.space import parse_space

ROOT = Path(__file__).resolve().parents[2]
STATISTICS = (statistics.median, statistics.mean, max)


def fill(study: Asha, sampler, ledger: Ledger, trials: int, score: random.Random) -> None:
    """Run ``study`` on the random sampler until it has ``trials`` trials, every 50th of them failed."""
    while len(study.trials) < trials:
        job = study.next_decision(lambda number: sampler.suggest(number, study))
        ledger.started(job, study)
        value = None if score.random() < 0.02 else score.random()
        study.report(job.trial, float("nan") if value is None else value)
        ledger.ended(job, value, "" if value is not None else "diverged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--decisions", type=int, default=600)
    parser.add_argument("--pause", type=float, default=0.02)
    arguments = parser.parse_args()
    space = parse_space(load_search([ROOT / "recipes" / "search_space.yaml"]))
    print("| sampler | resuming, ms | choosing, median ms | mean | slowest | writing, median ms | mean | slowest |")
    print("|---" * 8 + "|")
    for name in SAMPLERS:
        with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
            study = Asha(geometric_rungs(*space.fidelity, 4), 2, 10 ** 9, brackets=2)
            score = random.Random(0)
            fill(study, make_sampler("random", space, 0), ledger, arguments.trials, score)
            sampler = make_sampler(name, space, 0)
            start = time.perf_counter()
            sampler.prepare(study)
            if getattr(sampler, "coming", None):
                sampler.coming.result()
            ready = time.perf_counter() - start
            choosing, writing = [], []
            for _ in range(arguments.decisions):
                start = time.perf_counter()
                job = study.next_decision(lambda number: sampler.suggest(number, study))  # noqa: B023
                chosen = time.perf_counter()
                ledger.started(job, study)
                writing.append(time.perf_counter() - chosen)
                choosing.append(chosen - start)
                value = score.random()
                study.report(job.trial, value)
                ledger.ended(job, value)
                time.sleep(arguments.pause)
            cells = [f"{1000 * f(times):.2f}" for times in (choosing, writing) for f in STATISTICS]
            print(f"| {name} | {1000 * ready:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run_script(main)
