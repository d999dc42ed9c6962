"""Scores as they were found: runs and subjects that are not the planned ones are refused."""

from pathlib import Path

import made_up
import pytest

from meshnet.crossval.plan import load_plan
from meshnet.crossval.report import write_report
from meshnet.errors import UserError


# What must not be compared
def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_runs_of_other_splits_are_refused(out):
    plan = load_plan(out)
    change(out / "runs/meshnet5/fold1_restart0/config.yaml", plan["split_hash"], "ab" * 32)
    with pytest.raises(UserError, match=r"fold1_restart0/config.yaml: trained with splits abababababab.*cannot be"):
        write_report(out)


def test_splits_changed_by_hand_or_swapped_are_refused(out):
    change(out / "splits.json", '"seed": 0', '"seed": 1')
    with pytest.raises(UserError, match="was edited"):
        write_report(out)
    made_up.write_json(out / "splits.json", made_up.splits_of(3, 3))
    with pytest.raises(UserError, match="found splits"):
        write_report(out)


@pytest.mark.parametrize(("old", "new"), [
    ("fold: 1", "fold: 2"), ("seed: 0", "seed: 5"), ("channels: 5", "channels: 6"), (made_up.FINGERPRINT, "e" * 64)])
def test_a_run_that_is_not_the_planned_one_is_refused(out, old, new):
    change(out / "runs/meshnet5/fold1_restart0/config.yaml", old, new)
    with pytest.raises(UserError, match=r"not the run that crossval.json plans"):
        write_report(out)


@pytest.mark.parametrize(("subject", "message"), [
    ("s11", "subject s11 was trained or validated on in fold 1"), ("s00", "subject s00 was trained or validated on"),
    ("t99", "subject t99 is not among the test subjects of fold 1")])
def test_a_leak_in_the_scores_is_refused(out, subject, message):
    path = out / "runs/meshnet5/fold1_restart0/test_cases.csv"
    line = next(line for line in path.read_text().splitlines() if "s04" in line)
    change(path, line + "\n", line + "\n" + line.replace("s04", subject) + "\n")
    with pytest.raises(UserError, match=message):
        write_report(out)


def test_a_subject_without_its_score_is_noticed(out):
    path = out / "runs/meshnet5/fold1_restart0/test_cases.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "s05" not in line))
    with pytest.raises(UserError, match="subject s05 is missing among the test subjects of fold 1"):
        write_report(out)
    path.write_text("case,subject,dice\nx,s04,much\n")
    with pytest.raises(UserError, match="score that is not a number"):
        write_report(out)
    path.write_text("")
    with pytest.raises(UserError, match="found no rows"):
        write_report(out)
