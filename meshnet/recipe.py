"""Recipe files and flags into a ``Config``: defaults < file < later file < ``--override`` and flags, in that order.

A recipe is YAML or JSON (comments allowed) with any of the sections of ``meshnet.config.Config``. A ``search``
section belongs to ``search.py`` and is passed on unread.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from meshnet.config import Config, resolve
from meshnet.errors import OneLineParser, UserError

SEARCH_SECTION = "search"
RUN_SECTION = "run"  # of a run folder's config.yaml, which is a recipe as well


def strip_json_comments(text: str) -> str:
    """``text`` without ``// …`` and ``/* … */`` outside strings; line breaks stay, so error positions stay true."""
    pattern = r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/'

    def keep(match: re.Match) -> str:
        token = match.group(0)
        return token if token.startswith('"') else re.sub(r"[^\n]", " ", token)

    return re.sub(pattern, keep, text, flags=re.DOTALL)


def read_mapping(path: str | Path) -> dict:
    """A YAML or JSON file as a dictionary; an empty file is an empty one.

    Raises:
        UserError: if the file is missing, cannot be parsed, or holds anything but a mapping.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; those of the program are in recipes/") from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read as a recipe ({error}); expected a YAML or JSON text file") from None
    try:
        value = json.loads(strip_json_comments(text) or "{}") if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}; expected JSON (comments are allowed)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {line}{getattr(error, 'problem', error)}; expected YAML") from None
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise UserError(f"{path}: found a {type(value).__name__}, expected sections such as optimizer: and training:")
    return value


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
    import difflib

    match = difflib.get_close_matches(word, known, 1)
    return f"; did you mean '{match[0]}'?" if match else f"; expected one of {', '.join(known)}"


def apply_mapping(config: Config, mapping: dict, where: str) -> None:
    """Put the sections of ``mapping`` into ``config`` and check them, so that an error names the file."""
    for section, values in mapping.items():
        if section in (SEARCH_SECTION, RUN_SECTION):
            continue
        if not isinstance(values, dict):
            set_field(config, str(section), "", None, where) if section not in vars(config) else None
            raise UserError(f"{where}: section '{section}': found {values!r}, expected keys and values below it")
        for name, value in values.items():
            set_field(config, str(section), str(name), value, where)
    check_values(config, where)


def check_values(config: Config, where: str) -> None:
    """Check the values read so far, so that an error names the file or flag (``where``) that brought it."""
    try:
        resolve(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def load_recipes(paths: list[str | Path]) -> Config:
    """The defaults with the recipe files stacked on them, not yet resolved (see ``config.resolve``)."""
    config = Config()
    for path in paths:
        apply_mapping(config, read_mapping(path), str(path))
    return config


def load_search(paths: list[str | Path]) -> dict:
    """The ``search`` section of the last recipe that has one, or an empty dictionary."""
    found = [mapping[SEARCH_SECTION] for path in paths if SEARCH_SECTION in (mapping := read_mapping(path))]
    return found[-1] if found else {}


def parse(prog: str, description: str, add_flags: Callable[[argparse.ArgumentParser], None],
          arguments: list[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """Parse a script's own flags together with ``--recipe``, ``--override`` and every ``--section.field``.

    Args:
        prog: the script's name, for its help.
        description: one line, for its help.
        add_flags: adds the script's own flags to a parser.
        arguments: the command line; ``sys.argv[1:]`` by default.

    Returns:
        The script's own values (with ``recipe``, a list of paths) and the resolved config.

    Raises:
        UserError: for anything wrong in a file or a flag, in one line.
    """
    from simple_parsing import ArgumentGenerationMode, ArgumentParser, NestedMode

    arguments = sys.argv[1:] if arguments is None else arguments
    first = OneLineParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="+", default=[], action="extend")
    first.add_argument("--override", nargs="+", default=[], action="extend")
    files, rest = first.parse_known_args(arguments)
    config = load_recipes(files.recipe)
    for text in files.override:
        apply_override(config, text)

    class Parser(ArgumentParser):
        error = OneLineParser.error

    parser = Parser(prog=prog, description=description, allow_abbrev=False,
                    argument_generation_mode=ArgumentGenerationMode.NESTED, nested_mode=NestedMode.WITHOUT_ROOT,
                    add_config_path_arg=False)
    add_flags(parser)
    parser.add_argument("--recipe", nargs="+", metavar="FILE", default=[], help="YAML or JSON, later files win")
    parser.add_argument("--override", nargs="+", metavar="SECTION.FIELD=VALUE", default=[],
                        help="the same as --section.field value, for any field")
    parser.add_arguments(Config, dest="config", default=config)
    found = parser.parse_args(rest)
    found.recipe = files.recipe
    written = found.config
    del found.config
    try:
        return found, resolve(written)
    except UserError as error:
        raise UserError(f"--{error}" if re.match(r"[a-z]+\.\w+", str(error)) else str(error)) from None


def apply_override(config: Config, text: str) -> None:
    """``optimizer.lr=0.0003`` into ``config``; the value is read as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--override {text}: expected section.field=value, such as optimizer.lr=0.0003")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--override {text}: the value cannot be read; quote it for the shell") from None
    set_field(config, section, name, parsed, f"--override {text}")
    check_values(config, f"--override {text}")


def dump(mapping: dict) -> str:
    """``mapping`` as YAML in its own order, short lists on one line."""
    import yaml

    return yaml.safe_dump(mapping, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
