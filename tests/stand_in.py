"""What the tests of search.py share: a study of real processes whose runs are those of a stand-in for train.py."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from meshnet.data.schema import FORMAT_VERSION, PREPARED, PREPARED_KEYS
from meshnet.data.splits import make_splits
from meshnet.files import write_json

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
    if mode == 6 and lines:  # its rung's score lay between two validations, and what follows is worse
        lines[-1] = json.dumps({"epoch": epoch, "seconds": 0.1})
        value = -9.0
    kept = folder / "metrics.tmp"  # whole or not: a kill between emptying and writing would lose its epochs for good
    kept.write_text("".join(line + "\\n" for line in lines))
    os.replace(kept, metrics)
    print("from", epoch, "to", stop, "of", recipe["max_epochs"], flush=True)
    while epoch < stop:
        (folder / "heartbeat").touch()
        time.sleep(float(os.environ.get("EPOCH_SECONDS", "0.02")))
        epoch, value = epoch + 1, value * 1.1 + 1 / 3
        with open(metrics, "a") as handle:
            row = {"epoch": epoch, "val_dice": value, "val_loss": -value, "seconds": 0.1}
            handle.write(json.dumps(row) + "\\n")
        temporary = folder / "state.tmp"
        temporary.write_text(json.dumps([epoch, value]))
        os.replace(temporary, state)
"""
DRIVER = """
    import functools, os, sys
    from meshnet.errors import run_script
    from meshnet.search import drive, study
    drive.PATIENCE = float(os.environ["PATIENCE"])
    study.StudyPlan = functools.partial(study.StudyPlan, script=sys.argv.pop(1))
    if os.environ.get("WHOLE") != "1":
        from meshnet.search import belief, figures
        belief.believe, figures.draw = lambda *what: None, lambda *what: []
    import search
    run_script(search.main)
"""
SPACE = """
search:
  lr: loguniform(1e-3, 4e-2)
  epochs: fidelity(1, 4)
"""


class Bench:
    """A folder with a data set (its splits and fingerprint alone), a space, and the stand-in."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root = folder, root
        self.sampler = ("--sampler", "random")  # spares each driver the imports of the model
        self.whole = False  # whether pictures are drawn and a model is fitted for the status, which most tests ignore
        (folder / "data").mkdir()
        names = [f"s{i}" for i in range(12)]
        write_json(folder / "data" / "splits.json", make_splits(names, [1.0] * 12, [()] * 12))
        write_json(folder / "data" / PREPARED, {
            **dict.fromkeys(PREPARED_KEYS), "format_version": FORMAT_VERSION, "fingerprint": "f1"})
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
                "--gpus_per_worker", "0", *self.sampler, *flags]

    def start(self, study: str, *flags: str, epoch_seconds: float = 0.02, patience: float = 5,
              stdout=subprocess.PIPE, **options) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "EPOCH_SECONDS": str(epoch_seconds),
                       "PATIENCE": str(patience), "WHOLE": str(int(self.whole))}
        return subprocess.Popen(self.command(study, *flags, **options), env=environment, text=True,
                                stdout=stdout, stderr=subprocess.STDOUT)

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


def wait_for(condition, seconds: float = 60, pause: float = 0.02):
    """What ``condition`` gives as soon as that is true; ``seconds`` only keep a test from hanging."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(pause)
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


FAMILY = """
    import os, subprocess, sys, time
    code = "import time; time.sleep(60)"
    # a session of its own, as torchrun starts its workers: signals to the leader's group do not reach it
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print("born", flush=True)
    time.sleep(60)
"""
