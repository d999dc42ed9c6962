"""infer.py and prepare.py by several processes of which some are killed: every scan once, one table at the end."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bright import infer, scan_file
from stand_in import wait_for

from meshnet.cohort.records import progress


def start(root, *arguments, shard, of, job="1"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(shard),
                   "SLURM_ARRAY_TASK_COUNT": str(of), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": str(of - 1)}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=root, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def scans(folder: Path, number: int) -> Path:
    folder.mkdir()
    for i in range(number):
        scan_file(folder / f"s{i:02d}.nii.gz", bright=(slice(20, 26 + i % 4), slice(22, 34), slice(24, 40)))
    return folder


def test_an_array_shares_a_list_and_makes_one_table(model, root, tmp_path):
    """One of three is killed as soon as it has claimed a scan; one scan cannot be read, and is tried once."""
    folder, out = scans(tmp_path / "scans", 8), tmp_path / "out"
    (folder / "s05.nii.gz").write_bytes(b"broken")
    killed = start(root, "infer.py", folder, "-o", out, "--model", model, "--no-picture", shard=0, of=3)
    wait_for(lambda: list(out.glob(".meshnet/*.claim")), pause=0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    others = [start(root, "infer.py", folder, "-o", out, "--model", model, "--no-picture", shard=i, of=3)
              for i in (1, 2)]
    told = [process.communicate(timeout=120) for process in others]
    assert 1 in [process.returncode for process in others]  # who found the broken one, or writes the table
    assert sum(err.count("s05.nii.gz") for _, err in told) == 1
    rows = list(csv.DictReader((out / "lesions.csv").open()))
    assert [Path(row["scan"]).name for row in rows] == [f"s{i:02d}.nii.gz" for i in (0, 1, 2, 3, 4, 6, 7, 5)]
    assert all(row["error"] == "" and float(row["volume_ml"]) > 0 for row in rows[:-1]) and rows[-1]["error"]
    lines = [line for text, _ in told for line in text.splitlines()]
    before = {path.name for path in out.glob("*_lesion.nii.gz")} - {Path(line.split(":")[0]).name for line in lines}
    assert len(lines) == len(set(lines)) and len(before) + len(lines) == 7  # what the killed one finished, and the rest
    assert not list(out.glob(".meshnet/*.claim"))


@pytest.mark.slow
def test_a_second_command_tries_again_what_failed(model, root, tmp_path):
    folder, out = scans(tmp_path / "scans", 2), tmp_path / "out"
    good = (folder / "s01.nii.gz").read_bytes()
    (folder / "s01.nii.gz").write_bytes(b"broken")
    for job, code in (("1", 1), ("1", 1), ("2", 0)):
        if job == "2":
            (folder / "s01.nii.gz").write_bytes(good)
        process = start(root, "infer.py", folder, "-o", out, "--model", model, "--no-picture", shard=0, of=2, job=job)
        process.communicate(timeout=120)
        if job == "2":
            assert process.returncode == code
    assert [row["error"] for row in csv.DictReader((out / "lesions.csv").open())] == ["", ""]


def test_processes_that_share_need_one_folder(model, root, tmp_path):
    folder = scans(tmp_path / "scans", 2)
    process = start(root, "infer.py", folder, "--model", model, shard=0, of=2)
    assert "-o: missing" in process.communicate(timeout=60)[1] and process.returncode == 2
    assert sorted(path.name for path in folder.iterdir()) == ["s00.nii.gz", "s01.nii.gz"]


def test_a_task_with_one_scan_of_its_own_does_it(model, tmp_path):
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_JOB_ID": "5"}
    infer(scan_file(tmp_path / "a.nii.gz"), "--model", model, "--no-picture", env=environment)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a_lesion.nii.gz"]


def test_time_left_is_of_all_processes_together():
    assert progress(10, 40, 0, 60.0) == "10 of 40 scans done, about 3 min left"
    assert progress(30, 100_000, 10, 2.0) == "30 of 100000 scans done, about 2.8 h left"
    assert progress(10, 40, 10, 60.0) == "10 of 40 scans done"


@pytest.mark.slow
def test_a_data_set_prepared_by_three_of_which_one_is_killed_is_that_of_one(root, tmp_path):
    flags = ("prepare.py", "--format", "synthetic", "--cases", 12, "--voxel_mm", 8, "--workers", 1, "--out")
    subprocess.run([sys.executable, *map(str, flags), tmp_path / "one"], cwd=root, check=True)
    killed = start(root, *flags, tmp_path / "three", shard=0, of=3)
    wait_for(lambda: list((tmp_path / "three").glob("shards/*.arrow")), seconds=300, pause=0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    others = [start(root, *flags, tmp_path / "three", shard=i, of=3) for i in (1, 2)]
    told = [process.communicate(timeout=300)[0] for process in others]
    assert [process.returncode for process in others] == [0, 0]
    assert sum(": 12 cases, " in text for text in told) == 1  # one of them makes the data set
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert (tmp_path / "three" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()
