"""Work that processes share: who one is, whose claim counts, and real processes of which one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from meshnet.errors import UserError
from meshnet.runs import shares
from meshnet.runs.place import Place, check_environment, place
from meshnet.runs.processes import start_time
from meshnet.runs.shares import Claims, Share


@pytest.mark.parametrize(("environment", "index", "count"), [
    ({}, 0, 1),
    ({"RANK": "1", "WORLD_SIZE": "4"}, 1, 4),
    ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0",
      "SLURM_ARRAY_TASK_MAX": "7"}, 3, 8),
    ({"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10",
      "SLURM_ARRAY_TASK_STEP": "5", "SLURM_ARRAY_TASK_MAX": "20"}, 2, 3),
    ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, 2, 4),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1),  # the batch script itself, which runs once
    ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "3",
      "SLURM_STEP_ID": "0"}, 4, 6),
    ({"SLURM_ARRAY_TASK_ID": "5"}, 5, 6),
])
def test_which_process_this_is(environment, index, count):
    assert (place(environment).index, place(environment).count) == (index, count)


def test_the_parts_of_all_processes_are_the_list():
    for number, count in ((10, 3), (2, 4), (0, 2), (7, 1)):
        parts = [range(number)[Place(i, count).part(number)] for i in range(count)]
        assert [item for part in parts for item in part] == list(range(number))


@pytest.mark.parametrize(("environment", "words"), [
    ({"RANK": "4", "WORLD_SIZE": "4"}, "found 4 of 4"), ({"SLURM_ARRAY_TASK_ID": "x"}, "found 'x'")])
def test_an_environment_that_contradicts_itself_is_refused(environment, words):
    with pytest.raises(UserError, match=words):
        place(environment)


def test_parts_come_before_what_others_left_and_nothing_is_done_twice(tmp_path):
    names, done, took = list("abcdefg"), set(), []
    both = [Share(names, Place(i, 2, "c"), Claims(tmp_path), done.__contains__) for i in (0, 1)]
    assert [both[0].take(), both[1].take()] == ["a", "d"]
    both[1].claims.close()  # the second is gone, and gave back what it held
    done.add("a")
    both[0].finished("a")
    while name := both[0].take():
        took.append(name)
        done.add(name)
        both[0].finished(name)
    assert took == ["b", "c", "d", "e", "f", "g"] and not both[0].wait()
    both[0].claims.close()
    assert list(tmp_path.iterdir()) == []


def claim_of(folder, name, host=None, pid=None, age=0.0, processes=None):
    path = folder / f"{name}.claim"
    path.write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid or os.getpid(),
                                "processes": processes or shares.process_space(),
                                "started": start_time(pid or os.getpid()) or "gone"}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_claim_counts_while_somebody_touches_it(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    claims = Claims(tmp_path)
    claim_of(tmp_path, "alive", age=60)
    claim_of(tmp_path, "elsewhere", host="another", age=60)
    claim_of(tmp_path, "unseen", pid=dead.pid, processes="another container", age=60)
    assert [claims.take(name) for name in ("alive", "elsewhere", "unseen")] == [False] * 3
    claim_of(tmp_path, "dead", pid=dead.pid)
    claim_of(tmp_path, "long", host="another", age=shares.SILENT + 1)
    (tmp_path / "cut.claim").write_text("{")  # a process that was killed while it wrote
    os.utime(tmp_path / "cut.claim", (0, 0))
    assert [claims.take(name) for name in ("dead", "long", "cut")] == [True] * 3
    claims.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive.claim", "elsewhere.claim", "unseen.claim"]


def test_a_claim_that_was_made_again_meanwhile_is_put_back(tmp_path, monkeypatch):
    claim_of(tmp_path, "a", host="another", age=1000)
    claims, rename = Claims(tmp_path), os.rename

    def late(source, target):  # another process is quicker: it removes the old claim and makes its own
        os.unlink(source)
        claim_of(tmp_path, "a", host="third")
        rename(source, target)

    monkeypatch.setattr(shares.os, "rename", late)
    assert not claims.take("a") and json.loads((tmp_path / "a.claim").read_text())["host"] == "third"


def test_a_process_whose_end_would_end_the_others_waits_for_the_one_that_writes(tmp_path, monkeypatch):
    """torchrun ends all processes once one has failed: a scan that cannot be read must not cost the table."""
    slept = []
    shared = [Share([], Place(i, 2, "c", together=True), Claims(tmp_path), lambda name: True) for i in (0, 1)]
    monkeypatch.setattr(shares.time, "sleep", lambda seconds: (slept.append(seconds), shared[0].wrote("s")))
    assert shared[0].is_last("s") and not shared[1].is_last("s") and slept == [shares.POLL]
    assert place({"RANK": "1", "WORLD_SIZE": "2"}).together and not place({"RANK": "0", "WORLD_SIZE": "1"}).together
    apart = Share([], Place(1, 2, "c"), Claims(tmp_path), lambda name: True)
    assert shared[0].is_last("t") and not apart.is_last("t") and len(slept) == 1  # a task of an array leaves at once
    for one in (*shared, apart):
        one.claims.close()


def test_of_two_that_find_a_claim_left_one_takes_it(tmp_path):
    """The second removes nothing, however long it was between looking and taking: the claim is the first one's now."""
    claim_of(tmp_path, "a", host="another", age=1000)
    one, two = Claims(tmp_path), Claims(tmp_path)
    look = two.left

    def late(name):
        found = look(name)
        assert one.take(name)
        return found

    two.left = late
    assert not two.take("a") and one.path("a").is_file() and one.killed["a"] == 1
    one.close()
    assert not one.path("a").exists()


def test_a_process_that_was_taken_for_gone_leaves_the_others_claim_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "BEAT", 0.01)
    slow = Claims(tmp_path)
    assert slow.take("a")
    path = claim_of(tmp_path, "a", host="another", age=60)
    time.sleep(0.1)
    assert time.time() - path.stat().st_mtime > 50  # neither touched nor removed
    slow.close()
    assert path.is_file()


def test_who_waits_looks_at_some_items_by_one_look_at_the_clock_and_longer_with_many(tmp_path, monkeypatch):
    names, asked, slept = [f"n{i:03d}" for i in range(200)], [], []
    for name in names:
        claim_of(tmp_path, name, host="another", age=60)
    share = Share(names, Place(0, 500, "c"), Claims(tmp_path), lambda name: name < "n150")
    share.left, share.names, share.others = list(names), [], []
    real = share.claims.left
    monkeypatch.setattr(share.claims, "left", lambda name: (asked.append(name), real(name))[1])
    monkeypatch.setattr(shares.time, "sleep", slept.append)
    touched = []
    monkeypatch.setattr(type(tmp_path), "touch", lambda path: (touched.append(path), path.write_text("")))
    assert share.wait() and share.take() is None and len(asked) == shares.LOOKS
    assert slept == [shares.LONGEST] and len(touched) == 1 and len(share.left) == 50
    share.claims.close()


def test_who_ends_while_another_writes_waits_if_that_one_cannot_know_of_it(tmp_path, monkeypatch):
    """A table that was begun before the last scan lacks it."""
    slept = []
    first, late, other = [Share([], Place(i, 3, "c"), Claims(tmp_path), lambda name: True) for i in range(3)]
    monkeypatch.setattr(shares.time, "sleep", lambda seconds: (slept.append(seconds), first.wrote("2 done")))
    assert first.is_last("2 done") and late.is_last("3 done") and slept == [shares.POLL]
    assert not other.is_last("3 done") and len(slept) == 1
    late.wrote("3 done")
    assert first.is_last("4 done")
    monkeypatch.setattr(shares.time, "sleep", lambda seconds: (slept.append(seconds), first.wrote("4 done"),
                                                               late.is_last("5 done")))
    assert not other.is_last("4.5 done") and len(slept) == 2  # what began since knows of everything
    for one in (first, late, other):
        one.claims.close()


WORKER = """
    import os, sys, time
    from pathlib import Path
    from meshnet.runs import place, shares
    shares.POLL = 0.05
    folder, hangs = Path(sys.argv[1]), sys.argv[2] == "hangs"
    claims = shares.Claims(folder / "claims")
    share = shares.Share([f"n{i:02d}" for i in range(40)], place.place(), claims, lambda n: (folder / n).exists())
    while True:
        name = share.take()
        if name is None:
            if share.wait():
                continue
            break
        if hangs:
            print("took", flush=True)
            time.sleep(60)
        with open(folder / "log", "a") as log:
            log.write(name + "\\n")
        time.sleep(0.01)
        (folder / name).touch()
        share.finished(name)
    claims.close()
"""


def test_four_processes_of_which_one_is_killed_do_each_item_once(tmp_path, root):
    (tmp_path / "claims").mkdir()
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))

    def start(number, kind):
        environment = {**os.environ, "PYTHONPATH": str(root), "SLURM_ARRAY_TASK_ID": str(number),
                       "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_JOB_ID": "9"}
        return subprocess.Popen([sys.executable, tmp_path / "worker.py", tmp_path, kind], env=environment, text=True,
                                stdout=subprocess.PIPE)

    killed = start(0, "hangs")
    assert killed.stdout.readline() == "took\n"
    others = [start(number, "works") for number in (1, 2, 3)]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [process.wait(60) for process in others] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [f"n{i:02d}" for i in range(40)]
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.parametrize(("name", "text"), [
    ("LOCAL_RANK", "x"), ("WORLD_SIZE", "2.0"), ("MASTER_PORT", "port"), ("ACCELERATE_USE_CPU", "maybe")])
def test_what_accelerate_cannot_read_is_refused_by_its_name(name, text):
    with pytest.raises(UserError, match=f"{name}: found '{text}' in the environment, expected .*; unset it"):
        check_environment({name: text})
    check_environment({"LOCAL_RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "Yes"})
