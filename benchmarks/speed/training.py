"""Time and memory of one training step: PyTorch, plain and channels-last, against the compiled kernels.

    python benchmarks/speed/training.py --channels 26 --size 128 --runs 5 --budget 1.9

Each variant runs in a process of its own, in turn; results go to ``--results`` and are not measured twice. A step is
forward, cross-entropy and backward on one case. ``kernels`` keeps everything; ``budget`` recomputes as many
layers as ``--budget`` GB requires; ``least`` is the plan of least memory that computes no convolution more than twice.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.speed import measure

VARIANTS = ["plain", "channels_last", "kernels", "budget", "least", "plain_least"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=26)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=1.9, help="GB, for the variant of that name")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:5])
    parser.add_argument("--results", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def one(options: argparse.Namespace) -> dict:
    """Measure one step of one variant, after a tiny one that loads what a first step loads."""
    import torch
    from torch.nn import functional

    from meshnet.kernels import calls
    from meshnet.networks import memory
    from meshnet.networks.meshnet import MeshNet

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    calls.available()
    layout = torch.channels_last_3d if options.one == "channels_last" else torch.contiguous_format

    def step(model: MeshNet, size: int) -> None:
        x = torch.rand(1, 1, size, size, size).contiguous(memory_format=layout)
        functional.cross_entropy(model(x), (x[:, 0] > 0.97).long()).backward()

    off = options.one in ("plain", "channels_last", "plain_least")
    with calls.switched_off() if off else contextlib.nullcontext():
        step(MeshNet(2, dilations=(1,)), 8)
        model = MeshNet(options.channels, checkpointing=options.one.endswith("least")).to(memory_format=layout)
        model.memory_budget = int(options.budget * 1e9) if options.one == "budget" else None
        estimated = memory.estimate_training_memory(model, 1, (options.size,) * 3) / 1e9
        weights = sum(block.conv.weight.numel() for block in model.blocks)
        found = measure.timed(lambda: step(model, options.size), 6.0 * weights * options.size**3)
    return {**found, "estimated_gb": estimated}


def main() -> None:
    options = arguments()
    if options.one:
        print(json.dumps(one(options)))
        return
    setting = {name: getattr(options, name) for name in ("channels", "size", "threads", "budget")}
    passed = [part for name, value in setting.items() for part in (f"--{name}", str(value))]
    lines = measure.in_turn(__file__, passed, options.variants, options.runs, options.results, setting)
    print(setting)
    print(measure.table(lines, options.variants))
    for variant in options.variants:
        mine = [line for line in lines if line["variant"] == variant]
        shares = [f"{line['estimated_gb'] / line['above_start_gb']:.2f}" for line in mine]
        print(f"{variant:24} memory estimated / used: {', '.join(shares)}")


if __name__ == "__main__":
    main()
