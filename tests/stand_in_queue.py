"""A launcher that makes up what runs leave behind, and crossval.py with it."""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field

import made_up

import crossval
from meshnet.crossval.plan import is_trained, load_plan, planned_runs
from meshnet.runs.jobs import Ended


@dataclass
class FakeHandle:
    job: object

    since = float("inf")

    def output(self):
        return "error: the stand-in's own words"

    def identity(self):
        return {"run": str(self.job.run_dir)}


@dataclass
class FakeLauncher:
    """Does a job's work when polled; ``outcome(kind, name, attempt)`` gives its exit code, or raises."""

    slots: int = 2
    outcome: object = lambda kind, name, attempt: 0
    log: list = field(default_factory=list)
    handles: list = field(default_factory=list)
    adoptable: list = field(default_factory=list)
    closed: int = 0

    def free(self):
        return self.slots - len(self.handles)

    def running(self):
        return list(self.handles)

    def submit(self, job):
        assert self.free() > 0
        self.handles.append(FakeHandle(job))
        return self.handles[-1]

    def adopt(self, job, identity):
        return self.submit(job) if identity["run"] in self.adoptable else None

    def close(self, patience=0.0):
        self.handles.clear()
        self.closed += 1

    def poll(self):
        if not self.handles:
            return []
        handle = self.handles.pop(0)
        kind, name = what(handle.job)
        self.log.append((kind, name))
        code = self.outcome(kind, name, Counter(self.log)[kind, name])
        if code == 0:
            work(kind, handle.job)
        return [Ended(handle, code, "" if code == 0 else f"exit code {code}", 1.0)]


def what(job):
    """(kind, name) of a job."""
    name = f"{job.run_dir.parent.name}/{job.run_dir.name}"
    if job.script == "crossval.py":
        return "ensemble", name
    return "test" if "--test" in job.arguments else "train", name


def work(kind, job):
    """What train.py leaves behind."""
    out = job.run_dir.parents[2]
    plan, splits = load_plan(out), json.loads((out / "splits.json").read_text())
    name = f"{job.run_dir.parent.name}/{job.run_dir.name}"
    if kind == "ensemble":
        fold = int(job.arguments[-1])
    else:
        run = next(run for run in planned_runs(plan) if run.name == name)
        fold = run.fold
    rows = [made_up.case_row(subject, 0.5) for subject in splits["folds"][fold]["test"]]
    if kind == "train":
        made_up.make_run(out, plan, run, 0.4 + 0.1 * run.restart, rows)
        (job.run_dir / "test_cases.csv").unlink()
        return
    if kind == "test":
        assert is_trained(job.run_dir), "a run was scored before it was finished"
    made_up.write_cases(job.run_dir / "test_cases.csv", rows)


def run_script(place, monkeypatch, launcher, *more, recipes=("m5", "m6"), restarts="2"):
    """crossval.py on ``place``; its exit code."""
    monkeypatch.setattr("meshnet.runs.launch.make_launcher", lambda *_: launcher)
    monkeypatch.setattr(crossval.time, "sleep", lambda _: None)
    monkeypatch.setattr("meshnet.crossval.report.write_report", lambda out, *_: out / "report.html")
    given = ["--data", str(place / "data"), "--recipes", *(str(place / f"{name}.yaml") for name in recipes),
             "--restarts", restarts] if recipes else []
    monkeypatch.setattr(sys, "argv", ["crossval.py", "--out", str(place / "out"), *given, *more])
    return crossval.main()


ALL = {(kind, f"m{c}/fold{f}_restart{r}") for kind in ("train", "test") for c in (5, 6) for f in range(3)
       for r in range(2)}
