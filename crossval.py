"""Folds × restarts of several recipes → the results table of a paper. The same command again goes on.

    python crossval.py --data data/arc --recipes recipes/meshnet26.yaml recipes/segresnet.yaml --restarts 10 1 \
        --workers 4 --out runs/table1
    python crossval.py --out runs/table1 --report

Every run is train.py on one outer fold with one seed, then train.py --test on the finished run, once. Restarts are
chosen by validation; nothing here reads a test score but the report. Flags of a configuration (``--optimizer.lr``,
``--override``) go to every run. Exit code 0: all runs are there; 1: some failed, the report says which; 2: wrong flags.
"""

import argparse
import contextlib
import fcntl
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from meshnet.crossval.plan import FORMAT, PLAN, SPLITS, check_splits, extend_plan, load_plan, missing_runs, write_plan
from meshnet.errors import OneLineParser, UserError, run_script


def parser() -> argparse.ArgumentParser:
    p = OneLineParser(prog="crossval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                      allow_abbrev=False)
    p.add_argument("--out", required=True, metavar="FOLDER", help="plan, runs and report; the same one again goes on")
    p.add_argument("--data", metavar="FOLDER", help="prepared data set (prepare.py)")
    p.add_argument("--recipes", nargs="+", default=[], metavar="FILE", help="one model each, called by the file's name")
    p.add_argument("--restarts", nargs="+", type=int, default=[], metavar="N", help="for all recipes, or one number "
                   "for each (default: as the paper, 10 for a MeshNet and 1 for any other)")
    p.add_argument("--inner_fold", type=int, default=0, help="which part of the training subjects validates")
    p.add_argument("--seed", type=int, default=0, help="of restart 0; the others count up from it")
    p.add_argument("--ensemble", action="store_true", help="score the averaged probabilities of each fold's restarts")

    g = p.add_argument_group("report")
    g.add_argument("--report", action="store_true", help="only write the report of what is there")
    g.add_argument("--reference", metavar="NAME", help="test the others against it (default: meshnet26, else the "
                   "first recipe)")
    g.add_argument("--pictures", type=int, default=10, help="worst cases to draw (default 10)")

    g = p.add_argument_group("where runs are placed")
    g.add_argument("--launcher", default="local", help="local or ray (default local)")
    g.add_argument("--workers", type=int, help="runs at a time (default: by GPUs, else by CPU cores)")
    g.add_argument("--gpus_per_worker", type=int, help="default: 1 where there are GPUs")
    g.add_argument("--accelerate_config", metavar="FILE", help="for accelerate launch, on GPUs")
    g.add_argument("--ray_address", metavar="HOST:PORT", help="Ray cluster; default: this machine's")
    g.add_argument("--silent_after", type=float, default=3600, help="seconds without a sign of life before a run is "
                   "started again (default 3600; 0: never)")
    p.add_argument("--score_ensemble", nargs=2, metavar=("NAME", "FOLD"), help="score one ensemble; --ensemble starts "
                   "this where runs are placed")
    return p


def main() -> int:
    arguments, rest = parser().parse_known_args()
    out = Path(arguments.out).resolve()
    if arguments.score_ensemble:
        from meshnet.crossval.ensemble import score_ensemble

        return score_ensemble(out, arguments.score_ensemble[0], int(arguments.score_ensemble[1]))
    failed = False
    if not arguments.report:
        with hold(out):
            plan = settle_plan(arguments, rest, out)
            failed = not run_all(arguments, plan, out)
    elif rest:
        raise UserError(f"{rest[0]}: not used by --report; leave it out")

    from meshnet.crossval.report import write_report

    print(write_report(out, arguments.reference, arguments.pictures))
    missing = missing_runs(out, load_plan(out))
    if missing:
        print(f"{len(missing)} run(s) are missing, all named in the report; the first: {missing[0]}")
    return int(failed)


# ---------------------------------------------------------------------- the plan

@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep a second crossval.py out of the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another crossval.py works in it; wait for it or use another --out") from None
        yield


def settle_plan(arguments: argparse.Namespace, rest: list[str], out: Path) -> dict:
    """The plan of this call, joined with the one in the folder; nothing is started before it is sound.

    Without ``--data`` and ``--recipes`` the plan in the folder is taken as it is.
    """
    path = out / PLAN
    old = load_plan(out) if path.is_file() else None
    if old is not None and not arguments.data and not arguments.recipes:
        if rest:
            raise UserError(f"{rest[0]}: the runs in {out} are already planned; leave it out, or give --data and "
                            "--recipes as well")
        if arguments.ensemble and not old.get("ensemble"):
            old = {**old, "ensemble": True}
            write_plan(out, old)
        return old
    if not arguments.data or not arguments.recipes:
        raise UserError("--data and --recipes: expected both, such as --data data/arc --recipes recipes/meshnet26.yaml")
    from meshnet.data.schema import load_prepared
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.hub import data_folder
    from meshnet.runs.folder import versions

    data = Path(data_folder(arguments.data))
    prepared, splits = load_prepared(data), load_splits(data / "splits.json")
    check_splits(splits, data / "splits.json")
    fold_subjects(splits, 0, arguments.inner_fold)  # refuses an inner fold that the splits do not have
    new = {"format": FORMAT, "data": str(data.resolve()), "fingerprint": prepared["fingerprint"],
           "split_hash": splits["hash"], "folds": splits["outer"], "inner_fold": arguments.inner_fold,
           "seed": arguments.seed, "versions": versions(),
           "ensemble": arguments.ensemble or bool(old and old.get("ensemble")),  # once asked for, always missed
           "models": settle_models(arguments, rest, out)}
    plan = extend_plan(old, new, path)
    for name, source in zip(new["models"], arguments.recipes):
        copy = Path(plan["models"][name]["recipe"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_file():
            shutil.copyfile(source, copy)
    if not (out / SPLITS).is_file():
        shutil.copyfile(data / "splits.json", out / SPLITS)
    write_plan(out, plan)
    return plan


def settle_models(arguments: argparse.Namespace, rest: list[str], out: Path) -> dict[str, dict]:
    """Every recipe with its restarts, its flags and the whole configuration that they amount to."""
    from meshnet.config import identity
    from meshnet.recipe import parse

    names = [Path(recipe).stem for recipe in arguments.recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--recipes: found two files called {twice[0]}, expected a name for each model; rename one")
    restarts = arguments.restarts
    if len(restarts) not in (0, 1, len(names)) or any(n < 1 for n in restarts):
        raise UserError(f"--restarts: found {restarts}, expected a number above 0, or one for each of the "
                        f"{len(names)} recipes")
    models = {}
    for i, (name, recipe) in enumerate(zip(names, arguments.recipes)):
        _, config = parse("crossval.py", "", lambda p: None, ["--recipe", recipe, *rest])
        by_paper = 10 if config.model.name == "meshnet" else 1
        kept = out / "recipes" / f"{name}{Path(recipe).suffix}"
        models[name] = {"recipe": str(kept), "flags": rest, "config": identity(config),
                        "restarts": restarts[i % len(restarts)] if restarts else by_paper}
    return models


# ---------------------------------------------------------------------- the runs

def run_all(arguments: argparse.Namespace, plan: dict, out: Path) -> bool:
    """Train and score what is missing, then the ensembles. Returns whether everything is there.

    Ctrl-C and SIGTERM end the runs, which go on with the next call; runs that outlive a killed crossval.py are found
    again.
    """
    from meshnet.crossval.queue import Queue
    from meshnet.runs.launch import make_launcher

    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    launcher = make_launcher(arguments.launcher, arguments.workers, arguments.gpus_per_worker,
                             arguments.accelerate_config, arguments.ray_address)
    queue = Queue(plan, out, launcher, arguments.silent_after)
    try:
        queue.adopt()
        while queue.step():
            time.sleep(0.2)
    finally:
        launcher.close(patience=5)
        queue.remember()
        signal.signal(signal.SIGTERM, before)
    return not queue.given_up


if __name__ == "__main__":
    run_script(main)
