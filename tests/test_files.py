"""Files are whole or not there, hashes are the same for the same values, and a lock has one holder."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshnet import files, hub
from meshnet.errors import UserError


def test_what_lies_beside_a_missing_path_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/tiny.yaml", "data/tiny/prepared.json", "runs/tiny/config.json", "runs/.tinyy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert files.near("recipes/tinny.yaml") == files.near("recipe/tiny.yaml") == "; did you mean recipes/tiny.yaml?"
    assert files.near("data/tinyy") == "; did you mean data/tiny?"
    assert files.near(tmp_path / "data/tinyy") == f"; did you mean {tmp_path}/data/tiny?"
    assert files.near("data/tiny") == files.near("runs/nope") == files.near("data/tinyy/x") == files.near("a\0b") == ""


def away(name, kind):
    raise UserError(f"{name}: not in the cache, and the Hub cannot be reached; go online once, then it works offline")


def test_every_place_that_refuses_a_missing_path_offers_what_is_like_it(tmp_path, monkeypatch):
    from meshnet.crossval.scoring import test_run
    from meshnet.data.schema import load_prepared
    from meshnet.data.splits import load_splits
    from meshnet.networks.folder import find_folder
    from meshnet.recipe import load_recipes
    from meshnet.search.status import show_status

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "pull", away)
    for name in ("one/two/tiny", "runs/tiny"):
        (tmp_path / name).mkdir(parents=True)
    wrong = Path("one/two/tinyy")
    for act in (load_prepared, lambda path: load_splits(path / "splits.json"), lambda path: load_recipes([path]),
                find_folder, show_status, test_run):
        with pytest.raises(UserError, match=r"^one/two/tinyy.*; did you mean one/two/tiny\?$"):
            act(wrong)
    for name, said in (("runs/tinny", r"; did you mean runs/tiny\?$"), ("runs/nope", "; runs holds tiny$")):
        with pytest.raises(UserError, match=f"^{name}: no such folder.*{said}") as found:
            find_folder(name)
        assert "go online" not in str(found.value)
    with pytest.raises(UserError, match="go online"):
        find_folder("user/nope")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "scan.nii.gz"
    with files.whole_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz") and not path.exists()
        temporary.write_text("first")
    with pytest.raises(KeyboardInterrupt), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(path.parent) == ["scan.nii.gz"]


def test_a_file_may_be_read_by_whom_the_user_allows(tmp_path):
    with files.whole_file(tmp_path / "a") as temporary:
        temporary.touch(0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~files.UMASK


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, real_fsync):
    done = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("fsync"), real_fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    files.write_text(tmp_path / "a", "text")
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_texts_tables_and_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"ä": [1]}, default=str)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "\\u00e4": [\n    1\n  ]\n}\n'
    files.write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n"
    files.write_csv(tmp_path / "a.csv", [["case", "dice"], ["a,b", None]])
    assert (tmp_path / "a.csv").read_bytes() == b'case,dice\n"a,b",\n'


def test_the_same_values_have_the_same_hash():
    assert files.hash_of({"b": 1, "a": ["ä"]}) == files.hash_of({"a": ["ä"], "b": 1})
    # of {"a":1,"b":[true,null]}, by sha256sum
    assert files.hash_of({"b": [True, None], "a": 1}) == (
        "1cc69c7fa23616ca2ec3ee70d24390a6225c8832db8a4c814c7e0e7f942f8668")


def test_a_lock_has_one_holder_until_it_is_let_go(tmp_path):
    path = tmp_path / ".lock"
    code = f"from meshnet.files import lock\nwith lock({str(path)!r}, 'taken'): print('held')"
    with files.lock(path, "taken by me"):
        with pytest.raises(UserError, match="taken by me"), files.lock(path, "taken by me"):
            raise AssertionError("held twice")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "UserError: taken" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "held\n"


def test_linked_folders_are_looked_into_and_loops_are_not(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "disk/b").mkdir(parents=True)
    (tmp_path / "set/a/1").touch()
    (tmp_path / "disk/b/2").touch()
    for link, target in (("set/b", "disk"), ("set/again", "disk"), ("set/a/top", "set"), ("set/a/root", ""),
                         ("set/inside", "set/a"), ("disk/b/up", "disk")):
        (tmp_path / link).symlink_to(tmp_path / target)
    found = sorted(os.path.join(folder, name) for folder, _, names in files.walk(tmp_path / "set") for name in names)
    assert len(found) == 2 and found[0].endswith("set/a/1") and found[1].endswith("/b/2")
