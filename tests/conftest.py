"""Fixtures that several test files share."""

import contextlib
import io
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import Bench

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root, where the scripts lie."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans kept beside the checkout; tests that need them skip where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder


def run_script_file(script: str, *arguments: object, env: dict | None = None, launcher: tuple = (),
                    check: bool = True) -> subprocess.CompletedProcess:
    """Run one of the root's scripts with a user's command line; with ``check`` a non-zero exit fails the test.

    Without a launcher it runs within this process, as ``__main__``, which spares importing torch every time.
    """
    arguments = [str(argument) for argument in arguments]
    if launcher:
        found = subprocess.run([*launcher, str(ROOT / script), *arguments], capture_output=True, text=True, cwd=ROOT,
                               timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, check=False)
    else:
        found = run_here(script, arguments, env or {})
    if check:
        assert found.returncode == 0, f"{script} {' '.join(arguments)}\n{found.stdout}\n{found.stderr}"
    return found


def run_here(script: str, arguments: list[str], env: dict) -> subprocess.CompletedProcess:
    """``run_script_file`` within this process; what the script leaves behind in it is put back."""
    out, err = io.StringIO(), io.StringIO()
    before, folder, argv = dict(os.environ), os.getcwd(), sys.argv
    code = 0
    try:
        os.environ.update(env)
        os.chdir(ROOT)
        sys.argv = [script, *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os.chdir(folder)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
        if "accelerate" in sys.modules:  # its state is one a process
            from accelerate.state import AcceleratorState, GradientState

            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())


def torchrun(processes: int = 2) -> tuple:
    """The launcher of CPU processes that Accelerate joins over gloo, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr",
            "127.0.0.1", "--master_port", str(port))


GLOO = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A prepared data set of nine synthetic cases on an 8 mm grid (32³): a training step takes milliseconds."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    run_script_file("prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 8, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def published(shared_data, tmp_path_factory) -> Path:
    """brainchop's published 5-channel network, imported by the command."""
    from meshnet.sharing.importing import import_model

    folder = tmp_path_factory.mktemp("published") / "model"
    import_model(shared_data / "brainchop" / "model.json", folder)
    return folder


@pytest.fixture
def bench(tmp_path, root) -> Bench:
    """A folder in which search.py runs with a stand-in for train.py."""
    return Bench(tmp_path, root)
