"""The plan: what may be added, what may not change, and leaks in its splits."""

import json
import shutil
from collections import Counter
from pathlib import Path

import made_up
import pytest
from stand_in_queue import ALL, FakeLauncher, run_script

from meshnet.crossval.plan import check_splits, load_plan
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


def test_a_slip_before_the_first_run_binds_no_folder(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), "--seed", "3", recipes=("m5", "m6"), restarts="9")
    shutil.rmtree(place / "out" / "runs")
    write_json(place / "data/splits.json", made_up.splits_of(3, 5))
    with pytest.raises(UserError, match="started with splits"):  # it has run: its runs were only moved away
        run_script(place, monkeypatch, FakeLauncher(), "--optimizer.lr", "0.5", restarts="1")
    (place / "out" / "running.json").unlink()  # as where --workers 0 was refused after the plan was written
    run_script(place, monkeypatch, FakeLauncher(), "--optimizer.lr", "0.5", restarts="1")
    plan = load_plan(place / "out")
    assert plan["seed"] == 0 and plan["models"]["m5"]["config"]["optimizer.lr"] == 0.5
    assert plan["models"]["m5"]["restarts"] == 1
    assert (place / "out/splits.json").read_bytes() == (place / "data/splits.json").read_bytes()


@pytest.mark.parametrize("number", ["0", "1e9"])
def test_restarts_are_a_number_that_can_be_trained(place, monkeypatch, number):
    with pytest.raises(UserError, match=r"--restarts: found .*, expected a number from 1 to 1000"):
        run_script(place, monkeypatch, FakeLauncher(), restarts=number)


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


# The plan is gone, the folder has moved, the program knows a field more
def test_a_field_that_came_later_has_its_default(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    plan = json.loads((place / "out/crossval.json").read_text())
    for entry in plan["models"].values():
        del entry["config"]["training.freeze_batch_norm"], entry["config"]["model.final_bias"]
        entry["config"]["data.scaling"] = None  # decided nothing but was recorded
    write_json(place / "out/crossval.json", plan)
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher) == 0 and launcher.log == []
    with pytest.raises(UserError, match=r"settings: training.freeze_batch_norm was False and is now True; use another"):
        run_script(place, monkeypatch, FakeLauncher(), "--training.freeze_batch_norm", "true")


def test_the_recipes_of_a_folder_that_has_moved_are_found_in_it(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    (place / "out").rename(place / "elsewhere")
    plan = load_plan(place / "elsewhere")
    assert {name: Path(entry["recipe"]) for name, entry in plan["models"].items()} == {
        name: place / "elsewhere" / "recipes" / f"{name}.yaml" for name in plan["models"]}
    assert all(Path(entry["recipe"]).is_file() for entry in plan["models"].values())


def test_a_data_set_that_got_another_name_is_the_same(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    (place / "data").rename(place / "moved")
    (place / "data").symlink_to(place / "moved")
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher) == 0 and launcher.log == []
    assert load_plan(place / "out")["data"] == str(place / "moved")


def test_runs_without_their_plan_are_not_taken_for_new_ones(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher())
    (place / "out/crossval.json").unlink()
    write_text(place / "m5.yaml", "model: {channels: 7}\n")
    launcher = FakeLauncher()
    with pytest.raises(UserError, match=r"runs: found \d+ runs of an earlier cross-validation, but no crossval.json"):
        run_script(place, monkeypatch, launcher)
    assert launcher.log == []


def test_a_recipe_left_by_an_earlier_plan_is_not_used(place, monkeypatch):
    (place / "out/recipes").mkdir(parents=True)
    write_text(place / "out/recipes/m5.yaml", "model: {channels: 99}\n")
    run_script(place, monkeypatch, FakeLauncher())
    assert (place / "out/recipes/m5.yaml").read_text() == (place / "m5.yaml").read_text()
    # a value that moves from a flag into the recipe is the same configuration, and is trained with
    run_script(place, monkeypatch, FakeLauncher())
    write_text(place / "m5.yaml", (place / "m5.yaml").read_text() + "loss: {dice_weight: 1.0}\n")
    run_script(place, monkeypatch, FakeLauncher())
    assert "dice_weight" in (place / "out/recipes/m5.yaml").read_text()
