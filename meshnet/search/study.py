"""A search while it runs: ``asha`` decides what to do, a launcher does it, ``ledger`` records the outcome.

A decision of the algorithm (train trial t to epoch e) becomes one run of ``train.py`` for each inner fold, in a run
folder of its own. The outcome is read from the run folder, never from the exit code alone, so it does not matter
whether this driver or an earlier one started the run.

* ``metrics.jsonl`` reaches the rung, or ``DONE`` says that the run stopped early: the run is done.
* ``failed.json`` (diverged), output that says "out of memory", or exit code 2: the trial gets the worst score at once,
  with the reason.
* the surroundings failed (exit code 4, a full disk, a fault in mapped memory): no trial pays for it. The run is tried
  again after a pause; when that happens several times in a row, or the disk is full, the study stops with that message
  and goes on where it was once the surroundings are right again.
* anything else (killed, silent, node lost): the run is retried from its last resume point, at most ``max_retries``
  times; then the trial gets the worst score.

The score of a rung is the mean over inner folds of the best value of the metric up to that rung's epoch, since
``train.py`` also keeps the weights with the best validation score.
"""

import json
import math
import re
import signal
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshnet.errors import OUT_OF_MEMORY, USER_ERROR, UserError
from meshnet.files import write_text
from meshnet.runs.folder import DONE, FAILED, read_metrics
from meshnet.runs.jobs import NO_SPACE, Ended, Job, Launcher, Trouble, is_retried, surroundings_of
from meshnet.search.asha import Asha, Decision
from meshnet.search.belief import Watch
from meshnet.search.ledger import Ledger
from meshnet.search.settings import refuse_other_trial

DRIVER_DIED = "the driver died"
INTERRUPTED = "interrupted"
DISK_FULL = "the disk is full"
AROUND = "the surroundings failed"
FORGIVEN = (DRIVER_DIED, INTERRUPTED, DISK_FULL, AROUND)  # not the run's fault: not counted as failures
NO_MEMORY = re.compile(r"out of memory|OutOfMemoryError|can't allocate memory|MemoryError|bad_alloc", re.IGNORECASE)
HOPELESS_TRIALS = 3  # the study stops after this many failures (other than divergence) without a single score


@dataclass(frozen=True)
class StudyPlan:
    """What all trials have in common.

    recipe: maps parameters and horizon (epochs of the schedule) to the text of a complete recipe. arguments: those of
    train.py besides recipe, run folder, inner fold and stop epoch. metric: a key of metrics.jsonl.
    own_schedule: each rung is a separate run with its own schedule.
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
    check: Callable[[], None] = lambda: None  # called before each run, ends the study where it must not go on


@dataclass
class TrialRun:
    """The run of one inner fold of a decision. ``attempt`` is its number in the ledger."""

    decision: Decision
    fold: int
    attempt: int = 0


@dataclass
class Study:
    """A running search. Call ``step`` until it returns True; ``stop`` may be called at any time."""

    plan: StudyPlan
    asha: Asha
    ledger: Ledger
    launcher: Launcher
    suggest: Callable[[int], dict]
    say: Callable[[str], None] = print
    watch: Watch | None = None  # finds what the model believes, for people to see
    waiting: deque[TrialRun] = field(default_factory=deque)
    running: dict[str, TrialRun] = field(default_factory=dict)  # by the handle's token
    results: dict[int, dict[int, float]] = field(default_factory=dict)  # trial → fold → score at the current rung
    refused: int = 0
    trouble: Trouble = field(default_factory=Trouble)
    ended_by: int = signal.SIGINT  # the signal that interrupted it

    # ---------------------------------------------------------------- beginning and end
    def resume(self) -> None:
        """Continue where an earlier driver stopped: adopt runs that are still running, queue the others."""
        self.ledger.rebuild(self.asha)
        opened = {}
        for number, trial, rung, fold, identity in self.ledger.open_attempts():
            opened[trial, rung, fold] = (number, identity)
        for trial in self.asha.trials:
            if not trial.running:
                continue
            decision = self.asha.current_decision(trial.number)
            self.results[trial.number] = {}
            for fold in self.plan.inner_folds:
                run = TrialRun(decision, fold)
                number, identity = opened.pop((trial.number, trial.rung, fold), (0, None))
                handle = self.launcher.adopt(self._job(run), identity) if identity else None
                if handle:
                    run.attempt = number
                    self.running[handle.token] = run
                    self.say(f"{self._name(run)}: still running on {handle.where}; adopted")
                    continue
                if number:
                    self.ledger.attempt_ended(number, DRIVER_DIED)
                if not self._finished(run):
                    self.waiting.append(run)
                    self.say(f"{self._name(run)}: continues from its last resume point")
        for (trial, rung, fold), (number, identity) in opened.items():  # of trials that failed on another inner fold
            run = TrialRun(Decision(trial, rung, self.asha.rungs[rung], 0), fold)
            handle = self.launcher.adopt(self._job(run), identity)
            if handle:
                self.launcher.kill(handle)
            self.ledger.attempt_ended(number, DRIVER_DIED)
        for trial in [trial.number for trial in self.asha.trials if trial.running]:
            self._settle(trial)

    def step(self) -> bool:
        """Handle runs that ended, fill the free slots; True when the study is done. Never waits."""
        for ended in self.launcher.poll():
            self._handle_end(ended)
        while self.launcher.free() > 0 and (run := self._next()) is not None:
            self._start(run)
        return not self.running and not self.waiting and self.asha.done()

    def stop(self, patience: float) -> None:
        """End every run; the study can be resumed later."""
        if patience > 0:
            self.launcher.ask_all()
        for handle in self.launcher.running():
            self.launcher.kill(handle, patience)
            run = self.running.pop(handle.token, None)
            if run:  # None: it was started, but could not be recorded in the ledger
                self.ledger.attempt_ended(run.attempt, INTERRUPTED)

    # ---------------------------------------------------------------- one run
    def run_dir(self, run: TrialRun) -> Path:
        """The run folder: one for each inner fold and, with ``own_schedule``, for each rung."""
        name = f"fold{run.fold}"
        if self.plan.own_schedule:
            name += f"-epochs{run.decision.epochs}"
        return self.trial_dir(run.decision.trial) / name

    def trial_dir(self, trial: int) -> Path:
        """The folder of one trial."""
        return self.plan.folder / "trials" / f"{trial:05d}"

    def _horizon(self, run: TrialRun) -> int:
        return run.decision.epochs if self.plan.own_schedule else self.asha.rungs[-1]

    def _job(self, run: TrialRun) -> Job:
        run_dir = self.run_dir(run)
        arguments = (
            "--recipe", str(self._recipe_path(run)), "--inner_fold", str(run.fold), "--run_dir", str(run_dir),
            "--stop_epoch", str(run.decision.epochs), *self.plan.arguments,
        )
        return Job(self.plan.script, arguments, run_dir, run_dir / "output.log", self.plan.silent_after)

    def _recipe_path(self, run: TrialRun) -> Path:
        name = f"recipe-epochs{run.decision.epochs}.yaml" if self.plan.own_schedule else "recipe.yaml"
        return self.trial_dir(run.decision.trial) / name

    def _next(self) -> TrialRun | None:
        if self.trouble.waits():
            return None
        if self.waiting:
            return self.waiting.popleft()
        decision = self.asha.next_decision(self.suggest)
        if decision is None:
            return None
        self.ledger.started(decision, self.asha)
        self.results[decision.trial] = {}
        self.waiting.extend(TrialRun(decision, fold) for fold in self.plan.inner_folds)
        return self.waiting.popleft()

    def _start(self, run: TrialRun) -> None:
        self.plan.check()
        path = self._recipe_path(run)
        try:
            text = self.plan.recipe(self.asha.trials[run.decision.trial].parameters, self._horizon(run))
        except UserError as error:  # a point that cannot be, drawn by an earlier version
            self._fail(run, str(error))
            return
        if path.exists():
            refuse_other_trial(path, text)
        else:
            write_text(path, text)
        handle = self.launcher.submit(self._job(run))
        run.attempt = self.ledger.attempt(run.decision, run.fold, handle.where, handle.identity())
        self.running[handle.token] = run

    # ---------------------------------------------------------------- how it ended
    def _handle_end(self, ended: Ended) -> None:
        run = self.running.pop(ended.handle.token, None)
        if run is None:  # its trial has failed in this same step
            return
        finished = self._finished(run)
        if not finished and (line := self._surroundings(ended, run)):
            self._put_off(ended, run, line)
            return
        reason = "" if finished else self._final_reason(ended, run)
        why = "" if finished else reason or ended.reason or "ended before its rung"
        self.ledger.attempt_ended(run.attempt, why, ended.handle.where)
        if finished:
            self.trouble.over()
            self._settle(run.decision.trial)
        elif reason:
            self._fail(run, reason)
        else:
            failures = self.ledger.failures(run.decision, run.fold, FORGIVEN)
            # What is hopeless is already known, divergence from failed.json.
            if is_retried(ended.code, failures, self.plan.max_retries, hopeless=()):
                self.say(f"{self._name(run)}: {why} on {ended.handle.where}; attempt {failures + 1} continues from its "
                         "last resume point")
                self.waiting.appendleft(run)
            else:
                self._fail(run, f"{why}, {failures} times" if failures > 1 else why)

    def _surroundings(self, ended: Ended, run: TrialRun) -> str:
        """What around a run ended it, in one line; "" where it was the run itself, or may have been."""
        return "" if (self.run_dir(run) / FAILED).exists() else surroundings_of(ended)

    def _put_off(self, ended: Ended, run: TrialRun, line: str) -> None:
        """Keep a run open that its surroundings ended, to be tried again.

        Raises:
            UserError: where the disk is full, or the surroundings have failed several runs in a row.
        """
        full = NO_SPACE.search(line)
        self.ledger.attempt_ended(run.attempt, DISK_FULL if full else AROUND, ended.handle.where)
        if full:
            raise UserError(f"{ended.handle.job.log}: {DISK_FULL} on {ended.handle.where}; free some space, then "
                            "run the same command again")
        self.waiting.appendleft(run)
        seconds = self.trouble.add(ended.handle.since, line)
        self.say(f"{self._name(run)}: ended, not by its own fault: {line}; tried again in {seconds:.0f} s")

    def _finished(self, run: TrialRun) -> bool:
        """Record the scores of the run folder; whether the run is done. Its score is then in ``results``."""
        folder, decision = self.run_dir(run), run.decision
        rows = read_metrics(folder)[: decision.epochs]
        values = [(row["epoch"], self._value(row, folder), row.get("seconds")) for row in rows]
        if len(rows) < decision.epochs and not (folder / DONE).exists():
            return False
        known = self.ledger.record_scores(decision.trial, run.fold, self._horizon(run), values)
        self.asha.trials[decision.trial].pace = self.ledger.pace(decision.trial)
        real = [value for epoch, value in known.items() if epoch <= decision.epochs and value is not None]
        best = max if self.asha.maximize else min
        self.results[decision.trial][run.fold] = best(real) if real else math.nan
        return True

    def _value(self, row: dict, folder: Path) -> float | None:
        if self.plan.metric not in row and "val_loss" in row:
            known = ", ".join(sorted(key for key in row if key.startswith("val_")))
            raise UserError(f"--metric: found {self.plan.metric}, expected one that {folder} records: {known}")
        value = row.get(self.plan.metric)
        return value if value is not None and math.isfinite(value) else None

    def _final_reason(self, ended: Ended, run: TrialRun) -> str:
        """Why another attempt would end the same way; "" where it may not."""
        failed = self.run_dir(run) / FAILED
        if failed.exists():
            return f"diverged: {json.loads(failed.read_text())['reason']}"
        output = ended.handle.output()
        if ended.code == OUT_OF_MEMORY or (ended.code != 0 and NO_MEMORY.search(output)):
            return "out of memory"
        if ended.code == USER_ERROR:
            return ended.line or "exit code 2"
        return ""

    def _settle(self, trial: int) -> None:
        """Report the score of a trial once all its inner folds are done."""
        done = self.results[trial]
        if len(done) < len(self.plan.inner_folds):
            return
        decision = self.asha.current_decision(trial)
        score = statistics.fmean(done[fold] for fold in self.plan.inner_folds)
        if math.isfinite(score):
            self.asha.report(trial, score)
            self.ledger.ended(decision, score)
            self.say(f"trial {trial}: {self.plan.metric} {score:.4f} by epoch {decision.epochs}")
        else:
            self._record_failure(decision, f"{self.plan.metric} is not a number")

    def _fail(self, run: TrialRun, reason: str) -> None:
        """Give the trial the worst score, and drop its other runs, running or waiting."""
        trial = run.decision.trial
        for handle in self.launcher.running():
            other = self.running.get(handle.token)
            if other and other.decision.trial == trial:
                self.launcher.kill(handle)
                self.ledger.attempt_ended(self.running.pop(handle.token).attempt, INTERRUPTED)
        self.waiting = deque(other for other in self.waiting if other.decision.trial != trial)
        self._record_failure(run.decision, reason)
        if reason.startswith("diverged") or any(trial.scores and not trial.failed for trial in self.asha.trials):
            return
        self.refused += 1
        if self.refused >= HOPELESS_TRIALS:
            raise UserError(f"the first {self.refused} trials all failed, the last one with: {reason}")

    def _record_failure(self, decision: Decision, reason: str) -> None:
        self.asha.fail(decision.trial, reason)
        self.ledger.ended(decision, None, reason)
        self.say(f"trial {decision.trial}: failed ({reason}); it gets the worst score")

    def _name(self, run: TrialRun) -> str:
        fold = f", inner fold {run.fold}" if len(self.plan.inner_folds) > 1 else ""
        return f"trial {run.decision.trial}{fold}"
