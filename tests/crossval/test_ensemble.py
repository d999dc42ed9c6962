"""Ensembles of a model's restarts."""

from pathlib import Path

import made_up
import numpy as np
import pytest
from stand_in_queue import FakeLauncher, run_script

from meshnet.crossval import ensemble, results, scoring
from meshnet.crossval.plan import ensemble_folder, is_scored
from meshnet.errors import UserError
from meshnet.networks.card import Card


def test_an_ensemble_of_more_restarts_is_another_and_a_missing_one_is_named(place, monkeypatch):
    """What two restarts gave must not stand in the report as what three give; once asked for, an ensemble is missed."""
    run_script(place, monkeypatch, FakeLauncher(), "--ensemble", recipes=("m5",))
    launcher = FakeLauncher()
    launcher.outcome = lambda kind, name, attempt: None if kind == "ensemble" and "fold1" in name else 0
    assert run_script(place, monkeypatch, launcher, "--restarts", "3", recipes=("m5",)) == 1
    assert {name for kind, name in launcher.log if kind == "ensemble"} == {f"m5/fold{f}_ensemble3" for f in range(3)}
    runs, missing, _ = results.read_runs(place / "out")
    assert sorted(run.fold for run in runs if run.model == "m5 (ensemble)") == [0, 2]
    assert missing == ["m5, fold 1, ensemble of 3: not scored"]


def test_an_ensemble_averages_the_probabilities_of_the_restarts(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",))
    out, asked = place / "out", []

    class Data:
        def __init__(self, path):
            self.path = Path(path)

        def indices(self, subjects):
            assert subjects == ["s04", "s05", "s06", "s07"]
            return [4]

        def image(self, index):
            return index

    monkeypatch.setattr(ensemble, "PreparedData", Data)
    monkeypatch.setattr(ensemble.build, "load_model", lambda folder: (
        number := int(folder.name[-1]), Card(["T2w"], ["background", "lesion"], threshold=0.3 + 0.2 * number)))
    monkeypatch.setattr(scoring.predict, "predict",
                        lambda network, image, device: np.full((2, 1, 1, 1), 0.2 + 0.6 * network))
    monkeypatch.setattr(ensemble, "score_probabilities",
                        lambda mean, card, data, index: (asked.append((mean, index, card.threshold)),
                                                         made_up.case_row("s04", 0.5))[1])
    assert ensemble.score_ensemble(out, "m5", 1) == 0
    assert asked[0][1] == 4
    assert asked[0][0] == pytest.approx(0.5)
    assert asked[0][2] == pytest.approx(0.4)  # the mean of the restarts' own
    assert is_scored(ensemble_folder(out, "m5", 1, 2))
    (out / "runs/m5/fold1_restart0/DONE").unlink()
    with pytest.raises(UserError, match="found no finished run"):
        ensemble.score_ensemble(out, "m5", 1)
