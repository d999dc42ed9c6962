"""What is written and said of a scan while the next one is computed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """Does what it is given in a thread of its own, in that order; at once where it is not ``beside``.

    So files are written, and lines printed, in the order of the scans. Leaving the ``with`` block waits for what was
    begun, also on Ctrl-C: a file is whole or not there. ``lock`` is for what both threads ask and tell others about.
    """

    def __init__(self, beside: bool):
        self.pool = ThreadPoolExecutor(1) if beside else None
        self.begun: list[Future] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def do(self, function: Callable, *arguments: object) -> None:
        """Call ``function`` after all that was given before."""
        if self.pool is None:
            function(*arguments)
        else:
            self.begun.append(self.pool.submit(function, *arguments))

    def wait(self) -> None:
        """Wait for all that was given; what one of them raised is raised here."""
        begun, self.begun = self.begun, []
        for each in begun:
            each.result()
