"""A launcher without its own traceback."""

import subprocess
import sys
import types

import pytest

from meshnet import ROOT
from meshnet.runs import quietly

LINE = "error: scan.nii: no such file"


@pytest.fixture
def launcher(monkeypatch):
    """Let torchrun be a function."""
    def put(function):
        monkeypatch.setattr(quietly.runpy, "run_module", lambda *_, **__: function())
    monkeypatch.setattr(quietly.logging, "disable", lambda level: None)
    return put


class Elastic(Exception):
    def get_first_failure(self):
        return 0, types.SimpleNamespace(exitcode=5)


class Signalled(Exception):
    sigval = 15


@pytest.mark.parametrize("error, code", [
    (subprocess.CalledProcessError(2, "train.py"), 2), (subprocess.CalledProcessError(-9, "train.py"), 137),
    (Elastic(), 5), (Signalled(), 143), (KeyboardInterrupt(), 130)])
def test_the_exit_code_is_the_scripts_own(launcher, error, code):
    def fail():
        raise error
    launcher(fail)
    assert quietly.main(["torchrun", "train.py"]) == code


def test_a_fault_of_the_launcher_keeps_its_traceback(launcher):
    launcher(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quietly.main(["torchrun", "train.py"])


def test_only_launchers_are_launched(capsys):
    assert quietly.main(["accelerate", "config"]) == quietly.main([]) == 2
    assert "found accelerate config, expected one of torchrun, accelerate launch" in capsys.readouterr().err


def test_torchrun_says_what_the_script_says_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint('{LINE}', file=sys.stderr)\nsys.exit(3)\n")
    done = subprocess.run([sys.executable, ROOT / "meshnet/runs/quietly.py", "torchrun", "--nproc_per_node", "1",
                           script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (3, LINE)
