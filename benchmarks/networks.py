"""Every network side by side: parameters, time and memory of a forward pass and of a training step.

    python benchmarks/networks.py [--size 96] [--networks NAME …] [--json FILE]

Each measurement runs in a process of its own, so that its peak memory is its own. One volume of noise, one channel, two
classes. Memory is the peak resident size above the process's size before the input was made.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MESHNETS = {"meshnet5": 5, "meshnet16": 16, "meshnet26": 26}
GIB = 2**30


def resident_bytes() -> int:
    """The resident size of this process now."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, mode: str, size: int, checkpointing: bool) -> dict:
    """Seconds and bytes of one forward pass, or of one training step (forward, backward, AdamW), after one warm-up at
    a small size."""
    import torch

    from meshnet.model import count_parameters
    from meshnet.modelfolder import build

    arguments = {"in_channels": 1, "classes": 2, "checkpointing": checkpointing}
    if name == "unetr":
        arguments["image_size"] = [size] * 3
    network, extra = ("meshnet", {"channels": MESHNETS[name]}) if name in MESHNETS else (name, {})
    torch.manual_seed(0)
    model = build(network, arguments | extra)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4) if mode == "train" else None

    def step(x: torch.Tensor) -> None:
        if mode == "forward":
            with torch.inference_mode():
                model(x)
            return
        target = (x[:, 0] > 1).long()
        torch.nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train(mode == "train")
    step(torch.randn(1, 1, 32, 32, 32))
    before = resident_bytes()
    x = torch.randn(1, 1, size, size, size)
    started = time.perf_counter()
    step(x)
    seconds = time.perf_counter() - started
    return {"name": name, "mode": mode, "size": size, "checkpointing": checkpointing,
            "threads": torch.get_num_threads(), "parameters": count_parameters(model), "seconds": seconds,
            "bytes": max(0, peak_bytes() - before)}


def measure_apart(name: str, mode: str, size: int, checkpointing: bool, timeout_s: float) -> dict | None:
    """``measure`` in its own process; None where it took longer than ``timeout_s`` or was killed for its memory."""
    words = [sys.executable, __file__, "--one", json.dumps([name, mode, size, checkpointing])]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode < 0:
        return None
    if done.returncode:
        raise RuntimeError(f"{name} {mode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from meshnet.baselines import NETWORKS

    names = [*MESHNETS, *NETWORKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels an axis")
    parser.add_argument("--networks", nargs="+", default=names, choices=names)
    parser.add_argument("--checkpointing", action="store_true", help="training steps with layer checkpointing")
    parser.add_argument("--timeout_s", type=float, default=150, help="for one measurement")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    rows = []
    print(f"{'network':16}{'parameters':>12}{'forward s':>11}{'GiB':>7}{'step s':>9}{'GiB':>7}", flush=True)
    for name in arguments.networks:
        pair = [measure_apart(name, "forward", arguments.size, False, arguments.timeout_s),
                measure_apart(name, "train", arguments.size, arguments.checkpointing, arguments.timeout_s)]
        late = f">{arguments.timeout_s:.0f}"
        cells = [f"{row['seconds']:9.2f}{row['bytes'] / GIB:7.2f}" if row else f"{late:>9}{'-':>7}" for row in pair]
        known = next((row for row in pair if row), {"parameters": 0})
        print(f"{name:16}{known['parameters']:>12,}  {cells[0]}{cells[1]}", flush=True)
        rows += [row for row in pair if row]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
