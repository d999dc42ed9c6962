"""Every network side by side: parameters, time and memory of a forward pass and of a training step.

    python benchmarks/speed/networks.py [--size 96] [--networks NAME …] [--out runs/networks.json] [--minutes 7]

Each measurement runs in a process of its own, so that its peak memory is its own, and is written to ``--out`` at once:
the same command again does only what is missing. One volume of noise, one channel, two classes. The forward pass is
infer.py's (a MeshNet's by the compiled kernels), the training step is forward, loss, backward and AdamW. Memory is the
peak resident size above the process's size before the input was made.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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
    """Seconds and bytes of one forward pass, or of one training step, after one warm-up at a small size."""
    import torch

    from meshnet.inference import predict
    from meshnet.networks.build import build
    from meshnet.networks.memory import count_parameters

    arguments = {"in_channels": 1, "classes": 2, "checkpointing": checkpointing}
    if name == "unetr":
        arguments["image_size"] = [size] * 3
    network, extra = ("meshnet", {"channels": MESHNETS[name]}) if name in MESHNETS else (name, {})
    torch.manual_seed(0)
    model = build(network, arguments | extra)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4) if mode == "train" else None

    def step(x: torch.Tensor) -> None:
        if mode == "forward":
            predict.predict_logits(model, x[0], crop="none")
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


def measure_apart(name: str, mode: str, size: int, checkpointing: bool, timeout_s: float) -> dict:
    """``measure`` in its own process; ``seconds`` is None where it took longer than ``timeout_s`` or was killed."""
    words = [sys.executable, __file__, "--one", json.dumps([name, mode, size, checkpointing])]
    row = {"name": name, "mode": mode, "size": size, "checkpointing": checkpointing, "seconds": None}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return row | {"why": f">{timeout_s:.0f}"}
    if done.returncode < 0:
        return row | {"why": "killed"}
    if done.returncode:
        raise RuntimeError(f"{name} {mode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_table(rows: list[dict], names: list[str]) -> None:
    """A line a network, from whatever has been measured."""
    print(f"{'network':16}{'parameters':>12}{'forward s':>11}{'GiB':>7}{'step s':>9}{'GiB':>7}")
    for name in names:
        own = {row["mode"]: row for row in rows if row["name"] == name}
        cells = ""
        for mode in ("forward", "train"):
            row = own.get(mode, {"seconds": None, "why": "-"})
            known = row["seconds"] is not None
            cells += f"{row['seconds']:9.2f}{row['bytes'] / GIB:7.2f}" if known else f"{row['why']:>9}{'-':>7}"
        parameters = next((f"{row['parameters']:,}" for row in own.values() if row["seconds"] is not None), "-")
        print(f"{name:16}{parameters:>12}  {cells}")


def main() -> None:
    from meshnet.files import write_json
    from meshnet.networks.baselines import NETWORKS

    names = [*MESHNETS, *NETWORKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels an axis")
    parser.add_argument("--networks", nargs="+", default=names, choices=names)
    parser.add_argument("--checkpointing", action="store_true", help="training steps with layer checkpointing")
    parser.add_argument("--timeout_s", type=float, default=150, help="for one measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/networks.json"), help="where measurements are kept")
    parser.add_argument("--minutes", type=float, default=60, help="begin no measurement after this time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    rows = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else []
    started = time.monotonic()
    keys = ("name", "mode", "size", "checkpointing")
    for name in arguments.networks:
        for mode in ("forward", "train"):
            wanted = (name, mode, arguments.size, arguments.checkpointing and mode == "train")
            if wanted in [tuple(row[key] for key in keys) for row in rows]:
                continue
            if time.monotonic() - started > 60 * arguments.minutes:
                break
            rows.append(measure_apart(*wanted, arguments.timeout_s))
            write_json(arguments.out, rows)
    print_table([row for row in rows if row["size"] == arguments.size and row["checkpointing"]
                 == (arguments.checkpointing and row["mode"] == "train")], arguments.networks)


if __name__ == "__main__":
    main()
