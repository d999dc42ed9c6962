"""What is written and said of a scan while the next one is computed."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from meshnet.cohort.said import report


class Behind:
    """Does what it is given in a thread of its own, in that order; at once where it is not ``beside``.

    So files are written, and lines printed, in the order of the scans. Leaving the ``with`` block waits for what was
    begun, also on Ctrl-C: a file is whole or not there.
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

    def take(self, batch) -> dict | None:
        """``Batch.take``, while the other thread may tell the batch of a scan that is done."""
        with self.lock:
            return batch.take()

    def finish(self, batch, case: dict, write: Callable[[], tuple], started: float, as_json: bool, told: set) -> None:
        """Write the files of a scan by ``write``, tell the ``batch`` and say what was found, as ``said.report`` does.

        ``started`` is when the scan was at hand, by ``time.perf_counter``.
        """
        try:
            result, volumes = write()
            batch.live.clear()
        except Exception as error:  # noqa: BLE001 - one scan of many; what would end the others as well is raised
            batch.live.clear()
            with self.lock:
                batch.fail(case, error)
            return
        result["seconds"] = round(time.perf_counter() - started, 2)
        with self.lock:
            batch.done(case, result)
        report(result, volumes, as_json, told)
