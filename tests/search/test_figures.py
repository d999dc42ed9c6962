"""Figures of a study: what stands on their axes."""

import itertools
import subprocess
import sys

import pytest

from meshnet.plots import GREY
from meshnet.search.asha import Asha
from meshnet.search.figures import (
    DASHES,
    DOTS,
    LINE,
    draw_curves,
    draw_parallel,
    draw_parameters,
    importance,
    ranks,
    spread,
)
from meshnet.search.space import parse_space

SPACE = parse_space(
    {"lr": "loguniform(1e-4, 1)", "bg_weight": "uniform(0, 1)", "warmup_pct": "choices([0.2, 0.02, 0.1])"}
)


def play(trials: int, score) -> Asha:
    study = Asha((1, 2, 4), 2, trials)
    sample = lambda number: SPACE.decode([(number * 0.37) % 1, (number * 0.61) % 1, (number * 0.83) % 1])
    while (job := study.next_decision(sample)) is not None:
        study.report(job.trial, score(study.trials[job.trial].parameters))
    return study


def test_parameters_stand_on_their_own_scales_and_colours_are_explained():
    study = play(12, lambda parameters: parameters["lr"])
    picture = draw_parameters(study, SPACE, "val_dice")
    lr, weight, warmup, *_ = picture.axes
    assert (lr.get_xscale(), weight.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in warmup.get_xticklabels()] == ["0.2", "0.02", "0.1"]  # as the space names them
    places = warmup.collections[0].get_offsets()[:, 0].tolist()
    assert places == [SPACE.dimensions[2].choices.index(trial.parameters["warmup_pct"]) for trial in study.trials]
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1 epoch", "2 epochs", "4 epochs"]


def test_curves_are_named_and_their_colours_explained():
    study = play(12, lambda parameters: parameters["lr"])
    curves = [(trial.number, 0, 4, epoch, 0.1 * epoch) for trial in study.trials
              for epoch in range(1, study.rungs[max(trial.scores)] + 1)]
    (axes,) = draw_curves(study, [*curves, (0, 1, 4, 1, None)], "val_dice").axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["finished 1 epoch", "finished 2 epochs", "finished 4 epochs"]
    top = {number for _, number in study.finished[0][2]}
    best = sorted(ranks(study), key=ranks(study).get)[-6:]  # the same as in the parallel plot: not those on top alone
    assert top < set(best) and axes.get_title() == "12 trials: val_dice of each epoch; the best 6 are named"
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"trial {number}" for number in best)
    explained = {line.get_label(): line.get_color() for line in axes.lines if line.get_label() in names}
    assert len(set(explained.values())) == 3
    longest = [line for line in axes.lines if list(line.get_xdata()) == [1, 2, 3, 4]]
    assert {line.get_color() for line in longest} == {explained["finished 4 epochs"]} and len(longest) == len(top)


def test_the_trials_in_front_have_lines_of_their_own_and_what_leads_to_a_name_is_no_line():
    study = play(12, lambda parameters: parameters["lr"])
    curves = [(trial.number, 0, 4, epoch, trial.number + 0.1 * epoch) for trial in study.trials
              for epoch in range(1, study.rungs[max(trial.scores)] + 1)]
    picture = draw_curves(study, curves, "val_dice")
    (axes,) = picture.axes
    best = sorted(ranks(study), key=ranks(study).get)[-6:]
    styles = {int(line.get_ydata()[0]): str(line._unscaled_dash_pattern) for line in axes.lines
              if len(line.get_ydata()) and line.get_ydata()[0] > 0 and line.get_label().startswith("_child")
              and line.get_color() != GREY}
    assert len({styles[number] for number in best}) == 6
    assert {styles[number] for number in styles if number not in best} == {"(0, None)"}
    assert {text.arrow_patch.get_linestyle() for text in axes.texts} == {DOTS}
    assert DOTS not in DASHES


def test_every_trial_of_a_small_study_is_named():
    study = play(4, lambda parameters: parameters["lr"])
    curves = [(number, 0, 4, epoch, 0.1) for number in range(4) for epoch in (1, 2)]
    (axes,) = draw_curves(study, curves, "val_dice").axes
    assert axes.get_title() == "4 trials: val_dice of each epoch; all are named"
    assert sorted(text.get_text() for text in axes.texts) == [f"trial {number}" for number in range(4)]


def test_names_of_lines_that_end_together_stand_apart():
    """In their order, inside the axes, and no further from where they end than needed."""
    study = play(12, lambda parameters: 0.5 + 1e-6 * parameters["lr"])
    curves = [(trial.number, fold, 4, epoch, 0.1 * epoch + 1e-6 * trial.parameters["lr"]) for trial in study.trials
              for fold in (0, 1) for epoch in range(1, 1 + study.rungs[max(trial.scores)])]
    (axes,) = draw_curves(study, curves, "val_dice").axes
    places = sorted(text.get_position()[1] for text in axes.texts)
    assert len(places) == 6 and min(b - a for a, b in itertools.pairwise(places)) >= LINE - 1e-9 and places[-1] <= 1
    assert spread([0.1, 0.5, 0.9]) == [0.1, 0.5, 0.9]
    assert spread([0.99, 0.99, 0.99]) == pytest.approx([1 - 2 * LINE, 1 - LINE, 1.0])
    assert spread([0.5, 0.5]) == pytest.approx([0.5, 0.5 + LINE])


def test_figures_change_no_setting_of_matplotlib(tmp_path, root):
    code = f"""
import sys, matplotlib
sys.path[:0] = [{str(root / 'tests' / 'search')!r}]
before = matplotlib.rcParams.copy()
from pathlib import Path
from test_figures import SPACE, play
from meshnet.search.figures import draw
draw(Path({str(tmp_path)!r}), play(12, lambda parameters: parameters["lr"]), SPACE, [(0, 0, 4, 1, 0.5)], "val_dice")
assert matplotlib.rcParams.copy() == before and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "curves.png", "parameters.png", "parallel.png", "importance.png"}


def test_nothing_is_important_where_nearly_all_scores_are_the_same():
    lucky = {}
    study = play(40, lambda parameters: lucky.setdefault(parameters["lr"], 0.1 * len(lucky)) if len(lucky) < 6 else 0.0)
    assert importance(study, SPACE) == {}


def test_the_one_parameter_that_decides_is_the_important_one():
    found = importance(play(40, lambda parameters: parameters["bg_weight"]), SPACE)
    assert found["bg_weight"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importance(play(9, lambda parameters: parameters["bg_weight"]), SPACE) == {}


def test_a_trial_is_a_line_through_its_values_to_its_rank():
    study = play(12, lambda parameters: parameters["lr"])
    (axes,) = draw_parallel(study, SPACE, "val_dice").axes
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 12
    best = study.best()
    assert list(lines[-1]) == [*SPACE.encode(best.parameters), 1.0]  # on top
    top = max(rung for trial in study.trials for rung in trial.scores)
    order = sorted(ranks(study), key=ranks(study).get)
    assert [top in study.trials[number].scores for number in order] == [False] * 9 + [True] * 3
    texts = [text.get_text() for text in axes.texts]
    assert texts[:15] == ["0.0001", "0.001", "0.01", "0.1", "1", "0", "0.25", "0.5", "0.75", "1", "0.2", "0.02", "0.1",
                          "worst", "best"]
    assert texts[15:] == [f"trial {number}" for number in order[-6:]] and axes.get_xlim()[0] < -0.3
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "lr", "bg_weight", "warmup_pct", "rank by val_dice"]
