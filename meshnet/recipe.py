"""Recipe files and flags into a ``Config``: defaults < file < later file < ``--override`` and flags, in that order.

A recipe is YAML or JSON (comments allowed) with any of the sections of ``meshnet.config.Config``. A ``search``
section belongs to ``search.py`` and is passed on unread.
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from meshnet import ROOT
from meshnet.config import (
    EARLIER,
    NOT_IDENTITY,
    SCORES,
    Config,
    coerce,
    direction,
    identity,
    resolve,
    to_dict,
    with_types,
)
from meshnet.errors import OneLineParser, UserError
from meshnet.flags import alike
from meshnet.mapping import Mapping, dump, parse_yaml, read_file

SEARCH_SECTION = "search"
METAVARS = {"int": "INT", "float": "NUMBER", "str": "NAME"}  # types, as --help shows them
RUN_SECTION = "run"  # of a run folder's config.yaml, which is a recipe as well


def find_recipe(name: str, flag: str = "--recipe") -> str:
    """The path of a recipe: of a file, or of one of the program's own by its bare name, such as ``meshnet16``.
    ``flag``: for the message.

    Raises:
        UserError: where a bare name is neither.
    """
    own = {path.stem: str(path) for path in sorted((ROOT / "recipes").iterdir())}
    known = Path(name).exists() and not (Path(name).is_dir() and name in own)  # make demo leaves a folder of that name
    if known or Path(name).suffix or len(Path(name).parts) != 1:
        return name
    if name not in own:
        raise UserError(f"{flag} {name}: found neither a file nor a recipe of the program{nearest(name, list(own))}")
    return own[name]


def read_mapping(path: str | Path) -> Mapping:
    """A recipe file as a mapping; an empty file is an empty one.

    Raises:
        UserError: if the file is missing, cannot be parsed, or holds anything but a mapping; if its search or run
            section is none.
    """
    value = read_file(Path(path), "recipe", "those of the program are in recipes/")
    for section, example in ((SEARCH_SECTION, "'lr: loguniform(1e-4, 4e-2)'"), (RUN_SECTION, "'fold: 0'")):
        found = value.get(section, {})
        if not isinstance(found, dict) or (section == SEARCH_SECTION and section in value and not found):
            raise UserError(f"{path}:{value.lines[section]}: section '{section}': found {describe(found)}, expected "
                            f"keys and values below it, such as {example}")
    return value


def describe(value: object) -> str:
    """What stands where a section belongs, in words."""
    kinds = {list: "a list", dict: "an empty mapping", type(None): "nothing"}
    return kinds.get(type(value)) or f"{value!r}"


def set_field(config: Config, section: str, name: str, value: object, where: str) -> None:
    """``config.section.name = value``, or a UserError with the nearest known name."""
    sections = [item.name for item in dataclasses.fields(Config)]
    if section not in sections:
        raise UserError(f"{where}: unknown section '{section}'{nearest(section, sections)}")
    part = getattr(config, section)
    names = [item.name for item in dataclasses.fields(part)]
    if name not in names:
        raise UserError(f"{where}: unknown key '{section}.{name}'{nearest(name, names)}")
    setattr(part, name, value)


def nearest(word: str, known: list[str]) -> str:
    """``; did you mean 'lr'?`` or the list of what is known."""
    match = alike(word, known)
    return f"; did you mean '{match[0]}'?" if match else f"; expected one of {', '.join(known)}"


def apply_mapping(config: Config, mapping: dict, where: str) -> None:
    """Put the sections of ``mapping`` into ``config`` and check them, so that an error names the file and the line."""
    lines = getattr(mapping, "lines", {})
    at = lambda key: f"{where}:{lines[key]}" if key in lines else where
    let_follow(config, mapping.get("scheduler"))
    for section, values in mapping.items():
        if section in (SEARCH_SECTION, RUN_SECTION):
            continue
        if section not in vars(config):
            set_field(config, str(section), "", None, at(section))
        if not isinstance(values, dict):
            raise UserError(f"{at(section)}: section '{section}': found {describe(values)}, expected keys and values "
                            "below it, or nothing of that section")
        for name, value in values.items():
            set_field(config, str(section), str(name), value, at(f"{section}.{name}"))
    try:
        resolve(config)
    except UserError as error:
        field = re.match(r"\w+\.\w+", str(error))
        raise UserError(f"{at(field[0] if field else '')}: {error}") from None


def let_follow(config: Config, changes: object) -> None:
    """Let the direction follow a monitored metric that ``changes``, the scheduler's next values, set without one.

    A saved configuration of an earlier version names both, and a direction that agrees with its metric says no more
    than the metric does. The other way round, the default pair gives way to a direction that is set alone.
    """
    old, changes = config.scheduler, changes if isinstance(changes, dict) else {}
    watched = old.monitor or ("val_loss" if old.mode == "min" else "val_dice")  # any score but the loss: its direction
    if "monitor" in changes and "mode" not in changes and isinstance(watched, str) and old.mode == direction(watched):
        old.mode = None
    if "mode" in changes and "monitor" not in changes and old.mode == "max" and old.monitor in SCORES.values():
        old.monitor = None


def load_recipes(paths: list[str | Path], below: tuple[str, dict] | None = None) -> Config:
    """The defaults with the recipe files stacked on them, not yet resolved (see ``config.resolve``).

    ``below``: sections that lie under the first file, and where they are from.
    """
    config = Config()
    if below:
        apply_mapping(config, below[1], below[0])
    for path in paths:
        apply_mapping(config, read_mapping(path), str(path))
    return config


def load_text(text: str, where: str) -> Config:
    """The defaults with a recipe's text on them, not yet resolved."""
    config = Config()
    value, lines = parse_yaml(text, where)
    apply_mapping(config, Mapping(value or {}, lines=lines), where)
    return config


def fill_defaults(flat: dict[str, object]) -> dict[str, object]:
    """A recorded identity as this version records it: fields that came later have their defaults, and those that decide
    nothing any more are left out."""
    ignored = lambda key: key in NOT_IDENTITY or key.split(".")[0] in NOT_IDENTITY
    kept = {key: value for key, value in flat.items() if not ignored(key)}
    found = identity(as_begun(resolve(Config()), flat)) | kept
    return found | {"training.precision": found["training.precision"] or "auto"}  # once null


def as_begun(config: Config, recorded: typing.Mapping[str, object]) -> Config:
    """A resolved configuration for something that has begun: where nobody set a field of ``config.EARLIER``, it has
    the value that was ``recorded`` (a flat identity), or the one that it meant before it was recorded at all."""
    written = copy.deepcopy(config.written)
    for key, earlier in EARLIER.items():
        section, name = key.split(".")
        if getattr(getattr(written, section), name) is None:
            setattr(getattr(written, section), name, recorded.get(key, earlier))
    return resolve(written)


def read_begun(path: Path) -> Config:
    """The configuration in a run's config.yaml, resolved as the version that wrote it did."""
    return as_begun(resolve(load_recipes([path])), flatten(read_mapping(path)))


def flatten(sections: typing.Mapping) -> dict[str, object]:
    """``{"loss": {"name": "ce"}}`` as ``{"loss.name": "ce"}``."""
    return {f"{section}.{name}": value for section, part in sections.items() if isinstance(part, dict)
            for name, value in part.items()}


def list_recipes(folder: Path = ROOT / "recipes") -> str:
    """The recipes of the program as two tables, networks by size, from what the first sentences of their comments say.
    """
    networks, others = [], []
    for path in sorted(folder.glob("*.*")):
        text = path.read_text(encoding="utf-8")
        comment = " ".join(line.strip().lstrip("#/ ").strip() for line in itertools.takewhile(
            lambda line: line.startswith(("#", "//")), text.splitlines()))
        said = [part.strip() for part in re.split(r"(?<=[^.][a-z0-9)])\.\s", f"{comment} ")]
        size = re.search(r"[:,] ([\d,]+) parameters", comment)
        score = re.search(r"result on ARC T2w[^:]*: (?:macro DICE|dice_macro) (\d\.\d+ \(\d\.\d+\))", comment)
        if re.search(r"^\s*\"?model\"?:", text, re.MULTILINE):
            what = re.sub(r" of arXiv [\d.]+|[:,] [\d,]+ parameters|, with the paper's settings.*", "", said[0])
            networks.append((int(size[1].replace(",", "")) if size else 0, path.stem, score[1] if score else "", what))
        else:
            others.append(f"  {path.stem:<20}  {said[0].partition(': train.py')[0]}")
    rows = [f"  {name:<20}  {size:>10,}  {score:<13}  {what}" for size, name, score, what in sorted(networks)]
    return "\n".join([
        "Networks (train.py --recipe NAME), with the macro Dice of arXiv 2503.05531: T2w, chronic stroke, mean (SD) "
        "over 3 folds", "", f"  {'name':<20}  {'parameters':>10}  {'macro Dice':<13}  what it is", *rows, "",
        "Settings to stack on a network (train.py --recipe NETWORK SETTINGS), and spaces of a search", "", *others])


def load_search(paths: list[str | Path]) -> dict:
    """The ``search`` section of the last recipe that has one, or an empty dictionary."""
    found = [mapping[SEARCH_SECTION] for path in paths if SEARCH_SECTION in (mapping := read_mapping(path))]
    return found[-1] if found else {}


def parse(prog: str, description: str, add_flags: Callable[[argparse.ArgumentParser], None],
          arguments: list[str] | None = None,
          below: Callable[[list[str]], tuple[str, dict] | None] | None = None) -> tuple[argparse.Namespace, Config]:
    """Parse a script's own flags together with ``--recipe``, ``--override`` and every ``--section.field``.

    Args:
        prog: the script's name, for its help.
        description: one line, for its help.
        add_flags: adds the script's own flags to a parser.
        arguments: the command line; ``sys.argv[1:]`` by default.
        below: from the command line to what lies under the recipes (see ``load_recipes``).

    Returns:
        The script's own values (with ``recipe``, a list of paths) and the resolved config.

    Raises:
        UserError: for anything wrong in a file or a flag, in one line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    first = OneLineParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="+", default=[], action="extend")
    first.add_argument("--override", nargs="+", default=[], action="extend")
    files, rest = first.parse_known_args(arguments)
    files.recipe = [find_recipe(one) for one in files.recipe]
    config = load_recipes(files.recipe, below and below(rest))
    given = [text.partition("=")[0].strip() for text in files.override]
    given += [text[2:].partition("=")[0] for text in rest if text.startswith("--")]
    let_follow(config, {key.removeprefix("scheduler."): True for key in given if key.startswith("scheduler.")})
    for text in files.override:
        apply_override(config, text)

    parser = flag_parser(prog, description)
    add_flags(parser)
    parser.add_argument("--recipe", nargs="+", metavar="FILE", default=[],
                        help="YAML or JSON, or the name of one of recipes/; later ones win")
    parser.add_argument("--override", nargs="+", metavar="SECTION.FIELD=VALUE", default=[],
                        help="the same as --section.field value, for any field")
    parser.add_arguments(Config, dest="config", default=with_types(config))
    found = parser.parse_args(rest)
    found.recipe = files.recipe
    written = found.config
    del found.config
    try:
        return found, resolve(written)
    except UserError as error:
        raise UserError(f"--{error}" if re.match(r"[a-z]+\.\w+", str(error)) else str(error)) from None


def flag_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for ``--section.field`` that reads values as a file's are read."""
    from simple_parsing import ArgumentGenerationMode, ArgumentParser, NestedMode

    hints = {f"--{section.name}.{name}": hint for section in dataclasses.fields(Config)
             for name, hint in typing.get_type_hints(section.default_factory).items()}

    class Parser(OneLineParser, ArgumentParser):
        """Both: its errors and numbers, and the fields of the configuration."""

        def _preprocessing(self, *given, **more) -> None:
            super()._preprocessing(*given, **more)
            for action in self._actions:
                hint = next((hints[flag] for flag in action.option_strings if flag in hints), None)
                if hint is not None and dict not in (hint, *typing.get_args(hint)):
                    action.type = functools.partial(read_flag, hint)
                    action.type.__name__ = shown(hint)  # in errors
                    if shown(hint) in METAVARS and not action.choices:
                        action.metavar = METAVARS[shown(hint)] + " ..." * (typing.get_origin(hint) is list)
                    if action.choices and type(None) in typing.get_args(hint):
                        action.choices = [*dict.fromkeys([*action.choices, None])]

    return Parser(prog=prog, description=description, allow_abbrev=False,
                  argument_generation_mode=ArgumentGenerationMode.NESTED, nested_mode=NestedMode.WITHOUT_ROOT,
                  add_config_path_arg=False)


def shown(hint: object) -> str:
    """The type of a field, or of its items, as ``--help`` names it."""
    inner = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return getattr(inner[0], "__name__", str(inner[0]))


def read_flag(hint: object, text: str) -> object:
    """The text of a flag as the type of its field (of one item, if that is a list)."""
    if typing.get_origin(hint) is list:
        hint = typing.get_args(hint)[0]
    elif type(None) in typing.get_args(hint) and text in ("null", "~"):
        return None
    try:
        return coerce(text, hint, "")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None


def apply_override(config: Config, text: str) -> None:
    """``optimizer.lr=0.0003`` into ``config``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--override {text}: expected section.field=value, such as optimizer.lr=0.0003")
    parsed, _ = parse_yaml(value, f"--override {text}")
    set_field(config, section, name, parsed, f"--override {text}")
    try:
        with_types(config)  # values that must agree with others are checked once all are known
    except UserError as error:
        raise UserError(f"--override {text}: {error}") from None


def dump_config(config: Config, head: dict | None = None) -> str:
    """A configuration as a recipe: what was set and the defaults, and in a comment what follows from these."""
    written = to_dict(config.written or config)
    follows = ", ".join(f"{section}.{name}: {value}" for section, part in to_dict(config).items()
                        for name, value in part.items() if value != written[section][name] and value is not None)
    return dump({**(head or {}), **written}) + (f"# follows from the rest: {follows}\n" if follows else "")


def recipe_for(prepared: dict) -> str:
    """A recipe to begin with: one of the demo's for few coarse cases, else the paper's smallest network."""
    if prepared["voxel_mm"] < 4 or prepared["cases"] >= 100:
        return "recipes/meshnet5.yaml"
    return "recipes/tiny.yaml" if prepared["voxel_mm"] >= 8 else "recipes/demo.yaml"
