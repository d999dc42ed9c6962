"""The remaining work of a cross-validation, and the processes that do it."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from meshnet.crossval.plan import (
    Planned,
    ensemble_folder,
    is_scored,
    is_trained,
    planned_ensembles,
    planned_runs,
    run_folder,
    validation_dice,
)
from meshnet.display import Live, minutes
from meshnet.files import try_lock, write_json
from meshnet.runs.folder import LOCK, read_metrics
from meshnet.runs.jobs import Ended, Handle, Job, Launcher, Trouble, is_retried, surroundings_of

RETRIES = 2  # of a run that is killed from outside; a wrong flag or a diverging loss is not tried again
RUNNING = "running.json"
LOOK_SECONDS = 2.0
QueueItem = tuple[str, str]  # name of a run, and "train", "test" or "ensemble"


class Queue:
    """The work left to do. It is read from disk at every step, so it does not matter which call did what.

    Each item is one process of the launcher. ``given_up`` holds the items that failed for good, with the reason.
    """

    def __init__(self, plan: Mapping, out: Path, launcher: Launcher, silent_after: float, live: Live | None = None):
        self.plan, self.out, self.launcher = plan, out, launcher
        self.silent_after, self.live = silent_after, live or Live()
        self.looked, self.first, self.began = 0.0, None, time.monotonic()
        self.runs = planned_runs(plan)
        self.handles: dict[QueueItem, Handle] = {}
        self.attempts: dict[QueueItem, int] = {}
        self.given_up: dict[QueueItem, str] = {}
        self.trouble = Trouble()
        self.said = len([run for run in self.runs if self.complete(run)])
        if self.said:
            print(f"finished earlier: {self.said} of {len(self.runs)} runs", flush=True)

    def complete(self, run: Planned) -> bool:
        folder = run_folder(self.out, run)
        return is_trained(folder) and is_scored(folder)

    def items(self) -> list[QueueItem]:
        """The items that can be started now, in order: scoring finished runs, then training, then ensembles."""
        test, train, averaged = [], [], []
        for run in self.runs:
            folder = run_folder(self.out, run)
            if not is_trained(folder):
                train.append((run.name, "train"))
            elif not is_scored(folder):
                test.append((run.name, "test"))
        for model, fold, restarts in planned_ensembles(self.plan):
            members = [run for run in self.runs if (run.model, run.fold) == (model, fold)]
            folder = ensemble_folder(self.out, model, fold, restarts)
            if not is_scored(folder) and all(self.complete(run) for run in members):
                averaged.append((f"{model}/{folder.name}", "ensemble"))
        return [item for item in test + train + averaged if item not in self.given_up]

    def job(self, item: QueueItem) -> Job:
        """The process that does the work of an item."""
        name, kind = item
        folder, log = self.out / "runs" / name, self.out / "logs" / f"{name}.log"
        if kind == "ensemble":
            model, fold = name.split("/")
            number = fold.removeprefix("fold").partition("_")[0]
            flags = ("--out", str(self.out), "--score_ensemble", model, number)
            return Job("crossval.py", flags, folder, log, alone=True)
        if kind == "test":
            flags = ("--test", "--run_dir", str(folder), "--data", self.plan["data"])
            return Job("train.py", flags, folder, log, alone=True)
        run = next(run for run in self.runs if run.name == name)
        entry = self.plan["models"][run.model]
        flags = ("--recipe", entry["recipe"], "--data", self.plan["data"], "--fold", str(run.fold), "--inner_fold",
                 str(run.inner_fold), "--seed", str(run.seed), "--run_dir", str(folder), *entry["flags"])
        return Job("train.py", flags, folder, log, self.silent_after)

    def adopt(self) -> None:
        """Adopt processes that an earlier call started and that are still running."""
        path = self.out / RUNNING
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for name, kind, identity in found:
            handle = self.launcher.adopt(self.job((name, kind)), identity)
            if handle is not None:
                self.handles[name, kind] = handle
                print(f"{name}: still running; adopted", flush=True)

    def remember(self) -> None:
        """Record which processes are running, so that a later call can adopt them."""
        running = self.launcher.running()
        write_json(self.out / RUNNING, [[*item, handle.identity()] for item, handle in self.handles.items()
                                        if handle in running])

    def step(self) -> bool:
        """Handle processes that ended, start new ones; False when nothing is running and nothing is left.

        Raises:
            Surroundings: when the disk, the data set or another of the runs' surroundings failed several in a row.
        """
        for ended in self.launcher.poll():
            item = next(item for item, handle in self.handles.items() if handle is ended.handle)
            del self.handles[item]
            self.collect(item, ended)
            self.remember()
        # A run may be trained or scored before its process is seen to end: one process at a time in each folder.
        busy = {name for name, _ in self.handles}
        todo = [item for item in self.items() if item[0] not in busy]
        waiting = 0
        for item in todo:
            if not self.launcher.free() or self.trouble.waits():
                break
            if item[1] == "train" and is_held(self.out / "runs" / item[0]):
                waiting += 1  # a killed call started it but could not record it: it will finish by itself
                continue
            self.handles[item] = self.launcher.submit(self.job(item))
            self.remember()
        return bool(self.handles or waiting or len(todo) > waiting)

    def show(self) -> None:
        """Show what is running and how long the rest will take, at the epochs in a second since this start."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        most = {run.name: self.plan["models"][run.model]["config"]["training.max_epochs"] for run in self.runs}
        epochs = {run.name: (len(read_metrics(run_folder(self.out, run))), most[run.name]) for run in self.runs
                  if not is_trained(run_folder(self.out, run))}
        missing = sum(whole - n for n, whole in epochs.values())
        done = sum(most.values()) - missing
        self.first = done if self.first is None else self.first
        left = ""
        if done > self.first:
            left = f"  about {minutes((now - self.began) / (done - self.first) * missing)} left"
        running = [f"{name} " + ("epoch {}/{}".format(*epochs[name]) if kind == "train" and name in epochs else kind)
                   for name, kind in self.handles]
        self.live.show(f"{self.said} of {len(self.runs)} runs done  {', '.join(running)}{left}")

    def collect(self, item: QueueItem, ended: Ended) -> None:
        """Report how an item ended, and note it if it will not be tried again."""
        name, kind = item
        folder = self.out / "runs" / name
        done = is_trained(folder) if kind == "train" else is_scored(folder)
        if done and kind == "test":
            self.said += 1
            self.live.say(f"[{self.said}/{len(self.runs)}] {name}: validation Dice {validation_dice(folder):.4f}")
        if done:
            self.trouble.over()
            return
        if line := surroundings_of(ended):
            seconds = self.trouble.add(ended.handle.since, line)
            self.live.say(f"{name}: {kind} ended, not by its own fault: {line}; trying again in {seconds:.0f} s")
            return
        self.attempts[item] = self.attempts.get(item, 0) + 1
        log = self.out / "logs" / f"{name}.log"
        reason = ended.reason or "ended without a result"
        if is_retried(ended.code, self.attempts[item], RETRIES):
            self.live.say(f"{name}: {kind} ended, {reason}; trying again")
        else:
            self.given_up[item] = reason
            self.live.clear()
            print(f"{name}: {kind} failed, {reason}: {ended.line or last_line(log)}; see {log}", file=sys.stderr,
                  flush=True)


def is_held(folder: Path) -> bool:
    """Whether a process is training in a run folder, that is, holds its lock."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
