"""Search hyperparameters by asynchronous successive halving. The same command again goes on where it stopped.

    python search.py --data data/arc --recipe recipes/meshnet16.yaml --study runs/search
    python search.py --study runs/search --status

See README.md for what rungs, horizons and brackets cost.
"""

import argparse
import copy
import os
import re
import time
from pathlib import Path

from meshnet.config import Config, to_dict, validate
from meshnet.errors import UserError, run_script
from meshnet.recipe import dump, load_search, parse
from meshnet.runs.launch import LAUNCHERS
from meshnet.search.asha import Asha, eta_rungs, geometric_rungs
from meshnet.search.drive import drive, refuse_other_host, report
from meshnet.search.sampler import SAMPLERS
from meshnet.search.space import Space, parse_space
from meshnet.search.status import Screen, show_status

PAPER_SPACE = Path(__file__).resolve().parent / "recipes" / "search_space.yaml"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", metavar="FOLDER", help="study folder; the same one again goes on")
    parser.add_argument("--status", action="store_true", help="show how a study stands, also while it runs")
    parser.add_argument("--data", metavar="FOLDER", help="prepared data set (prepare.py)")
    parser.add_argument("--fold", type=int, default=0, help="outer fold, whose test cases are never read")
    parser.add_argument("--inner_folds", type=int, nargs="+", default=[0], help="the score is the mean over these")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler, and of every training run")
    parser.add_argument("--max_trials", type=int, default=100, help="trials in all; a larger number extends a study")
    parser.add_argument("--min_epochs", type=int, help="first rung; default: the space's fidelity, else 15")
    parser.add_argument("--max_epochs", type=int, help="last rung; default: the space's fidelity, else 50")
    parser.add_argument("--rungs", type=int, help="number of rungs, spaced geometrically (default 4)")
    parser.add_argument("--rung_ratio", type=float, help="instead of --rungs: each rung has this many times the epochs")
    parser.add_argument("--eta", type=float, default=2, help="the best 1/eta of a rung are promoted")
    parser.add_argument("--brackets", type=int, help="starting rungs (default 1; 2 with --sampler model)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="random", help="model: learns from all rungs")
    parser.add_argument("--metric", default="val_dice", help="what metrics.jsonl calls it")
    parser.add_argument("--direction", choices=("max", "min"), help="default: min for a loss or AVD, else max")
    parser.add_argument("--horizon", choices=("max", "rung"), default="max",
                        help="max: one schedule, a promoted trial goes on; rung: each rung trains anew with its own")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where runs are placed")
    parser.add_argument("--workers", type=int, help="runs at a time; default: all GPUs, else one for each four cores")
    parser.add_argument("--gpus_per_worker", type=int, help="default: 1 where there are GPUs, else 0")
    parser.add_argument("--accelerate_config", metavar="FILE", help="passed to accelerate launch on GPUs")
    parser.add_argument("--ray_address", metavar="HOST:PORT", help="Ray cluster; default: this machine's")
    parser.add_argument("--ledger", metavar="FILE", help="on this machine's own disk; default: in the study folder")
    parser.add_argument("--max_retries", type=int, default=3, help="of a run that is killed or falls silent")
    parser.add_argument("--silent_after", type=float, default=600, help="seconds without a heartbeat; 0: never")


def main() -> int | None:
    arguments, config = parse("search.py", __doc__.splitlines()[0], add_flags)
    if not arguments.study:
        raise UserError("--study: missing, expected a folder for the study, such as runs/search")
    folder = Path(arguments.study)
    if arguments.status:
        return show_status(folder)

    # ------------------------------------------------------------------ what is searched, and how
    check_flags(arguments)
    block = load_search(arguments.recipe) or load_search([PAPER_SPACE])
    space = parse_space(block, "search")
    rungs = choose_rungs(arguments, space)
    check_space(config, space)
    check_data(arguments)
    better = arguments.direction or ("min" if re.search("loss|avd", arguments.metric) else "max")
    brackets = arguments.brackets or (2 if arguments.sampler == "model" and len(rungs) > 1 else 1)
    try:
        asha = Asha(rungs, arguments.eta, arguments.max_trials, better == "max", brackets)
    except ValueError as error:
        raise UserError(f"--eta, --max_trials, --brackets: {error}") from None

    # ------------------------------------------------------------------ who remembers, who runs
    from meshnet.runs.launch import make_launcher
    from meshnet.search.ledger import Ledger
    from meshnet.search.sampler import make_sampler
    from meshnet.search.study import Plan, Study

    refuse_other_host(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder for the study")
    folder.mkdir(parents=True, exist_ok=True)
    sampler = make_sampler(arguments.sampler, space, arguments.seed)
    recipe = lambda parameters, horizon: dump(to_dict(with_fields(config, space.fields(parameters), horizon)))
    plan = Plan(
        folder, recipe, ("--data", os.path.abspath(arguments.data), "--fold", str(arguments.fold),
                         "--seed", str(arguments.seed)),
        tuple(arguments.inner_folds), arguments.metric, arguments.horizon == "rung", arguments.max_retries,
        arguments.silent_after)
    settings = {"space": block, "rungs": rungs, "eta": str(asha.eta), "brackets": brackets, "metric": arguments.metric,
                "direction": better, "horizon": arguments.horizon, "recipe": to_dict(config), "fold": arguments.fold,
                "inner_folds": arguments.inner_folds, "seed": arguments.seed,
                "data": os.path.abspath(arguments.data)}
    with Ledger(arguments.ledger or folder / "ledger.sqlite", folder / "driver.lock") as ledger:
        ledger.settings(settings)
        launcher = make_launcher(arguments.launcher, arguments.workers, arguments.gpus_per_worker,
                                 arguments.accelerate_config, arguments.ray_address)
        screen = Screen()
        study = Study(plan, asha, ledger, launcher, lambda number: sampler.suggest(number, asha), screen.say)

        # -------------------------------------------------------------- search
        began = time.time()
        state = drive(study, screen, began, sampler.prepare)

        # -------------------------------------------------------------- what came out
        report(study, screen, state, began, recipe, space)
    return 130 if state == "interrupted" else 0


# ---------------------------------------------------------------------- before it starts
def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse numbers out of range and files that are not there; what others check is left to them."""
    for name, least in (("min_epochs", 1), ("max_epochs", 1), ("rungs", 1), ("max_trials", 1), ("max_retries", 0),
                        ("silent_after", 0), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")
    if arguments.accelerate_config and not Path(arguments.accelerate_config).is_file():
        raise UserError(f"--accelerate_config: found no file {arguments.accelerate_config}")


def choose_rungs(arguments: argparse.Namespace, space: Space) -> tuple[int, ...]:
    """The epochs of each rung, from the flags or else the space's fidelity (the paper's where it names none)."""
    low, high = space.fidelity or (15, 50)
    low, high = arguments.min_epochs or low, arguments.max_epochs or high
    if arguments.rungs and arguments.rung_ratio:
        raise UserError("--rung_ratio: found beside --rungs, expected one of them")
    try:
        if arguments.rung_ratio:
            return eta_rungs(low, high, arguments.rung_ratio)
        return geometric_rungs(low, high, arguments.rungs or 4)
    except ValueError as error:
        raise UserError(f"--min_epochs {low} --max_epochs {high}: {error}") from None


def with_fields(config: Config, fields: dict, horizon: int) -> Config:
    """``config`` with searched values in it, validated."""
    changed = copy.deepcopy(config)
    changed.training.max_epochs = horizon
    for field, value in fields.items():
        section, name = field.split(".")
        setattr(getattr(changed, section), name, value)
    return validate(changed)


def check_space(config: Config, space: Space) -> None:
    """Refuse a space with values that the rest of the recipe does not allow, before anything starts."""
    for dimension in space.dimensions:
        for value in dimension.ends():
            try:
                with_fields(config, {dimension.field: value}, config.training.max_epochs)
            except UserError as error:
                raise UserError(f"search: {dimension.name} = {value}: {error}") from None


def check_data(arguments: argparse.Namespace) -> None:
    """Refuse a missing data set or fold now rather than in every trial."""
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.hub import data_folder

    if not arguments.data:
        raise UserError("--data: missing, expected a folder that prepare.py wrote")
    arguments.data = data_folder(arguments.data)
    splits = load_splits(Path(arguments.data) / "splits.json")
    for inner_fold in arguments.inner_folds:
        fold_subjects(splits, arguments.fold, inner_fold)
    if len(set(arguments.inner_folds)) < len(arguments.inner_folds):
        raise UserError(f"--inner_folds: found {arguments.inner_folds}, expected each one once")


if __name__ == "__main__":
    run_script(main)
