"""A user's mistake ends in one line on stderr and exit code 2; a fault of ours keeps its traceback."""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: one line with the path or flag, what was found, what was expected, what to do."""


def run_script(main: Callable[[], int | None]) -> None:
    """Call ``main`` and leave the process with its exit code.

    ``UserError``, an unwritable path and a full disk become one line and exit code 2; Ctrl-C becomes exit code 130.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"error: {error.filename or 'output'}: {os.strerror(error.errno)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
