"""A study: which run is next, and what becomes of those that end."""

import argparse

import pytest
from stand_in import LINUX

import search
from meshnet.errors import UserError
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
    assert (plan.metric, plan.max_retries, plan.silent_after) == (said.metric, said.max_retries, said.silent_after)
    assert (plan.metric, plan.max_retries, plan.silent_after, plan.script) == ("val_dice", 3, 600, "train.py")
