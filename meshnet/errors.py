"""A user's mistake ends in one line on stderr and exit code 2; a fault of ours keeps its traceback."""

import argparse
import errno
import importlib.util
import os
import sys
from collections.abc import Callable

# The packages of requirements.txt by the names under which they are imported. Scripts load the first ones at their top.
LOADED_FIRST = ("numpy", "scipy", "nibabel")
REQUIRED = (*LOADED_FIRST, "yaml", "simple_parsing", "torch", "accelerate", "datasets", "huggingface_hub",
            "safetensors", "pandas", "sklearn", "nilearn", "monai", "einops", "matplotlib", "tqdm", "wandb")


class UserError(Exception):
    """Something the user can correct: one line with the path or flag, what was found, what was expected, what to do."""


def check_packages() -> None:
    """End a script that runs outside the project's environment with one line, before its imports end it with many."""
    missing = [name for name in LOADED_FIRST if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {explain_missing(', '.join(missing))}", file=sys.stderr)
        sys.exit(2)


def explain_missing(names: str) -> str:
    """What to do about required packages that the running Python does not have."""
    return (f"{sys.executable}: found no Python package {names}, expected those of requirements.txt; run the script "
            "with .venv/bin/python, which 'make test' sets up, or pip install -r requirements.txt")


def run_script(main: Callable[[], int | None]) -> None:
    """Call ``main`` and leave the process with its exit code.

    ``UserError``, an unwritable path and a full disk become one line and exit code 2; Ctrl-C becomes exit code 130. A
    reader of standard output that has left, as ``head`` does, ends the script without a word, exit code 141. A package
    of requirements.txt that is not installed becomes one line as well; optional ones have messages of their own.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        print(f"error: {explain_missing(error.name)}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it leaves
        code = 141  # as the shell names a process that SIGPIPE ended
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"error: {error.filename or 'output'}: {os.strerror(error.errno)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as every other error of this program."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")
