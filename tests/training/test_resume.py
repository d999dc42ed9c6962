"""Resume points: whole or not there, the new one before the old one goes."""

import os

import pytest
import torch

from meshnet.errors import UserError
from meshnet.training import resume


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
