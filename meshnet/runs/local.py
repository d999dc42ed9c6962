"""Runs on this machine: each slot has its own GPUs or its share of the CPU cores."""

import signal
import socket
import subprocess
import time

from meshnet.errors import UserError
from meshnet.machine import usable_cores
from meshnet.runs.command import job_command, job_environment, visible_gpus
from meshnet.runs.forkserver import SCRIPTS, Forked, ForkServer, available
from meshnet.runs.jobs import Handle, Job, Launcher
from meshnet.runs.processes import alive, end_job, signal_all, start_time
from meshnet.runs.slurm_calls import cancel_left


class LocalLauncher(Launcher):
    """Slots on this machine."""

    def __init__(self, workers: int | None, gpus_per_worker: int | None, accelerate_config: str | None,
                 flag: str = "--workers"):
        gpus = visible_gpus()
        self.gpus_per_worker = (1 if gpus else 0) if gpus_per_worker is None else gpus_per_worker
        self.accelerate_config = accelerate_config
        fitting = len(gpus) // self.gpus_per_worker if self.gpus_per_worker else max(1, usable_cores() // 4)
        slots = fitting if workers is None else workers
        if self.gpus_per_worker and not 0 < slots <= fitting:
            raise UserError(
                f"{flag}: found {slots} with {self.gpus_per_worker} GPUs each, expected at most {fitting}: "
                f"this machine has {len(gpus)} GPUs; use fewer, or --gpus_per_worker 0 for the CPU"
            )
        super().__init__(slots)
        step = self.gpus_per_worker
        self.gpus = [gpus[slot * step : (slot + 1) * step] for slot in range(slots)]
        self.threads = max(1, usable_cores() // (slots * max(1, step)))  # of each process: one a GPU
        self.children: dict[str, subprocess.Popen | Forked] = {}
        self.server: ForkServer | None = None

    def _start(self, handle: Handle) -> None:
        end_job(handle.token)  # of a driver that died before it could record what it had started
        gpus = self.gpus[handle.slot]
        environment = job_environment(handle.job, handle.token, self.threads, self.accelerate_config)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        command = job_command(handle.job, len(gpus), self.accelerate_config)
        with open(handle.job.log, "ab") as output:
            child = None
            if handle.job.script in SCRIPTS and not gpus and available():
                child = self._server(handle.job.script, environment).start(command, environment, output)
            if child is None:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                         env=environment, cwd=handle.job.folder, start_new_session=True)
        handle.pid, handle.started = child.pid, start_time(child.pid)
        self.children[handle.token] = child

    def _server(self, script: str, environment: dict[str, str]) -> ForkServer:
        """The process that runs of ``script`` are forked from."""
        if self.server is None or self.server.gone:
            self.server = ForkServer(script, environment)
        return self.server

    def close(self, patience: float = 0.0) -> None:
        """As in ``Launcher``; the process that runs are forked from ends too."""
        super().close(patience)
        if self.server:
            self.server.close()
            self.server = None

    def _look(self, handle: Handle) -> tuple[int | None, bool]:
        child = self.children.get(handle.token)
        code = child.poll() if child else None
        if isinstance(child, Forked) and child.lost():
            child = None  # as after a driver's death: it is looked for by its process id
        if code is None and (child or alive(handle.pid, handle.started)):
            return None, False
        end_job(handle.token)  # a leader that was killed leaves its children behind, and they write to the run folder
        self.children.pop(handle.token, None)
        return code, True

    def _stop(self, handle: Handle, patience: float) -> None:
        child = self.children.pop(handle.token, None)
        ours = child is not None or alive(handle.pid, handle.started)
        end_job(handle.token, handle.pid if ours else None, patience)
        if child:
            child.wait()

    def ask_all(self) -> None:
        for handle in self.running():
            ours = handle.token in self.children or alive(handle.pid, handle.started)
            signal_all(handle.token, handle.pid if ours else None, signal.SIGTERM)

    def adopt(self, job: Job, identity: dict) -> Handle | None:
        """As in ``Launcher``. A job on another host, or whose slot no longer exists, is not taken over."""
        if identity.get("host") == "slurm":
            cancel_left(job)
            return None
        handle = Handle(job, since=time.monotonic(), beat_seen=time.monotonic(), **identity)
        here = handle.host == socket.gethostname()
        fits = handle.slot < self.slots and handle.slot not in self.handles
        if here and fits and alive(handle.pid, handle.started):
            self.handles[handle.slot] = handle
            return handle
        if here:
            self._stop(handle, 0)
        return None
