"""Exit codes: a user's mistake is one line, a fault of ours keeps its traceback."""

import errno
import importlib.metadata
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pytest

import meshnet
from meshnet.errors import ELASTIC, REQUIRED, TOKEN, WORD, Diverged, OneLineParser, UserError, run_script
from meshnet.flags import show_first


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
    with pytest.raises(SystemExit):
        run_script(raising(KeyboardInterrupt()), continues=True)
    assert capsys.readouterr().err == "interrupted; the same command continues\n"


def test_a_fault_of_ours_keeps_its_traceback():
    for error in (ValueError("ours"), OSError(errno.EINVAL, "invalid argument"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)):
            run_script(raising(error))


def test_a_wrong_flag_is_a_users_mistake():
    parser = OneLineParser(prog="script.py")
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match=r"--number.*; see script.py --help"):
        parser.parse_args(["--number", "x"])


@pytest.mark.parametrize("text", ["1e30", "-1e30", "9" * 400, "1e400"])
def test_a_number_beyond_all_use_is_refused_with_what_is_possible(text):
    parser = OneLineParser(prog="script.py")
    parser.add_argument("--seed", type=int)
    with pytest.raises(UserError, match=r"--seed: found .*, expected a whole number"):
        parser.parse_args(["--seed", text])
    assert parser.parse_args(["--seed", "1e18"]).seed == 10**18


def test_negative_numbers_with_an_exponent_are_no_flags():
    parser = OneLineParser(prog="script.py")
    parser.add_argument("--window", type=float, nargs=2)
    for low in ("-1e3", "-1.0E+3", "-1000", "-1000."):
        assert parser.parse_args(["--window", low, "1e3"]).window == [-1000, 1000]
    assert parser.parse_args(["--window", "-.5", "1"]).window == [-0.5, 1]


@pytest.mark.parametrize("script", ["infer.py", "train.py", "search.py", "crossval.py", "prepare.py", "share.py"])
def test_a_python_without_docstrings_runs_the_scripts(root, script):
    call = [sys.executable, "-OO", script, "--help"]
    ended = subprocess.run(call, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.startswith("usage:") and not ended.stderr


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


# ---------------------------------------------------------------------- the surroundings, by whatever words
def chained(last, first):
    last.__context__ = first
    return last


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "No space left on device"),
    (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "No space left on device"),
    (sqlite3.OperationalError("database or disk is full"), "No space left on device"),
    (ValueError("Error while serializing: I/O error: quota reached (os error 122)"), os.strerror(errno.EDQUOT)),
    (RuntimeError("Caught OSError in DataLoader worker process 1.\n[Errno 116] Stale file handle"), "tale file handle"),
    (chained(ValueError("while closing"), OSError(errno.EROFS, "x", "runs/a")), "error: runs/a: Read-only file system"),
    (OSError(errno.EIO, "x", "data/s.arrow"), "error: data/s.arrow: Input/output error; check the disk or the share"),
    (FileNotFoundError(errno.ENOENT, "x", "runs/a/state"), "error: runs/a/state: No such file or directory"),
    (RuntimeError("CUDA error: unspecified launch failure\nCompile with"), "GPU: CUDA error: unspecified launch"),
])
def test_the_surroundings_are_one_line_and_a_driver_is_told_so(error, said, capsys, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert ended(raising(error)) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1 and "run the same command again" in line
    monkeypatch.setenv(TOKEN, "x")
    assert ended(raising(error)) == 4


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_has_a_code_of_its_own(error, capsys):
    assert ended(raising(error)) == 5
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_a_file_that_was_looked_for_on_the_way_hides_no_fault_of_ours():
    with pytest.raises(ValueError, match="ours"):
        run_script(raising(chained(ValueError("ours"), FileNotFoundError(errno.ENOENT, "x", "optional.json"))))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_streams_end_nothing(root, closed):
    script = ("import sys; from meshnet.errors import run_script\n"
              "run_script(lambda: print(1) or print(2, file=sys.stderr))")
    command = f"{sys.executable} -c '{script}' {closed}"
    ended = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        0, "" if closed[0] == ">" else "1\n", "" if "2>" in closed else "2\n")


def test_a_log_on_a_full_disk_keeps_the_exit_code(root):
    code = ("import sys\nfrom meshnet.errors import run_script\n"
            "def main():\n    print('much', flush=False)\n    raise OSError(28, 'x', 'runs/a')\nrun_script(main)")
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=full, stderr=full, check=False,
                               env={**os.environ, TOKEN: "x"})
    assert found.returncode == 4


# ---------------------------------------------------------------------- signals
WAITING = """
import time
from meshnet.errors import run_script
def main():
    while True:
        try:
            print("ready", flush=True)  # in here, since the signal may come at once
            time.sleep(60)
        except KeyboardInterrupt:
            {then}
run_script(main, grace={grace})
"""


def signalled(root, number, then="raise", ignored=(), grace=20):
    """Exit code (None: still running) and stderr of a script that gets a signal, some of which it was born ignoring."""
    before = {one: signal.signal(one, signal.SIG_IGN) for one in ignored}
    try:
        process = subprocess.Popen([sys.executable, "-c", WAITING.format(then=then, grace=grace)], cwd=root, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    try:
        return process.wait(3 if number in ignored and number == signal.SIGHUP else 20), process.stderr.read()
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[1]


POSIX = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")


@POSIX
@pytest.mark.parametrize("ignored", [(), ("SIGINT",)], ids=["foreground", "background"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_script_in_one_line(root, name, ignored):
    number = getattr(signal, name)
    words = "interrupted\n" if name == "SIGINT" else f"interrupted by {name}\n"
    assert signalled(root, number, ignored=[getattr(signal, one) for one in ignored]) == (128 + number, words)


@POSIX
def test_a_signal_that_is_not_heard_ends_a_script_all_the_same(root):
    assert signalled(root, signal.SIGTERM, then="pass", grace=0.5) == (143, "interrupted by SIGTERM\n")


@POSIX
def test_a_signal_that_python_dropped_is_raised_again(root):
    """As while it forks a worker. The script then tidies up as after the first one."""
    then = """
            try:
                time.sleep(60)
            finally:
                print("tidied", file=__import__("sys").stderr)"""
    assert signalled(root, signal.SIGTERM, then=then, grace=6) == (143, "tidied\ninterrupted by SIGTERM\n")


@POSIX
def test_a_signal_while_an_object_goes_is_heard_a_moment_later(root):
    """An exception in ``__del__`` is dropped, and printed as a traceback."""
    then = """
            raise
        finally:
            print("tidied", file=__import__("sys").stderr)
def main():
    class Slow:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(0.3)
    slow = Slow()
    del slow
    time.sleep(60)
"""
    assert signalled(root, signal.SIGTERM, then=then) == (143, "interrupted by SIGTERM\n")


@POSIX
def test_nohup_is_believed(root):
    assert signalled(root, signal.SIGHUP, ignored=[signal.SIGHUP]) == (None, "")


def test_every_script_says_its_version_and_guesses_a_flag(capsys):
    parser = OneLineParser("script.py")
    parser.add_argument("--threshold")
    parser.add_argument("--crop", choices=("head", "none"))
    for given, words in ((["--thresold", "1"], "did you mean --threshold"), (["--crop", "haed"], "did you mean head")):
        with pytest.raises(UserError, match=words):
            parser.parse_args(given)
    with pytest.raises(UserError, match="unrecognized arguments: --zzz; see"):
        parser.parse_args(["--zzz"])
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"meshnet {meshnet.__version__}\n"


def test_the_first_process_that_fails_leaves_its_word(monkeypatch, tmp_path):
    """What the others say afterwards is of a lost connection, or of the launcher that ends them."""
    path = tmp_path / "word"
    monkeypatch.setenv(WORD, str(path))
    codes = [ended(raising(error)) for error in (KeyboardInterrupt(), Diverged("the loss\nis nan"), UserError("later"))]
    assert codes == [130, 3, 2]
    assert json.loads(path.read_text()) == {"code": 3, "line": "error: the loss is nan"}


def test_torchrun_ends_with_the_line_of_an_error(monkeypatch, tmp_path):
    """Read by torchrun's own code; without it the end is a link to a page on tracebacks."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv(ELASTIC, str(tmp_path / "error.json"))
    assert [ended(raising(error)) for error in (KeyboardInterrupt(), UserError("data/no: no such\nfolder"))] == [130, 2]
    said = str(ChildFailedError("train.py", {0: ProcessFailure(0, 1, 2, str(tmp_path / "error.json"))})).splitlines()
    assert said[-2:] == ["  traceback : error: data/no: no such folder", "=" * 60]


def test_help_begins_with_the_common_flags(capsys):
    """In one line of usage; --help_all shows the others, with their groups."""
    parser = OneLineParser("script.py")
    parser.add_argument("scans", nargs="*", metavar="SCAN")
    parser.add_argument("--often", help="o")
    parser.add_argument_group("rarely used", "about them").add_argument("--seldom", help="s")
    show_first(parser, "--often")
    shown = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])
        shown[flag] = capsys.readouterr().out
    assert shown["--help"].startswith("usage: script.py [SCAN ...] [flags]\n") and "--often" in shown["--help"]
    assert "--seldom" not in shown["--help"] and "rarely used" not in shown["--help"] and "about" not in shown["--help"]
    assert shown["--help"].endswith("2 more flags: script.py --help_all\n")  # --seldom and --version
    assert "--seldom" in shown["--help_all"] and "about them" in shown["--help_all"]
    assert parser.parse_args(["--seldom", "1"]).seldom == "1"
