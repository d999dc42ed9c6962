"""A search while it runs: asks ``asha`` what to do, has ``launch`` do it, tells ``ledger`` what came of it.

One job of the algorithm (train trial t to epoch e) is one task for each inner fold: a run of ``train.py`` in a run
folder of its own. What a run achieved is read from its run folder, never from its exit code alone, so it does not
matter whether this driver started it or an earlier one.

* ``metrics.jsonl`` reaches the rung, or ``DONE`` says that the run stopped early: the task is done.
* ``failed.json`` (diverged), output that says "out of memory", or exit code 2: the trial gets the worst score with
  the reason, at once.
* output that says "No space left on device": the study stops with that; the task goes on when there is room.
* anything else (killed, silent, node lost): the task is tried again from its last resume point, ``max_retries``
  times; then the trial gets the worst score.

The score of a rung is the mean over inner folds of the best value of the metric up to that rung's epoch: what
``train.py`` keeps as the model is the best by validation, too.
"""

import json
import math
import re
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import write_text
from meshnet.runs.folder import read_metrics
from meshnet.runs.jobs import Ended, Job, Launcher
from meshnet.search.asha import Asha
from meshnet.search.asha import Job as Decision
from meshnet.search.ledger import Ledger

DRIVER_DIED = "the driver died"
INTERRUPTED = "interrupted"
DISK_FULL = "the disk is full"
FORGIVEN = (DRIVER_DIED, INTERRUPTED, DISK_FULL)  # no fault of the run: not counted as tries
OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|can't allocate memory|MemoryError|bad_alloc", re.IGNORECASE)
NO_SPACE = re.compile("No space left on device|Disk quota exceeded")
USER_ERROR = 2  # train.py's exit code for a wrong flag, file or data set
HOPELESS = 3  # trials refused with a user error, before any has a score, after which the study stops


@dataclass(frozen=True)
class Plan:
    """What every trial has in common.

    recipe: from parameters and horizon (epochs of the schedule) to the text of a complete recipe. arguments: of
    train.py, besides recipe, run folder, inner fold and stop epoch. metric: a key of metrics.jsonl.
    own_schedule: each rung is a run and a schedule of its own.
    """

    folder: Path
    recipe: Callable[[dict, int], str]
    arguments: tuple[str, ...]
    inner_folds: tuple[int, ...] = (0,)
    metric: str = "val_dice"
    own_schedule: bool = False
    max_retries: int = 3
    silent_after: float = 600.0
    script: str = "train.py"


@dataclass
class Task:
    """One inner fold of a decision."""

    decision: Decision
    fold: int
    attempt: int = 0


@dataclass
class Study:
    """A search that is running. ``step`` until it returns True; then, or at any time, ``stop``."""

    plan: Plan
    asha: Asha
    ledger: Ledger
    launcher: Launcher
    suggest: Callable[[int], dict]
    say: Callable[[str], None] = print
    waiting: deque[Task] = field(default_factory=deque)
    running: dict[str, Task] = field(default_factory=dict)  # by the handle's token
    results: dict[int, dict[int, float]] = field(default_factory=dict)  # trial → fold → score of the running job
    refused: int = 0

    # ---------------------------------------------------------------- beginning and end
    def take_up(self) -> None:
        """Go on where an earlier driver stopped: adopt what still runs, queue the rest of what was decided."""
        self.ledger.rebuild(self.asha)
        opened = {}
        for number, trial, rung, fold, identity in self.ledger.open_attempts():
            opened[trial, rung, fold] = (number, identity)
        for trial in self.asha.trials:
            if not trial.running:
                continue
            decision = self.asha.current_job(trial.number)
            self.results[trial.number] = {}
            for fold in self.plan.inner_folds:
                task = Task(decision, fold)
                number, identity = opened.pop((trial.number, trial.rung, fold), (0, None))
                handle = self.launcher.adopt(self._job(task), identity) if identity else None
                if handle:
                    task.attempt = number
                    self.running[handle.token] = task
                    self.say(f"{self._name(task)}: still running on {handle.where}, taken up")
                    continue
                if number:
                    self.ledger.attempt_ended(number, DRIVER_DIED)
                if not self._finished(task):
                    self.waiting.append(task)
                    self.say(f"{self._name(task)}: goes on from its last resume point")
        for (trial, rung, fold), (number, identity) in opened.items():  # of trials that failed on another inner fold
            task = Task(Decision(trial, rung, self.asha.rungs[rung], 0), fold)
            handle = self.launcher.adopt(self._job(task), identity)
            if handle:
                self.launcher.kill(handle)
            self.ledger.attempt_ended(number, DRIVER_DIED)
        for trial in [trial.number for trial in self.asha.trials if trial.running]:
            self._settle(trial)

    def step(self) -> bool:
        """Notice what ended, fill the free slots; True when the study is done. Returns at once."""
        for ended in self.launcher.poll():
            self._over(ended)
        while self.launcher.free() > 0 and (task := self._next()) is not None:
            self._start(task)
        return not self.running and not self.waiting and self.asha.done()

    def stop(self, patience: float) -> None:
        """End every run; the study can be taken up again."""
        for handle in self.launcher.running():
            self.launcher.kill(handle, patience)
            task = self.running.pop(handle.token, None)
            if task:  # else it was started, but the ledger could not be told
                self.ledger.attempt_ended(task.attempt, INTERRUPTED)

    # ---------------------------------------------------------------- one task
    def run_dir(self, task: Task) -> Path:
        """The run folder: one for each inner fold, with ``own_schedule`` one for each rung as well."""
        name = f"fold{task.fold}"
        if self.plan.own_schedule:
            name += f"-epochs{task.decision.epochs}"
        return self.trial_dir(task.decision.trial) / name

    def trial_dir(self, trial: int) -> Path:
        """Everything of one trial."""
        return self.plan.folder / "trials" / f"{trial:05d}"

    def _horizon(self, task: Task) -> int:
        return task.decision.epochs if self.plan.own_schedule else self.asha.rungs[-1]

    def _job(self, task: Task) -> Job:
        run_dir = self.run_dir(task)
        arguments = (
            "--recipe", str(self._recipe_path(task)), "--inner_fold", str(task.fold), "--run_dir", str(run_dir),
            "--stop_epoch", str(task.decision.epochs), *self.plan.arguments,
        )
        return Job(self.plan.script, arguments, run_dir, run_dir / "output.log", self.plan.silent_after)

    def _recipe_path(self, task: Task) -> Path:
        name = f"recipe-epochs{task.decision.epochs}.yaml" if self.plan.own_schedule else "recipe.yaml"
        return self.trial_dir(task.decision.trial) / name

    def _next(self) -> Task | None:
        if self.waiting:
            return self.waiting.popleft()
        decision = self.asha.next_job(self.suggest)
        if decision is None:
            return None
        self.ledger.started(decision, self.asha)
        self.results[decision.trial] = {}
        self.waiting.extend(Task(decision, fold) for fold in self.plan.inner_folds)
        return self.waiting.popleft()

    def _start(self, task: Task) -> None:
        path = self._recipe_path(task)
        if not path.exists():
            parameters = self.asha.trials[task.decision.trial].parameters
            write_text(path, self.plan.recipe(parameters, self._horizon(task)))
        handle = self.launcher.submit(self._job(task))
        task.attempt = self.ledger.attempt(task.decision, task.fold, handle.where, handle.identity())
        self.running[handle.token] = task

    # ---------------------------------------------------------------- how it ended
    def _over(self, ended: Ended) -> None:
        task = self.running.pop(ended.handle.token, None)
        if task is None:  # ended with its trial, in this very step
            return
        finished = self._finished(task)
        if not finished and ended.code != 0 and NO_SPACE.search(ended.handle.output()):
            self.ledger.attempt_ended(task.attempt, DISK_FULL, ended.handle.where)
            raise UserError(f"{ended.handle.job.log}: {DISK_FULL} on {ended.handle.where}; make room, then the same "
                            "command goes on")
        reason = "" if finished else self._final_reason(ended, task)
        why = "" if finished else reason or ended.reason or "ended before its rung"
        self.ledger.attempt_ended(task.attempt, why, ended.handle.where)
        if finished:
            self._settle(task.decision.trial)
        elif reason:
            self._fail(task, reason)
        else:
            tries = self.ledger.failures(task.decision, task.fold, FORGIVEN)
            if tries > self.plan.max_retries:
                self._fail(task, f"{why}, {tries} times")
            else:
                self.say(f"{self._name(task)}: {why} on {ended.handle.where}; try {tries + 1} goes on from there")
                self.waiting.appendleft(task)

    def _finished(self, task: Task) -> bool:
        """Record what the run folder holds; whether the task is done, then with its score in ``results``."""
        folder, decision = self.run_dir(task), task.decision
        rows = read_metrics(folder)[: decision.epochs]
        values = [(row["epoch"], self._value(row, folder), row.get("seconds")) for row in rows]
        if len(rows) < decision.epochs and not (folder / "DONE").exists():
            return False
        known = self.ledger.record_scores(decision.trial, task.fold, self._horizon(task), values)
        real = [value for epoch, value in known.items() if epoch <= decision.epochs and value is not None]
        best = max if self.asha.maximize else min
        self.results[decision.trial][task.fold] = best(real) if real else math.nan
        return True

    def _value(self, row: dict, folder: Path) -> float | None:
        if self.plan.metric not in row and "val_loss" in row:
            known = ", ".join(sorted(key for key in row if key.startswith("val_")))
            raise UserError(f"--metric: found {self.plan.metric}, expected one that {folder} records: {known}")
        value = row.get(self.plan.metric)
        return value if value is not None and math.isfinite(value) else None

    def _final_reason(self, ended: Ended, task: Task) -> str:
        """Why another try would end the same; "" where it may not."""
        failed = self.run_dir(task) / "failed.json"
        if failed.exists():
            return f"diverged: {json.loads(failed.read_text())['reason']}"
        output = ended.handle.output()
        if ended.code != 0 and OUT_OF_MEMORY.search(output):
            return "out of memory"
        if ended.code == USER_ERROR:
            lines = output.strip().splitlines()
            return lines[-1].removeprefix("error: ") if lines else "exit code 2"
        return ""

    def _settle(self, trial: int) -> None:
        """Report a trial whose inner folds are all done."""
        done = self.results[trial]
        if len(done) < len(self.plan.inner_folds):
            return
        decision = self.asha.current_job(trial)
        score = statistics.fmean(done[fold] for fold in self.plan.inner_folds)
        if math.isfinite(score):
            self.asha.report(trial, score)
            self.ledger.ended(decision, score)
            self.say(f"trial {trial}: {self.plan.metric} {score:.4f} at epoch {decision.epochs}")
        else:
            self._record_failure(decision, f"{self.plan.metric} is not a number")

    def _fail(self, task: Task, reason: str) -> None:
        """Give the trial the worst score, and end what still runs or waits of it."""
        trial = task.decision.trial
        for handle in self.launcher.running():
            other = self.running.get(handle.token)
            if other and other.decision.trial == trial:
                self.launcher.kill(handle)
                self.ledger.attempt_ended(self.running.pop(handle.token).attempt, INTERRUPTED)
        self.waiting = deque(other for other in self.waiting if other.decision.trial != trial)
        self._record_failure(task.decision, reason)
        if reason.startswith("diverged") or any(trial.scores and not trial.failed for trial in self.asha.trials):
            return
        self.refused += 1
        if self.refused >= HOPELESS:
            raise UserError(f"the first {self.refused} trials all failed, the last one with: {reason}")

    def _record_failure(self, decision: Decision, reason: str) -> None:
        self.asha.fail(decision.trial, reason)
        self.ledger.ended(decision, None, reason)
        self.say(f"trial {decision.trial}: scored worst: {reason}")

    def _name(self, task: Task) -> str:
        fold = f", inner fold {task.fold}" if len(self.plan.inner_folds) > 1 else ""
        return f"trial {task.decision.trial}{fold}"
