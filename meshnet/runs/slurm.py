"""Runs as jobs of a SLURM cluster; project, data and run folders lie on storage that all nodes share, at the same path.

Each run is one ``sbatch`` of a small script in its run folder, which says there when it began and how it ended. So the
end of a run is seen in a file, and SLURM is asked once a half minute, for all jobs together. Only a job that left no
file, or that a signal ended, is asked about by itself (``sacct``, else ``scontrol``). What the scheduler did to it
(time limit, preemption, a lost node, ``scancel``) is not the run's fault: it is submitted again and goes on from its
last resume point, unless it ended that way several times without getting on.

Jobs have the run's token as their name and ``--dependency=singleton``: of two jobs of one run, as after a driver that
died, the second waits for the first. A job that SLURM itself requeues keeps its number and is waited for. An ``sbatch``
that the cluster does not accept, since it is busy, restarts or has enough jobs of this user, is tried again.
"""

import shlex
import shutil
import signal
import socket
import time
from dataclasses import dataclass

from meshnet import ROOT
from meshnet.errors import OUT_OF_MEMORY, UserError
from meshnet.files import write_text
from meshnet.runs.command import job_command, job_environment
from meshnet.runs.jobs import Handle, Job, Launcher
from meshnet.runs.processes import alive, end_job
from meshnet.runs.slurm_calls import (
    BY_SLURM,
    END_FILE,
    JOB_FILE,
    OVER,
    SCRIPT,
    SCRIPT_TEXT,
    SIGNALLED,
    STARTED,
    WAITING,
    WRONG,
    account,
    cancel,
    command_of,
    end_of,
    gpus_of,
    is_busy,
    mark_of,
    minutes_of,
    parse_options,
    quoted,
)

SQUEUE_SECONDS = 30.0  # between two looks at the queue, and after an sbatch of any job that was not accepted
WORKERS = 4  # jobs at a time, in the queue or running
IDLE = 3  # ends in a row by the scheduler, without a step between them, after which the run counts as failed
REFUSED = 20  # sbatch calls in a row that are refused for an unknown reason while no job of this driver is in the queue


@dataclass
class Entry:
    """A job of a handle: its number (0: not accepted yet), when it was submitted, and how far the run was then."""

    number: int = 0
    since: float = 0.0
    mark: tuple = ()
    idle: int = 0  # ends by the scheduler in a row, without a step between them


class SlurmLauncher(Launcher):
    """Jobs of a SLURM cluster, ``workers`` of them in the queue or running at a time.

    options: flags of sbatch, as ``parse_options`` takes them. say: prints a line about what the scheduler did.
    """

    def __init__(self, workers: int | None, gpus_per_worker: int | None, accelerate_config: str | None,
                 options: str | None, say=None):
        if shutil.which("sbatch") is None:
            raise UserError("--launcher slurm: found no sbatch on this machine, expected a login node of a SLURM "
                            "cluster; log in to one, or --launcher local")
        self.options = parse_options(options)
        self.gpus = gpus_of(self.options) if gpus_per_worker is None else gpus_per_worker
        super().__init__(workers or WORKERS)
        self.accelerate_config, self.say = accelerate_config, say or print
        self.entries: dict[str, Entry] = {}
        self.waits: set[str] = set()  # tokens of jobs that are in the queue
        self.states: dict[int, tuple[str, str]] = {}
        self.asked, self.next_look = -1e9, -1e9  # when SLURM was last asked with an answer, and may be asked again
        self.next_try, self.refused = -1e9, 0
        self.told: set[str] = set()

    # ---------------------------------------------------------------- starting
    def _start(self, handle: Handle) -> None:
        handle.host = "slurm"
        entry = self.entries[handle.token] = Entry(mark=mark_of(handle.job))
        for name in (END_FILE, STARTED, JOB_FILE):
            (handle.job.run_dir / name).unlink(missing_ok=True)
        write_text(handle.job.run_dir / SCRIPT, self._script(handle))
        self._submit(handle, entry)

    def _script(self, handle: Handle) -> str:
        job, folder = handle.job, handle.job.run_dir.absolute()
        directives = {"job-name": f"meshnet-{handle.token}", "output": str(job.log.absolute()), "open-mode": "append",
                      "requeue": "", "dependency": "singleton", "nodes": "1", "ntasks": "1", **self.options}
        if minutes_of(self.options.get("time", "")) >= 5 and "signal" not in self.options:
            directives["signal"] = "B:USR1@120"  # train.py then saves a resume point and ends
        words = job_command(job, self.gpus, self.accelerate_config)
        command = ["$((20000 + SLURM_JOB_ID % 20000))" if before == "--main_process_port" else shlex.quote(word)
                   for before, word in zip(["", *words], words)]  # a port of the node, not of this machine
        return SCRIPT_TEXT.format(
            directives="\n".join(f"#SBATCH --{name}={quoted(value)}" if value else f"#SBATCH --{name}"
                                 for name, value in directives.items()),
            folder=shlex.quote(str(job.folder or ROOT)), end=shlex.quote(str(folder / END_FILE)),
            processes=max(1, self.gpus), started=shlex.quote(str(folder / STARTED)), command=" ".join(command))

    def _submit(self, handle: Handle, entry: Entry) -> None:
        """One try of sbatch; after one that was not accepted, of whichever job, none for a half minute."""
        if time.monotonic() < self.next_try:
            return
        environment = {name: value for name, value in job_environment(
            handle.job, handle.token, 1, self.accelerate_config).items()
            if not name.startswith(("SLURM_", "SBATCH_")) or name == "SLURM_CONF"}
        environment |= {"PYTHONPATH": str(ROOT), **({} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""})}
        environment.pop("OMP_NUM_THREADS", None)
        code, out, err = command_of(["sbatch", "--parsable", str(handle.job.run_dir / SCRIPT)], environment)
        number = out.strip().split(";")[0]
        if code == 0 and number.isdecimal():
            entry.number, entry.since, self.refused = int(number), time.monotonic(), 0
            handle.pid, handle.started = entry.number, "slurm"
            write_text(handle.job.run_dir / JOB_FILE, number)
            self.waits.add(handle.token)
            return
        self.next_try = time.monotonic() + SQUEUE_SECONDS
        line = " ".join((err or out).split())[:300] or f"exit code {code}"
        busy = is_busy(line)
        self.refused += not busy and not any(other.number for other in self.entries.values())
        if not busy and (WRONG.search(line) or self.refused >= REFUSED):
            self.entries.pop(handle.token)
            raise UserError(f"--slurm: sbatch found {line}; expected flags that this cluster takes; correct them, then "
                            "run the same command again")
        self._tell(f"sbatch: {line}; waiting, tried again every {SQUEUE_SECONDS:.0f} s")

    # ---------------------------------------------------------------- how jobs are
    def _look(self, handle: Handle) -> tuple[int | None, bool]:
        entry = self.entries[handle.token]
        if not entry.number:
            self._submit(handle, entry)
            return None, False
        code = end_of(handle.job, entry.number)
        if code is not None and code not in SIGNALLED:
            return self._over(handle, code)
        if not self._ask_queue() or self.asked <= entry.since:
            return None, False
        state, why = self.states.get(entry.number, ("", ""))
        (self.waits.add if state in WAITING else self.waits.discard)(handle.token)
        if state and state not in OVER:
            if "held" in why.lower():
                self._tell(f"job {entry.number} is held ({why}); release it with: scontrol release {entry.number}")
            return None, False
        code = end_of(handle.job, entry.number)  # it may have come since
        if code is not None and code not in SIGNALLED:
            return self._over(handle, code)
        state, status = account(entry.number)
        if state == "OUT_OF_MEMORY":
            return self._over(handle, OUT_OF_MEMORY)
        if state == "COMPLETED" and code is None:
            return self._over(handle, 0)
        if state == "FAILED" and code not in (128 + signal.SIGTERM, 128 + signal.SIGUSR1):
            return self._over(handle, status if code is None else code)
        asked = "was asked to end" if code in SIGNALLED else BY_SLURM[""]
        return self._go_on(handle, entry, BY_SLURM[state] if state and state in BY_SLURM else asked)

    def _over(self, handle: Handle, code: int | None) -> tuple[int | None, bool]:
        self._forget(handle)
        return (code if code is None or code <= 128 else 128 - code), True

    def _go_on(self, handle: Handle, entry: Entry, words: str) -> tuple[int | None, bool]:
        """Submit a run again that the scheduler ended, unless it does not get on that way."""
        now = mark_of(handle.job)
        entry.idle = 1 if now != entry.mark else entry.idle + 1
        number, entry.mark = entry.number, now
        if entry.idle > IDLE:
            self.say(f"{handle.job.run_dir}: job {number} {words}, {entry.idle} times without a step between them; is "
                     "the time limit too short?")
            return self._over(handle, None)
        entry.number = 0
        for name in (END_FILE, STARTED, JOB_FILE):
            (handle.job.run_dir / name).unlink(missing_ok=True)
        self._submit(handle, entry)
        self.say(f"{handle.job.run_dir}: job {number} {words}; goes on from its last resume point"
                 + (f" as job {entry.number}" if entry.number else ""))
        return None, False

    def _ask_queue(self) -> bool:
        """Bring ``states`` up to date where they are older than half a minute; False where SLURM does not answer. It is
        not asked more often then, nor before half a minute after a call that took long."""
        if time.monotonic() < self.next_look:
            return True
        began = time.monotonic()
        code, out, err = command_of(["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r"])
        self.next_look = time.monotonic() + SQUEUE_SECONDS
        if code != 0:
            self._tell(f"squeue: {' '.join(err.split())[:200] or f'exit code {code}'}; waiting until SLURM answers")
            return False
        found = (line.split("|", 2) for line in out.splitlines() if line.count("|") >= 2)
        self.states = {int(number): (state, why) for number, state, why in found if number.isdecimal()}
        self.asked = began
        return True

    def waits_for(self, handle: Handle) -> bool:
        """As in ``Launcher``, by the last look at the queue."""
        return handle.token in self.waits

    def _silent(self, handle: Handle) -> bool:
        """As in ``Launcher``; a job in the queue needs no heartbeat."""
        if self.waits_for(handle):
            handle.beat_seen = time.monotonic()
        return super()._silent(handle)

    # ---------------------------------------------------------------- ending, and an earlier driver's jobs
    def ask_all(self) -> None:
        cancel([entry.number for entry in self.entries.values() if entry.number])

    def _stop(self, handle: Handle, patience: float) -> None:
        entry = self.entries.get(handle.token, Entry())
        if entry.number:
            cancel([entry.number])
        deadline = time.monotonic() + patience
        while entry.number and time.monotonic() < deadline and handle.token not in self.waits:
            if end_of(handle.job, entry.number) is not None:
                break
            time.sleep(0.1)
        self._forget(handle)

    def adopt(self, job: Job, identity: dict) -> Handle | None:
        """As in ``Launcher``: a job in the queue, running, or ended meanwhile."""
        if identity.get("host") != "slurm":
            if identity.get("host") == socket.gethostname():  # of an earlier driver with the local launcher
                ours = alive(identity["pid"], identity["started"])
                end_job(identity["token"], identity["pid"] if ours else None)
            return None
        try:
            number = int((job.run_dir / JOB_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # it was never accepted; singleton keeps two of them apart
        free = [slot for slot in range(self.slots) if slot not in self.handles]
        if not free:
            cancel([number])
            return None
        now = time.monotonic()
        handle = Handle(job, since=now, beat_seen=now, **identity | {"slot": free[0], "pid": number})
        self.entries[handle.token] = Entry(number, now, mark=mark_of(job))
        self.waits.add(handle.token)
        self.handles[handle.slot] = handle
        return handle

    def _forget(self, handle: Handle) -> None:
        self.entries.pop(handle.token, None)
        self.waits.discard(handle.token)
        (handle.job.run_dir / JOB_FILE).unlink(missing_ok=True)

    def _tell(self, line: str) -> None:
        """Say something about the cluster once."""
        if line not in self.told:
            self.told.add(line)
            self.say(line)
