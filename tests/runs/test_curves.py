"""The curves of a run: every value, and the best epoch marked."""

import pytest
from PIL import Image

from meshnet import plots
from meshnet.runs import curves


def test_run_curves_show_every_value_and_mark_the_best(tmp_path, monkeypatch):
    rows = [{"epoch": 1, "train_loss": 0.9, "learning_rate": 1e-5},
            {"epoch": 2, "train_loss": 0.5, "val_loss": 0.6, "val_dice": 0.4, "learning_rate": 1e-3},
            {"epoch": 3, "train_loss": 0.3, "val_loss": None, "val_dice": 0.3, "learning_rate": 1e-6}]
    drawn = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, *paths: (drawn.append(figure), save(figure, *paths)))
    curves.draw_run(rows, tmp_path / "run.png", "a run")
    assert Image.open(tmp_path / "run.png").size[0] > 500
    loss, dice, rate = drawn[0].axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 0.9], [2, 0.5], [3, 0.3]], [[2, 0.6]]]
    assert dice.lines[0].get_xydata().tolist() == [[2, 0.4], [3, 0.3]]
    assert dice.lines[-1].get_xydata().tolist() == [[2, 0.4]]
    assert dice.get_title("right") == "best 0.400 in epoch 2"
    assert rate.get_yscale() == "log"
    rows[2]["val_dice"] = 0.4  # a tie, which something else decided
    curves.draw_run(rows, tmp_path / "run.png", kept=3)
    assert drawn[1].axes[1].get_title("right") == "best 0.400 in epoch 3"


def test_a_run_without_a_single_epoch_has_empty_panels(tmp_path):
    curves.draw_run([], tmp_path / "run.svg")
    assert "Learning rate" in (tmp_path / "run.svg").read_text()


@pytest.mark.parametrize(("folder", "recipes", "title"), [
    ("runs/mine", ["recipes/tiny.yaml"], "tiny on data/tiny, fold 1, seed 3"),
    ("runs/mine", ["a/tiny.yaml", "b/more.yaml"], "tiny + more on data/tiny, fold 1, seed 3"),
    ("runs/mine", [], "unet on data/tiny, fold 1, seed 3"),
    ("search/trials/00007/fold2", ["search/trials/00007/recipe.yaml"],
     "trial 7 on data/tiny, fold 1, inner fold 2, seed 3"),
])
def test_a_title_says_what_was_trained_on_what(tmp_path, monkeypatch, folder, recipes, title):
    monkeypatch.chdir(tmp_path)
    record = {"recipe": recipes, "data_path": str(tmp_path / "data/tiny"), "fold": 1, "inner_fold": 2, "seed": 3}
    assert curves.title_of(folder, record, "unet") == title
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert curves.title_of(folder, record, "unet") == title.replace("data/tiny", "tiny")
