"""Charts show the values they were given."""

import itertools
import math

import matplotlib
import numpy as np
import pytest

from meshnet import plots
from meshnet.crossval import charts
from meshnet.crossval.stats import bland_altman

PUBLISHED = [("MeshNet-26", 147474, 0.876, 0.016), ("MeshNet-16", 56194, 0.873, 0.007),
             ("U-MAMBA-BOT", 7351400, 0.870, 0.012), ("MedNeXt-M", 17548963, 0.868, 0.017),
             ("SegResNet", 1176186, 0.867, 0.005), ("U-MAMBA-ENC", 7514280, 0.865, 0.010),
             ("MedNeXt-S", 5201315, 0.861, 0.012), ("Swin-UNETR", 18346844, 0.859, 0.025)]


@pytest.mark.parametrize(("points", "front"), [
    ([], []),
    ([(5, 0.8), (1, 0.7), (3, 0.6), (7, 0.8), (2, math.nan)], [(1, 0.7), (5, 0.8)]),
    ([(1, 0.5), (1, 0.6)], [(1, 0.6)]),
])
def test_pareto_front(points, front):
    assert charts.pareto_front(points) == front


def test_pareto_has_every_point_and_names_that_do_not_cover_each_other(tmp_path):
    figure = charts.pareto([("mine", 9000, 0.84, math.nan)], PUBLISHED)
    axes = figure.axes[0]
    drawn = [tuple(p) for line in axes.lines if line.get_marker() == "o" for p in line.get_xydata()]
    assert sorted(drawn) == sorted([(x, y) for _, x, y, _ in PUBLISHED] + [(9000, 0.84)])
    assert {t.get_text() for t in axes.texts} == {name for name, *_ in PUBLISHED} | {"mine"}
    boxes = [t.get_window_extent() for t in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    plots.save(figure, tmp_path / "p.png", tmp_path / "p.pdf")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


def test_distributions_hold_one_dot_a_subject_and_say_what_lies_beyond():
    scores = {"a": {"dice": [0.1, 0.5, math.nan], "avd": [0.2, 0.3, 5.0]}, "b": {"dice": [0.7], "avd": [math.nan]}}
    dice, avd = charts.distributions(scores, ("dice", "avd")).axes
    assert [sorted(c.get_offsets()[:, 0].tolist()) for c in dice.collections] == [[0.1, 0.5], [0.7]]
    assert sorted(avd.collections[0].get_offsets()[:, 0].tolist()) == [0.2, 0.3, 2.0]
    assert [t.get_text() for t in avd.texts] == ["1 beyond"]
    assert [t.get_text() for t in dice.get_yticklabels()] == ["a", "b"]


def test_volume_against_dice_by_model_with_medians_of_fifths():
    truth = np.arange(1.0, 16.0)
    figure = charts.volume_against_dice({"a": ([0.0, *truth], [1.0, *(truth / 20)]), "b": ([2.0], [0.5])})
    first, second = figure.axes
    assert len(first.collections[0].get_offsets()) == 15  # the case without a lesion has no place
    assert first.lines[0].get_xdata().tolist() == [2, 5, 8, 11, 14]
    assert first.lines[0].get_ydata().tolist() == pytest.approx([v / 20 for v in (2, 5, 8, 11, 14)])
    assert second.get_title() == "b"


def test_the_lowest_panel_of_every_column_has_numbers():
    panels = charts.volume_against_dice({name: ([1.0, 2.0], [1.0, 1.0]) for name in "abcdef"}).axes
    shown = [panel.xaxis.get_tick_params()["labelbottom"] for panel in panels]
    assert shown == [False, False, True, True, True, True]


def test_a_model_that_is_far_off_does_not_shrink_the_others():
    near, far = charts.bland_altman_chart({"near": ([1.0, 2.0], [1.0, 1.0]), "far": ([1e4, 2e4], [1.0, 1.0])}).axes
    assert near.get_xlim()[1] < 10 < 1000 < far.get_xlim()[1]


def test_bland_altman_draws_bias_and_limits():
    predicted, true = [11.0, 19.0, 33.0], [10.0, 20.0, 30.0]
    axes = charts.bland_altman_chart({"a": (predicted, true)}).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx(bland_altman(predicted, true))
    assert axes.collections[0].get_offsets().tolist() == [[10.5, 1], [19.5, -1], [31.5, 3]]


def test_charts_leave_the_settings_of_others_alone():
    before = dict(matplotlib.rcParams)
    charts.bland_altman_chart({name: ([1.0, 2.0], [1.0, 1.0]) for name in "abcde"})
    assert dict(matplotlib.rcParams) == before
