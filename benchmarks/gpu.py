"""What a GPU does with a MeshNet: nine parts with pass marks, as a table and as JSON.

    python benchmarks/gpu.py                  # on a machine with a CUDA GPU: under 8 minutes on an A100, H100 or H200
    python benchmarks/gpu.py --parts layer    # one part; parts that the results already have are not measured again
    python benchmarks/gpu.py --simulate       # without a GPU: memory on a simulated one, the rest in a small form on
    the CPU

The parts: machine, layer, step, numbers, inference, commands, epoch, networks, processes. A mark that needs what this
machine has not is "skipped", with the reason. The exit code is 1 where a mark is missed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import gpu_layers, gpu_uses
from benchmarks.gpu_bench import Bench

PARTS = {"machine": gpu_layers.machine, "layer": gpu_layers.layer, "step": gpu_layers.step, "numbers": gpu_uses.numbers,
         "inference": gpu_uses.inference, "commands": gpu_uses.commands, "epoch": gpu_uses.epoch,
         "networks": gpu_uses.networks, "processes": gpu_uses.processes}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, default=Path("gpu.json"), help="where results are kept and looked for")
    parser.add_argument("--again", action="store_true", help="measure parts anew that the results have")
    parser.add_argument("--simulate", action="store_true", help="the small form, without a GPU")
    return parser.parse_args()


def setting(options: argparse.Namespace) -> dict:
    """What results must share to be of one machine and form."""
    import torch

    on_gpu = torch.cuda.is_available() and not options.simulate
    return {"device": torch.cuda.get_device_name() if on_gpu else "simulated" if options.simulate else "cpu",
            "torch": torch.__version__}


def table(found: dict) -> str:
    """A line for each mark."""
    lines = [f"{'part':10} {'what':58} {'measured':>12} {'mark':>12}  result"]
    for part, rows in found["parts"].items():
        for row in rows:
            measured = row["value"] if isinstance(row["value"], str) else f"{row['value']:.4g}"
            lines.append(f"{part:10} {row['what'][:58]:58} {measured:>12} {row['mark']:>12}  {row['result']}")
    counts = [sum(row["result"] == kind for rows in found["parts"].values() for row in rows)
              for kind in ("pass", "FAIL", "skipped", "")]
    return "\n".join([*lines, "{} passed, {} failed, {} skipped, {} without a mark".format(*counts)])


def main() -> int:
    options = arguments()
    here = setting(options)
    found = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    if found.get("setting") != here:
        found = {"setting": here, "parts": {}}
    bench = Bench(here["device"] not in ("cpu", "simulated"), options.simulate)
    for name in options.parts:
        if name in found["parts"] and not options.again:
            continue
        started = time.monotonic()
        bench.rows = []
        PARTS[name](bench)
        found["parts"][name] = bench.rows
        found.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        options.results.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(here)
    print(table(found))
    return 1 if any(row["result"] == "FAIL" for rows in found["parts"].values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
