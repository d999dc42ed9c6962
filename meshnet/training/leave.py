"""A signal before a time limit: the run saves a resume point after its next step, and ends.

SLURM sends SIGUSR1 some time before a job's limit (``--signal``), and SIGTERM when it preempts or cancels it. Between
steps the run leaves at once; within one, SIGTERM is patient for ``PATIENCE`` seconds.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import torch

from meshnet.errors import Interrupted

PATIENCE = 6.0  # seconds for the step that is being computed; the process ends 10 seconds after SIGTERM


class Leave:
    """Whether a signal has asked the run to leave; ``number`` is the signal's, 0 until then."""

    def __init__(self):
        self.number, self.since, self.in_steps = 0, 0.0, False

    @contextlib.contextmanager
    def listening(self, accelerator) -> Iterator[None]:
        """Listen while a run trains: alone, or in several processes that SLURM signals each."""
        alone = accelerator.num_processes == 1 or "SLURM_JOB_ID" in os.environ
        if not alone or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        self.number = 0
        end = before[signal.SIGTERM]

        def asked(number, frame):
            if not self.number:
                self.number, self.since = number, time.monotonic()
            late = time.monotonic() - self.since > PATIENCE
            if number == signal.SIGTERM and (not self.in_steps or late):
                if not callable(end):
                    raise Interrupted(number)
                end(number, frame)  # as without this: the last resume point stays

        for number in before:
            signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def now(self, accelerator) -> bool:
        """Whether to save and leave after this step; several processes agree."""
        if accelerator.num_processes == 1:
            return bool(self.number)
        if "SLURM_JOB_ID" not in os.environ:
            return False
        heard = accelerator.reduce(torch.tensor([float(self.number)], device=accelerator.device), reduction="sum")
        if heard.item() and not self.number:
            self.number = signal.SIGTERM
        return bool(self.number)

    def end(self, leaving: bool) -> None:
        """End the run, whose resume point is written, where it is ``leaving``."""
        if leaving:
            raise Interrupted(self.number)
