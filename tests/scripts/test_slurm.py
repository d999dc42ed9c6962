"""Real SLURM on this machine: a search, a cross-validation and an array, through everything a cluster does to them."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, needs_slurm
from stand_in import DRIVER, check_accounts, runs_of, wait_for

pytestmark = pytest.mark.slow
QUICK = "    from meshnet.runs import slurm\n    slurm.SQUEUE_SECONDS = 2.0\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    needs_slurm()
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def at_home(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])


def another(cluster, seen: set[int]) -> int:
    """The number of a running job that nothing was done to yet."""
    number = wait_for(lambda: [n for n in cluster.jobs("RUNNING") if n not in seen], seconds=300, pause=0.5)[0]
    seen.add(number)
    return number


def trainer_of(cluster, number: int) -> int:
    """The process of a job's run."""
    script = Path(re.search(r"Command=(\S+)", cluster.ask("scontrol", "show", "job", number))[1])
    return wait_for(lambda: runs_of(script.parent), seconds=120)[0]


def cancel(cluster, number: int) -> None:
    cluster.ask("scancel", number)


def preempt(cluster, number: int) -> None:
    cluster.ask("sbatch", "-p", "high", "--exclusive", "-J", "other", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: number not in cluster.jobs("RUNNING", "COMPLETING"), seconds=120, pause=0.5)


def outlast(cluster, number: int) -> None:
    """Take a job over its time limit."""
    os.kill(trainer_of(cluster, number), signal.SIGSTOP)  # it would be done before
    cluster.ask("scontrol", "update", f"JobId={number}", "TimeLimit=1")
    wait_for(lambda: number not in cluster.jobs("RUNNING", "COMPLETING"), seconds=240, pause=1)


def through_the_worst(cluster, seen: set[int], what) -> int:
    """The number of a job whose run had begun when ``what`` was done to it."""
    number = another(cluster, seen)
    trainer_of(cluster, number)
    what(cluster, number)
    return number


def check_told(cluster, told: str, cancelled: int, preempted: int, limited: int) -> None:
    assert re.search(rf"job {cancelled} was cancelled; goes on", told), told
    assert re.search(rf"job {limited} reached its time limit; goes on", told), told
    assert f"job {preempted} " not in told, told  # requeued by SLURM itself, with the same number
    assert "adopted" in told and not cluster.jobs("RUNNING", "PENDING"), told


def test_a_search_that_a_cluster_does_everything_to_has_the_scores_of_one_at_home(bench, cluster):
    bench.run("home", "--max_trials", "12")
    bench.write("driver.py", DRIVER.replace("    import search\n", QUICK + "    import search\n"))
    flags = ("--max_trials", "12", "--launcher", "slurm", "--slurm", "partition=low,time=30")
    driver, seen = bench.start("cluster", *flags, epoch_seconds=3.0), set()
    cancelled, preempted, limited = (through_the_worst(cluster, seen, what) for what in (cancel, preempt, outlast))
    another(cluster, seen)
    cluster.restart_slurmd()
    trainer_of(cluster, another(cluster, seen))
    driver.send_signal(signal.SIGKILL)
    told = driver.communicate()[0]
    told += bench.run("cluster", *flags)  # with the short epochs of the one at home from here on

    check_told(cluster, told, cancelled, preempted, limited)
    home, there = check_accounts(bench, "home", 12), check_accounts(bench, "cluster", 12)
    shared = home.keys() & there.keys()
    assert len({trial for trial, *_ in shared}) == 12
    assert {key: home[key] for key in shared} == {key: there[key] for key in shared}


def test_a_cross_validation_that_a_cluster_does_everything_to_has_the_scores_of_one_at_home(cluster, root, tiny_data,
                                                                                             tmp_path):
    """Runs of train.py itself: one cancelled, one preempted, one at its time limit, a node and the driver lost."""
    (tmp_path / "m3.yaml").write_text("model: {channels: 3, dilations: [1, 2, 1]}\ntraining: {max_epochs: 60}\n"
                                      "data: {workers: 0}\n")
    driver = tmp_path / "driver.py"
    driver.write_text("import sys\nfrom meshnet.errors import run_script\nfrom meshnet.runs import slurm\n"
                      "slurm.SQUEUE_SECONDS = 2.0\nimport crossval\nrun_script(crossval.main)\n")

    def command(out, *flags):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, str(driver), "--data", str(tiny_data), "--recipes",
                                 str(tmp_path / "m3.yaml"), "--restarts", "2", "--gpus_per_worker", "0", "--workers",
                                 "2", "--out", str(tmp_path / out), *flags], cwd=root, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    at_home = command("home")
    told_at_home = at_home.communicate(timeout=900)[0]
    assert at_home.returncode == 0, told_at_home
    flags, seen = ("--launcher", "slurm", "--slurm", "partition=low,time=30"), set()
    first = command("cluster", *flags)
    cancelled, preempted, limited = (through_the_worst(cluster, seen, what) for what in (cancel, preempt, outlast))
    another(cluster, seen)
    cluster.restart_slurmd()
    trainer_of(cluster, another(cluster, seen))
    first.send_signal(signal.SIGKILL)
    told = first.communicate()[0]
    second = command("cluster", *flags)
    told += second.communicate(timeout=900)[0]
    assert second.returncode == 0, told

    check_told(cluster, told, cancelled, preempted, limited)
    home = sorted((tmp_path / "home").rglob("test_cases.csv"))
    assert len(home) == 6 == len(list((tmp_path / "cluster").rglob("test_cases.csv")))
    for path in home:
        there = tmp_path / "cluster" / path.relative_to(tmp_path / "home")
        assert list(csv.DictReader(path.open())) == list(csv.DictReader(there.open()))


def at_work(out: Path) -> list[tuple[int, int]]:
    """The number in its array, and the process, of each task that has claimed a scan."""
    found = []
    for path in out.glob(".meshnet/*.claim"):
        with contextlib.suppress(OSError, ValueError):
            process = json.loads(path.read_text())["pid"]
            environment = Path(f"/proc/{process}/environ").read_text().split("\0")
            found += [(int(line.partition("=")[2]), process) for line in environment
                      if line.startswith("SLURM_ARRAY_TASK_ID=")]
    return found


def test_an_array_of_eight_of_which_two_are_killed_makes_forty_masks_each_once(cluster, model, root, tmp_path):
    from bright import scan_file

    folder, out = tmp_path / "scans", tmp_path / "masks"
    folder.mkdir()
    for i in range(40):
        scan_file(folder / f"s{i:02d}.nii.gz", bright=(slice(20, 24 + i % 6), slice(22, 34), slice(24, 40)))
    command = f"{sys.executable} {root}/infer.py {folder} -o {out} --model {model} --no-picture --json"

    def array() -> int:
        return int(cluster.ask("sbatch", "--parsable", "-p", "low", "--array", "0-7", "-o", tmp_path / "%A_%a.out",
                               "-J", "array", "--export", f"ALL,OMP_NUM_THREADS=1,PYTHONPATH={root}", "--wrap",
                               f"exec {command}"))

    number, killed = array(), {}
    while len(killed) < 2:  # the first two tasks that are at a scan
        task, process = wait_for(lambda: [one for one in at_work(out) if one[0] not in killed], seconds=300,
                                 pause=0.01)[0]
        os.kill(process, signal.SIGKILL)
        killed[task] = process
    wait_for(lambda: not cluster.ask("squeue", "-h", "-n", "array").strip(), seconds=600, pause=1)
    ends = {task: cluster.ask("scontrol", "show", "job", f"{number}_{task}") for task in range(8)}
    assert sorted(task for task, end in ends.items() if "JobState=FAILED" in end and "ExitCode=0:9" in end) == sorted(
        killed), ends
    assert all("JobState=COMPLETED" in end for task, end in ends.items() if task not in killed)
    again = array()  # whatever the six did not make up for
    wait_for(lambda: not cluster.ask("squeue", "-h", "-n", "array").strip(), seconds=600, pause=1)
    assert len(list(out.glob("s*_lesion.nii.gz"))) == 40
    lines = [line for path in sorted(tmp_path.glob("*.out")) for line in path.read_text().splitlines()]
    scans = [re.search(r"s\d\d\.nii", line)[0] for line in lines if line.startswith("{")]
    assert len(scans) == len(set(scans)) >= 38  # each once; a killed one may have had no time to tell of its last
    assert {Path(row["scan"]).name[:3] for row in csv.DictReader((out / "lesions.csv").open())} == {
        f"s{i:02d}" for i in range(40)}
    assert again != number and not list(out.glob(".meshnet/*.claim"))


def test_a_command_as_jobs_of_slurm_of_which_two_are_cancelled_and_the_driver_is_killed(cluster, model, root, tmp_path):
    """Forty scans, one broken: each once, one table and page; jobs that wait when all is done are cancelled."""
    from bright import scan_file

    (tmp_path / "scans").mkdir()
    for i in range(40):
        scan_file(tmp_path / "scans" / f"s{i:02d}.nii.gz", bright=(slice(20, 24 + i % 6), slice(22, 34), slice(24, 40)))
    (tmp_path / "scans" / "s11.nii.gz").write_bytes(b"broken")
    driver = tmp_path / "driver.py"
    driver.write_text("import sys\nfrom meshnet.errors import run_script\nfrom meshnet.runs import shards, slurm\n"
                      "slurm.SQUEUE_SECONDS = 2.0\nshards.LOOK_SECONDS = 0.5\nimport infer\nrun_script(infer.main)\n")

    def start():
        return subprocess.Popen(
            [sys.executable, str(driver), "scans", "-o", "masks", "--model", str(model), "--no-picture", "--report",
             "--launcher", "slurm", "--slurm", "partition=low", "--jobs", "8"], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    first, seen = start(), set()
    done = lambda least: wait_for(lambda: len(list((tmp_path / "masks").glob("*.nii.gz"))) >= least, 600, 0.2)
    done(1)
    for _ in range(2):
        cluster.ask("scancel", another(cluster, seen))
    done(4)
    first.send_signal(signal.SIGKILL)
    told = first.communicate()[0]
    second = start()
    told += second.communicate(timeout=900)[0]
    assert second.returncode == 1, told
    assert "jobs of an earlier call are taken over" in told and "error: scans/s11.nii.gz" in told
    end = told.splitlines()[-3:]
    assert end[:2] == ["masks/lesions.csv: 39 scans, 1 failed", "masks/report.html: the page of 39 scans"], told
    assert end[2].startswith("Next: "), told
    folder = tmp_path / "masks" / ".meshnet" / "jobs"
    logs = [path.read_text(errors="replace") for path in folder.glob("*/output.log")]
    # The job that writes the table says what was found in all scans once more, below the model's line.
    lines = [line for log in logs for line in (log[:log.rindex("marks lesion")] if "lesions.csv:" in log else log
                                               ).splitlines()]
    scans = [found[1] for line in lines if (found := re.match(r"masks/(s\d\d)_lesion", line))]
    assert len(scans) == len(set(scans)) >= 37  # each once; a cancelled one may have had no time to tell of its last
    assert len(list((tmp_path / "masks").glob("*_lesion.nii.gz"))) == 39
    wait_for(lambda: not cluster.jobs("RUNNING", "PENDING", "COMPLETING"), 120, 1)
