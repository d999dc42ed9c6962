"""Which heads the training of a built-in second network takes."""

import importlib
import sys

import numpy as np
import pytest

from meshnet.errors import UserError


@pytest.fixture
def training(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "trust"))
    yield importlib.import_module("second_train")
    sys.modules.pop("second_train", None)


@pytest.mark.parametrize("given", [["T1W", "1"], ["T1w"], ["T1w", "many"], ["T1w", "0"], ["T1w", "-1"]])
def test_kinds_that_cannot_be_are_refused(training, given):
    with pytest.raises(UserError, match="--kinds: found T1"):
        training.kinds_of(given)


def test_heads_of_other_kinds_are_not_taken(training, tmp_path):
    kinds = training.kinds_of(["T1w", "1", "DWI", "0.5"])
    assert kinds == {"T1w": 1.0, "DWI": 0.5}
    given, truth = np.full((4, 8, 8, 8), 40, np.uint8), np.zeros((8, 8, 8), np.uint8)
    truth[2:4, 2:4, 2:4] = 1
    for kind in ("T1w", "FLAIR", "DWI"):
        np.savez(tmp_path / f"{kind}.npz", given=given, truth=truth, contrast=kind)
    taken = {kind: training.read_head(tmp_path / f"{kind}.npz", False, kinds) for kind in ("T1w", "FLAIR", "DWI")}
    assert taken["FLAIR"] is None and [taken[kind]["weight"] for kind in ("T1w", "DWI")] == [1.0, 0.5]
    assert len(taken["T1w"]["places"][0]) == 8
