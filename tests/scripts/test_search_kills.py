"""search.py under real kills: of runs, of the driver, of a node. Fast tests use a stand-in, slow ones train.py."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in import LINUX, SPACE, Bench, check_accounts, runs_of, wait_for

pytestmark = pytest.mark.kills


@pytest.fixture
def bench(bench) -> Bench:
    """With the default sampler."""
    bench.sampler = ()
    return bench


@LINUX
def test_ctrl_c_leaves_everything_resumable(bench):
    process = bench.start("study", "--max_trials", "5", epoch_seconds=0.4)
    wait_for(lambda: len(runs_of(bench.folder)) == 2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 130, output
    assert "the same command continues later" in output
    assert runs_of(bench.folder) == []
    assert bench.status("study")["state"] == "interrupted"
    assert bench.ask("study", "SELECT DISTINCT reason FROM attempts WHERE reason != ''") == [("interrupted",)]
    bench.run("study", "--max_trials", "5", "--max_retries", "0")  # an interruption is no failed try
    check_accounts(bench, "study", 5)


@LINUX
def test_a_second_ctrl_c_leaves_no_process_behind(bench):
    bench.write("deaf.yaml", SPACE + "  scheduler.eta_min: choices([5.0])\n")  # ignores SIGTERM
    process = bench.start("study", "--max_trials", "5", epoch_seconds=600, patience=600, space="deaf.yaml")
    wait_for(lambda: len(list(bench.folder.glob("study/trials/*/fold0/heartbeat"))) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert len(runs_of(bench.folder)) == 2  # given time to leave, which they do not take
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)  # the first one alone would wait for ten minutes
    assert process.returncode == 130
    assert runs_of(bench.folder) == []


def torment(bench: Bench, study: str, flags: list, seed: int, every: float, driver_kills: int, **options) -> str:
    """Run a search to its end, a worker SIGKILLed every few moments and the driver ``driver_kills`` times."""
    generator, kills = random.Random(seed), 0
    process = bench.start(study, *flags, **options)
    next_driver = time.monotonic() + 3 * every
    while process.poll() is None:
        time.sleep(generator.uniform(0.5, 1.5) * every)
        runs = runs_of(bench.folder / study)
        if runs:
            try:
                os.kill(generator.choice(runs), signal.SIGKILL)
            except ProcessLookupError:
                continue
        if kills < driver_kills and time.monotonic() > next_driver:
            process.kill()
            process.communicate()
            kills += 1
            process = bench.start(study, *flags, **options)
            next_driver = time.monotonic() + 3 * every
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert kills == driver_kills
    return output


@LINUX
def test_chaos_in_short(bench):
    """Kills of workers and driver change no score, lose none and count none twice."""
    flags = ["--max_trials", "8", "--max_retries", "1000"]
    bench.run("calm", *flags)
    torment(bench, "chaos", flags, seed=3, every=0.35, driver_kills=3, epoch_seconds=0.2)
    calm, chaos = check_accounts(bench, "calm", 8), check_accounts(bench, "chaos", 8)
    common = calm.keys() & chaos.keys()
    assert len({key[0] for key in common}) == 8  # each trial is in both
    assert all(calm[key] == chaos[key] for key in common)
    reasons = {reason for (reason,) in bench.ask("chaos", "SELECT reason FROM attempts")}
    assert "killed by SIGKILL" in reasons
    assert runs_of(bench.folder) == []


@LINUX
def test_a_run_that_outlived_its_driver_is_taken_up_not_begun_again(bench):
    process = bench.start("study", "--max_trials", "2", epoch_seconds=1.5)
    wait_for(lambda: len(list(bench.folder.glob("study/trials/*/fold0/heartbeat"))) == 2)
    runs = runs_of(bench.folder)
    try:
        for run in runs:
            os.kill(run, signal.SIGSTOP)  # they would be done before the next driver looks
        process.kill()
        process.communicate()
        assert len(runs) == 2 and sorted(runs_of(bench.folder)) == sorted(runs)
        said = bench.folder / "said.txt"
        with open(said, "w") as file:
            process = bench.start("study", "--max_trials", "2", patience=60, stdout=file)
        wait_for(lambda: said.read_text().count("still running on") == 2 or process.poll() is not None)
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run, signal.SIGCONT)
    assert process.wait(timeout=600) == 0, said.read_text()
    assert said.read_text().count("still running on") == 2
    firsts = "SELECT COUNT(*) FROM attempts JOIN trials USING (trial) WHERE attempts.rung = trials.bracket"
    assert bench.ask("study", firsts) == [(2,)]
    check_accounts(bench, "study", 2)


REAL_SPACE = """
model: {name: meshnet, dilations: [1, 2, 4, 2, 1]}
loss: {name: dice_ce}
data: {workers: 0}
tracking: {pictures: false}
search:
  channels: uniform(3, 6, discrete=True)
  lr: loguniform(1e-3, 4e-2)
  weight_decay: loguniform(1e-4, 4e-2)
  bg_weight: uniform(0.1, 1)
  epochs: fidelity(1, 4)
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, root) -> Path:
    """Twelve synthetic cases at 4 mm."""
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    command = [sys.executable, root / "prepare.py", "--format", "synthetic", "--cases", "12", "--voxel_mm", "4"]
    subprocess.run([*command, "--out", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def real(bench, prepared, root) -> Bench:
    """A bench whose runs are those of train.py."""
    shutil.rmtree(bench.folder / "data")
    (bench.folder / "data").symlink_to(prepared)
    bench.trainer, bench.whole = root / "train.py", True
    bench.write("space.yaml", REAL_SPACE)
    return bench


@pytest.fixture(scope="session")
def calm_results() -> dict:
    """What the undisturbed real search came to, for the tests that disturb one."""
    return {}


REAL_FLAGS = ("--max_trials", "12", "--metric", "val_loss")  # of four epochs: a loss tells runs apart, a Dice hardly


def undisturbed(real: Bench, calm_results: dict) -> dict:
    """Scores of the undisturbed search, and the mean seconds of its runs."""
    if not calm_results:
        real.run("calm", *REAL_FLAGS)
        calm_results["scores"] = check_accounts(real, "calm", 12)
        calm_results["parameters"] = parameters_of(real, "calm")
        ((calm_results["seconds"],),) = real.ask("calm", "SELECT AVG(ended - started) FROM attempts")
    return calm_results


@pytest.mark.slow
def test_a_real_search_ends_and_its_best_recipe_trains(real, root):
    began = time.monotonic()
    real.run("calm", *REAL_FLAGS, "--brackets", "1")  # all begin at the first rung: what promotion alone saves
    check_accounts(real, "calm", 12)
    status = real.status("calm")
    print(f"real search: {status['epochs']} epochs, {time.monotonic() - began:.0f} s, best {status['best']}")
    assert status["epochs"] <= 0.65 * status["epochs_if_all_in_full"]
    command = [sys.executable, root / "train.py", "--recipe", real.folder / "calm" / "best.yaml", "--data",
               real.folder / "data", "--fold", "1", "--run_dir", real.folder / "again"]
    subprocess.run(command, check=True, capture_output=True)
    assert len((real.folder / "again" / "metrics.jsonl").read_text().splitlines()) == 4
    assert (real.folder / "calm" / "importance.png").exists()


def parameters_of(bench: Bench, study: str) -> dict[int, str]:
    """What each trial was trained with."""
    return dict(bench.ask(study, "SELECT trial, parameters FROM trials"))


def compare(calm: dict, real: Bench, study: str) -> None:
    """Every score of ``study`` is the calm search's. Trials from the tenth on are proposed from the scores so far, so
    that another order of the runs may have given them other parameters."""
    found, parameters = check_accounts(real, study, 12), parameters_of(real, study)
    same = {trial for trial, text in parameters.items() if text == calm["parameters"][trial]}
    assert same >= set(range(10))
    calm, chaos = ({key: score for key, score in scores.items() if key[0] in same}
                   for scores in (calm["scores"], found))
    common = calm.keys() & chaos.keys()
    assert {key[0] for key in common} == same
    assert len({calm[key] for key in common}) > 20  # scores that tell runs apart
    assert {key: chaos[key] for key in common} == {key: calm[key] for key in common}


@pytest.mark.slow
@LINUX
def test_chaos_with_real_training(real, calm_results):
    """A worker SIGKILLed every few seconds, the driver three times: every score is the calm search's, bit by bit."""
    calm = undisturbed(real, calm_results)
    # often enough to hit most runs, seldom enough that a run gets through its start on a busy machine
    every = 0.6 * calm["seconds"]
    torment(real, "chaos", [*REAL_FLAGS, "--max_retries", "1000"], seed=1, every=every, driver_kills=3)
    compare(calm, real, "chaos")
    shot = real.ask("chaos", "SELECT COUNT(*) FROM attempts WHERE reason = 'killed by SIGKILL'")
    print(f"chaos: {shot[0][0]} workers shot, one every {every:.1f} s, and the driver 3 times")
    assert shot[0][0] >= 3


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two nodes with one core each, on this machine. The runs inherit the nodes' environment."""
    monkeypatch.setenv("EPOCH_SECONDS", "3")
    pytest.importorskip("ray", reason="Ray is not installed; pip install -r requirements-ray.txt")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.doomed = found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def with_a_node_killed(bench: Bench, cluster, flags: tuple, ended: int) -> None:
    """A search on the cluster; a node that trains is killed once ``ended`` rungs are done, and another joins."""
    flags = (*flags, "--launcher", "ray", "--ray_address", cluster.address, "--max_retries", "9")
    process = bench.start("ray", *flags)
    wait_for(lambda: (bench.folder / "ray" / "ledger.sqlite").exists(), 120)
    wait_for(lambda: process.poll() is not None or bench.status("ray"), 120)
    done = lambda: sum(rung["finished"] for rung in bench.status("ray")["rungs"])
    both = lambda: len(runs_of(bench.folder / "ray")) >= 4  # guard and run on either node
    wait_for(lambda: process.poll() is not None or (done() >= ended and both()), 300)
    lost = lambda: bench.ask("ray", "SELECT COUNT(*) FROM attempts WHERE reason != ''") != [(0,)]
    while process.poll() is None and not lost():  # its run may end in the moment of the kill: then another node dies
        wait_for(lambda: process.poll() is not None or both(), 300)
        cluster.remove_node(cluster.doomed, allow_graceful=False)
        time.sleep(3)
        cluster.doomed = cluster.add_node(num_cpus=1)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert lost()


@pytest.mark.slow
@LINUX
def test_a_ray_cluster_that_loses_a_node(bench, cluster):
    bench.run("calm", "--max_trials", "8")
    with_a_node_killed(bench, cluster, ("--max_trials", "8"), ended=2)
    calm, ray = check_accounts(bench, "calm", 8), check_accounts(bench, "ray", 8)
    assert all(calm[key] == ray[key] for key in calm.keys() & ray.keys())
    wait_for(lambda: runs_of(bench.folder) == [])


@pytest.mark.slow
@LINUX
def test_a_ray_cluster_that_loses_a_node_with_real_training(real, cluster, calm_results):
    calm = undisturbed(real, calm_results)
    with_a_node_killed(real, cluster, REAL_FLAGS, ended=3)
    compare(calm, real, "ray")
