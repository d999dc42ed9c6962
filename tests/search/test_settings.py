"""What makes a study the same study, also for what earlier versions recorded."""

import pytest
import yaml

from meshnet.config import Config, resolve, to_dict
from meshnet.errors import UserError
from meshnet.search.asha import Asha
from meshnet.search.ledger import Ledger
from meshnet.search.settings import changes, recipe_of, refuse_other_trial, renew
from meshnet.search.space import parse_space

BLOCK = {"lr": "loguniform(1e-4, 1e-2)", "epochs": "fidelity(1, 4)"}


def wanted(block=None, data="aaaa", splits="bbbb", **fields):
    config = Config()
    for name, value in fields.items():
        section, _, key = name.partition("__")
        setattr(getattr(config, section), key, value)
    block = block or BLOCK
    return {"space": block, "rungs": (1, 2, 4), "metric": "val_dice", "seed": 0, "fingerprint": data,
            "split_hash": splits, "recipe": recipe_of(resolve(config), parse_space(block))}


def recorded_earlier():
    """As an earlier version wrote it: the whole configuration, and the data set's path."""
    found = {**wanted(), "recipe": to_dict(resolve(Config())), "data": "/disk/one/arc", "rungs": [1, 2, 4]}
    del found["fingerprint"], found["split_hash"]
    return found


def compare(found, new, folder):
    return changes(renew(found, new, parse_space(new["space"]), folder), new)


def test_what_an_earlier_version_recorded_goes_on(tmp_path):
    found = recorded_earlier()
    assert compare(found, wanted(), tmp_path) == []
    for section, name in (("training", "freeze_batch_norm"), ("model", "final_bias"), ("augment", "blur")):
        del found["recipe"][section][name]
    del found["recipe"]["ema"], found["seed"]
    assert compare(found, wanted(), tmp_path) == []
    assert compare(found, wanted(ema__enabled=True), tmp_path) == ["ema.enabled was False and is now True"]
    found["recipe"]["training"]["gone"] = 3
    assert compare(found, wanted(), tmp_path) == ["training.gone was 3 and is now None"]


def test_what_decides_nothing_may_change(tmp_path):
    new = wanted(data__workers=7, tracking__project="x", training__max_epochs=9, optimizer__lr=0.5,
                 training__keep_states=9, data__scaling="minmax")
    assert compare(wanted(), new, tmp_path) == [] and compare(recorded_earlier(), new, tmp_path) == []


def test_the_same_space_written_otherwise_is_the_same(tmp_path):
    same = {"epochs": "fidelity(1, 9)", "lr": "loguniform( 0.0001,0.01 )"}
    assert compare(wanted(), wanted(same), tmp_path) == []
    other = {**BLOCK, "lr": "loguniform(1e-4, 1e-1)"}
    assert compare(wanted(), wanted(other), tmp_path) == [
        "search: lr was 'loguniform(1e-4, 1e-2)' and is now 'loguniform(1e-4, 1e-1)'"]


def test_each_change_is_named_alone(tmp_path):
    new = wanted(data="cccc", splits="dddd", loss__name="dice") | {"metric": "val_loss"}
    assert compare(wanted(), new, tmp_path) == [
        "metric was 'val_dice' and is now 'val_loss'",
        "the data set was aaaa and is now cccc: prepared anew, with other cases or otherwise",
        "the division into folds was bbbb and is now dddd: prepared anew, with other cases or otherwise",
        "loss.name was 'ce' and is now 'dice'"]


def test_the_data_set_of_an_earlier_study_is_the_one_of_its_trials(tmp_path):
    folder = tmp_path / "trials" / "00003" / "fold0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"data": "aaaa", "split_hash": "bbbb"}}))
    assert compare(recorded_earlier(), wanted(), tmp_path) == []
    assert compare(recorded_earlier(), wanted(data="eeee"), tmp_path) == [
        "the data set was aaaa and is now eeee: prepared anew, with other cases or otherwise"]


def test_a_ledger_is_brought_up_to_date_once(tmp_path):
    space = parse_space(BLOCK)
    study = Asha((1, 2), 2, 4)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.settings(recorded_earlier())
        ledger.started(study.next_decision(lambda number: {"x": 1}), study)
        ledger.settings(wanted(), lambda found: renew(found, wanted(), space, tmp_path), changes)
        ledger.settings(wanted())  # as it is recorded now
        with pytest.raises(UserError) as error:
            new = wanted(model__channels=7)
            ledger.settings(new, lambda found: renew(found, new, space, tmp_path), changes)
    assert str(error.value).endswith("the study was started with other settings: model.channels was 26 and is now 7; "
                                     "use the same settings, or another --study")


def test_a_recipe_of_another_trial_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("optimizer: {lr: 0.5}\nscheduler: {monitor: val_dice, mode: max}\ndata: {workers: 3}\n")
    refuse_other_trial(path, "optimizer: {lr: 0.5}\n")  # the same, as another version writes it
    with pytest.raises(UserError, match=r"another trial than the ledger's: optimizer.lr was 0.5 and is now 0.1; bring"):
        refuse_other_trial(path, "optimizer: {lr: 0.1}\n")
