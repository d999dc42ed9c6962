"""Cross-validate several recipes and write the results table of a paper. The same command again continues.

    python crossval.py --data data/arc --recipes recipes/meshnet26.yaml recipes/segresnet.yaml --restarts 10 1 \
        --workers 4 --out runs/table1
    python crossval.py --out runs/table1 --report

Each run is train.py on one outer fold with one seed, followed by a single train.py --test. Restarts are selected by
validation Dice; only the report reads test scores. Configuration flags (``--optimizer.lr``, ``--override``) apply to
every run. Exit code 0: all runs are finished; 1: some failed, the report lists them; 2: wrong flags.
"""

import argparse
import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from meshnet.crossval.plan import (
    FORMAT,
    PLAN,
    check_splits,
    extend_plan,
    load_plan,
    missing_runs,
    refuse_lost_plan,
    write_plan,
)
from meshnet.data.schema import SPLITS
from meshnet.display import Live, say_next, shown_path
from meshnet.errors import OneLineParser, UserError, run_script
from meshnet.files import lock
from meshnet.flags import show_first
from meshnet.runs.folder import LOCK
from meshnet.runs.launch import LAUNCHERS

MOST_RESTARTS = 1000  # more is a slip, whose plan alone would take hours


def make_parser() -> argparse.ArgumentParser:
    p = OneLineParser(prog="crossval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                      allow_abbrev=False)
    p.add_argument("--out", required=True, metavar="FOLDER",
                   help="folder for plan, runs and report; an existing one is continued")
    p.add_argument("--data", metavar="FOLDER", help="prepared data set (prepare.py)")
    p.add_argument("--recipes", nargs="+", default=[], metavar="FILE",
                   help="files, or names of recipes/; one model each, named after its file")
    p.add_argument("--restarts", nargs="+", type=int, default=[], metavar="N", help="restarts of all recipes, or "
                   "one number for each (default: as in the paper, 10 for a MeshNet and 1 for other networks)")
    p.add_argument("--inner_fold", type=int, default=0,
                   help="which part of the training subjects is used for validation")
    p.add_argument("--seed", type=int, default=0, help="seed of restart 0; later restarts add 1 each")
    p.add_argument("--ensemble", action="store_true", help="also score the average of each fold's restarts")

    g = p.add_argument_group("report")
    g.add_argument("--report", action="store_true", help="only write the report, from the runs finished so far")
    g.add_argument("--reference", metavar="NAME", help="model that the others are tested against (default: meshnet26, "
                   "else the first recipe)")
    g.add_argument("--pictures", type=int, default=3, help="how many of the best, middle and worst cases of "
                   "the reference to draw (default 3); 0: no pictures")

    g = p.add_argument_group("where runs are placed")
    g.add_argument("--launcher", choices=LAUNCHERS, default="local", help="default: local")
    g.add_argument("--workers", type=int, help="number of runs at a time (default: one for each GPU, else for every "
                   "four CPU cores)")
    g.add_argument("--gpus_per_worker", type=int, help="GPUs of each run (default: 1 if there are GPUs, else 0)")
    g.add_argument("--accelerate_config", metavar="FILE", help="Accelerate's configuration for runs of several GPUs "
                   "(default: the project's own); runs of one GPU take its mixed_precision")
    g.add_argument("--ray_address", metavar="HOST:PORT", help="Ray cluster (default: the one of this machine)")
    g.add_argument("--slurm", metavar="FLAGS", help="flags of sbatch: partition=gpu,gres=gpu:1,time=4:00:00")
    g.add_argument("--silent_after", type=float, default=3600, help="restart a run after this many seconds without "
                   "a heartbeat (default 3600; 0: never)")
    p.add_argument("--score_ensemble", nargs=2, metavar=("NAME", "FOLD"), help="score one ensemble; started by "
                   "--ensemble")
    show_first(p, "--out --data --recipes --restarts --ensemble --report --reference --workers --launcher")
    return p


def main() -> int:
    arguments, rest = make_parser().parse_known_args()
    out = Path(arguments.out).resolve()
    if arguments.score_ensemble:
        from meshnet.crossval.ensemble import score_ensemble

        model, fold = arguments.score_ensemble
        if not fold.isdecimal():
            raise UserError(f"--score_ensemble: found fold {fold!r}, expected a number such as 0")
        return score_ensemble(out, model, int(fold))
    failed = False
    if not arguments.report:
        with hold(out):
            plan = make_plan(arguments, rest, out)
            failed = not run_all(arguments, plan, out)
    elif rest:
        raise UserError(f"{rest[0]}: not used by --report; leave it out")

    from meshnet.crossval.report import TABLE, write_report

    page = write_report(out, arguments.reference, arguments.pictures)
    print((page.parent / TABLE).read_text(encoding="utf-8") if (page.parent / TABLE).is_file() else "", end="")
    print(shown_path(page))
    missing = missing_runs(out, load_plan(out))
    if missing:
        print(f"missing runs: {len(missing)} (the report lists them); the first: {missing[0]}")
        say_next("the same command, which trains what is missing")
    else:
        say_next(f"open {shown_path(page)} in a browser")
    return int(failed)


# ---------------------------------------------------------------------- the plan

@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep a second crossval.py out of the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    with lock(out / LOCK, f"{out}: another crossval.py is using it; wait for it or use another --out"):
        yield


def make_plan(arguments: argparse.Namespace, rest: list[str], out: Path) -> dict:
    """The plan of this call, merged with the one in the folder and checked before anything is started.

    Without ``--data`` and ``--recipes`` the plan in the folder is used unchanged.
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
    from meshnet.recipe import find_recipe
    from meshnet.runs.folder import versions

    arguments.recipes = [find_recipe(recipe, "--recipes") for recipe in arguments.recipes]
    data = Path(data_folder(arguments.data))
    prepared, splits = load_prepared(data), load_splits(data / SPLITS)
    check_splits(splits, data / SPLITS)
    fold_subjects(splits, 0, arguments.inner_fold)  # refuses an inner fold that does not exist
    new = {"format": FORMAT, "data": str(data.resolve()), "fingerprint": prepared["fingerprint"],
           "split_hash": splits["hash"], "folds": splits["outer"], "inner_fold": arguments.inner_fold,
           "seed": arguments.seed, "versions": versions(),
           "ensemble": arguments.ensemble or bool(old and old.get("ensemble")),  # stays, once requested
           "models": plan_models(arguments, [*rest, *as_planned(rest, arguments.recipes, old)], out)}
    if old is None:
        refuse_lost_plan(out)
    plan = extend_plan(old, new, path)
    for name, source in zip(new["models"], arguments.recipes):
        copy = Path(plan["models"][name]["recipe"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not (copy.is_file() and copy.samefile(source)):  # as it is now, since the flags are those of now
            shutil.copyfile(source, copy)
    if old is None or old["split_hash"] != plan["split_hash"] or not (out / SPLITS).is_file():
        shutil.copyfile(data / SPLITS, out / SPLITS)
    write_plan(out, plan)
    return plan


def as_planned(rest: list[str], recipes: list[str], old: dict | None) -> list[str]:
    """Flags by which recipes train as those of the plan in the folder do, where an earlier version began it."""
    from meshnet.config import EARLIER
    from meshnet.recipe import parse

    flags = []
    for key in EARLIER if old else ():
        section, name = key.split(".")
        values = {entry["config"][key] for entry in old["models"].values()}
        written = [parse("crossval.py", "", lambda p: None, ["--recipe", each, *rest])[1].written for each in recipes]
        if values == {EARLIER[key]} and all(getattr(getattr(each, section), name) is None for each in written):
            flags += [f"--{key}", EARLIER[key]]
    return flags


def plan_models(arguments: argparse.Namespace, rest: list[str], out: Path) -> dict[str, dict]:
    """Every recipe with its restarts, its flags and the resulting full configuration."""
    from meshnet.config import identity
    from meshnet.recipe import parse

    names = [Path(recipe).stem for recipe in arguments.recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--recipes: found two files called {twice[0]}, expected a name for each model; rename one")
    restarts = arguments.restarts
    if len(restarts) not in (0, 1, len(names)) or not all(1 <= n <= MOST_RESTARTS for n in restarts):
        raise UserError(f"--restarts: found {restarts}, expected a number from 1 to {MOST_RESTARTS}, or one for each "
                        f"of the {len(names)} recipes")
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
    """Train and score what is missing, then the ensembles. Returns whether everything is finished.

    A signal that asks to end ends the runs, which the next call continues; runs that outlive a killed crossval.py are
    adopted.
    """
    from meshnet.crossval.queue import Queue
    from meshnet.runs.launch import make_launcher

    launcher = make_launcher(arguments.launcher, arguments.workers, arguments.gpus_per_worker,
                             arguments.accelerate_config, arguments.ray_address, arguments.slurm)
    live = Live()
    queue = Queue(plan, out, launcher, arguments.silent_after, live)
    try:
        queue.adopt()
        while queue.step():
            queue.show()
            time.sleep(0.2)
        live.clear()
    finally:
        launcher.close(patience=5)
        queue.remember()
    return not queue.given_up


if __name__ == "__main__":
    run_script(main, grace=60, continues=True)  # its runs are given time to end
