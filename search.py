"""Search hyperparameters by asynchronous successive halving. The same command again continues where it stopped.

    python search.py --data data/arc --recipe recipes/meshnet16.yaml --study runs/search
    python search.py --study runs/search --status

docs/search.md explains rungs, horizons and brackets.
"""

import argparse
import os
import re
import time
from pathlib import Path

from meshnet.config import SCORES, Config
from meshnet.data.schema import SPLITS
from meshnet.display import command, say_next, shown_path
from meshnet.errors import UserError, run_script
from meshnet.flags import show_first
from meshnet.recipe import as_begun, dump_config, load_search, parse, read_mapping
from meshnet.runs.command import check_config
from meshnet.runs.launch import LAUNCHERS
from meshnet.search.asha import Asha, eta_rungs, geometric_rungs
from meshnet.search.belief import Watch
from meshnet.search.drive import drive, drive_confirmation, publish, refuse_other_host, report, write_best
from meshnet.search.points import Points, with_fields
from meshnet.search.sampler import SAMPLERS
from meshnet.search.settings import changes, flat_of, recipe_of, refuse_lost_ledger, renew
from meshnet.search.space import Space, parse_space
from meshnet.search.status import Screen, show_status

PAPER_SPACE = Path(__file__).resolve().parent / "recipes" / "search_space.yaml"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", metavar="FOLDER", help="study folder; an existing study is continued")
    parser.add_argument("--status", action="store_true", help="print the state of a study, also while it runs")
    parser.add_argument("--data", metavar="FOLDER", help="prepared data set (prepare.py)")
    parser.add_argument("--fold", type=int, default=0, help="outer fold; its test cases are never read")
    parser.add_argument("--inner_folds", type=int, nargs="+", default=[0],
                        help="inner folds; the score is the mean over them")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler and of every training run")
    parser.add_argument("--max_trials", type=int, default=100,
                        help="total number of trials; a larger number extends a study")
    parser.add_argument("--min_epochs", type=int,
                        help="epochs of the first rung (default: the space's fidelity, else 15)")
    parser.add_argument("--max_epochs", type=int,
                        help="epochs of the last rung (default: the space's fidelity, else 50)")
    parser.add_argument("--rungs", type=int, help="number of rungs, spaced geometrically (default 4)")
    parser.add_argument("--rung_ratio", type=float,
                        help="instead of --rungs: ratio of epochs between one rung and the next")
    parser.add_argument("--eta", type=float, default=2, help="the best 1/eta of a rung are promoted")
    parser.add_argument("--brackets", type=int,
                        help="number of rungs at which trials start (default: the study's own; else 2 with "
                        "--sampler model, 1 with random)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="model",
                        help="model: a Gaussian process fitted to the scores of all rungs proposes trials and judges "
                        "promotions; random: neither")
    parser.add_argument("--gain_per", choices=("epoch", "hour"), default="epoch",
                        help="what --sampler model counts the expected gain of a trial by: hour prefers trials whose "
                        "epochs are short")
    parser.add_argument("--metric", help="score to optimise, by its name in metrics.jsonl (default: the Dice of "
                        "training.score_at, val_dice_swept or val_dice)")
    parser.add_argument("--direction", choices=("max", "min"),
                        help="whether lower or higher is better (default: min for a loss or AVD, else max)")
    parser.add_argument("--horizon", choices=("max", "rung"), default="max",
                        help="max: one schedule for all rungs, promoted trials continue; rung: each rung starts over")
    parser.add_argument("--confirm", type=int, default=0, metavar="K",
                        help="train the K best trials again, on inner folds and seeds that the search did not use; "
                             "best.yaml is then the best of these")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where runs are placed")
    parser.add_argument("--workers", type=int,
                        help="number of runs at a time (default: one for each GPU, else for every four CPU cores)")
    parser.add_argument("--gpus_per_worker", type=int, help="GPUs of each run (default: 1 if there are GPUs, else 0)")
    parser.add_argument("--accelerate_config", metavar="FILE",
                        help="Accelerate's configuration for runs of several GPUs (default: the project's own); runs "
                             "of one GPU take its mixed_precision")
    parser.add_argument("--ray_address", metavar="HOST:PORT", help="Ray cluster (default: the one of this machine)")
    parser.add_argument("--slurm", metavar="FLAGS", help="flags of sbatch: partition=gpu,gres=gpu:1,time=4:00:00")
    parser.add_argument("--ledger", metavar="FILE", help="database, on a local disk (default: in the study folder)")
    parser.add_argument("--max_retries", type=int, default=3,
                        help="how often a run that is killed or falls silent is retried")
    parser.add_argument("--silent_after", type=float, default=600,
                        help="kill a run after this many seconds without a heartbeat (0: never)")
    show_first(parser, "--study --status --data --recipe --max_trials --rungs --workers --confirm --launcher --seed "
               "--override")


def main() -> int | None:
    arguments, config = parse("search.py", (__doc__ or "").partition("\n")[0], add_flags)
    if not arguments.study:
        raise UserError("--study: missing, expected a folder for the study, such as runs/search")
    folder = Path(arguments.study).absolute()  # jobs of SLURM and Ray start elsewhere
    if arguments.status:
        return show_status(folder)

    # ------------------------------------------------------------------ what is searched, and how
    config = as_study(arguments, config)
    block = load_search(arguments.recipe) or load_search([PAPER_SPACE])
    space = parse_space(block, "search")
    rungs = choose_rungs(arguments, space)
    own_schedule = arguments.horizon == "rung"
    points = Points(config, space, rungs if own_schedule else rungs[-1:])
    points.check(print)
    data, marks = find_data(arguments)
    better = arguments.direction or ("min" if re.search("loss|avd", arguments.metric) else "max")
    database = Path(arguments.ledger or folder / "ledger.sqlite")
    brackets = choose_brackets(arguments, rungs, database)
    try:
        asha = Asha(rungs, arguments.eta, arguments.max_trials, better == "max", brackets)
    except ValueError as error:
        raise UserError(f"--eta, --max_trials, --brackets: {error}") from None

    # ------------------------------------------------------------------ the ledger and the launcher
    from meshnet.runs.launch import make_launcher
    from meshnet.search.ledger import Ledger
    from meshnet.search.sampler import make_sampler
    from meshnet.search.study import Study, StudyPlan

    make_folder(folder)
    sampler = make_sampler(arguments.sampler, space, arguments.seed, arguments.gain_per == "hour")
    recipe = lambda parameters, horizon: dump_config(with_fields(config, space.fields(parameters), horizon))
    plan = StudyPlan(
        folder, recipe, ("--data", data, "--fold", str(arguments.fold), "--seed", str(arguments.seed)),
        tuple(arguments.inner_folds), arguments.metric, own_schedule, arguments.max_retries, arguments.silent_after,
        check=lambda: check_data(data, marks))
    settings = {"space": block, "rungs": rungs, "eta": str(asha.eta), "brackets": brackets, "metric": arguments.metric,
                "direction": better, "horizon": arguments.horizon, "recipe": recipe_of(config, space),
                "fold": arguments.fold, "inner_folds": arguments.inner_folds, "seed": arguments.seed, **marks}
    with Ledger(database, folder / "driver.lock") as ledger:
        if ledger.is_empty():
            refuse_lost_ledger(folder, ledger.path)
        ledger.settings(settings, lambda found: renew(found, settings, space, folder), changes)
        screen = Screen()
        make = lambda: make_launcher(arguments.launcher, arguments.workers, arguments.gpus_per_worker,
                                     arguments.accelerate_config, arguments.ray_address, arguments.slurm, screen.say)
        suggest = lambda number: points.suggest(sampler, number, asha, arguments.seed, screen.say)
        study = Study(plan, asha, ledger, make(), suggest, screen.say, Watch(space, own_schedule))

        # -------------------------------------------------------------- search, results
        began = time.time()
        state = drive(study, screen, began, sampler.prepare)
        if state == "finished" and arguments.confirm:
            write_best(study, publish(study, "running", began), recipe)
            state = confirm(arguments, study, make(), screen, began)
        report(study, screen, state, began, recipe, space)
    say_more(arguments, Path(arguments.study), state)
    return 128 + study.ended_by if state == "interrupted" else 0


def say_more(arguments: argparse.Namespace, folder: Path, state: str) -> None:
    """What to type after a search."""
    if state == "interrupted":
        say_next("the same command, which continues this study")
    elif (folder / "best.yaml").is_file():
        workers = ["--workers", arguments.workers] if arguments.workers else []
        say_next(command("python", "crossval.py", "--data", arguments.data, "--recipes", *begun_with(arguments.recipe),
                         folder / "best.yaml", "--restarts", 1, *workers, "--out", f"{folder}_crossval"))


def begun_with(recipes: list[str]) -> list[str]:
    """The recipe that the best trial is to be compared with: the one that holds more than a search space. None where
    several were stacked, which crossval.py would take for a model each, or where it would have best.yaml's name."""
    networks = [shown_path(one) for one in recipes if set(read_mapping(one)) - {"search"}]
    return networks if len(networks) == 1 and Path(networks[0]).stem != "best" else []


def confirm(arguments: argparse.Namespace, study, launcher, screen: Screen, began: float) -> str:
    """Train the best trials of a finished study again; "finished" or "interrupted"."""
    from meshnet.data.splits import load_splits
    from meshnet.search.confirm import Confirmation, best_finished, planned, searched_score

    plan, asha = study.plan, study.asha
    trials = best_finished(asha, arguments.confirm)
    rung = max((max(asha.trials[trial].scores) for trial in trials), default=0)
    inner = len(load_splits(Path(plan.arguments[1]) / SPLITS)["folds"][arguments.fold]["inner"])
    runs = Confirmation(
        plan.folder, planned(trials, plan.inner_folds, inner, arguments.seed), launcher, plan.arguments[:4],
        lambda trial: plan.recipe(asha.trials[trial].parameters, asha.rungs[rung if plan.own_schedule else -1]),
        asha.rungs[rung], plan.metric, asha.maximize, plan.max_retries, plan.silent_after, plan.script, screen.say,
        plan.check)
    state = drive_confirmation(runs, study, began)
    if state == "finished":
        runs.write({trial: searched_score(asha.trials[trial]) for trial in trials})
    return state


# ---------------------------------------------------------------------- before it starts
def make_folder(folder: Path) -> None:
    """Make the study's folder, unless another host works in it."""
    refuse_other_host(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder for the study")
    folder.mkdir(parents=True, exist_ok=True)


def as_study(arguments: argparse.Namespace, config: Config) -> Config:
    """Check the flags; the configuration for a study, which goes on as the version of its time began it. Sets
    ``--metric`` where it is not given."""
    from meshnet.search.ledger import recorded_settings

    check_flags(arguments)
    known = recorded_settings(arguments.ledger or Path(arguments.study) / "ledger.sqlite")
    if known:
        config = as_begun(config, flat_of(known.get("recipe", {})))
    arguments.metric = arguments.metric or known.get("metric") or SCORES[config.training.score_at]
    return config


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse numbers out of range and missing files. Other flags are checked where they are used."""
    for name, least in (("min_epochs", 1), ("max_epochs", 1), ("rungs", 1), ("max_trials", 1), ("max_retries", 0),
                        ("silent_after", 0), ("seed", 0), ("confirm", 0), ("brackets", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")
    check_config(arguments.accelerate_config)


def choose_rungs(arguments: argparse.Namespace, space: Space) -> tuple[int, ...]:
    """The epochs of each rung, from the flags, else the space's fidelity, else the paper's."""
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


def choose_brackets(arguments: argparse.Namespace, rungs: tuple[int, ...], database: Path) -> int:
    """The number of starting rungs, from the flag, else the study's own, else what suits the sampler."""
    from meshnet.search.ledger import recorded_settings

    usual = 2 if arguments.sampler == "model" and len(rungs) > 1 else 1
    return arguments.brackets or recorded_settings(database).get("brackets", usual)


def find_data(arguments: argparse.Namespace) -> tuple[str, dict]:
    """The absolute path of the data set, and what tells it from others. A missing one, or a missing fold, is refused
    here rather than in every trial.
    """
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.hub import data_folder

    if not arguments.data:
        raise UserError("--data: missing, expected a folder that prepare.py wrote")
    folder = data_folder(arguments.data)
    splits = load_splits(Path(folder) / SPLITS)
    for inner_fold in arguments.inner_folds:
        fold_subjects(splits, arguments.fold, inner_fold)
    if len(set(arguments.inner_folds)) < len(arguments.inner_folds):
        raise UserError(f"--inner_folds: found {arguments.inner_folds}, expected each one once")
    return os.path.abspath(folder), read_marks(folder)


def read_marks(folder: str | Path) -> dict:
    """Fingerprint and splits of a data set, which its name does not change."""
    from meshnet.data.schema import load_prepared
    from meshnet.data.splits import load_splits

    prepared, splits = load_prepared(folder), load_splits(Path(folder) / SPLITS)
    return {"fingerprint": prepared["fingerprint"], "split_hash": splits["hash"]}


def check_data(data: str, marks: dict) -> None:
    """Stop a study whose data set is prepared anew while it runs. One that cannot be read is left to the run."""
    try:
        now = read_marks(data)
    except (UserError, OSError):
        return
    if changed := changes(marks, now):
        raise UserError(f"{data}: {'; '.join(changed)}; trials on both cannot be ranked together: bring the earlier "
                        "one back and run the same command again, or use another --study")


if __name__ == "__main__":
    run_script(main, grace=60)  # its runs are given time to end
