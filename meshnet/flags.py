"""What makes flags pleasant: the version, help that begins with the common flags, and a guess at what was meant by one
that is nearly right."""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

MOST = 3  # flags that are offered for one that is not known
SHORT = 2  # letters up to which a word is no part of a flag's name
SURE, LIKELY, SWAPPED = 0.8, 0.6, 0.15  # likeness of two words, 0 to 1; what is added for the same letters
TYPES = {"int": " INT", "float": " NUMBER", "list": " {..}", "dict": " {..}"}  # as --help shows them
# What other programs call a flag, and what it is called here, the likeliest first.
OTHERWISE = {
    **dict.fromkeys(("epoch", "epochs", "n_epochs", "num_epochs", "num_train_epochs"), "max_epochs"),
    **dict.fromkeys(("learning_rate", "learningrate", "base_lr"), "lr"),
    **dict.fromkeys(("batch", "batchsize", "bs"), "batch_size"),
    "wd": "weight_decay",
    **dict.fromkeys(("out", "out_dir", "outdir", "output", "output_dir", "save_dir", "logdir", "log_dir", "dest"),
                    "out output run_dir study"),
    **dict.fromkeys(("run", "run_name", "folder", "dir"), "run_dir study out"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "n_gpus", "num_gpus"), "device gpus_per_worker"),
    **dict.fromkeys(("cpus", "cores", "num_threads", "nthreads", "n_threads"), "threads workers data.workers"),
    "cpu": "device",
    **dict.fromkeys(("num_workers", "jobs", "n_workers", "nproc", "processes", "procs", "njobs", "n_jobs"),
                    "workers jobs data.workers"),
    **dict.fromkeys(("pretrained", "checkpoint", "ckpt", "weights", "from_pretrained", "finetune", "fine_tune"),
                    "init model"),
    **dict.fromkeys(("random_seed", "random_state"), "seed"),
    **dict.fromkeys(("arch", "architecture", "network", "net"), "model model.name"), "model": "model model.name init",
    **dict.fromkeys(("optim", "optimiser", "optimizer"), "optimizer.name"),
    "scheduler": "scheduler.name", "loss": "loss.name",
    **dict.fromkeys(("config", "cfg", "conf", "yaml", "recipes", "recipe"), "recipe recipes"),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "datadir"), "data"),
    **dict.fromkeys(("spacing", "resolution", "voxel_size", "voxelsize", "voxel", "mm"), "voxel_mm"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), "training.precision"),
    **dict.fromkeys(("folds", "n_folds", "k", "kfold", "n_splits"), "outer fold"),
    **dict.fromkeys(("min_size", "min_volume", "min_lesion", "min_lesion_ml"), "min_lesion_mm3"),
    **dict.fromkeys(("probs", "probabilities", "save_probabilities", "prob"), "probability"),
    **dict.fromkeys(("force", "replace", "clobber"), "overwrite"),
    **dict.fromkeys(("trials", "n_trials", "num_trials"), "max_trials"),
    **dict.fromkeys(("infer", "predict", "inference"), "segment"), "fit": "train", "tune": "search", "cv": "crossval",
    "warmup": "warmup_epochs pct_start warmup", "patience": "early_stopping_patience patience",
    **dict.fromkeys(("png", "image", "plot", "save_png"), "picture"),
}


class Guessing(argparse.ArgumentParser):
    """A parser that keeps what it was given, for a guess at what was meant (``meant``)."""

    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)


def add_version(parser: argparse.ArgumentParser) -> None:
    """``--version`` for a script."""
    from meshnet import __version__

    if parser.prog.endswith(".py"):
        parser.add_argument("--version", action="version", version=f"meshnet {__version__}",
                            help="print the version of the program")


class HelpAll(argparse.Action):
    """``--help_all``: every flag."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser, *_):
        parser.common = frozenset()
        parser.print_help()
        parser.exit()


def show_first(parser: argparse.ArgumentParser, common: str) -> None:
    """Let ``--help`` show the flags of ``common``, words, and one line of usage; ``--help_all`` shows all flags."""
    parser.common = frozenset(common.split())
    parser.add_argument("--help_all", action=HelpAll, help="show all flags")
    given = [f"[{action.metavar or action.dest}{' ...' * (action.nargs != '?')}]" for action in parser._actions
             if not action.option_strings]
    parser.usage = " ".join(["%(prog)s", *given, "[flags]"])


def help_text(parser: argparse.ArgumentParser, whole: Callable[[], str]) -> str:
    """The help of a parser, of its common flags alone where it has such; ``whole`` gives that of all flags."""
    common = getattr(parser, "common", frozenset())
    rest = [action for action in parser._actions if action.option_strings and common.isdisjoint(action.option_strings)
            and action.help is not argparse.SUPPRESS and not isinstance(action, (argparse._HelpAction, HelpAll))]
    if not common or not rest:
        return plain(whole())
    with hidden(parser, rest):
        return f"{plain(whole()).rstrip()}\n\n{len(rest)} more flags: {parser.prog} --help_all\n"


def plain(text: str) -> str:
    """Help without defaults that say nothing, with a switch and its opposite side by side, and with the sections of a
    configuration named as in a recipe."""
    text = re.sub(r"(--\S+) bool, (--\S+) bool$", r"\1, \2", text, flags=re.MULTILINE)
    text = re.sub(r"^(  --\S+)( int| float | list| dict)(?=$| )", lambda found: found[1] + TYPES[found[2].strip()],
                  text, flags=re.MULTILINE).replace(",None}", ",null}")
    text = re.sub(r"\s+\(default:\s+(None|\[\]|False)\)", "", text)
    text = re.sub(r"^Config \['config'\]:\n.*\n(?:\n|\Z)", "", text, flags=re.MULTILINE)
    return re.sub(r"^\w+ \['config\.(\w+)'\]:", r"\1:", text, flags=re.MULTILINE)


@contextlib.contextmanager
def hidden(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> Iterator[None]:
    """Leave ``actions`` out of the help, and groups that hold no others."""
    texts = [action.help for action in actions]
    groups = [group for group in parser._action_groups if group._group_actions
              and all(action in actions for action in group._group_actions)]
    about = [group.description for group in groups]
    for action in actions:
        action.help = argparse.SUPPRESS
    for group in groups:
        group.description = None
    try:
        yield
    finally:
        for action, text in zip(actions, texts):
            action.help = text
        for group, text in zip(groups, about):
            group.description = text


def meant(parser: Guessing, message: str) -> str:
    """``; did you mean --threshold?`` for the first flag or value that argparse does not know; "" where none is like
    it."""
    if "are required" in message:  # argparse says this first: crossval.py --output x
        return _unknown(parser)
    if found := re.search(r"unrecognized arguments:.*?(?<!\S)(--?[A-Za-z][\w.-]*)", message):
        known = [flag for action in parser._actions for flag in action.option_strings]
    elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        known = [word.strip(" '") for word in found[2].split(",")]
    else:
        return ""
    like = alike(found[1], known)
    return f"; did you mean {' or '.join(like)}?" if like else ""


def _unknown(parser: Guessing) -> str:
    """The first flag on the command line that the parser does not have, and what may be meant; "" where all are known.
    """
    known = [flag for action in parser._actions for flag in action.option_strings]
    given = [word.partition("=")[0] for word in parser.given if re.match(r"--[A-Za-z]", word)]
    other = next((word for word in given if not any(flag.startswith(word) for flag in known)), None)
    like = alike(other, known) if other else []
    return f"; found {other}, did you mean {' or '.join(like)}?" if like else ""


def alike(word: str, known: Sequence[str]) -> list[str]:
    """What was meant by ``word`` of what is ``known``, flags or names, dotted ones by their last part as well: what is
    written so but for case and dashes, or is called so elsewhere (``OTHERWISE``), or is nearly so; three at most."""
    given = plainly(word)
    last = given.rpartition(".")[2]
    names = {one: plainly(one) for one in known if len(one) > 2 or not one.startswith("-")}
    ends = {one: name.rpartition(".")[2] for one, name in names.items()}
    named = lambda wanted: ([one for one, name in names.items() if name == wanted]
                            or [one for one in names if ends[one] == wanted])
    if found := [one for one, name in names.items() if name == given]:
        return found[:1]
    dotted = any("." in name for name in names.values())  # the flags of a configuration, not the keys of one section
    for each in (given, last):
        if found := list(dict.fromkeys(one for other in OTHERWISE.get(each, "").split()
                                        for one in named(other if dotted else other.rpartition(".")[2])[:1])):
            return found[:MOST if "." in names[found[0]] else 1]
        if found := named(each):
            return found[:MOST]
    if found := nearly(given, names, ends, SURE):
        return found
    parts = [one for one in names if any(part.startswith(last) for part in ends[one].split("_"))]
    if len(last) > SHORT and parts:
        return sorted(parts, key=lambda one: (last not in ends[one].split("_"), "." in names[one]))[:1]
    return nearly(given, names, ends, LIKELY)


def nearly(given: str, names: dict[str, str], ends: dict[str, str], least: float) -> list[str]:
    """The one of ``names`` that is most like ``given``, at least so much; of a section, what names its kind."""
    from difflib import SequenceMatcher

    def like(name: str) -> float:  # the same letters in another order are a slip of the fingers
        return SequenceMatcher(None, given, name).ratio() + SWAPPED * (sorted(given) == sorted(name))

    scores = {one: max(like(name), like(ends[one])) for one, name in names.items()}
    for one, name in names.items():
        section, dot, end = name.partition(".")
        if dot and end == "name":
            scores[one] = max(scores[one], like(section))
    best = max(scores, key=scores.get, default=None)
    return [best] if best is not None and scores[best] >= least else []


def plainly(word: str) -> str:
    """A flag or name without dashes in front, in one spelling."""
    return word.lstrip("-").lower().replace("-", "_")
