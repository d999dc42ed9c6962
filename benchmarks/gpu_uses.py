"""Parts of ``benchmarks/gpu.py``: numbers, inference, the commands, an epoch, other networks, two processes."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_bench import ROOT, Bench, make, one_step, run


def numbers(bench: Bench) -> None:
    """Gradients against float32 on the CPU, and thirty steps in which the loss must fall."""
    import torch

    size = 64 if bench.big else 16
    cpu = Bench(False, False)
    for what, arguments, budget in (("batch norm", {}, None), ("batch norm, least memory", {}, 1e-9),
                                    ("two groups", {"norm": "group", "norm_groups": 2, "channels": 26}, 1e-9),
                                    ("instance norm", {"norm": "instance"}, None)):
        arguments = {"channels": 26, **arguments}
        reference, model = make(cpu, arguments, None), make(bench, arguments, budget)
        one_step(cpu, reference, torch.float32, size)
        half = (torch.float16, 0.99) if bench.big else (torch.bfloat16, 0.9)
        for kind, least in ((torch.float32, 0.999), half):
            one_step(bench, model, kind, size)
            pairs = [(p.grad.flatten().float().cpu(), q.grad.flatten()) for (name, p), q in
                     zip(model.named_parameters(), reference.parameters()) if not name.endswith("conv.bias")]
            ours, theirs = (torch.cat(part) for part in zip(*pairs))
            bench.add(f"{what}, {str(kind)[6:]}: cosine of the gradients",
                      torch.nn.functional.cosine_similarity(ours, theirs, 0).item(), least=least)
    model = make(bench, {}, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    losses = []
    for _ in range(30 if bench.big else 5):
        losses.append(one_step(bench, model, torch.float16 if bench.big else torch.float32, size).item())
        optimizer.step()
    bench.true("the loss falls on one case", losses[-1] < losses[0])


def inference(bench: Bench) -> None:
    """The device against the CPU's kernels: probabilities, seconds, memory."""
    import numpy as np
    import torch

    from meshnet.inference.predict import predict
    from meshnet.networks.meshnet import MeshNet

    size = 256 if bench.big else 40
    volume = np.zeros((1, size, size, size), np.float32)
    part = slice(size // 5, -size // 5)
    volume[:, part, part, part] = np.random.default_rng(0).random((1, *[size - 2 * (size // 5)] * 3), np.float32)
    for channels in (5, 26):
        torch.manual_seed(0)
        model = MeshNet(channels).eval()
        expected = predict(model, volume)
        if bench.big:
            torch.cuda.reset_peak_memory_stats()
        found = predict(model.to(bench.device), volume, device=bench.device)
        bench.add(f"{channels} channels: largest difference", float(np.abs(found - expected).max()), most=0.01)
        bench.add(f"{channels} channels: other labels, share",
                  float((found.argmax(0) != expected.argmax(0)).mean()), most=1e-4)
        seconds = bench.seconds(lambda m=model: predict(m, volume, device=bench.device))
        bench.speed(f"{channels} channels: head", seconds, unit="seconds")
        if bench.big:
            bench.add(f"{channels} channels: memory", torch.cuda.max_memory_allocated() / 1e9, unit="GB")
            torch.cuda.reset_peak_memory_stats()
            predict(model, volume, crop="none", max_memory=2_000_000_000, device=bench.device)
            bench.add(f"{channels} channels, at most 2 GB", torch.cuda.max_memory_allocated() / 1e9, most=2, unit="GB")


def commands(bench: Bench) -> None:
    """The commands on nine synthetic cases: a kill, the same command again, the test fold, a wrong flag."""
    if not bench.big:
        bench.skip("commands", "the test suite runs them on CPUs")
        return
    with tempfile.TemporaryDirectory() as folder:
        run(bench, "prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 4, "--out", f"{folder}/data")
        training = ("train.py", "--data", f"{folder}/data", "--run_dir", f"{folder}/run", "--training.max_epochs", 2,
                    "--training.precision", "fp16")
        killed = subprocess.Popen([sys.executable, *map(str, training)], cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(Path(folder).glob("run/state/*.pt")) and killed.poll() is None:
            time.sleep(0.2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        bench.true("killed, the same command finishes", run(bench, *training) == 0)
        bench.true("the test fold is scored", run(bench, "train.py", "--test", "--run_dir", f"{folder}/run") == 0)
        bench.true("profile", run(bench, "train.py", "--data", f"{folder}/data", "--profile") == 0)
        bench.true("a wrong flag ends with code 2", run(bench, "train.py", "--no_such_flag") == 2)
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        again = run(bench, "train.py", "--test", "--run_dir", f"{folder}/run", environment=hidden)
        bench.true("the run is scored without the GPU that trained it", again == 0)


def epoch(bench: Bench) -> None:
    """Reading, a step and a validated case side by side: what the device waits for."""
    import numpy as np
    import torch

    from meshnet.config import AugmentConfig
    from meshnet.data.augment import Augment
    from meshnet.inference.predict import predict_labels
    from meshnet.networks.meshnet import MeshNet

    size = bench.size
    volume = np.random.default_rng(0).random((1, size, size, size), np.float32)
    mask = np.zeros((size,) * 3, np.uint8)
    augmented = Augment(AugmentConfig(flip=0.5, affine=0.5, blur=0.3, noise=0.3), 1.0, "LIA")
    reading = bench.seconds(lambda: augmented(volume, mask, 1), 1)
    model = make(bench, {}, None)
    trained = bench.seconds(lambda: one_step(bench, model, torch.float16 if bench.big else torch.float32))
    eval_model = MeshNet(26 if bench.big else 5).eval().to(bench.device)
    validated = bench.seconds(lambda: predict_labels(eval_model, volume, device=bench.device))
    bench.add("one augmented case, one core", reading, unit="seconds")
    bench.add("one step", trained, unit="seconds")
    bench.add("one validated case", validated, unit="seconds")
    bench.add("workers that keep the device fed", reading / trained, most=8 if bench.big else None)


def networks(bench: Bench) -> None:
    """One step of each other network, with channels last and first."""
    import torch

    from meshnet.config import ModelConfig
    from meshnet.networks import build

    if not bench.big:
        bench.skip("other networks", "the test suite trains them on CPUs")
        return
    for name in ("segresnet", "unet", "residual_unet", "vnet", "mednext_s", "umamba_bot", "ukan"):
        for layout in (torch.channels_last_3d, torch.contiguous_format):
            torch.manual_seed(0)
            arguments = build.arguments_from_config(ModelConfig(name=name), 1, 2, (128, 128, 128))
            model = build.build(name, arguments).to(bench.device, memory_format=layout)
            torch.cuda.reset_peak_memory_stats()
            seconds = bench.seconds(lambda m=model: one_step(bench, m, torch.float16, 128), 1)
            how = "channels last" if layout is torch.channels_last_3d else "channels first"
            bench.add(f"{name}, {how}", seconds, unit=f"seconds, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
            del model


def processes(bench: Bench) -> None:
    """Two processes against one with both cases. Skipped with fewer than two GPUs."""
    import torch

    if not bench.big or torch.cuda.device_count() < 2:
        bench.skip("two processes", "takes two GPUs")
        return
    with tempfile.TemporaryDirectory() as folder:
        run(bench, "prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 4, "--out", f"{folder}/data")
        same = ("--data", f"{folder}/data", "--training.precision", "no", "--training.max_epochs", 1)
        run(bench, "-m", "torch.distributed.run", "--nproc_per_node", 2, "train.py", *same, "--run_dir",
            f"{folder}/two")
        run(bench, "train.py", *same, "--training.batch_size", 2, "--run_dir", f"{folder}/one",
            environment={"CUDA_VISIBLE_DEVICES": "0"})
        from safetensors.torch import load_file

        one, two = (load_file(f"{folder}/{name}/last.safetensors") for name in ("one", "two"))
        ours, theirs = (torch.cat([v.flatten().float() for k, v in sorted(w.items()) if "num_batches" not in k])
                        for w in (one, two))
        bench.add("weights of two processes and of one: cosine",
                  torch.nn.functional.cosine_similarity(ours, theirs, 0).item(), least=0.999)
