"""What ``training.precision: auto`` means, with cards that are not here; how a run keeps it."""

import pytest
import torch
from training_runs import lines, train

from meshnet.errors import UserError
from meshnet.mapping import parse_yaml
from meshnet.training import assemble
from meshnet.training.precision import choose_precision

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("card, found", [((6, 1), "no"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"),
                                         ((8, 9), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")])
def test_a_gpu_decides_by_what_it_is_good_at(monkeypatch, card, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    assert choose_precision("auto", GPU) == found


@pytest.mark.parametrize("asked, told, begun_in, device, found", [
    ("auto", None, None, None, "no"), ("auto", None, None, torch.device("mps"), "no"),
    ("fp16", "bf16", "no", None, "fp16"), ("no", "fp16", None, GPU, "no"),  # what is asked for counts first
    ("auto", "fp16", None, None, "fp16"), ("auto", "bf16", None, GPU, "bf16"),
    ("auto", "no", None, GPU, "fp16"),  # what accelerate launch says where nobody said anything
    ("auto", "fp16", "bf16", GPU, "bf16"), ("auto", None, "no", GPU, "no"),  # a run goes on as it began
])
def test_who_decides(monkeypatch, asked, told, begun_in, device, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    if told:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert choose_precision(asked, device, begun_in) == found


def test_auto_is_float32_here_and_a_run_keeps_what_it_began_in(tiny_data, tmp_path, monkeypatch):
    """Without a flag for it: a launcher may say another precision, or a card choose one, when the run is continued."""
    run = lambda: parse_yaml((tmp_path / "config.yaml").read_text(), "")[0]
    train(tiny_data, tmp_path, "--training.max_epochs", 2, "--stop_epoch", 1,
          env={"ACCELERATE_MIXED_PRECISION": "bf16"})
    assert (run()["run"]["precision"], run()["training"]["precision"]) == ("bf16", "auto")
    train(tiny_data, tmp_path, "--training.max_epochs", 2)
    assert run()["run"]["precision"] == "bf16" and len(lines(tmp_path)) == 2
    assert "skipped_steps" not in lines(tmp_path)[0]
    other = train(tiny_data, tmp_path, "--training.max_epochs", 2, "--training.precision", "no", check=False)
    assert other.returncode == 2 and "precision was 'bf16' and is now 'no'" in other.stderr
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("precision: bf16", "precision: fp16"))  # as of a GPU
    gone = train(tiny_data, tmp_path, "--training.max_epochs", 2, check=False)
    assert gone.returncode == 2 and "began in fp16 and no GPU to continue it" in gone.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assemble.refuse_shared_gpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"found 2 processes .* one for each GPU that can be used \(1\); start 1"):
        assemble.refuse_shared_gpus()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assemble.refuse_shared_gpus()
