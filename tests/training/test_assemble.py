"""How a run is put together: the training box, the estimated memory, precision."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_runs import assert_same_run, lines, train, weights

from meshnet.config import Config, resolve
from meshnet.errors import UserError
from meshnet.inference.predict import predict_logits
from meshnet.networks import gpu_memory
from meshnet.networks.memory import estimate_training_memory
from meshnet.networks.meshnet import MeshNet
from meshnet.training import assemble
from meshnet.training.assemble import estimate_step, layout_of, refuse_budget, training_box
from meshnet.training.run import Progress


def test_the_last_line_says_where_validation_cases_are_training_cases(tmp_path):
    run = SimpleNamespace(progress=Progress(epoch=2, best_epoch=1, best_dice=0.77, finished=True), folder=tmp_path,
                          config=resolve(Config()), train=[0, 1], val=[1])
    assert assemble.outcome(run).endswith("0.770 (epoch 1); validated on its own training cases: an upper bound")
    run.val = [2]
    assert assemble.outcome(run).endswith("0.770 (epoch 1)")


@pytest.mark.parametrize("norm", ["batch", "none", "instance", "group"])
def test_a_meshnet_trains_on_what_it_sees_at_inference(tiny_cases, norm):
    """Statistics that a norm takes from the volume are others in a box around the head: then there is no box."""
    config = Config()
    config.model.norm = norm
    network = MeshNet(4, dilations=(1, 1), norm=norm).eval()
    box = training_box(config, tiny_cases) or [edge for size in tiny_cases.info["shape"] for edge in (0, size)]
    part = torch.from_numpy(tiny_cases.image(0, box))[None]
    whole = predict_logits(network, tiny_cases.image(0), crop="none")
    inner = tuple(slice(a + 2, b - 2) for a, b in zip(box[::2], box[1::2]))  # away from the box's own zero padding
    ours = network(part)[0, :, 2:-2, 2:-2, 2:-2].detach().numpy()
    assert np.allclose(ours, whole[(slice(None), *inner)], atol=1e-4)
    config.data.crop = "none"
    assert training_box(config, tiny_cases) is None


def test_what_a_resume_point_has_built_in_cannot_change(tiny_data, tmp_path):
    folder = tmp_path / "run"
    train(tiny_data, folder, "--training.max_epochs", 3, "--stop_epoch", 1)
    found = train(tiny_data, folder, "--training.max_epochs", 3, "--optimizer.eps", 1e-3, "--allow_changed",
                  check=False)
    assert found.returncode == 2 and "optimizer.eps cannot change" in found.stderr and "--init" in found.stderr
    train(tiny_data, folder, "--training.max_epochs", 3, "--loss.background_weight", 0.3, "--allow_changed")
    assert len(lines(folder)) == 3


def test_a_run_begins_anew_when_told_to(tiny_data, tmp_path):
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    train(tiny_data, folder, "--training.max_epochs", 2, "--ema.enabled", "true")
    (folder / "notes.txt").write_text("mine")
    for run in (folder, fresh):
        train(tiny_data, run, "--training.max_epochs", 1, "--seed", 3, "--no-resume")
    assert_same_run(folder, fresh)
    assert not (folder / "model_ema.safetensors").exists() and (folder / "notes.txt").read_text() == "mine"


def test_fp16_without_a_gpu_is_refused(tiny_data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for options in ({"env": {"ACCELERATE_MIXED_PRECISION": "fp16"}}, {}):
        flags = [] if options else ["--training.precision", "fp16"]
        found = train(tiny_data, tmp_path / "run", *flags, check=False, **options)
        assert found.returncode == 2 and "fp16 on a CPU" in found.stderr and found.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_patch_far_beyond_the_grid_is_refused(tiny_data, tmp_path):
    found = train(tiny_data, tmp_path / "run", "--model.patch", 8, 8, 9000, check=False)
    assert found.returncode == 2 and "model.patch: found [8, 8, 9000], expected at most the grid of" in found.stderr
    assert not (tmp_path / "run").exists()


def test_bf16_trains_here(tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", "--training.precision", "bf16", "--training.max_epochs", 1)
    assert weights(tmp_path / "run")["head.weight"].dtype == torch.float32
    assert lines(tmp_path / "run")[0]["train_loss"] > 0


def test_a_second_process_in_the_same_run_folder_is_refused(tiny_data, tmp_path):
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = train(tiny_data, folder, check=False)
    assert found.returncode == 2 and "another process" in found.stderr
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]


def test_the_memory_of_a_step_is_said_before_training(tiny_data, tmp_path):
    out = train(tiny_data, tmp_path / "run", "--training.max_epochs", 1).stdout
    assert out.splitlines()[0].startswith("memory: about") and "epoch 1/1" in out.splitlines()[1]


def test_the_estimated_memory_is_that_of_the_box_the_patch_or_the_whole_volume(tiny_cases):
    config, network = Config(), MeshNet(4, dilations=(1, 2))
    config.training.batch_size = 3

    def estimated(box, precision=None):
        return estimate_step(config, tiny_cases, network, box, precision)

    expected = lambda shape, dtype=torch.float32: estimate_training_memory(network, 3, shape, dtype, None)
    assert estimated([0, 16, 4, 28, 8, 16]) == expected([16, 24, 8])
    assert estimated(None) == expected(tiny_cases.info["shape"]) > estimated([0, 16, 4, 28, 8, 16])
    assert estimated(None, "bf16") == expected(tiny_cases.info["shape"], torch.bfloat16)
    assert estimated(None, "fp16") == expected(tiny_cases.info["shape"], torch.float16) < estimated(None)
    config.model.patch = [8, 16, 8]
    assert estimated([0, 16, 4, 28, 8, 16]) == expected([8, 16, 8])
    config.model.name = "unet"
    assert estimated(None) is None


def test_a_run_is_recorded_as_done_before_it_is_decorated(tiny_data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    broken, titles = [], []

    def draw(*given):
        broken.append((folder / "DONE").is_file())
        titles.append(given[2])
        raise ValueError("no such backend")

    monkeypatch.setattr("meshnet.runs.curves.draw_run", draw)
    found = train(tiny_data, folder, "--training.max_epochs", 1)
    assert broken == [True] and found.returncode == 0
    assert [title.endswith(f" on {tiny_data.name}, fold 0, seed 0") for title in titles] == [True]
    assert (f"warning: {folder}/curves.png: not drawn: ValueError: no such backend; nothing else depends on it\n"
            in found.stderr)


@pytest.mark.parametrize(("damage", "said"), [
    (lambda data, folder: (data / "splits.json").unlink(), "splits.json"),
    (lambda data, folder: (folder / "state" / "step-00000004.pt").write_bytes(b"half"), "cannot be read"),
    (lambda data, folder: data.rename(data.with_name("away")), "found no prepared.json"),
], ids=["splits", "resume point", "data set"])
def test_a_driver_is_told_that_the_surroundings_failed(tiny_data, tmp_path, damage, said):
    import shutil

    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    train(data, folder, "--training.max_epochs", 2, "--stop_epoch", 1)
    for state in (folder / "state").iterdir():
        state.rename(folder / "state" / "step-00000004.pt")
    damage(data, folder)
    for environment, code in (({}, 2), ({"MESHNET_JOB": "x"}, 4)):
        found = train(data, folder, "--training.max_epochs", 2, check=False, env=environment)
        assert (found.returncode, found.stderr.count("error: ")) == (code, 1) and said in found.stderr


def test_a_budget_that_no_step_fits_is_refused_with_the_least(tiny_cases, monkeypatch):
    monkeypatch.setattr(assemble, "tune", lambda *_: None)  # asks the GPU itself
    config = resolve(Config())
    for device, reserve in (("cpu", 0), ("cuda", gpu_memory.RESERVE)):
        accelerator = SimpleNamespace(device=torch.device(device), mixed_precision="no", num_processes=1)
        network = MeshNet(26)
        network.memory_budget = 1_000_000
        with pytest.raises(UserError, match=r"memory_budget: found 0.00 GB, expected at least \d.\d\d GB") as raised:
            refuse_budget(accelerator, config, tiny_cases, network, None)
        least = float(re.search(r"least ([\d.]+) GB", str(raised.value))[1]) * 1e9
        network.memory_budget = int((least + 0.005e9) / (0.95 if device == "cpu" else 1))
        refuse_budget(accelerator, config, tiny_cases, network, None)
        assert least > reserve
        network.memory_budget = None
        refuse_budget(accelerator, config, tiny_cases, network, None)


def test_maps_lie_so_that_no_norm_copies_them():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    grouped = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.GroupNorm(1, 2))
    plain = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2))
    assert layout_of(grouped, gpu) == torch.contiguous_format
    for network, device in ((grouped, cpu), (plain, gpu), (MeshNet(2, norm="instance"), gpu)):
        assert layout_of(network, device) == torch.channels_last_3d
