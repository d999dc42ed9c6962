"""What a later command makes of what an earlier one left: conversions, lost exports, lists."""

from types import SimpleNamespace

import pytest

from meshnet.cohort import dicom, lists
from meshnet.cohort.records import Records
from meshnet.runs import processes


def test_a_conversion_is_made_anew_where_a_file_holds_something_else(tmp_path, monkeypatch):
    made = []

    def convert_anew(one, target):
        made.append(target.write_bytes(b"scan"))
        return []

    monkeypatch.setattr(dicom, "convert_anew", convert_anew)
    monkeypatch.setattr(dicom, "name_of", lambda one: "study_series")
    (tmp_path / "1.dcm").write_bytes(b"damaged")
    series = SimpleNamespace(files=[tmp_path / "1.dcm"])
    for _ in range(2):
        dicom.convert(series, tmp_path)
    assert len(made) == 1
    (tmp_path / "1.dcm").write_bytes(b"healthy")
    dicom.convert(series, tmp_path)
    assert len(made) == 2


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path)
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


def lost(export):
    return {"scan": ["export-2"], "error": "could not be converted", "key": f"k{export}", "export": export,
            "case": {"scans": ["export-2"]}}


def case(records, key, export):
    mask = records.out / f"{key}.nii.gz"
    mask.write_bytes(b"mask")
    return {"key": key, "mask": mask, "scans": [mask], "export": export}


def tell(records, *given):
    return lists.tell(records, lists.path_of(records, *given), *given)


def of_others(records, cases, command=""):
    return lists.of_others(records, lists.path_of(records, cases, []), cases, [], command)


def test_a_lost_export_counts_until_it_is_tried_again(records):
    a, b = case(records, "a", "A"), case(records, "b", "B")
    tell(records, [a], [lost("B")])
    assert [one["key"] for one in of_others(records, [])[1]] == ["kB"]
    assert of_others(records, [b])[1] == []  # by this process
    tell(records, [b], [])
    found, gone = of_others(records, [])  # by the later list of another
    assert {one["key"] for one in found} == {"a", "b"} and gone == []


def test_exports_of_two_tasks_with_one_number_are_two_rows(records):
    tell(records, [case(records, "a", "A")], [lost("X")])
    tell(records, [case(records, "b", "B")], [lost("Y")])
    assert {one["key"] for one in of_others(records, [])[1]} == {"kX", "kY"}


def test_a_list_of_what_is_lost_alone_stays_until_that_is_tried(records):
    tell(records, [], [lost("X")])
    tell(records, [case(records, "a", "A")], [])
    assert [one["key"] for one in of_others(records, [])[1]] == ["kX"]
    tell(records, [case(records, "x", "X")], [])
    assert of_others(records, [])[1] == []


def test_a_list_that_another_task_replaces_just_then_is_no_error(records, monkeypatch):
    b, gone = case(records, "b", "B"), records.folder / "list-gone.json"
    read = lists.others
    told = {"cases": [{"key": "b", "scans": [str(records.out / "b.nii.gz")], "mask": "b.nii.gz"}], "lost": []}
    monkeypatch.setattr(lists, "others", lambda *given: [*read(*given), (gone, told)])
    assert tell(records, [b], []) == ([b], [])
    assert of_others(records, [b]) == ([], [])


def test_a_scan_without_file_and_mask_counts_while_its_failure_is_of_this_command(records):
    gone = case(records, "a", None)
    tell(records, [gone], [])
    records.write_failure("a", {"scan": ["a"], "error": "not there", "command": "array 7"})
    gone["mask"].unlink()
    assert [one["key"] for one in of_others(records, [], "array 7")[0]] == ["a"]
    assert of_others(records, [], "array 8")[0] == []


def test_where_there_is_no_ps_a_process_has_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PROC", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.start_time(1) == ""
