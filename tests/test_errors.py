"""Exit codes: a user's mistake is one line, a fault of ours keeps its traceback."""

import errno
import importlib.metadata
import re
import subprocess
import sys

import pytest

from meshnet.errors import REQUIRED, OneLineParser, UserError, run_script


def ended(main) -> int:
    with pytest.raises(SystemExit) as end:
        run_script(main)
    return end.value.code


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_one_line(number, capsys):
    assert ended(raising(OSError(number, "words", "some/file"))) == 2
    assert capsys.readouterr().err.startswith("error: some/file: ")
    assert ended(raising(OSError(number, "words"))) == 2
    assert capsys.readouterr().err.startswith("error: output: ")


def test_exit_codes(capsys):
    assert [ended(lambda code=code: code) for code in (None, 0, 1, 3)] == [0, 0, 1, 3]
    assert capsys.readouterr().err == ""
    assert ended(raising(UserError("a line\n  and another"))) == 2
    assert capsys.readouterr().err == "error: a line and another\n"
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_ours_keeps_its_traceback():
    for error in (ValueError("ours"), OSError(errno.EINVAL, "invalid argument"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)):
            run_script(raising(error))


def test_a_wrong_flag_is_a_users_mistake():
    parser = OneLineParser(prog="script.py")
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match=r"--number.*; see script.py --help"):
        parser.parse_args(["--number", "x"])


def without(root, missing, script, *arguments):
    """A script as a Python sees it in which the packages ``missing`` are not installed."""
    code = (f"import runpy, sys\nfor name in {missing}: sys.modules[name] = None\n"
            f"sys.argv = {[script, *arguments]}\nrunpy.run_path({script!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["infer", "train", "prepare", "search", "crossval", "share", "demo"])
def test_outside_the_environment_a_script_says_so_in_one_line(root, script):
    found = without(root, REQUIRED, f"{script}.py", "--help")
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert re.match(r"error: .*: found no Python package numpy, scipy, nibabel, expected .*make test", found.stderr)


@pytest.mark.parametrize("missing", ["yaml", "simple_parsing", "torch"])
def test_a_package_that_is_missed_later_is_one_line_too(root, missing):
    found = without(root, [missing], "train.py", "--recipe", "recipes/meshnet5.yaml", "--dry_run")
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert f"found no Python package {missing}," in found.stderr


def test_a_module_that_nobody_requires_is_a_fault_of_ours():
    with pytest.raises(ModuleNotFoundError):
        run_script(raising(ModuleNotFoundError("no such module", name="meshnet.nowhere")))


def test_required_packages_are_those_of_the_requirements(root):
    known = importlib.metadata.packages_distributions()
    listed = [line.split("==")[0] for line in (root / "requirements.txt").read_text().splitlines() if "==" in line]
    installed = [known[name][0].lower().replace("_", "-") for name in REQUIRED]
    assert sorted(installed) == sorted(name.lower() for name in listed)
