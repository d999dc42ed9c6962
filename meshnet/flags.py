"""What makes flags pleasant: the version, help that begins with the common flags, and a guess at what was meant by one
that is nearly right."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator


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
        return f"{plain(whole())}\n{len(rest)} more flags: {parser.prog} --help_all\n"


def plain(text: str) -> str:
    """Help without defaults that say nothing, and with the sections of a configuration named as in a recipe."""
    text = re.sub(r"\s+\(default:\s+(None|\[\]|False)\)", "", text)
    text = re.sub(r"^Config \['config'\]:\n.*\n\n", "", text, flags=re.MULTILINE)
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


def meant(parser: argparse.ArgumentParser, message: str) -> str:
    """``; did you mean --threshold?`` for the first flag or value that argparse does not know; "" where none is like
    it."""
    from difflib import get_close_matches

    if found := re.search(r"unrecognized arguments:.*?(--[\w.]+)", message):
        known = [flag for action in parser._actions for flag in action.option_strings]
    elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        known = [word.strip(" '") for word in found[2].split(",")]
    else:
        return ""
    like = get_close_matches(found[1], known, 1)
    return f"; did you mean {like[0]}?" if like else ""
