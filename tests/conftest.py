"""Fixtures that several test files share."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
                    check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run one of the root's scripts as a user does; with ``check`` a non-zero exit fails the test with its output."""
    command = [*(launcher or (sys.executable,)), str(ROOT / script), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600,
                           env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, check=False)
    if check:
        assert found.returncode == 0, f"{' '.join(command)}\n{found.stdout}\n{found.stderr}"
    return found


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
