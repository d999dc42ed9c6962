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


def test_a_lost_export_counts_until_it_is_tried_again(records):
    a, b = case(records, "a", "A"), case(records, "b", "B")
    lists.tell(records, [a], [lost("B")])
    assert [one["key"] for one in lists.of_others(records, [], [])[1]] == ["kB"]
    assert lists.of_others(records, [b], [])[1] == []  # by this process
    lists.tell(records, [b], [])
    found, gone = lists.of_others(records, [], [])  # by the later list of another
    assert {one["key"] for one in found} == {"a", "b"} and gone == []


def test_exports_of_two_tasks_with_one_number_are_two_rows(records):
    lists.tell(records, [case(records, "a", "A")], [lost("X")])
    lists.tell(records, [case(records, "b", "B")], [lost("Y")])
    assert {one["key"] for one in lists.of_others(records, [], [])[1]} == {"kX", "kY"}


def test_where_there_is_no_ps_a_process_has_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PROC", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.start_time(1) == ""
