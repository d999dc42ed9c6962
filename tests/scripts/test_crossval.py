"""The protocol: every run once, every test fold once, killed and gone on, and nothing changed on the way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import made_up
import numpy as np
import pytest
import stand_in

import crossval
from meshnet import errors
from meshnet.crossval import ensemble, results
from meshnet.crossval.plan import ensemble_folder, is_scored, is_trained, load_plan, planned_runs, run_folder
from meshnet.data.schema import PREPARED_KEYS
from meshnet.errors import UserError
from meshnet.files import write_json, write_text
from meshnet.recipe import load_recipes
from meshnet.runs.folder import read_metrics
from meshnet.runs.jobs import Ended


@dataclass
class FakeHandle:
    job: object

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


@pytest.fixture
def place(tmp_path):
    """A prepared data set's description, without volumes, and two recipes."""
    write_json(tmp_path / "data/prepared.json", dict.fromkeys(PREPARED_KEYS) | {
        "format_version": 1, "fingerprint": made_up.FINGERPRINT})
    write_json(tmp_path / "data/splits.json", made_up.splits_of())
    for channels in (5, 6):
        write_text(tmp_path / f"m{channels}.yaml", f"model: {{channels: {channels}}}\n")
    return tmp_path


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


def test_every_run_is_trained_once_and_scored_once(place, monkeypatch, capsys):
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher) == 0
    assert Counter(launcher.log) == dict.fromkeys(ALL, 1)
    assert "[12/12]" in capsys.readouterr().out
    # Every fold of every model comes before any second restart.
    first = [name for kind, name in launcher.log if kind == "train"][:6]
    assert all(name.endswith("restart0") for name in first)
    runs, missing, _ = results.read_runs(place / "out")
    assert (len(runs), missing) == (12, [])
    again = FakeLauncher()
    assert run_script(place, monkeypatch, again) == 0
    assert run_script(place, monkeypatch, again, recipes=()) == 0
    assert again.log == []


def test_a_run_is_called_with_what_the_plan_says(place, monkeypatch):
    jobs = []
    launcher = FakeLauncher()
    submit = launcher.submit
    launcher.submit = lambda job: (jobs.append(job), submit(job))[1]
    run_script(place, monkeypatch, launcher, "--optimizer.lr", "0.01", "--seed", "7", recipes=("m5",))
    job = next(job for job in jobs if what(job) == ("train", "m5/fold2_restart1"))
    arguments = " ".join(job.arguments)
    out = place / "out"
    assert job.script == "train.py"
    assert arguments == (f"--recipe {out}/recipes/m5.yaml --data {place}/data --fold 2 --inner_fold 0 --seed 8 "
                         f"--run_dir {out}/runs/m5/fold2_restart1 --optimizer.lr 0.01")
    assert job.silent_after == 3600
    test = next(job for job in jobs if what(job) == ("test", "m5/fold2_restart1"))
    assert " ".join(test.arguments) == f"--test --run_dir {out}/runs/m5/fold2_restart1 --data {place}/data"
    assert load_recipes([out / "recipes/m5.yaml"]).model.channels == 5


@pytest.mark.parametrize("after", [1, 7, 20])
def test_an_interrupted_call_goes_on_where_it_stopped(place, monkeypatch, after):
    def stop(kind, name, attempt):
        if len(first.log) == after:
            raise KeyboardInterrupt
        return 0

    first, second = FakeLauncher(outcome=stop), FakeLauncher()
    with pytest.raises(KeyboardInterrupt):
        run_script(place, monkeypatch, first)
    assert first.closed == 1
    assert json.loads((place / "out/running.json").read_text()) == []
    assert run_script(place, monkeypatch, second) == 0
    finished = first.log[:-1]  # the last one was cut off
    assert Counter(finished + second.log) == dict.fromkeys(ALL, 1)


def test_processes_that_outlived_a_killed_call_are_taken_up(place, monkeypatch, capsys):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    folder = place / "out/runs/m5/fold1_restart0"
    for name in ("DONE", "test_cases.csv"):
        (folder / name).unlink()
    write_json(place / "out/running.json", [["m5/fold1_restart0", "train", {"run": str(folder)}],
                                            ["m5/fold0_restart0", "train", {"run": "gone"}]])
    launcher = FakeLauncher(adoptable=[str(folder)])
    assert run_script(place, monkeypatch, launcher, recipes=()) == 0
    assert launcher.log == [("train", "m5/fold1_restart0"), ("test", "m5/fold1_restart0")]
    assert "m5/fold1_restart0: still running; adopted" in capsys.readouterr().out


def test_a_run_folder_that_a_lost_process_holds_is_waited_for(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    folder = place / "out/runs/m5/fold1_restart0"
    (folder / "DONE").unlink()
    (folder / "test_cases.csv").unlink()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = []

        def let_go(_):
            waits.append(1)
            if len(waits) == 3:
                fcntl.flock(lock, fcntl.LOCK_UN)

        launcher = FakeLauncher()
        monkeypatch.setattr("meshnet.runs.launch.make_launcher", lambda *_: launcher)
        monkeypatch.setattr(crossval.time, "sleep", let_go)
        monkeypatch.setattr(sys, "argv", ["crossval.py", "--out", str(place / "out")])
        assert crossval.main() == 0
    assert launcher.log == [("train", "m5/fold1_restart0"), ("test", "m5/fold1_restart0")]
    assert len(waits) >= 3


@pytest.mark.parametrize(("code", "attempts"), [(2, 1), (3, 1), (-9, 3), (1, 3), (None, 3)])
def test_a_failing_run_is_given_up_and_the_others_go_on(place, monkeypatch, capsys, code, attempts):
    bad = "m6/fold1_restart0"
    launcher = FakeLauncher(outcome=lambda kind, name, attempt: code if name == bad else 0)
    write_text(place / f"out/logs/{bad}.log", "epoch 1\nerror: the loss is nan\n\n")
    assert run_script(place, monkeypatch, launcher) == 1
    assert Counter(launcher.log)["train", bad] == attempts
    assert {name for _, name in launcher.log} == {name for _, name in ALL}
    said = capsys.readouterr()
    assert f"{bad}: train failed, exit code {code}: error: the loss is nan" in said.err
    assert "missing runs: 1 (the report lists them); the first: m6, fold 1, restart 0: not started" in said.out
    _, missing, _ = results.read_runs(place / "out")
    assert missing == ["m6, fold 1, restart 0: not started"]


def test_a_run_that_is_killed_once_is_tried_again(place, monkeypatch, capsys):
    launcher = FakeLauncher(outcome=lambda kind, name, attempt: -9 if attempt == 1 else 0)
    assert run_script(place, monkeypatch, launcher, recipes=("m5",), restarts="1") == 0
    assert set(Counter(launcher.log).values()) == {2}
    assert "trying again" in capsys.readouterr().out


def test_a_folder_has_one_process_at_a_time(place, monkeypatch):
    """A run is trained before its process is seen to end (on a cluster, seconds before): its scoring waits for that."""
    launcher = FakeLauncher(slots=20)
    submit = launcher.submit

    def works_at_once(job):
        assert job.run_dir not in [handle.job.run_dir for handle in launcher.handles]
        work(what(job)[0], job)
        return submit(job)

    launcher.submit = works_at_once
    launcher.outcome = lambda kind, name, attempt: 1  # the exit code does not matter, what is there does
    assert run_script(place, monkeypatch, launcher) == 0
    assert Counter(launcher.log) == dict.fromkeys(ALL, 1)


def test_ensembles_are_scored_after_all_their_restarts(place, monkeypatch):
    launcher = FakeLauncher(slots=20)  # room enough to start one too early
    assert run_script(place, monkeypatch, launcher, "--ensemble", recipes=("m5",)) == 0
    averaged = [i for i, (kind, _) in enumerate(launcher.log) if kind == "ensemble"]
    assert [launcher.log[i][1] for i in averaged] == [f"m5/fold{f}_ensemble2" for f in range(3)]
    for i, (_, name) in zip(averaged, (launcher.log[i] for i in averaged)):
        before = {n for kind, n in launcher.log[:i] if kind == "test"}
        assert {name.replace("ensemble2", f"restart{r}") for r in range(2)} <= before
    runs, _, _ = results.read_runs(place / "out")
    assert {run.model for run in runs} == {"m5", "m5 (ensemble)"}


def test_an_ensemble_of_more_restarts_is_another_and_a_missing_one_is_named(place, monkeypatch):
    """What two restarts gave must not stand in the report as what three give; once asked for, an ensemble is missed."""
    run_script(place, monkeypatch, FakeLauncher(), "--ensemble", recipes=("m5",))
    launcher = FakeLauncher()
    launcher.outcome = lambda kind, name, attempt: None if kind == "ensemble" and "fold1" in name else 0
    assert run_script(place, monkeypatch, launcher, "--restarts", "3", recipes=("m5",)) == 1
    assert {name for kind, name in launcher.log if kind == "ensemble"} == {f"m5/fold{f}_ensemble3" for f in range(3)}
    runs, missing, _ = results.read_runs(place / "out")
    assert sorted(run.fold for run in runs if run.model == "m5 (ensemble)") == [0, 2]
    assert missing == ["m5, fold 1, ensemble of 3: not scored"]


def test_an_ensemble_averages_the_probabilities_of_the_restarts(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",))
    out, asked = place / "out", []

    class Data:
        def __init__(self, path):
            self.path = Path(path)

        def indices(self, subjects):
            assert subjects == ["s04", "s05", "s06", "s07"]
            return [4]

        def image(self, index):
            return index

    monkeypatch.setattr(ensemble, "PreparedData", Data)
    monkeypatch.setattr(ensemble.build, "load_model", lambda folder: (int(folder.name[-1]), {"threshold": 0.5}))
    monkeypatch.setattr(ensemble.predict, "predict", lambda network, image: np.full((2, 1, 1, 1), 0.2 + 0.6 * network))
    monkeypatch.setattr(ensemble, "score_probabilities",
                        lambda mean, card, data, index: (asked.append((mean, index)), made_up.case_row("s04", 0.5))[1])
    assert ensemble.score_ensemble(out, "m5", 1) == 0
    assert asked[0][1] == 4
    assert asked[0][0] == pytest.approx(0.5)
    assert is_scored(ensemble_folder(out, "m5", 1, 2))
    (out / "runs/m5/fold1_restart0/DONE").unlink()
    with pytest.raises(UserError, match="found no finished run"):
        ensemble.score_ensemble(out, "m5", 1)


# ---------------------------------------------------------------------------------------------------------------------
# What may change and what may not

def test_recipes_and_restarts_may_be_added(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher, recipes=("m6", "m5"), restarts="2") == 0
    assert Counter(launcher.log) == dict.fromkeys(ALL - {(k, f"m5/fold{f}_restart0") for k in ("train", "test")
                                                         for f in range(3)}, 1)


@pytest.mark.parametrize(("words", "said"), [
    (("--nonsense",), "required: --out"), (("--out", "x", "--nonsense"), "--data and --recipes: expected both"),
    (("--out", "x", "--report", "--nonsense"), "--nonsense: not used by --report"),
    (("--out", "x", "--launcher", "slurm"), "--launcher: invalid choice: 'slurm'"),
    (("--out", "x", "--score_ensemble", "m5", "one"), "--score_ensemble: found fold 'one'"),
    (("--out", "x", "--data", "d", "--recipes", "r.yaml", "--nonsense"), "d: found no prepared.json"),
])
def test_wrong_flags_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["crossval.py", *words])
    with pytest.raises(SystemExit) as left:
        errors.run_script(crossval.main)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error, error


def test_a_flag_that_nothing_knows_is_refused(place, monkeypatch):
    with pytest.raises(UserError, match="unrecognized arguments: --nonsense"):
        run_script(place, monkeypatch, FakeLauncher(), "--nonsense")


@pytest.mark.parametrize(("flags", "message"), [
    (("--optimizer.lr", "0.5"), r"m5 was started with other settings: optimizer.lr was 0.001 and is now 0.5"),
    (("--seed", "3"), "started with --seed 0, found 3")])
def test_a_changed_configuration_is_refused(place, monkeypatch, flags, message):
    run_script(place, monkeypatch, FakeLauncher())
    launcher = FakeLauncher()
    with pytest.raises(UserError, match=message):
        run_script(place, monkeypatch, launcher, *flags)
    assert launcher.log == []


def test_an_edited_recipe_is_refused(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    write_text(place / "m5.yaml", "model: {channels: 7}\n")
    with pytest.raises(UserError, match=r"m5 was started with other settings: model.channels was 5 and is now 7"):
        run_script(place, monkeypatch, FakeLauncher())


def test_other_splits_or_data_are_refused(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    write_json(place / "data/splits.json", made_up.splits_of(3, 5))
    with pytest.raises(UserError, match="started with splits"):
        run_script(place, monkeypatch, FakeLauncher())
    write_json(place / "data/splits.json", made_up.splits_of())
    write_json(place / "data/prepared.json", json.loads((place / "data/prepared.json").read_text()) | {
        "fingerprint": "other"})
    with pytest.raises(UserError, match="started with data set"):
        run_script(place, monkeypatch, FakeLauncher())


def test_a_planted_leak_is_refused_before_anything_starts(place, monkeypatch):
    splits = made_up.splits_of()
    splits["folds"][2]["inner"][0]["train"].append(splits["folds"][2]["test"][0])
    write_json(place / "data/splits.json", made_up.hashed(splits))
    launcher = FakeLauncher()
    with pytest.raises(UserError, match="subject s08 is in both test and train of fold 2"):
        run_script(place, monkeypatch, launcher)
    assert launcher.log == []
    assert not (place / "out/crossval.json").exists()


@pytest.mark.parametrize(("more", "recipes", "restarts", "message"), [
    ((), ("m5", "m5"), "1", "found two files called m5"),
    ((), ("m5",), "0", r"--restarts: found \[0\]"),
    (("--optimizer.lrr", "1"), ("m5",), "1", "optimizer.lrr"),
    (("--stop_epoch", "1"), ("m5",), "1", "stop_epoch"),
    (("--inner_fold", "4"), ("m5",), "1", "--inner_fold: found 4"),
    ((), (), "1", "--data and --recipes: expected both"),
    (("--report",), (), "1", "found no crossval.json"),
    (("--report", "--optimizer.lr", "1"), (), "1", "not used by --report"),
])
def test_wrong_flags_end_in_one_line(place, monkeypatch, more, recipes, restarts, message):
    monkeypatch.undo()
    if "--report" in more:
        monkeypatch.setattr(sys, "argv", ["crossval.py", "--out", str(place / "out"), *more])
        with pytest.raises(UserError, match=message):
            crossval.main()
        return
    with pytest.raises(UserError, match=message):
        run_script(place, monkeypatch, FakeLauncher(), *more, recipes=recipes, restarts=restarts)
    assert not (place / "out/crossval.json").exists()


def test_restarts_are_the_papers_unless_given(place, monkeypatch):
    write_text(place / "seg.yaml", "model: {name: segresnet}\n")
    monkeypatch.setattr(sys, "argv", ["crossval.py"])
    for given, expected in (([], {"m5": 10, "seg": 1}), (["--restarts", "3", "2"], {"m5": 3, "seg": 2})):
        arguments, rest = crossval.make_parser().parse_known_args(
            ["--out", "x", "--recipes", str(place / "m5.yaml"), str(place / "seg.yaml"), *given])
        models = crossval.plan_models(arguments, rest, place / "out")
        assert {name: entry["restarts"] for name, entry in models.items()} == expected


def test_a_second_call_in_the_same_folder_is_refused(place, monkeypatch):
    with crossval.hold(place / "out"), pytest.raises(UserError, match="another crossval"):
        run_script(place, monkeypatch, FakeLauncher())


def test_help_answers_without_torch(root):
    code = ("import sys, crossval; sys.argv = ['crossval.py', '--help']\n"
            "try: crossval.main()\nexcept SystemExit: pass\n"
            "assert not {'torch', 'matplotlib', 'scipy', 'datasets'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--restarts" in done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# The real thing

TINY = """model: {{name: meshnet, channels: {}, dilations: [1, 2]}}
optimizer: {{lr: 0.02}}
training: {{max_epochs: 3}}
data: {{workers: 0}}
"""


def wait_for(condition, process, seconds=240):
    """Wait until ``condition`` holds while ``process`` runs."""
    stand_in.wait_for(lambda: condition() or process.poll() is not None, seconds)
    if not condition():
        raise RuntimeError(f"not reached, exit code {process.poll()}")


def script(root, *arguments):
    """A command line of one of the root's scripts."""
    return [sys.executable, str(root / arguments[0]), *map(str, arguments[1:])]


@pytest.fixture(scope="module")
def nine_cases(tmp_path_factory, root):
    """Nine synthetic cases at 8 mm, in three outer folds."""
    folder = tmp_path_factory.mktemp("nine") / "data"
    subprocess.run(script(root, "prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 8, "--out", folder),
                   check=True, capture_output=True)
    return folder


@pytest.mark.kills
@pytest.mark.slow
def test_real_runs_killed_twice_end_in_a_whole_report(nine_cases, tmp_path, root):
    recipes = []
    for name, channels in (("small", 3), ("large", 5)):
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(TINY.format(channels))
    out = tmp_path / "out"
    command = script(root, "crossval.py", "--data", nine_cases, "--recipes", *recipes, "--restarts", 2, "--workers", 2,
                     "--out", out, "--ensemble")
    with open(tmp_path / "first.log", "w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: len(list(out.glob("runs/*/*/DONE"))) >= 2, first)
        os.kill(first.pid, signal.SIGKILL)  # its runs live on, and are taken up
        first.wait()
        second = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: len(list(out.glob("runs/*/*/test_cases.csv"))) >= 5, second)
        for _, _, identity in json.loads((out / "running.json").read_text()):
            os.kill(identity["pid"], signal.SIGKILL)  # the machine takes two runs away
        os.kill(second.pid, signal.SIGKILL)
        second.wait()
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    runs, missing, plan = results.read_runs(out)
    assert missing == []
    assert Counter(run.model for run in runs) == {"small": 6, "large": 6, "small (ensemble)": 3, "large (ensemble)": 3}
    for run in planned_runs(plan):
        folder = run_folder(out, run)
        assert [row["epoch"] for row in read_metrics(folder)] == [1, 2, 3]
        log = (out / "logs" / f"{run.name}.log").read_text()
        assert log.count("mean lesion Dice") <= 1  # the test fold was read once
    page = (out / "report/report.html").read_text()
    assert "Missing runs" not in page
    assert page.count("data:image/png;base64,") == 4 + 9
    changed = subprocess.run([*command, "--optimizer.lr", "0.5"], capture_output=True, text=True)
    assert changed.returncode == 2
    assert "optimizer.lr was 0.02 and is now 0.5" in changed.stderr


@pytest.mark.kills
@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node(nine_cases, tmp_path, root):
    """Three folds and two restarts on two nodes, one killed while both train, another joining: nothing is missing."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install -r requirements-ray.txt")
    from ray.cluster_utils import Cluster

    recipe, out = tmp_path / "small.yaml", tmp_path / "out"
    recipe.write_text(TINY.format(3).replace("max_epochs: 3", "max_epochs: 40"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    try:
        process = subprocess.Popen(
            script(root, "crossval.py", "--data", nine_cases, "--recipes", recipe, "--restarts", 2, "--out", out,
                   "--ensemble", "--launcher", "ray", "--ray_address", cluster.address, "--workers", 2),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        training = lambda: [path for path in out.glob("runs/small/*/heartbeat") if not (path.parent / "DONE").exists()]
        lost = ""
        while "goes on" not in lost:  # a run may end in the moment of the kill: then another node dies
            wait_for(lambda: len(training()) >= 2, process)
            cluster.remove_node(doomed, allow_graceful=False)
            doomed = cluster.add_node(num_cpus=1)
            lost = next(line for line in process.stdout if "goes on" in line or line.startswith("["))
        output = lost + process.communicate(timeout=600)[0]
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    runs, missing, plan = results.read_runs(out)
    assert missing == [] and Counter(run.model for run in runs) == {"small": 6, "small (ensemble)": 3}
    for run in planned_runs(plan):
        assert [row["epoch"] for row in read_metrics(run_folder(out, run))] == list(range(1, 41))
    # What came from the cluster is what train.py makes here.
    subprocess.run(script(root, "train.py", "--recipe", recipe, "--data", nine_cases, "--fold", 1, "--seed", 1,
                          "--run_dir", tmp_path / "here"), check=True, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "here" / name).read_bytes() == (out / "runs/small/fold1_restart1" / name).read_bytes()
