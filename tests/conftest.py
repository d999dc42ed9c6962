"""Fixtures that several test files share."""

import contextlib
import io
import os
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: these tests are of the CPU, on a GPU's machine too

import pytest
from stand_in import Bench

from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.runs import curves

ROOT = Path(__file__).resolve().parent.parent
DRAW_RUN, FSYNC = curves.draw_run, os.fsync
os.fsync = lambda descriptor: None  # no test cuts the power, and waiting for the disk is much of the time


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root, where the scripts lie."""
    return ROOT


@pytest.fixture(scope="session")
def real_fsync():
    """What waits until a file is on the disk."""
    return FSYNC


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


def undrawn(rows: list, path: Path, *more: object) -> None:
    """In place of ``curves.draw_run``: a file of that name, unless the run was ended before."""
    if not Path(path).exists():
        Path(path).write_bytes(b"not drawn")


def run_here(script: str, arguments: list[str], env: dict) -> subprocess.CompletedProcess:
    """``run_script_file`` within this process; what the script leaves behind in it is put back. The curves of a run are
    not drawn, which takes longer than its epochs here; those of ``undisturbed`` are.
    """
    out, err = io.StringIO(), io.StringIO()
    before, folder, argv = dict(os.environ), os.getcwd(), sys.argv
    code = 0
    try:
        os.environ.update(env)
        os.chdir(ROOT)
        sys.argv = [script, *arguments]
        with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
              patch.object(curves, "draw_run", undrawn if curves.draw_run is DRAW_RUN else curves.draw_run)):
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


@pytest.fixture(params=["compiled", "torch"])
def way(request):
    """Both ways of computing in turn: the kernels, and PyTorch alone."""
    from meshnet.kernels import calls

    if request.param == "compiled" and not calls.available():
        pytest.skip("no C++ compiler here")
    with calls.switched_off() if request.param == "torch" else contextlib.nullcontext():
        yield request.param


@pytest.fixture(scope="session")
def tiny_cases(tiny_data):
    """``tiny_data`` as training reads it."""
    from meshnet.data.reader import PreparedData

    return PreparedData(tiny_data)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A fresh Hub, the client pointed at it with an empty cache and a token that may write."""
    from huggingface_hub import constants
    from stand_in_hub import WRITER, Hub

    from meshnet import hub

    instance = Hub()
    thread = threading.Thread(target=instance.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", instance.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        instance.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "WAIT_S", 0.01)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield instance
    instance.shutdown()
    instance.server_close()


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with what training and testing leave in it."""
    import torch
    from stand_in_hub import CARD


    torch.manual_seed(0)
    model = MeshNet(channels=4, dilations=(1, 2))
    folder = tmp_path / "run"
    save_model(folder, model, Card(**CARD))
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 1, "step": 2, "learning_rate": 0.1, "train_loss": 0.5, "val_loss": 0.4, "val_dice": 0.3}\n')
    (folder / "test_cases.csv").write_text("case,dice,avd,mcc\nsub-secret,0.5,0.2,0.6\nsub-hidden,0.7,0.4,nan\n")
    (folder / "config.yaml").write_text("run: {data_path: /home/someone/data}\nmodel: {name: meshnet}\n")
    (folder / "curves.png").write_bytes(b"\x89PNG a picture")
    (folder / "a_scan_lesion.png").write_bytes(b"\x89PNG of sub-secret")
    (folder / "state").mkdir()
    (folder / "state" / "optimizer.bin").write_bytes(b"0")
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny_data, tmp_path_factory):
    """A run of four epochs that nothing interrupts."""
    from training_runs import RICH, train

    folder = tmp_path_factory.mktemp("runs") / "whole"
    with patch.object(curves, "draw_run", lambda *given: DRAW_RUN(*given)):  # not the stand-in of ``run_here``
        train(tiny_data, folder, *RICH, "--training.keep_states", 50)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that marks what is bright."""
    from bright import bright_model

    return bright_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path):
    """A prepared data set's description, without volumes, and two recipes."""
    import made_up

    from meshnet.data.schema import PREPARED_KEYS
    from meshnet.files import write_json, write_text

    write_json(tmp_path / "data/prepared.json", dict.fromkeys(PREPARED_KEYS) | {
        "format_version": 1, "fingerprint": made_up.FINGERPRINT})
    write_json(tmp_path / "data/splits.json", made_up.splits_of())
    for channels in (5, 6):
        write_text(tmp_path / f"m{channels}.yaml", f"model: {{channels: {channels}}}\n")
    return tmp_path
