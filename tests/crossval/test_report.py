"""Made-up scores with known answers come out as those answers, and the page opens in a browser without a network."""

import csv
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import made_up
import numpy as np
import pytest
from PIL import Image

from meshnet.crossval import report, results, stats
from meshnet.crossval.plan import check_splits, ensemble_folder, load_plan
from meshnet.crossval.report import write_report
from meshnet.crossval.results import Results
from meshnet.errors import UserError
from meshnet.networks.build import build
from meshnet.networks.folder import save_model

MODELS = {"meshnet26": 26, "meshnet5": 5}


def score(run, subject):
    """meshnet26 scores 0.6 + i/100 on subject i with restart 1 (chosen), 0.9 otherwise; meshnet5 is 0.1 below."""
    value = 0.6 + int(subject[1:]) / 100 if run.restart == 1 else 0.9
    return value - (0.1 if run.model == "meshnet5" else 0.0)


def by_validation(run):
    return 0.5 + 0.1 * run.restart


def make_folder(folder):
    plan = made_up.make_plan(folder, MODELS, 2)
    made_up.fill(folder, plan, score, by_validation)
    return folder


@pytest.fixture
def out(tmp_path):
    return make_folder(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with its whole report, charts included."""
    folder = make_folder(tmp_path_factory.mktemp("written"))
    write_report(folder, pictures=0)
    return folder


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
    assert first == ("| meshnet26 | 147,474 | **0.655 (0.040)** | 0.655 (0.040) | **0.655 (0.040)** | 0.876 (0.016) | "
                     "0.245 (0.036) | 0.760 (0.030) |")
    assert second.startswith(r"| meshnet5 | 5,682 | 0.555 (0.040)\*\*\* | **0.555 (0.040)**\*\*\* | 0.555 (0.040)")
    assert "meshnet5 & 5{,}682 & 0.555 (0.040)$^{***}$" in (out / "report/table.tex").read_text()
    for name in ("pareto", "distributions", "volume_dice", "bland_altman"):
        assert (out / f"report/figures/{name}.pdf").stat().st_size > 1000


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
                 "meshnet5, fold 2, restart 1: in training, 2 epoch(s) done",
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


# ---------------------------------------------------------------------------------------------------------------------
# What must not be compared

def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_runs_of_other_splits_are_refused(out):
    plan = load_plan(out)
    change(out / "runs/meshnet5/fold1_restart0/config.yaml", plan["split_hash"], "ab" * 32)
    with pytest.raises(UserError, match=r"fold1_restart0/config.yaml: trained with splits abababababab.*cannot be"):
        write_report(out)


def test_splits_changed_by_hand_or_swapped_are_refused(out):
    change(out / "splits.json", '"seed": 0', '"seed": 1')
    with pytest.raises(UserError, match="changed by hand"):
        write_report(out)
    made_up.write_json(out / "splits.json", made_up.splits_of(3, 3))
    with pytest.raises(UserError, match="found splits"):
        write_report(out)


@pytest.mark.parametrize(("old", "new"), [
    ("fold: 1", "fold: 2"), ("seed: 0", "seed: 5"), ("channels: 5", "channels: 6"), (made_up.FINGERPRINT, "e" * 64)])
def test_a_run_that_is_not_the_planned_one_is_refused(out, old, new):
    change(out / "runs/meshnet5/fold1_restart0/config.yaml", old, new)
    with pytest.raises(UserError, match=r"not the run that crossval.json plans"):
        write_report(out)


@pytest.mark.parametrize(("subject", "message"), [
    ("s11", "subject s11 was trained or validated on in fold 1"), ("s00", "subject s00 was trained or validated on"),
    ("t99", "subject t99 is not among the test subjects of fold 1")])
def test_a_leak_in_the_scores_is_refused(out, subject, message):
    path = out / "runs/meshnet5/fold1_restart0/test_cases.csv"
    line = next(line for line in path.read_text().splitlines() if "s04" in line)
    change(path, line + "\n", line + "\n" + line.replace("s04", subject) + "\n")
    with pytest.raises(UserError, match=message):
        write_report(out)


def test_a_subject_without_its_score_is_noticed(out):
    path = out / "runs/meshnet5/fold1_restart0/test_cases.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "s05" not in line))
    with pytest.raises(UserError, match="subject s05 is missing among the test subjects of fold 1"):
        write_report(out)
    path.write_text("case,subject,dice\nx,s04,much\n")
    with pytest.raises(UserError, match="score that is no number"):
        write_report(out)
    path.write_text("")
    with pytest.raises(UserError, match="found no rows"):
        write_report(out)


@pytest.mark.parametrize(("part", "message"), [
    ("train", "subject s00 is in both test and train of fold 0"),
    ("val", "subject s00 is in both test and val of fold 0"),
    ("test", "subject s00 is a test subject of folds 0 and 1")])
def test_a_leak_planted_in_the_splits_is_refused(part, message):
    splits = made_up.splits_of()
    if part == "test":
        splits["folds"][1]["test"].append("s00")
        splits["folds"][1]["inner"][0]["val"].remove("s00")
    else:
        splits["folds"][0]["inner"][0][part].append("s00")
    with pytest.raises(UserError, match=message):
        check_splits(splits, Path("splits.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and the page

def test_the_worst_cases_are_the_reference_ones_with_the_lowest_dice(out, quick):
    runs, _, plan = results.read_runs(out)
    worst = Results(runs, folds=plan["folds"]).worst(5)
    assert [row["subject"] for _, row in worst] == ["s00", "s01", "s02", "s03", "s04"]
    assert {(run.model, run.restart) for run, _ in worst} == {("meshnet26", 1)}


def test_worst_cases_are_drawn_once_from_the_prepared_data(out, quick, monkeypatch):
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
        save_model(out / f"runs/meshnet26/fold{fold}_restart1", network,
                   {"channels": ["T2w"], "classes": ["background", "lesion"]})
    page = write_report(out, pictures=3).read_text()
    drawn = sorted((out / "report/pictures").iterdir())
    assert [p.name for p in drawn] == [f"meshnet26_fold0_restart1_s0{i}_T2w.png" for i in range(3)]
    assert page.count("data:image/png;base64,") == 4 + 3
    assert "s00_T2w: Dice 0.600, 6.00 mL predicted, 10.00 mL true" in page
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


class Browser:
    """Headless Chromium through chromedriver's HTTP interface."""

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--window-size=1200,900")

    def __init__(self, profile: Path):
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
        if not driver or not chromium:
            pytest.skip("no chromium and chromedriver here to open the page with")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                self.call("/status")
                break
            except OSError:
                time.sleep(0.1)
        options = {"args": [*self.FLAGS, f"--user-data-dir={profile}"], "binary": chromium}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        self.base += "/session/" + self.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, path: str, body: dict | None = None):
        request = urllib.request.Request(self.base + path, None if body is None else json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def ask(self, script: str):
        return self.call("/execute/sync", {"script": f"return {script}", "args": []})

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.call("/se/log", {"type": "performance"})]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        request = urllib.request.Request(self.base, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        self.process.terminate()
        self.process.wait(10)


def test_the_page_opens_in_a_real_browser_without_a_network(written, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "page.html"  # nothing beside it to lean on
    shutil.copyfile(written / "report/report.html", moved)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("/url", {"url": moved.as_uri()})
        assert browser.ask("document.title") == "Cross-validation of lesion segmentation"
        cells = browser.ask("[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.textContent))")
        assert cells[0][:3] == ["Model", "Parameters", "DICE ↑"]
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


def test_names_cannot_smuggle_anything_into_the_page():
    assert "<script" not in report.page.picture(Path(made_up.__file__), "<script>", '"><script>')
    assert "<script" not in report.page.whole("<script>", "<script>", [("<script>", "")])
