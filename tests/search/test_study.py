"""A study: which run is next, and what becomes of those that end."""

import argparse
import time

import pytest
from stand_in import LINUX

import search
from meshnet.errors import Surroundings, UserError
from meshnet.runs.jobs import Trouble
from meshnet.runs.launch import make_launcher
from meshnet.runs.processes import members
from meshnet.search.asha import Asha
from meshnet.search.ledger import Ledger
from meshnet.search.study import Study, StudyPlan


@LINUX
def test_a_ledger_that_fails_after_a_start_leaves_no_run_behind(tmp_path, monkeypatch):
    script = tmp_path / "sleeper.py"
    script.write_text("import time; time.sleep(60)")
    plan = StudyPlan(tmp_path, lambda parameters, horizon: "", (), script=str(script))
    launcher = make_launcher("local", workers=2, gpus_per_worker=0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study = Study(plan, Asha((1,), 2, 2), ledger, launcher, lambda number: {"lr": 0.1})
        attempt, told = ledger.attempt, []

        def once(*given):
            told.append(given)
            if len(told) > 1:
                raise UserError("full")
            return attempt(*given)

        monkeypatch.setattr(ledger, "attempt", once)
        with pytest.raises(UserError, match="full"):
            study.step()
        tokens = [handle.token for handle in launcher.running()]
        assert len(tokens) == 2
        study.stop(0)
        assert [members(token) for token in tokens] == [[], []]
        assert launcher.running() == []
        assert ledger.database.execute("SELECT reason FROM attempts").fetchall() == [("interrupted",)]


def test_a_plan_wants_what_search_py_wants_where_nothing_is_said(tmp_path):
    parser = argparse.ArgumentParser()
    search.add_flags(parser)
    said, plan = parser.parse_args([]), StudyPlan(tmp_path, lambda parameters, horizon: "", ())
    assert plan.inner_folds == tuple(said.inner_folds) and plan.own_schedule == (said.horizon == "rung")
    assert (plan.max_retries, plan.silent_after) == (said.max_retries, said.silent_after)
    assert (plan.max_retries, plan.silent_after, plan.script) == (3, 600, "train.py")
    assert said.metric is None  # follows training.score_at; whoever plans without the script has the plain Dice
    assert plan.metric == "val_dice"


def test_no_trial_pays_for_a_data_set_that_is_away(tmp_path):
    script = tmp_path / "away.py"
    script.write_text("import sys\nprint('error: data: found no prepared.json', file=sys.stderr)\nsys.exit(4)")
    plan = StudyPlan(tmp_path, lambda parameters, horizon: "", (), script=str(script), max_retries=0)
    launcher = make_launcher("local", workers=1, gpus_per_worker=0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study = Study(plan, Asha((1,), 2, 2), ledger, launcher, lambda number: {"lr": 0.1}, lambda line: None,
                      trouble=Trouble((0, 0)))
        with pytest.raises(Surroundings, match=r"^data: found no prepared.json; found this 3 times in a row"):
            while not study.step():
                time.sleep(0.01)
        assert ledger.database.execute("SELECT state FROM trials").fetchall() == [("running",)]
        assert ledger.database.execute("SELECT reason FROM attempts").fetchall() == [("the surroundings failed",)] * 3
        script.write_text("import pathlib, sys\nfolder = pathlib.Path(sys.argv[sys.argv.index('--run_dir') + 1])\n"
                          "(folder / 'metrics.jsonl').write_text('{\"epoch\": 1, \"val_dice\": 0.5}\\n')")
        again = Study(plan, Asha((1,), 2, 2), ledger, launcher, lambda number: {"lr": 0.1}, lambda line: None)
        again.resume()
        while not again.step():
            time.sleep(0.01)
        assert ledger.database.execute("SELECT trial, state, reason FROM trials").fetchall() == [
            (0, "paused", ""), (1, "paused", "")]
