"""Exit codes: a user's mistake is one line, a fault of ours keeps its traceback."""

import errno

import pytest

from meshnet.errors import OneLineParser, UserError, run_script


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
    for error in (ValueError("ours"), OSError(errno.EIO, "input/output error")):
        with pytest.raises(type(error)):
            run_script(raising(error))


def test_a_wrong_flag_is_a_users_mistake():
    parser = OneLineParser(prog="script.py")
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match=r"--number.*; see script.py --help"):
        parser.parse_args(["--number", "x"])
