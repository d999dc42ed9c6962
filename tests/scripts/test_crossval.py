"""crossval.py from its command line: flags, folders, and real runs that are killed."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
import stand_in
from stand_in_queue import ALL, FakeLauncher, run_script, what, work

import crossval
from meshnet import errors
from meshnet.crossval import results
from meshnet.crossval.plan import planned_runs, run_folder
from meshnet.errors import UserError
from meshnet.files import write_text
from meshnet.runs.folder import read_metrics


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


@pytest.mark.parametrize(("words", "said"), [
    (("--nonsense",), "required: --out"), (("--out", "x", "--nonsense"), "--data and --recipes: expected both"),
    (("--out", "x", "--report", "--nonsense"), "--nonsense: not used by --report"),
    (("--out", "x", "--launcher", "slurn"), "--launcher: invalid choice: 'slurn'"),
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
