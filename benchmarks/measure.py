"""What the speed benchmarks share: one process a measurement, in turn, with the machine's own yardstick beside it.

Each measurement starts a fresh process that runs the calling script with ``--one VARIANT`` and prints one JSON line.
Lines are kept in a file, so a benchmark that was stopped goes on where it was. Both the clock and the process's CPU
seconds are taken: on a machine that others use too, CPU seconds with one thread are what can be compared.
"""

import json
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


def timed(work: Callable[[], object], operations: float) -> dict:
    """Run ``work`` once: seconds, GFLOP/s and share of the yardstick (best of before and after), and peak memory."""
    before = yardstick()
    start = status("VmRSS")
    forget_peak()
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    peak, after = status("VmHWM"), yardstick()
    product = {key: max(before[key], after[key]) for key in before}
    return {"seconds": clock, "cpu_seconds": cpu, "of_product": operations * 1e-9 / clock / product["clock"],
            "of_product_cpu": operations * 1e-9 / cpu / product["cpu"], "product": product,
            "peak_gb": peak / 1e9, "above_start_gb": (peak - start) / 1e9}


def in_turn(script: str, arguments: list[str], variants: list[str], runs: int, results: Path,
            setting: dict) -> list[dict]:
    """Measure every variant ``runs`` times, in turn; lines that ``results`` already has are not repeated."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for run in range(runs):
        for variant in variants:
            key = {**setting, "variant": variant, "run": run}
            if any(all(line.get(k) == v for k, v in key.items()) for line in lines):
                continue
            done = subprocess.run([sys.executable, script, *arguments, "--one", variant], check=True,
                                  stdout=subprocess.PIPE, text=True)
            lines.append({**key, **json.loads(done.stdout.splitlines()[-1])})
            with results.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(lines[-1]) + "\n")
    return [line for line in lines if all(line.get(k) == v for k, v in setting.items()) and line["variant"] in variants]


def table(lines: list[dict], variants: list[str]) -> str:
    """Medians (and ranges) of each variant, with ratios to the first of ``variants``."""
    def middle(variant: str, key: str) -> float:
        return statistics.median(line[key] for line in lines if line["variant"] == variant)

    rows = [f"{'variant':24} {'runs':>4} {'seconds':>8} {'range':>13} {'CPU s':>8} {'faster':>7} {'by CPU':>7} "
            f"{'of product':>10} {'by CPU':>7} {'peak GB':>8} {'above start':>11}"]
    for variant in variants:
        mine = [line for line in lines if line["variant"] == variant]
        seconds = [line["seconds"] for line in mine]
        rows.append(
            f"{variant:24} {len(mine):4} {middle(variant, 'seconds'):8.2f} {min(seconds):6.2f}-{max(seconds):6.2f} "
            f"{middle(variant, 'cpu_seconds'):8.2f} {middle(variants[0], 'seconds') / middle(variant, 'seconds'):7.2f} "
            f"{middle(variants[0], 'cpu_seconds') / middle(variant, 'cpu_seconds'):7.2f} "
            f"{middle(variant, 'of_product'):10.2f} {middle(variant, 'of_product_cpu'):7.2f} "
            f"{middle(variant, 'peak_gb'):8.2f} {middle(variant, 'above_start_gb'):11.2f}")
    return "\n".join(rows)
