"""search.py from outside: real processes, real kills. Fast tests train with a stand-in, slow ones with train.py."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from meshnet.asha import Asha
from meshnet.config import validate
from meshnet.errors import UserError
from meshnet.files import write_json
from meshnet.launch import make_launcher
from meshnet.ledger import Ledger
from meshnet.processes import members
from meshnet.recipe import load_recipes
from meshnet.splits import make_splits
from meshnet.study import Plan, Study

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descendants are found in /proc")

# Like train.py seen from outside: one lock, a line an epoch and then a resume point, the same score after any kill.
# Its score is a chain, so that an epoch done twice or left out would show in every later one.
TRAINER = """
    import argparse, fcntl, json, os, pathlib, signal, sys, time
    parser = argparse.ArgumentParser()
    for name in ("recipe", "inner_fold", "run_dir", "stop_epoch", "data", "fold", "seed"):
        parser.add_argument("--" + name, required=True)
    given = parser.parse_args()
    recipe = {}
    for line in pathlib.Path(given.recipe).read_text().translate({123: 32, 125: 32, 58: 32, 44: 10}).splitlines():
        words = line.split()
        if len(words) >= 2:
            recipe[words[-2]] = words[-1]
    folder, stop = pathlib.Path(given.run_dir), int(given.stop_epoch)
    lock = open(folder / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mode = float(recipe["eta_min"])  # an idle field of the recipe says how this one behaves
    if mode == 1:
        (folder / "failed.json").write_text(json.dumps({"reason": "the loss is nan"}))
        sys.exit(3)
    if mode == 2:
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    if mode == 3:
        time.sleep(60)
    if mode == 4:
        print("error: --data: no such thing", file=sys.stderr); sys.exit(2)
    if (pathlib.Path(given.data) / "full").exists():
        print("error: last.safetensors: No space left on device", file=sys.stderr); sys.exit(2)
    if mode == 5:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    state = folder / "state.json"
    begin = [0, float(recipe["lr"]) * 10 + int(given.inner_fold)]
    epoch, value = json.loads(state.read_text()) if state.exists() else begin
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()[:epoch] if metrics.exists() else []
    metrics.write_text("".join(line + "\\n" for line in lines))
    print("from", epoch, "to", stop, "of", recipe["max_epochs"], flush=True)
    while epoch < stop:
        (folder / "heartbeat").touch()
        time.sleep(float(os.environ.get("EPOCH_SECONDS", "0.02")))
        epoch, value = epoch + 1, value * 1.1 + 1 / 3
        with open(metrics, "a") as handle:
            handle.write(json.dumps({"epoch": epoch, "val_dice": value, "val_loss": -value, "seconds": 0.1}) + "\\n")
        temporary = folder / "state.tmp"
        temporary.write_text(json.dumps([epoch, value]))
        os.replace(temporary, state)
"""
DRIVER = """
    import functools, sys
    from meshnet import study
    from meshnet.errors import run_script
    study.Plan = functools.partial(study.Plan, script=sys.argv.pop(1))
    import search
    run_script(search.main)
"""
SPACE = """
search:
  lr: loguniform(1e-3, 4e-2)
  epochs: fidelity(1, 4)
"""


class Bench:
    """A folder with a data set (its splits alone), a space, and the stand-in."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root = folder, root
        (folder / "data").mkdir()
        names = [f"s{i}" for i in range(12)]
        write_json(folder / "data" / "splits.json", make_splits(names, [1.0] * 12, [()] * 12))
        self.trainer = self.write("trainer.py", TRAINER)
        self.write("driver.py", DRIVER)
        self.write("space.yaml", SPACE)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def command(self, study: str, *flags: str, space: str = "space.yaml") -> list:
        return [sys.executable, self.folder / "driver.py", self.trainer, "--data", self.folder / "data",
                "--recipe", self.folder / space, "--study", self.folder / study, "--workers", "2", "--rungs", "3",
                "--gpus_per_worker", "0", *flags]  # fmt: skip

    def start(self, study: str, *flags: str, epoch_seconds: float = 0.02, **options) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "EPOCH_SECONDS": str(epoch_seconds)}
        return subprocess.Popen(self.command(study, *flags, **options), env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def run(self, study: str, *flags: str, code: int = 0, **options) -> str:
        process = self.start(study, *flags, **options)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == code, output
        return output

    def ask(self, study: str, query: str) -> list[tuple]:
        with sqlite3.connect(self.folder / study / "ledger.sqlite") as database:
            return database.execute(query).fetchall()

    def status(self, study: str) -> dict:
        path = self.folder / study / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def bench(tmp_path, root) -> Bench:
    return Bench(tmp_path, root)


def wait_for(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def runs_of(folder: Path) -> list[int]:
    """Every living process that works under ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = path.joinpath("cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "--run_dir" in command and str(folder) in command:
            found.append(int(path.name))
    return found


def check_accounts(bench: Bench, study: str, trials: int) -> dict[tuple, float]:
    """Nothing missing, nothing doubled; the scores by (trial, fold, horizon, epoch)."""
    scores = {row[:4]: row[4] for row in bench.ask(study, "SELECT trial, fold, horizon, epoch, score FROM scores")}
    assert [row[0] for row in bench.ask(study, "SELECT trial FROM trials ORDER BY trial")] == list(range(trials))
    starts = bench.ask(study, "SELECT trial, rung FROM events WHERE kind != 'end' ORDER BY trial, rung")
    ends = bench.ask(study, "SELECT trial, rung FROM events WHERE kind = 'end' ORDER BY trial, rung")
    assert starts == ends
    assert len(ends) == len(set(ends))
    rungs = [rung["epochs"] for rung in bench.status(study)["rungs"]]
    for trial in range(trials):
        top = max(rung for number, rung in ends if number == trial)
        epochs = sorted(epoch for number, fold, _, epoch in scores if (number, fold) == (trial, 0))
        assert epochs == list(range(1, rungs[top] + 1))
    assert bench.ask(study, "SELECT COUNT(*) FROM attempts WHERE ended IS NULL") == [(0,)]
    return scores


# ---------------------------------------------------------------- an undisturbed search
def test_a_search_from_beginning_to_end(bench):
    output = bench.run("study", "--max_trials", "8")
    status = bench.status("study")
    assert (status["state"], status["trials"], status["running"]) == ("finished", 8, [])
    scores = check_accounts(bench, "study", 8)
    assert status["epochs"] == len(scores)
    assert re.search(r"finished: 8 of 8 trials", output)
    # the scores are those of the runs
    rows = [json.loads(line) for line in (bench.folder / "study/trials/00003/fold0/metrics.jsonl").open()]
    assert [scores[3, 0, 4, row["epoch"]] for row in rows] == [row["val_dice"] for row in rows]
    # a promoted trial goes on in its folder, with the schedule of the maximum
    best = status["best"]["trial"]
    log = (bench.folder / f"study/trials/{best:05d}/fold0/output.log").read_text()
    assert log == "from 0 to 1 of 4\nfrom 1 to 2 of 4\nfrom 2 to 4 of 4\n"
    # the best of the top rung, by hand
    tops = {trial: score for (trial, _, _, epoch), score in scores.items() if epoch == 4}
    assert best == max(tops, key=tops.get)
    assert status["best"]["score"] == tops[best]
    # its recipe is complete and says where it comes from
    text = (bench.folder / "study" / "best.yaml").read_text()
    assert text.startswith(f"# trial {best} of ")
    config = validate(load_recipes([bench.folder / "study" / "best.yaml"]))
    assert config.optimizer.lr == status["best"]["parameters"]["lr"]
    assert config.training.max_epochs == 4
    lines = (bench.folder / "study" / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,lr,bracket,rung,state,score_rung_0,score_rung_1,score_rung_2,attempts,where,reason"
    assert len(lines) == 9
    assert all((bench.folder / "study" / name).stat().st_size > 5000 for name in ("curves.png", "parameters.png"))
    # the same command again finds nothing to do; more trials extend it
    assert "trial" not in bench.run("study", "--max_trials", "8").split("finished:")[0]
    bench.run("study", "--max_trials", "9")
    check_accounts(bench, "study", 9)


def test_status_needs_no_lock_and_a_second_driver_is_refused(bench):
    first = bench.start("study", "--max_trials", "6", epoch_seconds=0.3)
    wait_for(lambda: bench.status("study"))
    shown = bench.run("study", "--status")
    assert re.search(r"running: \d of 6 trials", shown)
    refusal = bench.run("study", "--max_trials", "6", code=2)
    assert re.fullmatch(rf"error: .*run by process {first.pid} on .*\n", refusal)
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_several_inner_folds_are_averaged_and_each_has_its_run(bench):
    bench.run("study", "--max_trials", "3", "--inner_folds", "0", "2", "--metric", "val_loss")
    ((score,),) = bench.ask("study", "SELECT score FROM events WHERE kind = 'end' AND trial = 0 AND rung = 0")
    folds = [json.loads((bench.folder / f"study/trials/00000/fold{f}/metrics.jsonl").open().readline()) for f in (0, 2)]
    assert score == pytest.approx(sum(row["val_loss"] for row in folds) / 2, rel=1e-12)
    best = bench.status("study")["best"]  # of a loss, the lowest
    (lowest,) = bench.ask("study", "SELECT MIN(score) FROM events WHERE rung = (SELECT MAX(rung) FROM events)")[0]
    assert best["score"] == lowest


def test_horizon_rung_trains_each_rung_anew_with_its_own_schedule(bench):
    bench.run("study", "--max_trials", "4", "--horizon", "rung")
    best = bench.status("study")["best"]["trial"]
    logs = {path.parent.name: path.read_text() for path in bench.folder.glob(f"study/trials/{best:05d}/*/output.log")}
    assert logs == {
        "fold0-epochs1": "from 0 to 1 of 1\n",
        "fold0-epochs2": "from 0 to 2 of 2\n",
        "fold0-epochs4": "from 0 to 4 of 4\n",
    }
    assert bench.status("study")["epochs"] == 4 * 1 + 2 * 2 + 4


# ---------------------------------------------------------------- what goes wrong
def test_a_trial_that_diverges_or_runs_out_of_memory_is_scored_worst_and_the_study_goes_on(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([0.0, 1.0, 2.0])\n")
    bench.run("study", "--max_trials", "12", space="bad.yaml")
    trials = bench.ask("study", "SELECT parameters, state, reason, rung FROM trials")
    kinds = {0.0: ("paused", ""), 1.0: ("failed", "diverged: the loss is nan"), 2.0: ("failed", "out of memory")}
    seen = [json.loads(parameters)["scheduler.eta_min"] for parameters, *_ in trials]
    assert set(seen) == {0.0, 1.0, 2.0}
    for mode, (_, state, reason, rung) in zip(seen, trials):
        assert (state, reason) == kinds[mode]
        assert rung == 0 or mode == 0
    assert bench.ask("study", "SELECT MAX(c) FROM (SELECT COUNT(*) AS c FROM attempts GROUP BY trial, rung)") == [(1,)]
    assert bench.status("study")["state"] == "finished"
    assert len(bench.status("study")["failed"]) == sum(mode > 0 for mode in seen)


def test_a_silent_run_is_tried_again_and_then_given_up(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([0.0, 3.0])\n")
    bench.run("study", "--max_trials", "4", "--silent_after", "0.5", "--max_retries", "1", space="bad.yaml")
    trials = bench.ask("study", "SELECT trial, parameters, reason FROM trials")
    silent = [trial for trial, parameters, _ in trials if json.loads(parameters)["scheduler.eta_min"] == 3]
    assert 0 < len(silent) < 4
    for trial, _, reason in trials:
        assert reason == ("silent for 0.5 s, 2 times" if trial in silent else "")
    attempts = bench.ask("study", f"SELECT reason FROM attempts WHERE trial = {silent[0]}")
    assert attempts == [("silent for 0.5 s",)] * 2


def test_a_full_disk_stops_the_study_and_is_no_trials_fault(bench):
    bench.run("study", "--max_trials", "2")
    (bench.folder / "data" / "full").touch()
    output = bench.run("study", "--max_trials", "3", code=2)
    assert re.search(r"error: .*\.log: the disk is full on .*; make room, then the same command goes on\n", output)
    assert bench.status("study")["state"] == "stopped"
    assert bench.ask("study", "SELECT COUNT(*) FROM trials WHERE state = 'failed'") == [(0,)]
    (bench.folder / "data" / "full").unlink()
    bench.run("study", "--max_trials", "3", "--max_retries", "0")
    check_accounts(bench, "study", 3)


def test_a_user_error_in_every_trial_stops_the_study_with_that_error(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([4.0])\n")
    output = bench.run("study", "--max_trials", "40", space="bad.yaml", code=2)
    assert output.splitlines()[-1] == "error: the first 3 trials all failed, the last one with: --data: no such thing"
    assert len(bench.ask("study", "SELECT * FROM trials")) <= 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--eta", "1"), "eta must be greater than 1"),
        (("--brackets", "4"), "brackets must be 1 to 3"),
        (("--max_trials", "0"), "--max_trials: found 0, expected at least 1"),
        (("--max_retries", "-1"), "--max_retries: found -1, expected at least 0"),
        (("--silent_after", "-4"), "--silent_after: found -4.0, expected at least 0"),
        (("--min_epochs", "0"), "--min_epochs: found 0, expected at least 1"),
        (("--accelerate_config", "nope.yaml"), "--accelerate_config: found no file nope.yaml"),
        (("--ledger", "/proc/x/y"), "/proc/x: No such file or directory; expected a folder for the ledger"),
        (("--min_epochs", "9"), "--min_epochs 9 --max_epochs 4"),
        (("--rung_ratio", "2"), "--rung_ratio: found beside --rungs"),
        (("--inner_folds", "7"), "--inner_fold: found 7"),
        (("--inner_folds", "0", "0"), "each one once"),
        (("--metric", "val_dise"), "--metric: found val_dise, expected one that"),
        (("--model.norm", "group", "--model.norm_groups", "2", "--model.channels", "4"),
         "search: channels = 3: model.norm_groups: found 2"),
    ],
)
def test_mistakes_end_in_one_line(bench, flags, words):
    bench.write("space.yaml", SPACE + "  channels: choices([3, 4])\n")
    output = bench.run("study", *flags, code=2)
    assert words in output
    assert output.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in output


def test_a_study_folder_that_is_none_ends_in_one_line(bench):
    path = bench.write("file", "x")
    assert re.fullmatch(rf"error: {path}: .*\n", bench.run("file", "--max_trials", "2", code=2))
    (bench.folder / "study").mkdir()
    assert "no status.json, expected a study folder" in bench.run("study", "--status", code=2)
    bench.write("study/status.json", "{")
    assert "status.json: not readable as JSON" in bench.run("study", "--status", code=2)


def test_another_command_for_the_same_study_is_refused(bench):
    bench.run("study", "--max_trials", "2")
    output = bench.run("study", "--max_trials", "2", "--eta", "3", code=2)
    assert 'begun with eta "2", found "3"' in output


# ---------------------------------------------------------------- kills
@LINUX
def test_ctrl_c_leaves_everything_resumable(bench):
    process = bench.start("study", "--max_trials", "5", epoch_seconds=0.4)
    wait_for(lambda: len(runs_of(bench.folder)) == 2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 130, output
    assert "the same command goes on later" in output
    assert runs_of(bench.folder) == []
    assert bench.status("study")["state"] == "interrupted"
    assert bench.ask("study", "SELECT DISTINCT reason FROM attempts WHERE reason != ''") == [("interrupted",)]
    bench.run("study", "--max_trials", "5", "--max_retries", "0")  # an interruption is no failed try
    check_accounts(bench, "study", 5)


@LINUX
def test_a_ledger_that_fails_after_a_start_leaves_no_run_behind(tmp_path, monkeypatch):
    script = tmp_path / "sleeper.py"
    script.write_text("import time; time.sleep(60)")
    plan = Plan(tmp_path, lambda parameters, horizon: "", (), script=str(script))
    launcher = make_launcher("local", workers=2, gpus_per_worker=0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study = Study(plan, Asha((1,), 2, 2), ledger, launcher, lambda number: {"lr": 0.1})
        attempt, told = ledger.attempt, []

        def once(*given):
            told.append(given)
            if len(told) > 1:
                raise UserError("full")
            return attempt(*given)

        monkeypatch.setattr(ledger, "attempt", once)
        with pytest.raises(UserError, match="full"):
            study.step()
        tokens = [handle.token for handle in launcher.running()]
        assert len(tokens) == 2
        study.stop(0)
        assert [members(token) for token in tokens] == [[], []]
        assert launcher.running() == []
        assert ledger.database.execute("SELECT reason FROM attempts").fetchall() == [("interrupted",)]


@LINUX
def test_a_second_ctrl_c_leaves_no_process_behind(bench):
    bench.write("deaf.yaml", SPACE + "  scheduler.eta_min: choices([5.0])\n")  # ignores SIGTERM
    process = bench.start("study", "--max_trials", "5", epoch_seconds=30, space="deaf.yaml")
    wait_for(lambda: len(list(bench.folder.glob("study/trials/*/fold0/heartbeat"))) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert len(runs_of(bench.folder)) == 2  # given time to leave, which they do not take
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert time.monotonic() - began < 3
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
    process.kill()
    process.communicate()
    assert len(runs_of(bench.folder)) == 2
    output = bench.run("study", "--max_trials", "2")
    assert output.count("still running on") == 2
    assert bench.ask("study", "SELECT COUNT(*) FROM attempts WHERE rung = 0") == [(2,)]
    check_accounts(bench, "study", 2)


# ---------------------------------------------------------------- with train.py itself
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
    (bench.folder / "data" / "splits.json").unlink()
    (bench.folder / "data").rmdir()
    (bench.folder / "data").symlink_to(prepared)
    bench.trainer = root / "train.py"
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
        ((calm_results["seconds"],),) = real.ask("calm", "SELECT AVG(ended - started) FROM attempts")
    return calm_results


@pytest.mark.slow
def test_a_real_search_ends_and_its_best_recipe_trains(real, root):
    began = time.monotonic()
    undisturbed(real, {})
    status = real.status("calm")
    print(f"real search: {status['epochs']} epochs, {time.monotonic() - began:.0f} s, best {status['best']}")
    assert status["epochs"] <= 0.65 * status["epochs_if_all_in_full"]
    command = [sys.executable, root / "train.py", "--recipe", real.folder / "calm" / "best.yaml", "--data",
               real.folder / "data", "--fold", "1", "--run_dir", real.folder / "again"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    assert len((real.folder / "again" / "metrics.jsonl").read_text().splitlines()) == 4
    assert (real.folder / "calm" / "importance.png").exists()


def compare(calm: dict, chaos: dict) -> None:
    common = calm.keys() & chaos.keys()
    assert len({key[0] for key in common}) == 12
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
    compare(calm["scores"], check_accounts(real, "chaos", 12))
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
    compare(calm["scores"], check_accounts(real, "ray", 12))
