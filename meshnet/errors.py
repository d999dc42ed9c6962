"""A user's mistake ends in one line on stderr and exit code 2; a fault of ours keeps its traceback."""

import argparse
import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: one line with the path or flag, what was found, what was expected, what to do."""


def run_script(main: Callable[[], int | None]) -> None:
    """Call ``main`` and leave the process with its exit code.

    ``UserError``, an unwritable path and a full disk become one line and exit code 2; Ctrl-C becomes exit code 130. A
    reader of standard output that has left, as ``head`` does, ends the script without a word, exit code 141.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
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
