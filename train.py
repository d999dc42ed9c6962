"""Train one network on one fold with one seed: one process group, one run folder.

The same command again continues where the run stopped. See docs/training.md and ``python train.py --help``.
"""

import argparse
import contextlib
import hashlib
import os
import sys
from pathlib import Path

from meshnet.config import Config, identity
from meshnet.data.schema import SPLITS
from meshnet.display import Live, command, count, say_next
from meshnet.errors import Diverged, OneLineParser, UserError, run_script, surrounding
from meshnet.flags import show_first
from meshnet.machine import cpu_wanted
from meshnet.networks.card import CONFIG
from meshnet.numbers import plain
from meshnet.recipe import as_begun, dump_config, flatten, list_recipes, parse, read_mapping
from meshnet.runs.folder import CONFIG_YAML


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FOLDER", help="prepared data set (prepare.py), or user/name on the Hub")
    parser.add_argument("--fold", type=int, default=0, help="outer fold; its test cases are never read in training")
    parser.add_argument("--inner_fold", type=int, default=0, help="which part of its training subjects validates")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order of cases, augmentation")
    parser.add_argument("--run_dir", metavar="FOLDER", help="run folder; an existing run in it is continued")
    parser.add_argument("--stop_epoch", type=int, help="stop after this epoch of training.max_epochs")
    parser.add_argument("--init", metavar="MODEL", help="start from these weights (a model folder or Hub "
                        "name); the architecture is the model's where no recipe or flag says otherwise")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="continue from the last resume point; --no-resume deletes the run in the folder and "
                             "starts again")
    parser.add_argument("--allow_changed", action="store_true", help="continue even though settings changed")
    parser.add_argument("--list_recipes", action="store_true", help="list the recipes that come with the program")
    parser.add_argument("--dry_run", action="store_true", help="only print configuration, cases, steps and parameters")
    parser.add_argument("--profile", action="store_true", help="only measure where the time and memory of a step go")
    parser.add_argument("--test", action="store_true", help="score a finished run on its test fold: test_cases.csv")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="push the finished run to the Hub")
    show_first(parser, "--data --recipe --run_dir --fold --seed --init --test --list_recipes --dry_run --override "
               "--training.max_epochs --training.batch_size --optimizer.lr --model.name --model.channels")


def main() -> int | None:
    arguments, config = parse("train.py", (__doc__ or "").partition("\n")[0], add_flags, below=architecture)
    if arguments.list_recipes:
        return print(list_recipes())
    stop_epoch = check_flags(arguments, config)
    if arguments.profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler prints otherwise
    if arguments.test:
        return score(arguments)

    if arguments.push_to_hub:
        from meshnet.hub import check_push
        check_push(arguments.push_to_hub)

    if arguments.dry_run and not arguments.data:
        print(describe_without_data(arguments, config))
        return 0

    # ------------------------------------------------------------------ the cases
    config = as_recorded(arguments, config)
    data, splits, train, val = read_cases(arguments, config)
    same = identity(config) | {
        "fold": arguments.fold, "inner_fold": arguments.inner_fold, "seed": arguments.seed, "init": arguments.init,
        "split_hash": splits["hash"], "data": data.info["fingerprint"]}

    # ------------------------------------------------------------------ the network
    from meshnet.sharing.published import find
    from meshnet.training.assemble import build_network, model_card, training_box

    box = training_box(config, data)
    network = build_network(config, data, box, arguments.seed, arguments.init and find(arguments.init))
    if arguments.dry_run:
        print(describe_run(arguments, config, data, train, val, network, box))
        return 0
    if arguments.profile:
        from meshnet.training.profiling import profile_training

        print(profile_training(config, data, train, box, arguments.seed, network))
        return 0

    # ------------------------------------------------------------------ processes, devices, precision
    from meshnet.training.assemble import assemble, make_accelerator, open_run_folder, refuse_budget
    from meshnet.training.run import cases_per_step

    folder = Path(arguments.run_dir)
    accelerator = make_accelerator(config, folder, arguments.resume)
    refuse_budget(accelerator, config, data, network, box)
    same["cases_per_step"] = cases_per_step(config, accelerator.num_processes)
    same["precision"] = accelerator.mixed_precision
    same["init_sha256"] = arguments.init and content_of(arguments.init)
    where = {"data": os.path.abspath(data.path), "recipe": arguments.recipe, "stop_epoch": stop_epoch}
    with open_run_folder(accelerator, folder, config, same, where, arguments.resume, arguments.allow_changed) as begun:
        card = model_card(config, data, box, {"cases": len(train), "fold": arguments.fold, "seed": arguments.seed,
                                              "source": data.info["source"], "split_hash": splits["hash"],
                                              "began_as": began_as(arguments.init)})
        run = assemble(accelerator, config, folder, arguments.seed, data, train, val, box, card, network)
        fit(run, begun, stop_epoch)
    if arguments.push_to_hub and accelerator.is_main_process:
        push(folder, arguments.push_to_hub, run.progress.finished)
    return 0


def architecture(given: list[str]) -> tuple[str, dict] | None:
    """The architecture of the model of ``--init``, which lies under the recipes; None without the flag."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init")
    init = parser.parse_known_args(given)[0].init
    if not init or "--test" in given:
        return None
    from meshnet.networks.build import config_of
    from meshnet.networks.card import read_card
    from meshnet.networks.folder import find_folder
    from meshnet.sharing.published import find

    return f"--init {init}", {"model": config_of(read_card(find_folder(find(init))))}


def check_flags(arguments: argparse.Namespace, config: Config) -> int:
    """Refuse flags that cannot be right, before anything is loaded. Returns the epoch after which this call stops."""
    reads = arguments.dry_run or arguments.profile or arguments.list_recipes
    if not arguments.run_dir and (arguments.test or not reads):
        raise UserError("--run_dir: missing, expected the folder of a run, such as runs/meshnet26"
                        + (" (--test scores a finished one)" if arguments.test else ""))
    stop_epoch = config.training.max_epochs if arguments.stop_epoch is None else arguments.stop_epoch
    if arguments.test or arguments.list_recipes:
        return stop_epoch
    if not arguments.data and not arguments.dry_run:
        raise UserError("--data: missing, expected a folder that prepare.py wrote")
    if arguments.seed < 0:
        raise UserError(f"--seed: found {arguments.seed}, expected 0 or more")
    if arguments.run_dir and Path(arguments.run_dir).exists() and not Path(arguments.run_dir).is_dir():
        raise UserError(f"--run_dir {arguments.run_dir}: is a file, expected a folder for the run")
    if not 1 <= stop_epoch <= config.training.max_epochs:
        raise UserError(f"--stop_epoch: found {stop_epoch}, expected 1 to training.max_epochs "
                        f"({config.training.max_epochs})")
    return stop_epoch


def as_recorded(arguments: argparse.Namespace, config: Config) -> Config:
    """The configuration of a run that is continued: what an earlier version meant where it had no such field yet."""
    path = Path(arguments.run_dir or "") / CONFIG_YAML
    if not (arguments.run_dir and arguments.resume and path.is_file()):
        return config
    with surrounding():
        return as_begun(config, flatten(read_mapping(path)))


def read_cases(arguments: argparse.Namespace, config: Config) -> tuple:
    """The prepared data, its splits, and the training and validation cases of the fold (indices).

    Raises:
        UserError: if there is no such data or fold, it has no cases, or its scaling is not the one of the recipe.
    """
    from meshnet.data.reader import PreparedData
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.hub import data_folder

    with surrounding():
        data = PreparedData(data_folder(arguments.data))
        splits = load_splits(data.path / SPLITS)
        subjects = fold_subjects(splits, arguments.fold, arguments.inner_fold)
    if config.data.scaling not in (None, data.info["scaling"]):
        raise UserError(f"--data {arguments.data}: prepared with scaling {data.info['scaling']}, expected data.scaling "
                        f"{config.data.scaling}; run prepare.py --scaling {config.data.scaling}")
    patch, grid = config.model.patch, data.info["shape"]
    if any(n > 2 * size for n, size in zip(patch, grid)):
        raise UserError(f"model.patch: found {patch}, expected at most the grid of {arguments.data}, {list(grid)} "
                        "voxels: what lies beyond it is padding, which takes memory and teaches nothing")
    train, val = (data.indices(subjects[part]) for part in ("train", "val"))
    if not train or not val:
        raise UserError(f"--fold {arguments.fold} --inner_fold {arguments.inner_fold}: found {len(train)} training and "
                        f"{len(val)} validation cases, expected some of each; prepare with fewer folds or more cases")
    return data, splits, train, val


def score(arguments: argparse.Namespace) -> int:
    """Score a finished run on its test fold. Whatever hinders it lies around the run: its data set, its files."""
    from meshnet.crossval.scoring import test_run
    from meshnet.hub import data_folder
    from meshnet.networks.card import read_card
    from meshnet.training.said import better_threshold, segmenting

    with surrounding():
        code = test_run(Path(arguments.run_dir), arguments.data and data_folder(arguments.data))
    card = read_card(arguments.run_dir)
    better = better_threshold(card.metrics) if card.threshold == 0.5 else None
    say_next(segmenting(Path(arguments.run_dir), better))
    return code


def fit(run, begun: bool, stop_epoch: int) -> None:
    """Train from the last resume point, or from the start.

    Raises:
        Diverged: where the loss becomes NaN or infinite, which is recorded in the run folder.
    """
    from meshnet.networks.cascade import drop_first, take_first
    from meshnet.training import loop
    from meshnet.training.assemble import describe_memory, estimate_step, finish_run, mark_failed
    from meshnet.training.resume import check_kept
    from meshnet.training.said import faint_line, needed_threshold

    live = Live(run.accelerator.is_main_process)
    taken = estimate_step(run.config, run.data, run.network, run.box, run.accelerator.mixed_precision,
                          run.accelerator.device)
    live.say(f"memory: {describe_memory(taken)}")
    resumed = begun and loop.resume(run)
    over = resumed and (run.progress.finished or run.progress.epoch >= stop_epoch)
    if run.accelerator.is_main_process and not over:
        if run.card.first:
            take_first(run.data.path, run.data.info.get("first_network"), run.folder, resumed)
        elif not resumed:
            drop_first(run.folder, CONFIG)
    if over:
        end = "finished" if run.progress.finished else f"at --stop_epoch {stop_epoch}"
        live.say(f"{run.folder}: already {end}, after epoch {run.progress.epoch}; nothing to train")
    elif resumed:
        live.say(f"{run.folder}: continuing after epoch {run.progress.epoch}, step {run.progress.step}")
    if resumed and not over and run.accelerator.is_main_process:
        check_kept(run.folder, run.progress.best_epoch)
    try:
        with run.leave.listening(run.accelerator):
            loop.fit(run, stop_epoch, live)
    except Diverged as error:
        mark_failed(run.folder, str(error))
        live.clear()
        with contextlib.suppress(RuntimeError):  # all end with these words, before their launcher ends the others
            run.accelerator.wait_for_everyone()
        raise Diverged(f"{run.folder}: {error}; the last resume point is kept") from None
    except KeyboardInterrupt:
        live.clear()
        raise
    finish_run(run, live.say)
    if run.accelerator.is_main_process and (better := needed_threshold(run)):
        live.say(faint_line(*better))
    if over and run.progress.finished:
        live.say(longer(run.folder))
    if run.accelerator.is_main_process:
        say_next(*next_commands(run))


def longer(folder: Path) -> str:
    """How to train a finished run for longer."""
    return (f"to train longer, start a new run from its weights: the same command with --init {folder} and another "
            "--run_dir")


def next_commands(run) -> list[str]:
    """What to type after this call."""
    folder = run.folder
    if not run.progress.finished:
        return [f"the same command with a higher --stop_epoch (up to {run.config.training.max_epochs})"]
    from meshnet.training.said import needed_threshold, segmenting

    return [command("python", "train.py", "--test", "--run_dir", folder), segmenting(folder, needed_threshold(run))]


def began_as(init: str | None) -> str | None:
    """The name of the model that training started from, without the path of its folder on this machine."""
    return Path(init).name if init and Path(init).exists() else init


def content_of(init: str) -> str:
    """The fingerprint of the weights that training starts from, which stays when their folder gets another name."""
    from meshnet.networks.folder import find_weights
    from meshnet.sharing.published import find

    with open(find_weights(find(init)), "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def push(folder: Path, repository: str, finished: bool) -> None:
    """Push a finished run to the Hub and print its address; the message of a failure says how to push it later."""
    from meshnet.sharing.push import push_run

    if not finished:
        print(f"{folder}: not pushed, since training is not finished (--stop_epoch)", file=sys.stderr)
        return
    try:
        print(push_run(folder, repository))
    except UserError as error:
        raise UserError(f"{error}. The run itself is finished; to push it later: python share.py push {folder} "
                        f"{repository}") from None


def describe_without_data(arguments: argparse.Namespace, config: Config) -> str:
    """What ``--dry_run`` prints where no data set is given: the resolved configuration and the parameters."""
    from meshnet.networks.build import arguments_from_config, build
    from meshnet.networks.memory import count_parameters

    network = build(config.model.name, arguments_from_config(config.model, 1, 2, (256, 256, 256)))
    return dump_config(config) + "\n".join([
        "---",
        f"recipe      {' '.join(arguments.recipe) or 'none'}",
        f"parameters  {count_parameters(network):,} for 1 channel, 2 classes and 256 x 256 x 256 voxels",
        "not known   cases, steps and memory: they depend on the data set; give --data"])


def describe_run(arguments: argparse.Namespace, config: Config, data, train: list, val: list, network, box) -> str:
    """What ``--dry_run`` prints: the resolved configuration, cases, steps and parameters."""
    import torch

    from meshnet.networks.memory import count_parameters
    from meshnet.training.assemble import describe_memory, estimate_step
    from meshnet.training.precision import choose_precision
    from meshnet.training.run import cases_per_step, steps_per_epoch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() and not cpu_wanted() else None
    precision = choose_precision(config.training.precision, device)
    taken = estimate_step(config, data, network, box, precision, device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_step = cases_per_step(config, processes)
    steps = steps_per_epoch(config, len(train), processes)
    shape = [b - a for a, b in zip(box[::2], box[1::2])] if box else data.info["shape"]
    return dump_config(config) + "\n".join([
        "---",
        f"recipe      {' '.join(arguments.recipe) or 'none'}",
        f"data        {data.path}: {len(data)} cases, channels {', '.join(data.inputs)}, "
        f"classes {', '.join(data.info['classes'])}, {plain(data.info['voxel_mm'])} mm, {data.info['orientation']}",
        f"fold        {arguments.fold}, inner fold {arguments.inner_fold}: {len(train)} training cases, "
        f"{len(val)} validation cases",
        f"volume      {' x '.join(map(str, shape))} voxels",
        f"steps       {steps} per epoch, {steps * config.training.max_epochs} in all, {count(per_step, 'case')} each",
        f"parameters  {count_parameters(network):,}",
        f"precision   {precision}",
        f"memory      {describe_memory(taken)}"])


def preload() -> None:
    """Import what a run needs until its end, for a process that runs are forked from (``meshnet.runs.forkserver``)."""
    import importlib

    parse("train.py", "", add_flags, [])  # reads the help texts out of the source, once a process

    for name in ("torch._dynamo", "accelerate", "datasets", "matplotlib.figure", "matplotlib.backends.backend_agg",
                 "scipy.ndimage", "meshnet.data.reader", "meshnet.data.splits", "meshnet.hub",
                 "meshnet.sharing.published", "meshnet.training.assemble", "meshnet.training.loop",
                 "meshnet.training.tracking", "meshnet.training.run", "meshnet.plots", "meshnet.crossval.scoring"):
        importlib.import_module(name)


if __name__ == "__main__":
    run_script(main, continues=not {"--test", "--dry_run", "--profile", "--no-resume"} & set(sys.argv))
