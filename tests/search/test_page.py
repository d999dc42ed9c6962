"""The page of a study: what it says, and that a browser shows it without a network."""

import random
import shutil
from types import SimpleNamespace

import pytest
from chromium import Browser
from made_up_study import SPACE, play, truth

from meshnet.search import figures
from meshnet.search.belief import Watch
from meshnet.search.page import compose, write_page
from meshnet.search.status import snapshot

CONFIRMED = {"trial": 3, "metric": "val_dice", "score": 0.71, "low": 0.69, "high": 0.73, "searched": 0.81}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Thirty trials of made-up curves, not trained, with a name that would be HTML."""
    noise = random.Random(0)
    asha = play(30, lambda parameters, epochs: truth(parameters) - 0.1 / epochs + noise.gauss(0, 0.02))
    folder = tmp_path_factory.mktemp("studies") / "<b>search"
    folder.mkdir()
    ledger = SimpleNamespace(seconds_per_epoch=lambda: 36.0)
    return SimpleNamespace(
        asha=asha, plan=SimpleNamespace(metric="val_dice", own_schedule=False, inner_folds=(0,), folder=folder),
        running={}, waiting=[], launcher=SimpleNamespace(running=lambda: [], slots=1), ledger=ledger)


def status_of(study, **more) -> dict:
    return snapshot(study, "finished", 0) | {"seconds": 60, "belief": Watch(SPACE).final(study.asha)} | more


def test_the_search_s_score_and_the_confirmed_one_stand_side_by_side(study):
    status = status_of(study, confirmed=CONFIRMED)
    text = compose("a", study.asha, status, {})
    assert f"<td>{status['best']['score']:.4f}</td>" in text
    assert "<td>0.7100</td><td>0.6900 to 0.7300</td>" in text and "the search itself had 0.8100" in text
    assert "--confirm 3 says by how much" not in text
    found = status["belief"]
    assert f"{found['score'] - 1.96 * found['uncertainty']:.4f} to " in text
    assert "--confirm 3 says by how much" in compose("a", study.asha, status | {"confirmed": None}, {})
    assert "Too few different scores" in compose("a", study.asha, status | {"belief": None}, {})
    searched = compose("a", study.asha, status | {"belief": None, "confirmed": None}, {})
    assert "95 % interval" in text and "95 % interval" not in searched
    assert "<th>Trial</th><th>val_dice</th><th>Parameters</th>" in searched


def test_the_page_opens_in_a_real_browser_without_a_network(study, tmp_path_factory):
    curves = [(trial.number, 0, 4, epoch, 0.1 * epoch) for trial in study.asha.trials
              for epoch in range(1, study.asha.rungs[max(trial.scores)] + 1)]
    drawn = figures.draw(study.plan.folder, study.asha, SPACE, curves, "val_dice")
    written = write_page(study, status_of(study, confirmed=CONFIRMED), drawn)
    moved = tmp_path_factory.mktemp("elsewhere") / "page.html"  # nothing beside it to lean on
    shutil.copyfile(written, moved)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("/url", {"url": moved.as_uri()})
        assert browser.ask("document.title") == "Search <b>search"
        tables = browser.ask("[...document.querySelectorAll('table')].map(t => [...t.rows].map(r => "
                             "[...r.cells].map(c => c.textContent)))")
        best, importance, rungs, trials = tables
        assert [row[0] for row in best[1:]] == ["best score of the search", "best by what the model believes",
                                                "confirmed on other folds and seeds"]
        assert importance[1][0] == "lr"
        assert rungs[1][:2] == ["1", "30"]
        assert trials[1][0] == str(study.asha.best().number) and len(trials) == 31
        assert browser.ask("document.querySelector('svg rect').getBoundingClientRect().width") > 100  # lr's bar
        pictures = browser.ask("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 300])")
        assert pictures == [[alt, True] for alt in ("Learning curves", "Trials across all parameters",
                                                    "Score by parameter", "Importance at the first rung")]
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
        assert [url for url in browser.requests()
                if not url.startswith(("file:", "data:", "chrome:", "chrome-untrusted:"))] == []
        assert browser.call("/se/log", {"type": "browser"}) == []
    finally:
        browser.close()
