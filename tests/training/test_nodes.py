"""Several machines, as several launchers on this one: what they go on from, and how they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from conftest import GLOO, ROOT, torchrun
from training_runs import SMALL, TWO, children, lines, train, weights

pytestmark = pytest.mark.slow
ELSEWHERE = """
    import os, runpy, sys
    if os.environ["RANK"] != "0":
        sys.argv[sys.argv.index("--run_dir") + 1] += "-elsewhere"
    sys.path.insert(0, {root!r})
    runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def test_a_machine_that_does_not_see_the_run_folder_goes_on_with_the_others(tiny_data, tmp_path):
    """Each process looking for itself, one would begin anew: a hang, or nonsense."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    script = tmp_path / "elsewhere.py"
    script.write_text(textwrap.dedent(ELSEWHERE).format(root=str(ROOT)))
    train(tiny_data, whole, *TWO, launcher=torchrun(), env=GLOO)
    train(tiny_data, cut, *TWO, "--stop_epoch", 3, launcher=torchrun(), env=GLOO)
    flags = ["--data", tiny_data, "--run_dir", cut, *SMALL, *TWO]
    found = subprocess.run([str(part) for part in (*torchrun(), script, *flags)], cwd=ROOT, capture_output=True,
                           text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **GLOO}, check=False)
    assert found.returncode == 0, found.stderr
    assert "continuing after epoch 3" in found.stdout and not list(tmp_path.glob("cut-elsewhere/*.safetensors"))
    assert "Detected call" not in found.stderr and "process group has NOT been destroyed" not in found.stderr
    for name in ("model.safetensors", "last.safetensors", "model_ema.safetensors"):
        assert all(torch.equal(value, weights(cut, name)[key]) for key, value in weights(whole, name).items()), name
    assert [{**row, "seconds": 0} for row in lines(cut)] == [{**row, "seconds": 0} for row in lines(whole)]
    taken = subprocess.run([str(part) for part in (*torchrun(), script, *flags, "--seed", 3)], cwd=ROOT, text=True,
                           capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **GLOO}, check=False)
    assert taken.returncode and taken.stderr.count("seed was 0 and is now 3") == 2  # the one that saw nothing, too


NAN = """
    import os, runpy, sys, torch
    sys.path.insert(0, {root!r})
    from meshnet.training import loss
    forward, calls = loss.SegmentationLoss.forward, []
    def planted(self, logits, target):
        calls.append(1)
        value = forward(self, logits, target)
        return value * float("nan") if os.environ["RANK"] == "1" and len(calls) == 3 else value
    loss.SegmentationLoss.forward = planted
    runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def test_a_loss_that_is_nan_on_one_process_ends_all_with_the_same_words(tiny_data, tmp_path):
    """Without a word between them the other one would say that a connection is lost, and the exit code would be chance.
    """
    script, folder = tmp_path / "nan.py", tmp_path / "run"
    script.write_text(textwrap.dedent(NAN).format(root=str(ROOT)))
    started = time.monotonic()
    given = [*torchrun(), script, "--data", tiny_data, "--run_dir", folder, *SMALL, "--training.max_epochs", 500]
    found = subprocess.run([str(part) for part in given], cwd=ROOT, capture_output=True, text=True, check=False,
                           env={**os.environ, "OMP_NUM_THREADS": "1", **GLOO}, timeout=300)
    assert found.returncode and time.monotonic() - started < 200
    begins = f"error: {folder}: the loss is nan at epoch 2,"
    said = [line for line in found.stderr.splitlines() if line.startswith(begins)]
    assert len(said) == 2 and said[0] == said[1], found.stderr
    assert "exitcode  : 3 " in found.stderr
    assert "the loss is nan at epoch" in (folder / "failed.json").read_text()
    assert "Connection closed" not in found.stderr and not (folder / "DONE").exists()


@pytest.mark.kills
def test_a_process_that_fails_on_one_machine_ends_the_other(tiny_data, tmp_path):
    """Over gloo, whose connections break. NCCL is not tried here, for it srun has --kill-on-bad-exit."""
    port = torchrun()[-1]
    nodes = []
    for node in range(2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", node,
                    "--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", port]
        command = [*launcher, ROOT / "train.py", "--data", tiny_data, "--run_dir", tmp_path / "run", *SMALL,
                   "--training.max_epochs", 500]
        nodes.append(subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **GLOO}))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/state/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (worker,) = children(nodes[1].pid)
    os.kill(worker, signal.SIGKILL)
    for node in nodes:
        node.communicate(timeout=60)
    assert all(node.returncode for node in nodes)
    assert list(tmp_path.glob("run/state/step-*.pt")) and not (tmp_path / "run" / "DONE").exists()
