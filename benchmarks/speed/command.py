"""How long a user waits: ``infer.py`` from the command to the written mask, part by part.

    python benchmarks/speed/command.py T2w.nii.gz --models runs/meshnet26 runs/meshnet5 --runs 5
    python benchmarks/speed/command.py T2w.nii.gz --models runs/meshnet5 --scans 10 --runs 1   # one command against ten
    python benchmarks/speed/command.py T2w.nii.gz --models runs/meshnet26 --ceiling 1.5GB   # with a ceiling and without

``start`` is everything that is not work on a scan: the interpreter, imports, reading the weights, exiting.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.speed import measure

ROOT = Path(__file__).resolve().parents[2]


def run(scans: list[Path], folder: Path, model: str, threads: int, flags: list[str]) -> dict:
    """One command on ``scans``: seconds, CPU seconds, peak memory, and the seconds of its parts."""
    others, started = measure.Elsewhere(), time.perf_counter()
    process = subprocess.Popen([sys.executable, str(ROOT / "infer.py"), *map(str, scans), "-o", str(folder), "--json",
                                "--model", model, "--threads", str(threads), "--overwrite", *flags],
                               stdout=subprocess.PIPE, text=True)
    lines = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode or len(lines) != len(scans):
        raise SystemExit(f"infer.py ended with {process.returncode} after {len(lines)} of {len(scans)} scans")
    parts: dict[str, float] = {}
    for line in lines:
        for name, value in json.loads(line)["parts"].items():
            parts[name] = parts.get(name, 0.0) + value
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss * 1024 / 1e9,
            "elsewhere": others.share(), "parts": {"start": seconds - sum(parts.values()), **parts}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scans", type=int, default=1, help="copies of the scan: in one command, and in one each")
    parser.add_argument("--ceiling", metavar="SIZE", help="measure with --max_memory SIZE as well, in turn")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags for infer.py")
    options = parser.parse_args()
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = [shutil.copy(options.scan, folder / f"scan{i}.nii.gz") for i in range(options.scans)]
        for _ in range(options.runs):
            for model in options.models:
                found.setdefault(f"{model}, one command", []).append(
                    run(scans, folder / "masks", model, options.threads, options.flags))
                if options.ceiling:
                    found.setdefault(f"{model}, under {options.ceiling}", []).append(
                        run(scans, folder / "masks", model, options.threads,
                            [*options.flags, "--max_memory", options.ceiling]))
                if options.scans > 1:
                    each = [run([scan], folder / "masks", model, options.threads, options.flags) for scan in scans]
                    found.setdefault(f"{model}, a command each", []).append(
                        {key: sum(one[key] for one in each) for key in ("seconds", "cpu_seconds")}
                        | {key: max(one[key] for one in each) for key in ("peak_gb", "elsewhere")}
                        | {"parts": {part: sum(one["parts"][part] for one in each) for part in each[0]["parts"]}})
    for what, runs in found.items():
        print(f"{what}: {len(runs)} run(s) of {options.scans} scan(s), "
              f"seconds {measure.spread([one['seconds'] for one in runs])}, "
              f"CPU {measure.spread([one['cpu_seconds'] for one in runs])}, "
              f"peak {max(one['peak_gb'] for one in runs):.2f} GB, "
              f"others used {max(one['elsewhere'] for one in runs):.0%}")
        parts = [f"{part} {measure.spread([one['parts'][part] for one in runs])}" for part in runs[0]["parts"]]
        print("    " + ", ".join(parts))
    pairs = [(f"under {options.ceiling}", "one command")] if options.ceiling else []
    pairs += [("one command", "a command each")] if options.scans > 1 else []
    for model in options.models:
        for one, other in pairs:
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(found[f"{model}, {one}"], found[f"{model}, {other}"])]
            print(f"{model}: {one} took {measure.spread(ratios)} of {other}")


if __name__ == "__main__":
    main()
