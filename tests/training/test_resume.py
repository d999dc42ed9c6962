"""Resume points: whole or not there, the new one before the old one goes."""

import os
import subprocess
import sys

import pytest
import torch
from small import CARD, network

from meshnet.errors import Surroundings, UserError
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.training import agree, resume


def test_round_trip_of_everything_a_run_keeps(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"network": model.state_dict(), "optimizer": optimizer.state_dict(), "random": resume.random_state(),
             "progress": {"epoch": 3, "best": None, "done": False}}
    expected = torch.rand(3)
    resume.save_state(tmp_path, 7, state, keep=2)
    found = resume.load_state(tmp_path)
    resume.set_random_state(found["random"])
    assert torch.equal(torch.rand(3), expected)
    assert found["progress"] == state["progress"]
    torch.testing.assert_close(found["optimizer"]["state"], state["optimizer"]["state"], rtol=0, atol=0)


def test_the_last_ones_are_kept_and_the_newest_is_read(tmp_path):
    for step in (1, 2, 30):
        resume.save_state(tmp_path, step, {"step": step}, keep=2)
    assert [path.name for path in resume.list_states(tmp_path)] == ["step-00000002.pt", "step-00000030.pt"]
    assert resume.load_state(tmp_path) == {"step": 30}
    assert resume.load_state(tmp_path / "nothing") is None


def test_a_write_that_fails_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    resume.save_state(tmp_path, 1, {"step": 1}, keep=1)

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        resume.save_state(tmp_path, 2, {"step": 2}, keep=1)
    assert os.listdir(tmp_path) == ["step-00000001.pt"]
    assert resume.load_state(tmp_path) == {"step": 1}


def test_the_old_one_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    resume.save_state(tmp_path, 1, {"step": 1}, keep=1)
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.extend(sorted(os.listdir(tmp_path))), replace(a, b)))
    resume.save_state(tmp_path, 2, {"step": 2}, keep=1)
    assert "step-00000001.pt" in seen
    assert os.listdir(tmp_path) == ["step-00000002.pt"]


def test_a_damaged_one_is_one_line(tmp_path):
    resume.save_state(tmp_path, 1, {"step": 1}, keep=1)
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        resume.load_state(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"a": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises((UserError, pickle.UnpicklingError)):
        resume.load_state(tmp_path)
    assert not (tmp_path / "evil").exists()


LIMITED = """
import resource, sys, torch
from pathlib import Path
from meshnet.networks.folder import save_weights
from meshnet.errors import run_script
from meshnet.training.resume import save_state
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow beyond it, as on a disk that is full
big = {"weights": torch.zeros(50_000)}
run_script(lambda: {"torch": lambda: save_state(folder, 2, big, 3),
                    "safetensors": lambda: save_weights(folder / "last.safetensors", big)}[sys.argv[2]]() and 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(("library", "name"), [("torch", "step-00000002.pt"), ("safetensors", "last.safetensors")])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_what_was_there(tmp_path, root, library, name):
    """Neither library says what hindered it: torch has ``unexpected pos``, safetensors an error of its own."""
    resume.save_state(tmp_path, 1, {"value": torch.ones(2)}, 3)
    found = subprocess.run([sys.executable, "-c", LIMITED, tmp_path, library], cwd=root, capture_output=True, text=True,
                           check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert found.stderr.startswith(f"error: {tmp_path / name}: File too large; raise ulimit -f")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert resume.load_state(tmp_path)["value"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x80\x02 something else"])
def test_a_resume_point_that_is_broken_is_no_fault_of_the_run(tmp_path, content):
    (tmp_path / "step-00000004.pt").write_bytes(content)
    with pytest.raises(Surroundings, match=r"step-00000004.pt: cannot be read .*; delete it to continue"):
        resume.load_state(tmp_path)


@pytest.mark.parametrize("kept, own, found", [(["0", "1", "2", "3"], 0, "0"), (["0", "1", "2", "3"], 2, "2"),
                                              (["0", "1"], 3, "1"), ("mine", 1, "mine")])
def test_a_run_goes_on_with_other_gpus_than_it_began_with(monkeypatch, kept, own, found):
    """Earlier versions kept the generators of all GPUs that were visible; now each process keeps its own."""
    device, placed = torch.device("cuda", own), []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: placed.append((state, device)))
    resume.set_random_state({"cpu": torch.get_rng_state(), "cuda": kept}, device)
    assert placed == [(found, device)]
    resume.set_random_state({"cpu": torch.get_rng_state(), "cuda": kept}, torch.device("cpu"))
    assert len(placed) == 1
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"of {device}")
    assert resume.random_state(device)["cuda"] == f"of cuda:{own}" and "cuda" not in resume.random_state()


class Process:
    """One of two processes, and what they tell each other."""

    num_processes, said = 2, ()

    def __init__(self, main):
        self.is_main_process = main


@pytest.fixture
def told(monkeypatch):
    def broadcast(said):
        if Process.said:
            said[:] = Process.said
        else:
            Process.said = tuple(said)

    monkeypatch.setattr(agree, "broadcast_object_list", broadcast)
    monkeypatch.setattr(Process, "said", ())


def test_processes_go_on_from_the_state_that_the_main_one_found(tmp_path, told):
    """Where the folder is not shared, or its listing is late, another process sees none or an older one."""
    resume.save_state(tmp_path / "here", 7, {"step": 7}, keep=2)
    resume.save_state(tmp_path / "there", 3, {"step": 3}, keep=2)
    assert resume.load_state(tmp_path / "here", Process(True)) == {"step": 7}
    assert [resume.load_state(tmp_path / name, Process(False)) for name in ("there", "nowhere")] == [{"step": 7}] * 2


def test_what_ends_the_main_process_ends_the_others(told):
    def fail():
        raise UserError("taken")

    for process in (Process(True), Process(False)):
        with pytest.raises(UserError, match="taken"):
            agree.by_main(process, fail if process.is_main_process else None)


def test_the_best_weights_and_their_card_are_there_before_training_goes_on(tmp_path):
    resume.check_kept(tmp_path, -1)  # none yet
    with pytest.raises(UserError, match=r"model\.safetensors: not there, expected the weights of epoch 2, the best so"):
        resume.check_kept(tmp_path, 2)
    save_model(tmp_path, network(), Card(**CARD))
    resume.check_kept(tmp_path, 2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        resume.check_kept(tmp_path, 2)
