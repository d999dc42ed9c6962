"""Trackers for real: a run that stops and goes on is one run in each tracker's own store, read back here."""

import importlib.util
import json
import sqlite3
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_script_file

from meshnet.config import TrackingConfig
from meshnet.errors import UserError
from meshnet.training.tracking import MODULES, Tracker, check_installed

GUIDE_NAMES = ("learning_rate", "train_loss", "val_dice", "val_loss")
INSTALLED = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


@pytest.fixture(scope="module")
def tracked(tiny_data, tmp_path_factory):
    """The folder of a run of three epochs, stopped after the first, with every tracker that is installed."""
    stores = tmp_path_factory.mktemp("stores")
    folder = stores / "run"
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{stores}/mlflow.db", "TRACKIO_DIR": str(stores / "trackio"),
           "WANDB_SILENT": "true", "HOME": str(stores)}
    with pytest.MonkeyPatch.context() as patch:
        for key in ("WANDB_API_KEY", "WANDB_MODE"):  # without a key, here and in ~/.netrc, it stays offline
            patch.delenv(key, raising=False)
        for key, value in env.items():
            patch.setenv(key, value)
        if "mlflow" in INSTALLED:
            import mlflow

            mlflow.create_experiment("meshnet", artifact_location=str(stores / "artifacts"))
        flags = ["--data", tiny_data, "--run_dir", folder, "--model.channels", 3, "--model.dilations", 1, 2, 1,
                 "--data.workers", 0, "--training.max_epochs", 3, "--optimizer.lr", 0.02, "--tracking.trackers",
                 *INSTALLED]
        run_script_file("train.py", *flags, "--stop_epoch", 1)
        run_script_file("train.py", *flags)
        yield folder


def needs(name):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: pip install -r requirements-tracking.txt")


def check(folder, found):
    """``found[name]``: (epoch, value) pairs, against the lines of metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for name in GUIDE_NAMES:
        assert [step for step, _ in found[name]] == [1, 2, 3], name
        assert [value for _, value in found[name]] == pytest.approx([row[name] for row in rows], rel=1e-6), name


def wandb_records(path):
    """The records of an offline run's file: blocks of 32 KiB, each piece with checksum, length and kind before it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7:position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def test_wandb_keeps_one_run_offline(tracked):
    needs("wandb")
    identifiers, config, found, pictures = set(), {}, {name: [] for name in GUIDE_NAMES}, set()
    files = sorted((tracked / "wandb").glob("offline-run-*/*.wandb"))
    for record in (record for path in files for record in wandb_records(path)):
        if record.HasField("run"):
            identifiers.add(record.run.run_id)
        updates = [*record.run.config.update, *record.config.update]
        config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name in GUIDE_NAMES:
            found[name] += [(record.history.step.num, row[name])] if name in row else []
        pictures |= {(record.history.step.num, name) for name in ("worst", "median") if name in row}
    check(tracked, found)
    assert len(identifiers) == 1 and config["optimizer.lr"] == 0.02
    assert pictures == {(step, name) for step in (1, 2, 3) for name in ("worst", "median")}


def test_mlflow_keeps_one_run(tracked):
    needs("mlflow")
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([mlflow.get_experiment_by_name("meshnet").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert float(run.data.params["optimizer.lr"]) == 0.02 and run.data.params["seed"] == "0"
    check(tracked, {name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                    for name in GUIDE_NAMES})
    pictures = [Path(item.path).name for item in client.list_artifacts(run.info.run_id, "images")]
    assert all(any(item.startswith(name) and f"step+{step}+" in item and item.endswith(".png") for item in pictures)
               for name in ("worst", "median") for step in (1, 2, 3)), pictures


def test_tensorboard_keeps_one_run(tracked):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "meshnet"), size_guidance={"images": 0})
    events.Reload()
    check(tracked, {name: [(point.step, point.value) for point in events.Scalars(name)] for name in GUIDE_NAMES})
    assert [image.step for image in events.Images("worst")] == [1, 2, 3]
    (settings,) = tracked.glob("meshnet/*/hparams.yml")
    assert "optimizer.lr: 0.02" in settings.read_text()


def test_trackio_keeps_one_run(tracked):
    needs("trackio")
    with sqlite3.connect(tracked.parent / "trackio" / "meshnet.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        configs = database.execute("SELECT config FROM configs").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    values = [(step, json.loads(row)) for _, step, row in rows]
    check(tracked, {name: [(step, row[name]) for step, row in values if name in row] for name in GUIDE_NAMES})
    assert json.loads(configs[0][0])["optimizer.lr"] == 0.02
    assert [step for step, row in values if "worst" in row] == [1, 2, 3]
    assert len(list((tracked.parent / "trackio" / "media").rglob("*.png"))) == 6


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'mlflow' is not installed; pip install -r requirements-tracking.txt"):
        check_installed(TrackingConfig(trackers=["mlflow"]))


class Fake:
    """One of Accelerate's trackers, and the Accelerator that begins it; ``refuse(arguments)`` raises or does not."""

    is_main_process = True

    def __init__(self, name, refuse):
        self.name, self.refuse = name, refuse
        self.log_with, self.trackers, self.sent, self.tries = [name], [], [], []
        self.tracker = SimpleNamespace(info=SimpleNamespace(run_id="new"))

    def init_trackers(self, project, config, arguments):
        self.tries.append(arguments[self.name])
        self.refuse(arguments[self.name])
        self.trackers.append(self)

    def log(self, values, step):
        self.sent.append((values, step))
        if step == 2:
            raise ConnectionError("the server is gone\nand more")

    def log_images(self, *_, **__):
        raise AssertionError("no picture was drawn")

    def store_init_configuration(self, values):
        self.sent.append(values)

    def finish(self):
        self.sent.append("finished")

    def end_training(self):
        self.sent.append("ended")


def tracker_of(tmp_path, name, refuse=lambda arguments: None):
    fake = Fake(name, refuse)
    return Tracker(fake, TrackingConfig(trackers=[name]), tmp_path, {"optimizer.lr": 0.1}), fake


def refusing(key, value):
    def refuse(arguments):
        if arguments.get(key) == value:
            raise RuntimeError("not to be had\nhere")
    return refuse


def test_an_mlflow_run_that_is_not_there_any_more_becomes_a_new_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(get_tracking_uri=lambda: "file:there", end_run=print))
    (tmp_path / "tracking.json").write_text('{"name": "run-1", "begun": ["mlflow"], "mlflow": "old"}')
    tracker, fake = tracker_of(tmp_path, "mlflow", refusing("run_id", "old"))
    tracker.begin(1)
    assert [arguments["run_id"] for arguments in fake.tries] == ["old", None]
    assert fake.sent == [{"optimizer.lr": 0.1}]  # the new run is told the configuration
    assert json.loads((tmp_path / "tracking.json").read_text())["mlflow"] == "new"
    assert capsys.readouterr().err == ("warning: tracking.trackers: mlflow: run old, cannot be continued in "
                                       "file:there: a new run there (not to be had)\n")


def test_weights_and_biases_without_its_server_is_logged_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    tracker, fake = tracker_of(tmp_path, "wandb", refusing("mode", None))
    tracker.begin(0)
    assert [arguments.get("mode") for arguments in fake.tries] == [None, "offline"] and tracker.open == [fake]
    assert "send it later with wandb sync (not to be had)" in capsys.readouterr().err


def test_a_tracker_that_cannot_begin_or_fails_later_is_left_out_and_the_run_goes_on(tmp_path, capsys):
    tracker, fake = tracker_of(tmp_path, "tensorboard", refusing("purge_step", 1))
    tracker.begin(0)
    tracker.log({"val_dice": 0.5}, 1)
    tracker.end()
    assert fake.sent == ["ended"] and tracker.open == []
    tracker, fake = tracker_of(tmp_path, "tensorboard")
    tracker.begin(0)
    for step in (1, 2, 3):
        tracker.log({"val_dice": 0.5}, step)
    assert [sent[1] for sent in fake.sent[1:]] == [1, 2]
    assert capsys.readouterr().err == (
        "warning: tracking.trackers: tensorboard cannot begin: RuntimeError: not to be had; goes on without it\n"
        "warning: tracking.trackers: tensorboard failed: ConnectionError: the server is gone; goes on without it\n")


def test_pictures_that_cannot_be_drawn_and_a_broken_record_end_nothing(tmp_path, capsys):
    (tmp_path / "tracking.json").write_text("{half a")
    tracker, _ = tracker_of(tmp_path, "tensorboard")
    tracker.begin(0)
    tracker.log_pictures(lambda: 1 / 0, 4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "tracking.json: cannot be read" in said[0]
    assert "the pictures of epoch 4 are not drawn: ZeroDivisionError" in said[1]
    assert json.loads((tmp_path / "tracking.json").read_text())["begun"] == ["tensorboard"]
