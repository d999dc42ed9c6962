"""What is written and said of a scan while the next one is computed."""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from meshnet.cohort.said import report

LOOK = 0.1  # seconds between two tries to end what is being written
GRACE = 1.5  # seconds that it has to become whole, where the process is asked to end


class GivenUp(BaseException):
    """Raised in the thread that writes where the process is asked to end: it removes what it has half written."""


class Behind:
    """Does what it is given in a thread of its own, in that order; at once where it is not ``beside``.

    So files are written, and lines printed, in the order of the scans. Leaving the ``with`` block waits for what was
    begun. On Ctrl-C what is being written has a moment to become whole, and is then given up: a file is whole or not
    there.
    """

    def __init__(self, beside: bool):
        self.pool = ThreadPoolExecutor(1, initializer=self._know) if beside else None
        self.begun: list[Future] = []
        self.open: list[Future] = []  # begun, and perhaps not over
        self.thread: int | None = None
        self.lock = threading.Lock()

    def _know(self) -> None:
        self.thread = threading.get_ident()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if self.pool is None:
            return
        over = False
        try:
            if kind is None or issubclass(kind, Exception):
                wait(self.open)
                over = True
        finally:
            if not over:
                self._give_up()
            self.pool.shutdown(wait=over)

    def _give_up(self) -> None:
        """End what is being written and leave the rest. Waits until that is so, however often it is interrupted: a
        thread that is waited for itself counts as ended after an interruption (Python 3.11)."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + GRACE
        while not all(each.done() for each in self.open):
            with contextlib.suppress(BaseException):
                if self.thread is not None and time.monotonic() > end:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), ctypes.py_object(GivenUp))
                wait(self.open, LOOK)

    def do(self, function: Callable, *arguments: object) -> None:
        """Call ``function`` after all that was given before."""
        if self.pool is None:
            function(*arguments)
        else:
            self.open = [each for each in self.open if not each.done()]
            self.begun.append(self.pool.submit(function, *arguments))
            self.open.append(self.begun[-1])

    def wait(self) -> None:
        """Wait for all that was given; what one of them raised is raised here."""
        begun, self.begun = self.begun, []
        for each in begun:
            each.result()

    def take(self, batch) -> dict | None:
        """``Batch.take``, while the other thread may tell the batch of a scan that is done."""
        with self.lock:
            return batch.take()

    def finish(self, batch, case: dict, write: Callable[[], tuple], seconds: float, as_json: bool, told: set) -> None:
        """Write the files of a scan by ``write``, tell the ``batch`` and say what was found, as ``said.report`` does.

        ``seconds`` is what the scan took so far, its wait for the one before left out.
        """
        started = time.perf_counter()
        try:
            result, volumes = write()
            batch.live.clear()
        except Exception as error:  # noqa: BLE001 - one scan of many; what would end the others as well is raised
            batch.live.clear()
            with self.lock:
                batch.fail(case, error)
            return
        result["seconds"] = round(seconds + time.perf_counter() - started, 2)
        with self.lock:
            batch.done(case, result)
        report(result, volumes, as_json, told)
