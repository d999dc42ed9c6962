"""The look of every figure: size, style and colours, and files of each kind."""

import matplotlib
import pytest
from PIL import Image

from meshnet import plots


def test_a_figure_has_its_size_and_is_saved_in_each_format(tmp_path):
    figure = plots.new_figure(3, 2)
    figure.add_subplot().plot([0, 1], [1, 0])
    plots.save(figure, tmp_path / "a.png", tmp_path / "a.svg", tmp_path / "a.pdf")
    assert Image.open(tmp_path / "a.png").size == (450, 300)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_the_style_is_the_figures_alone():
    before = dict(matplotlib.rcParams)
    inside = plots.styled(lambda: dict(matplotlib.rcParams))()
    assert {key: inside[key] for key in plots.STYLE} == plots.STYLE and dict(matplotlib.rcParams) == before
    with pytest.raises(ZeroDivisionError):
        plots.styled(lambda: 1 / 0)()
    assert dict(matplotlib.rcParams) == before


def test_models_keep_their_colours_and_come_round_again():
    names = [f"model {i}" for i in range(len(plots.COLOURS) + 1)]
    found = plots.colour_of(names)
    assert list(found) == names and len(set(found.values())) == len(plots.COLOURS)
    assert found[names[0]] == found[names[-1]] == plots.COLOURS[0]
