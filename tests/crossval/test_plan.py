"""The plan: leaks in its splits."""

from pathlib import Path

import made_up
import pytest

from meshnet.crossval.plan import check_splits
from meshnet.errors import UserError


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
