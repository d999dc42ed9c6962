"""Which scans of a command are finished, have failed or are given up, by one process or several."""

import csv
import errno
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright import infer, scan_file

from meshnet.cohort.records import KILLS, Work, progress
from meshnet.errors import UserError
from meshnet.inference import scan
from meshnet.runs import shares
from meshnet.runs.place import Place
from meshnet.scans.ours import signed


def work(out, names="ab", index=0, count=1, overwrite=False, command="array 5"):
    """The work of a process on scans called by single letters."""
    out.mkdir(exist_ok=True)
    cases = [{"scans": [Path(f"{name}.nii.gz")], "mask": out / f"{name}_lesion.nii.gz"} for name in names]
    return Work(cases, out, overwrite, Place(index, count, command) if count > 1 else Place())


def do(one, case):
    """Segment a case."""
    case["mask"].touch()
    one.done(case, one.shown(case) | {"volume_ml": 1.0, "side": "left"})


def do_all(one, fails=""):
    """What a process took, until nothing is left; the scans whose letter is in ``fails`` fail."""
    took = []
    while case := one.take():
        took.append(case["scans"][0].name[0])
        one.fail(case, UserError("broken")) if took[-1] in fails else do(one, case)
    one.close()
    return "".join(took)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scan_that_fails_at_overwriting_is_done_by_the_next_command(tmp_path, count):
    out = tmp_path / "out"
    assert do_all(work(out, count=count)) == "ab"
    assert do_all(work(out, count=count, overwrite=True, command="array 6"), fails="a") == "ab"
    again = work(out, count=count, command="array 6")
    assert do_all(again) == ("a" if count == 1 else "")  # an array that tried it in this command does not once more
    later = work(out, count=count, command="array 7")
    assert do_all(later) == ("" if count == 1 else "a") and [len(found) for found in later.results()] == [2, 0]


def test_a_mask_whose_process_is_still_at_it_is_not_finished(tmp_path, monkeypatch):
    """The mask is written before its picture and what a table says of it."""
    monkeypatch.setattr(shares, "POLL", 0.0)
    one, two = (work(tmp_path / "out", index=index, count=2) for index in (0, 1))
    a, b = one.take(), two.take()
    b["mask"].touch()
    do(one, a)
    assert one.take() is None and one.wait()  # and writes no table
    do(two, b)
    assert one.take() is None and not one.wait() and one.merges()
    assert [record["side"] for record in one.results()[0]] == ["left", "left"]
    one.close(), two.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_mask_of_which_a_killed_process_said_nothing_is_made_again(tmp_path, monkeypatch, count):
    out = tmp_path / "out"
    killed = work(out, count=count)
    case = killed.take()
    case["mask"].touch()
    nib.save(signed(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))), out / "b_lesion.nii.gz")  # unclaimed
    leave(killed, case)
    assert do_all(work(out, count=count)) == "a"


def leave(one, case):
    """End as a killed process does: its claim stays, and it is not in the list of processes."""
    path = one.claims.path(case["key"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "never"}))
    one.claims.keep(case["key"])


def test_a_scan_that_is_the_end_of_several_processes_is_given_up(tmp_path, capsys):
    out = tmp_path / "out"
    for number in range(KILLS):
        killed = work(out, count=2)
        case = killed.take()
        assert case["scans"][0].name == "a.nii.gz" and killed.suspect == (number > 0)
        leave(killed, case)
    last = work(out, count=2)
    assert do_all(last) == "b" and last.failed == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: a.nii.gz: found {KILLS} processes killed") and told.count("\n") == 1
    assert [len(found) for found in last.results()] == [1, 1]


@pytest.fixture
def two_scans(model, tmp_path, monkeypatch):
    """infer.py on two scans, of which computing the first raises an error."""
    (tmp_path / "scans").mkdir()
    for name in "ab":
        scan_file(tmp_path / "scans" / f"{name}.nii.gz")
    real, flags = scan.segment_case, (tmp_path / "scans", "-o", tmp_path / "out", "--model", model, "--no-picture")

    def run(error, **options):
        errors = [error]

        def segment(*given, **more):
            if errors and (found := errors.pop()):
                raise found
            return real(*given, **more)

        monkeypatch.setattr(scan, "segment_case", segment)
        return infer(*flags, **options)

    return run


@pytest.mark.parametrize(("error", "words"), [
    (MemoryError(), "out of memory"), (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    (AttributeError("'x' has no y"), "found AttributeError: 'x' has no y, a fault of this program")])
def test_what_nobody_foresaw_is_the_failure_of_one_scan(two_scans, tmp_path, error, words):
    found = two_scans(error, check=False)
    assert found.returncode == 1 and f"a.nii.gz: {words}" in found.stderr and "1 of 2" in found.stderr
    assert ("Traceback" in found.stderr) == isinstance(error, AttributeError)
    rows = list(csv.DictReader((tmp_path / "out" / "lesions.csv").open()))
    assert [bool(row["error"]) for row in rows] == [False, True] and words in rows[1]["error"]
    assert two_scans(None).stdout.count("mL in") == 1  # the same command does what failed


@pytest.mark.parametrize(("error", "claims"), [
    (OSError(errno.ENOSPC, "No space left on device"), 0), (RuntimeError("CUDA error: illegal memory access"), 1)])
def test_a_full_disk_or_a_lost_gpu_is_no_failure_of_a_scan(two_scans, tmp_path, error, claims):
    """A GPU may be lost because of the scan: then its claim stays, and it is given up in the end."""
    try:
        assert two_scans(error, check=False).returncode == 2
    except RuntimeError as raised:
        assert raised is error
    left = [path.name for path in (tmp_path / "out" / ".meshnet").iterdir()]
    assert len(left) == claims and all(name.endswith(".claim") for name in left)


def test_progress_is_of_the_scans_of_this_command(tmp_path, capsys):
    do_all(work(tmp_path / "out", "abcdef", count=2))
    one = work(tmp_path / "out", "ax", count=2)
    one.told -= 60
    one.say_progress()
    assert capsys.readouterr().err == "1 of 2 scans done\n" and progress(1, 2, 1, 5.0) == "1 of 2 scans done"
    one.close()


def test_a_scan_that_was_the_end_of_a_process_is_read_beside_no_other(model, tmp_path, monkeypatch):
    order = []
    for step in ("read_case", "segment_case"):
        real = getattr(scan, step)
        monkeypatch.setattr(scan, step, lambda *given, step=step, real=real, **more: (
            order.append(step), real(*given, **more))[1])
    (tmp_path / "scans").mkdir()
    for name in "abc":
        scan_file(tmp_path / "scans" / f"{name}.nii.gz")
    killed = work(tmp_path / "out", "abc")
    for case in list(iter(killed.take, None)):
        leave(killed, case)
    infer(tmp_path / "scans", "-o", tmp_path / "out", "--model", model, "--no-picture")
    assert order == ["read_case", "segment_case"] * 3
