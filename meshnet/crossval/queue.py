"""What is left to do of a cross-validation, and the processes that do it."""

import fcntl
import json
import os
import sys
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
from meshnet.files import write_json
from meshnet.runs.jobs import Ended, Handle, Job, Launcher

ATTEMPTS = 3    # of a run that is killed from outside; a wrong flag or a diverging loss is not tried again
FATAL = (2, 3)  # exit codes of train.py for those
RUNNING = "running.json"
Task = tuple[str, str]  # name of a run, and "train", "test" or "ensemble"


class Queue:
    """What is to be done, read off the disk anew at every step, so that it does not matter who did it and when.

    Each task is one process of the launcher. ``given_up`` holds the tasks that failed for good, with the reason.
    """

    def __init__(self, plan: Mapping, out: Path, launcher: Launcher, silent_after: float):
        self.plan, self.out, self.launcher = plan, out, launcher
        self.silent_after = silent_after
        self.runs = planned_runs(plan)
        self.handles: dict[Task, Handle] = {}
        self.attempts: dict[Task, int] = {}
        self.given_up: dict[Task, str] = {}
        self.said = len([run for run in self.runs if self.complete(run)])
        if self.said:
            print(f"{self.said} of {len(self.runs)} run(s) are there already", flush=True)

    def complete(self, run: Planned) -> bool:
        folder = run_folder(self.out, run)
        return is_trained(folder) and is_scored(folder)

    def tasks(self) -> list[Task]:
        """What can be started now, in order: scoring finished runs first, then training, then ensembles."""
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
        return [task for task in test + train + averaged if task not in self.given_up]

    def job(self, task: Task) -> Job:
        """The process that does a task."""
        name, kind = task
        folder, log = self.out / "runs" / name, self.out / "logs" / f"{name}.log"
        if kind == "ensemble":
            model, fold = name.split("/")
            number = fold.removeprefix("fold").partition("_")[0]
            flags = ("--out", str(self.out), "--score_ensemble", model, number)
            return Job("crossval.py", flags, folder, log)
        if kind == "test":
            return Job("train.py", ("--test", "--run_dir", str(folder), "--data", self.plan["data"]), folder, log)
        run = next(run for run in self.runs if run.name == name)
        entry = self.plan["models"][run.model]
        flags = ("--recipe", entry["recipe"], "--data", self.plan["data"], "--fold", str(run.fold), "--inner_fold",
                 str(run.inner_fold), "--seed", str(run.seed), "--run_dir", str(folder), *entry["flags"])
        return Job("train.py", flags, folder, log, self.silent_after)

    def adopt(self) -> None:
        """Take up processes that an earlier call started and that still run."""
        path = self.out / RUNNING
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for name, kind, identity in found:
            handle = self.launcher.adopt(self.job((name, kind)), identity)
            if handle is not None:
                self.handles[name, kind] = handle
                print(f"{name}: still running, taken up again", flush=True)

    def remember(self) -> None:
        """Write down which processes run, so that a later call finds them."""
        running = self.launcher.running()
        write_json(self.out / RUNNING, [[*task, handle.identity()] for task, handle in self.handles.items()
                                        if handle in running])

    def step(self) -> bool:
        """Collect what ended, start what fits; False when nothing runs and nothing is left."""
        for ended in self.launcher.poll():
            task = next(task for task, handle in self.handles.items() if handle is ended.handle)
            del self.handles[task]
            self.collect(task, ended)
            self.remember()
        # A run may be trained, or scored, before its process is seen to end: one process a folder at a time.
        busy = {name for name, _ in self.handles}
        todo = [task for task in self.tasks() if task[0] not in busy]
        waiting = 0
        for task in todo:
            if not self.launcher.free():
                break
            if task[1] == "train" and is_held(self.out / "runs" / task[0]):
                waiting += 1  # a process of a killed call that was not written down yet: it will finish by itself
                continue
            self.handles[task] = self.launcher.submit(self.job(task))
            self.remember()
        return bool(self.handles or waiting or len(todo) > waiting)

    def collect(self, task: Task, ended: Ended) -> None:
        """Say how a task ended; note the ones that will not be tried again."""
        name, kind = task
        folder = self.out / "runs" / name
        done = is_trained(folder) if kind == "train" else is_scored(folder)
        if done and kind == "test":
            self.said += 1
            print(f"[{self.said}/{len(self.runs)}] {name}: validation Dice {validation_dice(folder):.4f}",
                  flush=True)
        if done:
            return
        self.attempts[task] = self.attempts.get(task, 0) + 1
        log = self.out / "logs" / f"{name}.log"
        reason = ended.reason or "ended without a result"
        if ended.code in FATAL or self.attempts[task] >= ATTEMPTS:
            self.given_up[task] = reason
            print(f"{name}: {kind} failed, {reason}: {last_line(log)}; see {log}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: {kind} ended, {reason}; goes on", flush=True)


def is_held(folder: Path) -> bool:
    """Whether some process trains in a run folder (it holds the folder's lock)."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
