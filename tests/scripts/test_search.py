"""search.py from outside, with real processes: what a study gives, and what goes wrong in it."""

import json
import re
import sqlite3
from pathlib import Path

import pytest
from stand_in import SPACE, check_accounts, wait_for

import search
from meshnet.config import resolve
from meshnet.recipe import load_recipes


def test_a_search_from_beginning_to_end(bench):
    bench.whole = True
    output = bench.run("study", "--max_trials", "8")
    status = bench.status("study")
    assert (status["state"], status["trials"], status["running"]) == ("finished", 8, [])
    scores = check_accounts(bench, "study", 8)
    assert status["epochs"] == len(scores)
    assert re.search(r"finished: 8 of 8 trials", output)
    # the scores are those of the runs
    rows = [json.loads(line) for line in (bench.folder / "study/trials/00003/fold0/metrics.jsonl").open()]
    assert [scores[3, 0, 4, row["epoch"]] for row in rows] == [row["val_dice"] for row in rows]
    # a promoted trial goes on in its folder, with the schedule of the maximum
    best = status["best"]["trial"]
    log = (bench.folder / f"study/trials/{best:05d}/fold0/output.log").read_text()
    assert log == "from 0 to 1 of 4\nfrom 1 to 2 of 4\nfrom 2 to 4 of 4\n"
    # the score of a rung is the best one so far, which is what the lines say
    assert set(re.findall(r"val_dice \d\.\d{4} (\w+) epoch", output)) == {"by"}
    # what to type next compares it with nothing but itself where no one recipe is a network
    assert "best.yaml --restarts 1" in output.split("Next: ")[1]
    # the best of the top rung, by hand
    tops = {trial: score for (trial, _, _, epoch), score in scores.items() if epoch == 4}
    assert best == max(tops, key=tops.get)
    assert status["best"]["score"] == tops[best]
    # its recipe is complete and says where it comes from
    text = (bench.folder / "study" / "best.yaml").read_text()
    assert re.match(rf"# trial {best} of \S+: val_dice {tops[best]:.4f} by epoch 4\n", text)
    config = resolve(load_recipes([bench.folder / "study" / "best.yaml"]))
    assert config.optimizer.lr == status["best"]["parameters"]["lr"]
    assert config.training.max_epochs == 4
    lines = (bench.folder / "study" / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,lr,bracket,rung,state,score_rung_0,score_rung_1,score_rung_2,attempts,where,reason"
    assert len(lines) == 9 and all(",finished," in line for line in lines[1:])
    written = ("curves.png", "parallel.png", "study.html")
    assert all((bench.folder / "study" / name).stat().st_size > 5000 for name in written)
    assert status["belief"]["trial"] in tops and "going on: " in bench.run("study", "--status")
    # the same command again finds nothing to do; more trials extend it
    assert "trial" not in bench.run("study", "--max_trials", "8").split("finished:")[0]
    bench.run("study", "--max_trials", "9")
    check_accounts(bench, "study", 9)


def test_what_to_type_next_compares_the_best_trial_with_what_the_search_began_with(tmp_path, root):
    space, other = tmp_path / "space.yaml", tmp_path / "best.yaml"
    space.write_text("search: {lr: 'uniform(0, 1)'}")
    other.write_text("model: {name: meshnet}")
    tiny = str(root / "recipes" / "tiny.yaml")
    assert [Path(one).name for one in search.begun_with([tiny, str(space)])] == ["tiny.yaml"]
    assert search.begun_with([str(space)]) == search.begun_with([tiny, str(other)]) == search.begun_with([str(other)])\
        == []


def test_a_study_of_random_trials_goes_on_with_the_model_and_its_own_brackets(bench):
    bench.run("study", "--max_trials", "11")
    assert bench.ask("study", "SELECT value FROM study WHERE key = 'brackets'") == [("1",)]
    bench.whole = True  # the status has a model of its own beside the sampler's, in another thread
    bench.run("study", "--max_trials", "13", "--sampler", "model")
    check_accounts(bench, "study", 13)
    assert bench.ask("study", "SELECT value FROM study WHERE key = 'brackets'") == [("1",)]
    output = bench.run("study", "--max_trials", "13", "--brackets", "2", code=2)
    assert "brackets was 1 and is now 2" in output


def test_a_rungs_score_between_two_validations_still_counts_at_the_next(bench):
    """train.py drops it from the run folder when the trial goes on; the ledger has it, and a best never falls."""
    bench.write("six.yaml", SPACE + "  scheduler.eta_min: choices([6.0])\n")
    bench.run("study", "--max_trials", "4", space="six.yaml")
    scores = dict(bench.ask("study", "SELECT trial * 10 + rung, score FROM events WHERE kind = 'end'"))
    climbed = [key for key in scores if key % 10 and key - 1 in scores]
    assert len(climbed) >= 2 and all(scores[key] == scores[key - 1] > 0 for key in climbed)


def test_status_needs_no_lock_and_a_second_driver_is_refused(bench):
    first = bench.start("study", "--max_trials", "6", epoch_seconds=0.3)
    wait_for(lambda: bench.status("study"))
    shown = bench.run("study", "--status")
    assert re.search(r"running: \d of 6 trials", shown)
    refusal = bench.run("study", "--max_trials", "6", code=2)
    assert re.fullmatch(rf"error: .*run by process {first.pid} on .*\n", refusal)
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_several_inner_folds_are_averaged_and_each_has_its_run(bench):
    bench.run("study", "--max_trials", "3", "--inner_folds", "0", "2", "--metric", "val_loss")
    ((score,),) = bench.ask("study", "SELECT score FROM events WHERE kind = 'end' AND trial = 0 AND rung = 0")
    folds = [json.loads((bench.folder / f"study/trials/00000/fold{f}/metrics.jsonl").open().readline()) for f in (0, 2)]
    assert score == pytest.approx(sum(row["val_loss"] for row in folds) / 2, rel=1e-12)
    best = bench.status("study")["best"]  # of a loss, the lowest
    (lowest,) = bench.ask("study", "SELECT MIN(score) FROM events WHERE rung = (SELECT MAX(rung) FROM events)")[0]
    assert best["score"] == lowest


def test_horizon_rung_trains_each_rung_anew_with_its_own_schedule(bench):
    bench.run("study", "--max_trials", "4", "--horizon", "rung")
    best = bench.status("study")["best"]["trial"]
    logs = {path.parent.name: path.read_text() for path in bench.folder.glob(f"study/trials/{best:05d}/*/output.log")}
    assert logs == {
        "fold0-epochs1": "from 0 to 1 of 1\n",
        "fold0-epochs2": "from 0 to 2 of 2\n",
        "fold0-epochs4": "from 0 to 4 of 4\n",
    }
    assert bench.status("study")["epochs"] == 4 * 1 + 2 * 2 + 4


def test_a_trial_that_diverges_or_runs_out_of_memory_is_scored_worst_and_the_study_goes_on(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([0.0, 1.0, 2.0])\n")
    bench.run("study", "--max_trials", "12", space="bad.yaml")
    trials = bench.ask("study", "SELECT parameters, state, reason, rung FROM trials")
    kinds = {0.0: ("paused", ""), 1.0: ("failed", "diverged: the loss is nan"), 2.0: ("failed", "out of memory")}
    seen = [json.loads(parameters)["scheduler.eta_min"] for parameters, *_ in trials]
    assert set(seen) == {0.0, 1.0, 2.0}
    for mode, (_, state, reason, rung) in zip(seen, trials):
        assert (state, reason) == kinds[mode]
        assert rung == 0 or mode == 0
    assert bench.ask("study", "SELECT MAX(c) FROM (SELECT COUNT(*) AS c FROM attempts GROUP BY trial, rung)") == [(1,)]
    assert bench.status("study")["state"] == "finished"
    assert len(bench.status("study")["failed"]) == sum(mode > 0 for mode in seen)


def test_a_silent_run_is_tried_again_and_then_given_up(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([0.0, 3.0])\n")
    bench.run("study", "--max_trials", "4", "--silent_after", "0.5", "--max_retries", "1", space="bad.yaml")
    trials = bench.ask("study", "SELECT trial, parameters, reason FROM trials")
    silent = [trial for trial, parameters, _ in trials if json.loads(parameters)["scheduler.eta_min"] == 3]
    assert 0 < len(silent) < 4
    for trial, _, reason in trials:
        assert reason == ("silent for 0.5 s, 2 times" if trial in silent else "")
    attempts = bench.ask("study", f"SELECT reason FROM attempts WHERE trial = {silent[0]}")
    assert attempts == [("silent for 0.5 s",)] * 2


def test_a_full_disk_stops_the_study_and_is_no_trials_fault(bench):
    bench.run("study", "--max_trials", "2")
    (bench.folder / "data" / "full").touch()
    output = bench.run("study", "--max_trials", "3", code=2)
    assert re.search(r"error: .*\.log: the disk is full on .*; free some space, then run the same", output)
    assert bench.status("study")["state"] == "stopped"
    assert bench.ask("study", "SELECT COUNT(*) FROM trials WHERE state = 'failed'") == [(0,)]
    (bench.folder / "data" / "full").unlink()
    bench.run("study", "--max_trials", "3", "--max_retries", "0")
    check_accounts(bench, "study", 3)


def test_a_user_error_in_every_trial_stops_the_study_with_that_error(bench):
    bench.write("bad.yaml", SPACE + "  scheduler.eta_min: choices([4.0])\n")
    output = bench.run("study", "--max_trials", "40", space="bad.yaml", code=2)
    assert output.splitlines()[-1] == "error: the first 3 trials all failed, the last one with: --data: no such thing"
    assert len(bench.ask("study", "SELECT * FROM trials")) <= 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--eta", "1"), "eta must be greater than 1"),
        (("--eta", "1e9"), "eta must be greater than 1 and at most 1000"),
        (("--brackets", "0"), "--brackets: found 0, expected at least 1"),
        (("--brackets", "4"), "brackets must be 1 to 3"),
        (("--max_trials", "0"), "--max_trials: found 0, expected at least 1"),
        (("--max_retries", "-1"), "--max_retries: found -1, expected at least 0"),
        (("--silent_after", "-4"), "--silent_after: found -4.0, expected at least 0"),
        (("--min_epochs", "0"), "--min_epochs: found 0, expected at least 1"),
        (("--accelerate_config", "nope.yaml"), "--accelerate_config: found no file nope.yaml"),
        (("--ledger", "/proc/x/y"), "/proc/x: No such file or directory; expected a folder for the ledger"),
        (("--min_epochs", "9"), "--min_epochs 9 --max_epochs 4"),
        (("--rung_ratio", "2"), "--rung_ratio: found beside --rungs"),
        (("--inner_folds", "7"), "--inner_fold: found 7"),
        (("--inner_folds", "0", "0"), "each one once"),
        (("--metric", "val_dise"), "--metric: found val_dise, expected one that"),
        (("--model.norm", "group", "--model.norm_groups", "2", "--model.channels", "4"),
         "search: channels = 3: model.norm_groups: found 2"),
    ],
)
def test_mistakes_end_in_one_line(bench, flags, words):
    bench.write("space.yaml", SPACE + "  channels: choices([3, 4])\n")
    output = bench.run("study", *flags, code=2)
    assert words in output
    assert output.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in output


def test_a_study_folder_that_is_none_ends_in_one_line(bench):
    path = bench.write("file", "x")
    assert re.fullmatch(rf"error: {path}: .*\n", bench.run("file", "--max_trials", "2", code=2))
    (bench.folder / "study").mkdir()
    assert "no status.json, expected a study folder" in bench.run("study", "--status", code=2)
    bench.write("study/status.json", "{")
    assert "status.json: not readable as JSON" in bench.run("study", "--status", code=2)


def test_another_command_for_the_same_study_is_refused(bench):
    bench.run("study", "--max_trials", "2")
    output = bench.run("study", "--max_trials", "2", "--eta", "3", code=2)
    assert "started with other settings: eta was '2' and is now '3'; use" in output


# ---------------------------------------------------------------------------------------------- what a study is
def prepared_anew(bench, fingerprint):
    path = bench.folder / "data" / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": fingerprint}))


def test_a_data_set_prepared_anew_is_refused_before_anything_is_ranked_together(bench):
    bench.run("study", "--max_trials", "2")
    prepared_anew(bench, "f2")
    output = bench.run("study", "--max_trials", "4", code=2)
    assert output == (f"error: {bench.folder}/study/ledger.sqlite: the study was started with other settings: the data "
                      "set was f1 and is now f2: prepared anew, with other cases or otherwise; use the same settings, "
                      "or another --study\n")
    assert len(bench.ask("study", "SELECT * FROM trials")) == 2
    prepared_anew(bench, "f1")
    bench.run("study", "--max_trials", "3")
    check_accounts(bench, "study", 3)


def test_a_data_set_prepared_anew_stops_a_study_that_runs(bench):
    driver = bench.start("study", "--max_trials", "40", epoch_seconds=0.1)
    wait_for(lambda: bench.status("study").get("trials"))
    prepared_anew(bench, "f2")
    output = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2
    assert f"error: {bench.folder}/data: the data set was f1 and is now f2: prepared anew" in output.splitlines()[-1]
    assert bench.ask("study", "SELECT COUNT(*) FROM trials WHERE state = 'failed'") == [(0,)]


def test_a_study_goes_on_when_it_or_its_data_set_moves(bench):
    bench.run("study", "--max_trials", "2")
    (bench.folder / "study").rename(bench.folder / "moved")
    bench.run("moved", "--max_trials", "3")
    (bench.folder / "data").rename(bench.folder / "elsewhere")
    bench.run("moved", "--max_trials", "4", "--data", bench.folder / "elsewhere")
    (bench.folder / "data").symlink_to(bench.folder / "elsewhere")
    (bench.folder / "link").symlink_to(bench.folder / "moved")
    bench.run("link", "--max_trials", "5")
    check_accounts(bench, "moved", 5)


def test_trials_without_their_ledger_are_not_taken_for_new_ones(bench):
    bench.run("study", "--max_trials", "2")
    ledger = bench.folder / "study" / "ledger.sqlite"
    kept = ledger.read_bytes()
    ledger.unlink()
    for _ in range(2):  # the refusal itself changes nothing
        output = bench.run("study", "--max_trials", "2", code=2)
        assert re.fullmatch(r"error: .*study/trials: found 2 trials of an earlier study that .*ledger.sqlite knows "
                            r"nothing of, expected its ledger; bring it back .*\n", output)
    ledger.write_bytes(kept)
    bench.run("study", "--max_trials", "3")
    check_accounts(bench, "study", 3)


def test_the_ledger_of_another_study_is_refused_at_the_first_trial_that_differs(bench):
    bench.run("one", "--max_trials", "1")
    bench.run("two", "--max_trials", "3", "--seed", "5")
    (bench.folder / "one" / "trials").rename(bench.folder / "gone")
    (bench.folder / "two" / "trials").rename(bench.folder / "one" / "trials")
    output = bench.run("one", "--max_trials", "3", code=2)
    assert re.search(r"error: .*trials/0000[0-9]/recipe.yaml: is the recipe of another trial than the ledger's: "
                     r"optimizer.lr was [0-9.e-]+ and is now [0-9.e-]+; bring back", output)


def test_a_study_that_an_earlier_version_drew_into_a_point_that_cannot_be_goes_on(bench):
    bench.write("groups.yaml", "model: {norm: group, norm_groups: 2, channels: 4}\n" + SPACE
                + "  channels: uniform(4, 6, discrete=True)\n")
    assert "note: search: " in bench.run("study", "--max_trials", "2", space="groups.yaml")
    with sqlite3.connect(bench.folder / "study" / "ledger.sqlite") as ledger:
        parameters = json.dumps({"lr": 0.001, "channels": 5})
        ledger.execute("INSERT INTO trials VALUES (2, ?, 0, 0, 'running', '')", (parameters,))
        ledger.execute("INSERT INTO events (kind, trial, rung, time) VALUES ('start', 2, 0, 0)")
    bench.run("study", "--max_trials", "8", space="groups.yaml")
    trials = bench.ask("study", "SELECT trial, parameters, reason FROM trials")
    assert len(trials) == 8
    assert all(json.loads(parameters)["channels"] != 5 for _, parameters, reason in trials if not reason)
    assert [trial for trial, _, reason in trials if "model.norm_groups: found 2" in reason] == [2]
