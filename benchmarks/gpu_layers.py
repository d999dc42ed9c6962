"""Parts of ``benchmarks/gpu.py``: the machine, one layer, one training step."""

import json
import subprocess
import sys

from benchmarks.gpu_bench import ROOT, Bench, make, one_step

RATES = {"A100": 0.25, "H100": 0.12, "H200": 0.12}  # seconds of a plain step that is still good


def machine(bench: Bench) -> None:
    """Versions, and the yardsticks: matrix product and copy."""
    import torch

    bench.add("torch", torch.__version__)
    bench.add("cuDNN", str(torch.backends.cudnn.version()))
    if bench.big:
        free, whole = torch.cuda.mem_get_info()
        bench.add("memory free of", free / 1e9, unit=f"GB of {whole / 1e9:.0f}")
        bench.add("capability", ".".join(map(str, torch.cuda.get_device_capability())))
    bench.add("matrix product", product_rate(bench), unit="TFLOP/s")
    x = torch.empty(2**29 if bench.big else 2**20, dtype=torch.int8, device=bench.device)
    y = torch.empty_like(x)
    bench.add("copy, read and written", 2e-9 * x.numel() / bench.seconds(lambda: y.copy_(x)), unit="GB/s")


def product_rate(bench: Bench) -> float:
    """TFLOP/s of a matrix product, fp16 on a GPU."""
    import torch

    n = 8192 if bench.big else 256
    a = torch.randn(n, n, device=bench.device).to(torch.float16 if bench.big else torch.float32)
    return 2e-12 * n**3 / bench.seconds(lambda: a @ a)


def layer(bench: Bench) -> None:
    """One convolution, both passes: channels, dilation, layout, bias, cuDNN's benchmark. What decides the switches."""
    import torch

    rate, times = product_rate(bench), {}
    for channels, dilation, last, bias, tries in (
            (26, 1, True, False, False), (26, 1, True, False, True), (26, 4, True, False, False),
            (26, 16, True, False, False), (26, 1, False, False, False), (26, 1, True, True, False),
            (32, 1, True, False, False), (32, 1, True, False, True), (16, 1, True, False, False),
            (8, 1, True, False, False), (5, 1, True, False, False)):
        name = (f"C {channels}, dilation {dilation}{'' if last else ', channels first'}{', bias' if bias else ''}"
                f"{', benchmark' if tries else ''}")
        with torch.backends.cudnn.flags(enabled=True, benchmark=tries, allow_tf32=True):
            seconds, workspace = one_layer(bench, channels, dilation, last, bias)
        times[name] = seconds
        flops = 6 * 27 * channels**2 * bench.size**3
        bench.speed(name, 1e-12 * flops / seconds, 0.15 * rate if channels == 26 and last and not bias else None,
                    unit="TFLOP/s, both passes")
        if bench.big and last:
            bench.add(f"workspace, {name}", workspace / 1e9, most=0.5, unit="GB")
    first = times["C 26, dilation 1"]
    bench.speed("dilation 16 against 1", times["C 26, dilation 16"] / first, most=1.5)
    bench.speed("bias against none", times["C 26, dilation 1, bias"] / first)
    bench.add("32 channels against 26 (below 0.9: pad)", times["C 32, dilation 1"] / first)
    bench.add("benchmark against none (below 0.95: on)", times["C 26, dilation 1, benchmark"] / first)


def one_layer(bench: Bench, channels: int, dilation: int, last: bool, bias: bool) -> tuple[float, int]:
    """Seconds of both passes, and the bytes above the tensors'."""
    import torch

    kind = torch.float16 if bench.big else torch.float32
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x = torch.randn(1, channels, *[bench.size] * 3, device=bench.device, dtype=kind).contiguous(memory_format=layout)
    conv = torch.nn.Conv3d(channels, channels, 3, padding=dilation, dilation=dilation, bias=bias)
    conv = conv.to(bench.device, kind, memory_format=layout)
    x.requires_grad_()
    gradient = torch.randn_like(x)

    def work():
        conv(x).backward(gradient)
        x.grad = None

    if bench.big:
        work()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(work)
    tensors = 4 * x.numel() * x.element_size()  # input, output, and a gradient of each
    return seconds, max(0, torch.cuda.max_memory_allocated() - tensors) if bench.big else 0


STEPS = [("plain", {}, None, "fp16"), ("12 GB", {}, 12, "fp16"), ("8 GB", {}, 8, "fp16"), ("6 GB", {}, 6, "fp16"),
         ("plain, bf16", {}, None, "bf16"), ("instance norm", {"norm": "instance"}, None, "fp16"),
         ("group norm", {"norm": "group"}, None, "fp16"), ("16 channels", {"channels": 16}, None, "fp16"),
         ("5 channels", {"channels": 5}, None, "fp16")]


def step(bench: Bench) -> None:
    """A training step of MeshNet-26: seconds, memory against what was foretold, budgets. On the simulated GPU:
    memory."""
    import torch

    if not bench.big:
        return simulated_step(bench)
    from meshnet.networks.memory import estimate_training_memory

    name = torch.cuda.get_device_name()
    times = {}
    for what, arguments, budget, precision in STEPS:
        model = make(bench, arguments, budget)
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        foretold = estimate_training_memory(model, 1, (bench.size,) * 3, kind, bench.device)
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        times[what] = bench.seconds(lambda model=model, kind=kind: one_step(bench, model, kind))
        used = torch.cuda.max_memory_allocated() - held
        bench.add(what, times[what], unit="seconds")
        bench.add(f"{what}: allocated against foretold", used / foretold, most=1.05)
        if budget:
            bench.add(f"{what}: allocated", used / 1e9, most=budget, unit="GB")
            bench.add(f"{what}: reserved", torch.cuda.max_memory_reserved() / 1e9, most=budget + 0.5, unit="GB")
        del model
    mark = next((seconds for key, seconds in RATES.items() if key in name), None)
    bench.add("plain", times["plain"], most=mark, unit="seconds")
    bench.add("8 GB against plain", times["8 GB"] / times["plain"], most=1.35)
    bench.add("bf16 against fp16", times["plain, bf16"] / times["plain"], most=1.2)


def simulated_step(bench: Bench) -> None:
    """``step`` on the simulated GPU: peaks of tensors at 256³."""
    cases = ["--set model.channels=26 training.precision=fp16",
             "--set model.channels=26 training.precision=fp16 training.memory_budget=8GB"]
    ran = subprocess.run([sys.executable, "-m", "benchmarks.simulated.whole_step", "--lines"], cwd=ROOT, text=True,
                         input="\n".join(cases), capture_output=True, check=False)
    if ran.returncode:
        bench.skip("peaks of a step", "no C++ compiler")
        return
    for what, line, most in zip(("plain", "8 GB"), ran.stdout.splitlines(), (17.7, 7.5)):
        found = json.loads(line)
        bench.add(f"{what}: peak of tensors", found["peak"] / 1e9, most=most, unit="GB, simulated")
        bench.add(f"{what}: peak against foretold", found["peak"] / found["foretold"], most=1.05)
        bench.add(f"{what}: waits of the host", sum(found["waits"].values()), most=1)
        bench.add(f"{what}: kernels of the backward pass, a block", found["kernels"]["backward"] / 9, most=30)
        bench.add(f"{what}: copies for another layout", len(found["copies"]), most=0)
