"""Made-up scores with known answers come out as those answers."""

import csv
import json
import math
import shutil

import made_up
import numpy as np
import pytest
from made_up import MODELS
from PIL import Image

from meshnet.crossval import report, results, stats
from meshnet.crossval.plan import ensemble_folder
from meshnet.crossval.report import write_report
from meshnet.crossval.results import Results
from meshnet.errors import UserError
from meshnet.networks.build import build
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Charts and many resamples take seconds; tests of what stands beside them do without."""
    monkeypatch.setattr(results, "RESAMPLES", 50)
    blank = tmp_path / "blank.png"
    Image.new("RGB", (4, 4)).save(blank)
    names = ("pareto", "distributions", "volume_dice", "bland_altman")
    monkeypatch.setattr(report, "draw_charts", lambda *_: dict.fromkeys(names, blank))


def table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_known_answers_in_every_table(written):
    out = written
    rows = {(r["model"], r["grid"], r["score"]): r for r in table(out / "report/summary.csv")}
    found = {key: float(value) for key, value in rows["meshnet26", "conformed", "dice_macro"].items()
             if key not in ("model", "grid", "score")}
    # Subjects 0 to 11 score 0.60 to 0.71; folds have the means 0.615, 0.655, 0.695; restart 0 scores 0.9 throughout.
    assert found["folds_mean"] == pytest.approx(0.655)
    assert found["folds_sd"] == pytest.approx(0.04)
    assert found["folds_n"] == 3
    assert found["restarts_mean"] == pytest.approx((0.655 + 0.9) / 2)
    assert found["restarts_n"] == 6
    assert found["subjects_mean"] == pytest.approx(0.655)
    assert found["subjects_sd"] == pytest.approx(np.std(np.arange(12) / 100, ddof=1))
    interval = stats.bootstrap_interval(0.6 + np.arange(12) / 100, np.random.default_rng(0))
    assert (found["subjects_low"], found["subjects_high"]) == pytest.approx(interval)
    assert float(rows["meshnet5", "native", "dice"]["folds_mean"]) == pytest.approx(0.555)
    tests = {(r["model"], r["grid"], r["score"]): r for r in table(out / "report/tests.csv")}
    one = tests["meshnet5", "conformed", "mcc"]
    # All twelve differences are −0.1, so they tie: W+ = 0, effect −1, and p is that of 2 of the 2¹² sign patterns.
    assert (one["n"], one["reference"], float(one["effect"]), float(one["statistic"])) == ("12", "meshnet26", -1, 0)
    assert float(one["difference"]) == pytest.approx(-0.1)
    assert float(one["p"]) == float(one["p_holm"]) == pytest.approx(2 / 4096)
    assert one["stars"] == "***"
    assert {(r["model"], r["fold"], r["restart"]) for r in table(out / "report/cases.csv")} == {
        (m, str(f), "1") for m in MODELS for f in range(3)}
    first, second = (out / "report/table.md").read_text().splitlines()[2:4]
    assert first == ("| meshnet26 | 147,474 | **0.655 (0.040)** | **0.655 (0.040)** | 0.655 (0.040) | "
                     "**0.655 (0.040)** | 0.876 (0.016) | 0.245 (0.036) | 0.760 (0.030) |")
    assert second.startswith(r"| meshnet5 | 5,682 | 0.555 (0.040)\*\*\* | 0.555 (0.040)\*\*\* | "
                             r"**0.555 (0.040)**\*\*\* | 0.555 (0.040)")
    screen = (out / "report/table.txt").read_text().splitlines()
    assert screen[0].split() == ["Model", "Parameters", "Lesion", "Dice", "DICE", "AVD", "MCC"]
    assert screen[1].startswith("meshnet26     147,474     0.655 (0.040)")
    assert "meshnet5 & 5{,}682 & 0.555 (0.040)$^{***}$" in (out / "report/table.tex").read_text()
    for name in ("pareto", "distributions", "volume_dice", "bland_altman"):
        assert (out / f"report/figures/{name}.pdf").stat().st_size > 1000


def test_a_model_that_marks_nothing_wins_nothing(tmp_path, quick):
    plan = made_up.make_plan(tmp_path, {"a": 5, "b": 6}, 1)
    empty = {"volume_ml": 0.0, "avd": 1.0, "dice_macro": 0.7}
    rows = {"a": (0.4, {"avd": 2.0}), "b": (0.0, empty)}
    made_up.fill(tmp_path, plan, lambda run, s: made_up.case_row(s, rows[run.model][0], **rows[run.model][1]),
                 lambda run: 0.5)
    page = write_report(tmp_path, pictures=0).read_text()
    lines = (tmp_path / "report/table.md").read_text().splitlines()
    assert lines[2].startswith(r"| a | 5,682 | **0.400 (0.000)** | **0.400 (0.000)** | **2.000 (0.000)**")
    assert lines[3].startswith("| b | 8,114 | 0.000 (0.000) | 0.700 (0.000) | 1.000 (0.000) |")
    assert "b marked nothing in 12 of 12 test cases: its scores are those of an empty mask." in page
    assert "A model that marks nothing is never the best and has no stars" in page
    assert "***<" not in page and "***" not in (tmp_path / "report/tests.csv").read_text()
    assert ", paper" not in page + lines[0] and "arXiv" not in page + lines[-1]  # which has neither of the two


def test_holm_counts_every_model_and_the_reference_can_be_chosen(tmp_path, quick):
    plan = made_up.make_plan(tmp_path, {"a": 5, "b": 6, "c": 7}, 1)
    shift = {"a": 0.0, "b": 0.01, "c": 0.02}
    made_up.fill(tmp_path, plan, lambda run, s: 0.5 + int(s[1:]) / 100 + shift[run.model] * (1 + int(s[1:]) / 50),
                 lambda run: 0.5)
    runs, missing, _ = results.read_runs(tmp_path)
    assert missing == []
    found = Results(runs, "b")
    tests = found.tests["native"]["dice"]
    assert set(tests) == {"a", "c"}
    assert [t.effect for t in tests.values()] == [-1.0, 1.0]
    # 12 pairs without ties, all of one sign: p = 2 / 2¹² each, twice that after Holm.
    assert [t.p for t in tests.values()] == pytest.approx([2 / 4096] * 2)
    assert [t.p_holm for t in tests.values()] == pytest.approx([4 / 4096] * 2)
    with pytest.raises(UserError, match="--reference: found z, expected one of a, b, c"):
        Results(runs, "z")


def test_missing_runs_are_named_and_incomplete_models_marked(out, quick):
    shutil.rmtree(out / "runs/meshnet5/fold2_restart0")
    (out / "runs/meshnet5/fold2_restart1/DONE").unlink()
    (out / "runs/meshnet5/fold2_restart1/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (out / "runs/meshnet26/fold0_restart0/test_cases.csv").unlink()
    made_up.write_json(out / "runs/meshnet5/fold1_restart0/failed.json", {"reason": "the loss is nan"})
    (out / "runs/meshnet5/fold1_restart0/DONE").unlink()
    page = write_report(out, pictures=0).read_text()
    for line in ("meshnet5, fold 2, restart 0: not started",
                 "meshnet5, fold 2, restart 1: in training, 2 epochs done",
                 "meshnet26, fold 0, restart 0: trained, not scored",
                 "meshnet5, fold 1, restart 0: failed: the loss is nan"):
        assert line in page
    text = (out / "report/table.md").read_text()
    assert "| meshnet5† |" in text
    assert "| meshnet26 |" in text
    tests = table(out / "report/tests.csv")
    assert {r["n"] for r in tests} == {"8"}  # the two folds that both models have


def test_nothing_finished_is_one_line(tmp_path):
    made_up.make_plan(tmp_path, MODELS, 1)
    with pytest.raises(UserError, match=r"no run is finished and scored yet \(meshnet26, fold 0, restart 0: not"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"found no crossval\.json"):
        write_report(tmp_path / "elsewhere")


def test_an_avd_without_a_true_lesion_is_left_out_and_counted(tmp_path, quick):
    plan = made_up.make_plan(tmp_path, {"a": 5}, 1)
    made_up.fill(tmp_path, plan, lambda run, s: made_up.case_row(s, 0.5, avd=math.nan if s == "s00" else 0.25),
                 lambda run: 0.5)
    write_report(tmp_path, pictures=0)
    row = next(r for r in table(tmp_path / "report/summary.csv") if (r["grid"], r["score"]) == ("native", "avd"))
    assert (float(row["subjects_mean"]), row["subjects_n"]) == (0.25, "11")


# Pictures and the page
def test_the_cases_shown_are_the_best_the_median_and_the_lowest_by_dice(out, quick):
    runs, _, plan = results.read_runs(out)
    shown = Results(runs, folds=plan["folds"]).shown("meshnet26", 5)
    ranks = {rank: [row["subject"] for one, _, row in shown if one == rank] for rank in ("best", "median", "worst")}
    assert ranks == {"best": ["s11", "s10", "s09", "s08"], "median": ["s07", "s06", "s05", "s04"],
                     "worst": ["s03", "s02", "s01", "s00"]}  # of twelve: no case twice
    one = Results(runs, folds=plan["folds"]).shown("meshnet26", 1)
    assert [(rank, row["subject"]) for rank, _, row in one] == [("best", "s11"), ("median", "s06"), ("worst", "s00")]
    assert {(run.model, run.restart) for _, run, _ in shown} == {("meshnet26", 1)}


def test_shown_cases_are_drawn_once_from_the_prepared_data(out, quick, monkeypatch):
    class Data:
        def __init__(self, path):
            self.rows = [{"case": f"s{i:02d}_T2w", "conformed_affine": np.eye(4).ravel()} for i in range(12)]
            self.volume = np.random.default_rng(0).random((1, 12, 13, 14)).astype(np.float32)

        def image(self, index):
            return self.volume

        def read(self, index, column):
            return (self.volume[0] > 0.9).astype(np.uint8)

    monkeypatch.setattr("meshnet.data.reader.PreparedData", Data)
    made_up.write_json(out / "no_data/prepared.json", {})
    network = build("meshnet", {"channels": 26, "in_channels": 1, "classes": 2, "dilations": [1, 2]})
    for fold in range(3):
        for model in MODELS:
            save_model(out / f"runs/{model}/fold{fold}_restart1", network,
                       Card(**{"channels": ["T2w"], "classes": ["background", "lesion"]}))
    page = write_report(out, pictures=3).read_text()
    drawn = sorted((out / "report/pictures").iterdir())
    shown = [*(("meshnet26", i // 4, i) for i in (0, 1, 2, 5, 6, 7, 9, 10, 11)),
             ("meshnet5", 0, 0), ("meshnet5", 1, 6), ("meshnet5", 2, 11)]
    assert [p.name for p in drawn] == [f"{m}_fold{fold}_restart1_s{i:02d}_T2w.png" for m, fold, i in shown]
    assert page.count("data:image/png;base64,") == 4 + len(shown)
    assert "Worst: s00_T2w, Dice 0.600, 6.00 mL predicted, 10.00 mL true" in page and "Median: s06_T2w" in page
    before = [p.stat().st_mtime_ns for p in drawn]
    write_report(out, pictures=3)
    assert [p.stat().st_mtime_ns for p in drawn] == before


def test_an_ensemble_is_a_model_of_its_own(out, quick):
    splits = json.loads((out / "splits.json").read_text())
    for fold in range(3):
        rows = [made_up.case_row(s, 0.8) for s in splits["folds"][fold]["test"]]
        made_up.write_cases(ensemble_folder(out, "meshnet5", fold, 2) / "test_cases.csv", rows)
    write_report(out, pictures=0)
    line = (out / "report/table.md").read_text().splitlines()[2]
    assert line.startswith("| meshnet5 (ensemble) | 11,364 | **0.800 (0.000)**")
    assert "(ensemble): fold" not in (out / "report/report.html").read_text()  # it has no chosen restarts
    first = ensemble_folder(out, "meshnet5", 0, 2)
    made_up.write_cases(first / "test_cases.csv", [made_up.case_row("s11", 0.8)])
    with pytest.raises(UserError, match="s11 was trained or validated on"):
        write_report(out)
