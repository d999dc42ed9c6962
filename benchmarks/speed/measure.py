"""What the speed benchmarks share: one process for each measurement, in turn, and a matrix product as the yardstick.

Each measurement starts a fresh process that runs the calling script with ``--one VARIANT`` and prints one JSON line.
Lines are kept in a file, so a benchmark that was stopped resumes. Each line also has the process's CPU seconds and the
share of the machine that other processes used meanwhile, so that a disturbed measurement can be recognised.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def status(key: str) -> int:
    """Bytes of one line of /proc/self/status, e.g. VmRSS or VmHWM (the highest since ``forget_peak``)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """Start VmHWM again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def yardstick(size: int = 2048) -> dict:
    """GFLOP/s of a float32 matrix product here and now: by the clock, and by CPU seconds over all threads."""
    import torch

    a = torch.randn(size, size)
    a @ a
    best = {"clock": 0.0, "cpu": 0.0}
    for _ in range(3):
        clock, cpu = time.perf_counter(), time.process_time()
        a @ a
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        best = {"clock": max(best["clock"], 2e-9 * size**3 / clock), "cpu": max(best["cpu"], 2e-9 * size**3 / cpu)}
    return best


class Elsewhere:
    """What share of the machine others use, from its making to ``share()``."""

    def __init__(self):
        self.clock, self.busy, self.own = time.perf_counter(), self.machine(), self.mine()

    @staticmethod
    def machine() -> float:
        """Busy seconds of all cores."""
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, stolen = map(int, fields)
        return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def mine() -> float:
        """CPU seconds of this process and of its finished children."""
        return sum(os.times()[:4])

    def share(self) -> float:
        """Of all cores together, 0 to 1."""
        busy, own = self.machine() - self.busy, self.mine() - self.own
        return max(0.0, busy - own) / (time.perf_counter() - self.clock) / os.cpu_count()


def timed(work: Callable[[], object], operations: float) -> dict:
    """Run ``work`` once: seconds, GFLOP/s and share of the yardstick (best of before and after), and peak memory."""
    before = yardstick()
    start = status("VmRSS")
    forget_peak()
    others = Elsewhere()
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    share = others.share()
    peak, after = status("VmHWM"), yardstick()
    product = {key: max(before[key], after[key]) for key in before}
    return {"seconds": clock, "cpu_seconds": cpu, "of_product": operations * 1e-9 / clock / product["clock"],
            "of_product_cpu": operations * 1e-9 / cpu / product["cpu"], "product": product,
            "elsewhere": share, "peak_gb": peak / 1e9, "above_start_gb": (peak - start) / 1e9}


def in_turn(script: str, arguments: list[str], variants: list[str], runs: int, results: Path, setting: dict,
            others: dict[str, list[str]] | None = None, operations: float = float("nan")) -> list[dict]:
    """Measure every variant ``runs`` times, in turn; lines that ``results`` already has are not repeated.

    ``others`` has the command of each variant that is not measured by ``script`` itself; it does ``operations``.
    """
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for run in range(runs):
        for variant in variants:
            key = {**setting, "variant": variant, "run": run}
            if any(all(line.get(k) == v for k, v in key.items()) for line in lines):
                continue
            command = (others or {}).get(variant) or [sys.executable, script, *arguments, "--one", variant]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if "of_product" not in found:  # an engine without PyTorch: the best yardstick of that turn
                product = [line["product"]["clock"] for line in lines if line["run"] == run and "product" in line]
                found["of_product"] = operations * 1e-9 / found["seconds"] / max(product, default=float("nan"))
            lines.append({**key, **found})
            with results.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(lines[-1]) + "\n")
    return [line for line in lines if all(line.get(k) == v for k, v in setting.items()) and line["variant"] in variants]


def spread(values: list[float]) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(lines: list[dict], variants: list[str]) -> str:
    """Medians (and ranges) of each variant; ratios are those of the first of ``variants`` in the same turn."""
    first = {line["run"]: line for line in lines if line["variant"] == variants[0]}
    rows = [f"{'variant':20} {'runs':>4} {'seconds':>21} {'CPU s':>7} {'times faster':>21} {'by CPU':>7} "
            f"{'of product':>18} {'peak GB':>8} {'above start':>11} {'elsewhere':>9}"]
    for variant in variants:
        mine = [line for line in lines if line["variant"] == variant]

        def all_of(key: str, mine: list[dict] = mine) -> list[float]:
            return [line[key] for line in mine]

        def faster(key: str, mine: list[dict] = mine) -> list[float]:
            return [first[line["run"]][key] / line[key] for line in mine if line["run"] in first]

        rows.append(
            f"{variant:20} {len(mine):4} {spread(all_of('seconds')):>21} "
            f"{statistics.median(all_of('cpu_seconds')):7.2f} {spread(faster('seconds')):>21} "
            f"{statistics.median(faster('cpu_seconds')):7.2f} "
            f"{spread(all_of('of_product')):>18} {max(all_of('peak_gb')):8.2f} {max(all_of('above_start_gb')):11.2f} "
            f"{max(all_of('elsewhere')):9.0%}")
    return "\n".join(rows)
