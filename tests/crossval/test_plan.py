"""The plan: what may be added, what may not change, and leaks in its splits."""

import json
from collections import Counter
from pathlib import Path

import made_up
import pytest
from stand_in_queue import ALL, FakeLauncher, run_script

from meshnet.crossval.plan import check_splits
from meshnet.errors import UserError
from meshnet.files import write_json, write_text


@pytest.mark.parametrize(("part", "message"), [
    ("train", "subject s00 is in both test and train of fold 0"),
    ("val", "subject s00 is in both test and val of fold 0"),
    ("test", "subject s00 is a test subject of folds 0 and 1")])
def test_a_leak_planted_in_the_splits_is_refused(part, message):
    splits = made_up.splits_of()
    if part == "test":
        splits["folds"][1]["test"].append("s00")
        splits["folds"][1]["inner"][0]["val"].remove("s00")
    else:
        splits["folds"][0]["inner"][0][part].append("s00")
    with pytest.raises(UserError, match=message):
        check_splits(splits, Path("splits.json"))


# What may change and what may not
def test_recipes_and_restarts_may_be_added(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher, recipes=("m6", "m5"), restarts="2") == 0
    assert Counter(launcher.log) == dict.fromkeys(ALL - {(k, f"m5/fold{f}_restart0") for k in ("train", "test")
                                                         for f in range(3)}, 1)


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
