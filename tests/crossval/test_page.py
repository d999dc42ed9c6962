"""The page opens in a browser without a network, and names smuggle nothing in."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import made_up
from chromium import Browser

from meshnet import webpage
from meshnet.crossval import page


def test_the_page_opens_in_a_real_browser_without_a_network(written, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "page.html"  # nothing beside it to lean on
    shutil.copyfile(written / "report/report.html", moved)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("/url", {"url": moved.as_uri()})
        assert browser.ask("document.title") == "Cross-validation of lesion segmentation"
        cells = browser.ask("[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.textContent))")
        assert cells[0][:4] == ["Model", "Parameters", "Lesion Dice ↑", "DICE ↑"]
        assert cells[1][:3] == ["meshnet26", "147,474", "0.655 (0.040)"]
        assert cells[2][:3] == ["meshnet5", "5,682", "0.555 (0.040)***"]
        assert browser.ask("document.querySelectorAll('table').length") == 5
        pictures = browser.ask("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 300])")
        assert [alt for alt, _ in pictures] == ["Parameters against macro Dice", "Distribution of scores by subject",
                                                "Lesion volume against Dice", "Bland–Altman plot of volumes"]
        assert all(loaded for _, loaded in pictures)
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
        asked = browser.requests()
        assert moved.as_uri() in asked
        # The browser's own start page is of the chrome: scheme, and inside it.
        assert [url for url in asked if not url.startswith(("file:", "data:", "chrome:", "chrome-untrusted:"))] == []
        assert browser.call("/se/log", {"type": "browser"}) == []  # no blocked picture, no other complaint
    finally:
        browser.close()


def test_a_step_line_is_named_where_one_is_seen():
    row = lambda parameters, dice: SimpleNamespace(parameters=parameters, scores={
        "dice_macro": SimpleNamespace(mean=dice)})
    line = lambda *rows: page.front_line(SimpleNamespace(rows=lambda *_: rows), {})
    assert line(row(5682, 0.7), row(147474, 0.8)) == "Step line: Pareto front of the models measured here. "
    assert line(row(5682, 0.8), row(147474, 0.7)) == line(row(10770, 0.7), row(10770, 0.8)) == line(row(None, 1)) == ""


def test_names_cannot_smuggle_anything_into_the_page():
    assert "<script" not in webpage.picture(Path(made_up.__file__), "<script>", '"><script>')
    assert "<script" not in webpage.whole("<script>", "<script>", [("<script>", "")])


def test_numbers_in_words():
    assert [page.p_value(p) for p in (math.nan, 0.0009, 0.001, 0.0404, 1)] == [
        "–", "&lt; 0.001", "0.001", "0.040", "1.000"]
    assert [page.number(value, ".2f") for value in (math.nan, -0.126, 3)] == ["–", "−0.13", "3.00"]
    assert [page.interval(*ends) for ends in ((math.nan, math.nan), (-0.71, 0.8))] == ["–", "−0.710 to 0.800"]
