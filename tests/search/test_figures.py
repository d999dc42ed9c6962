"""Pictures of a study: what stands on their axes."""

import matplotlib
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot

from meshnet.search.asha import Asha
from meshnet.search.figures import _parameters, importance
from meshnet.search.space import parse_space

SPACE = parse_space(
    {"lr": "loguniform(1e-4, 1)", "bg_weight": "uniform(0, 1)", "warmup_pct": "choices([0.2, 0.02, 0.1])"}
)


def play(trials: int, score) -> Asha:
    study = Asha((1, 2, 4), 2, trials)
    sample = lambda number: SPACE.decode([(number * 0.37) % 1, (number * 0.61) % 1, (number * 0.83) % 1])
    while (job := study.next_job(sample)) is not None:
        study.report(job.trial, score(study.trials[job.trial].parameters))
    return study


def test_parameters_stand_on_their_own_scales_and_colours_are_explained():
    study = play(12, lambda parameters: parameters["lr"])
    picture = _parameters(pyplot, study, SPACE, "val_dice")
    lr, weight, warmup, *_ = picture.axes
    assert (lr.get_xscale(), weight.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in warmup.get_xticklabels()] == ["0.2", "0.02", "0.1"]  # as the space names them
    places = warmup.collections[0].get_offsets()[:, 0].tolist()
    assert places == [SPACE.dimensions[2].choices.index(trial.parameters["warmup_pct"]) for trial in study.trials]
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1 epochs", "2 epochs", "4 epochs"]
    pyplot.close(picture)


def test_the_one_parameter_that_decides_is_the_important_one():
    found = importance(play(40, lambda parameters: parameters["bg_weight"]), SPACE)
    assert found["bg_weight"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importance(play(9, lambda parameters: parameters["bg_weight"]), SPACE) == {}
