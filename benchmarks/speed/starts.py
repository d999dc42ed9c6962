"""How long a run of the local launcher needs to begin, and a small search as a whole.

    python benchmarks/speed/starts.py [--other CHECKOUT] [--pairs 5] [--record FILE]

Starts: seconds from the decision to the run's first line (training begins), forked by the launcher against a fresh
``python train.py``, in turn. With ``--other``: 12 trials, rungs of 1, 2 and 4 epochs, 4 mm, one worker, by this
checkout and by the other one (such as an earlier commit) in turn, on the clock and in CPU time, which other work on
the machine disturbs little. Everything is made in a temporary folder.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FIRST = b"memory: "  # what train.py prints before its first step
SMALL = ("--model.channels", "5", "--data.workers", "0", "--training.max_epochs", "1")
SPACE = "search:\n  lr: loguniform(1e-3, 4e-2)\n  epochs: fidelity(1, 4)\n"


def begins(log: Path, since: float) -> float:
    """Seconds until the first line of a run stands in its log."""
    while FIRST not in (log.read_bytes() if log.exists() else b""):
        time.sleep(0.002)
    return time.monotonic() - since


def starts(data: Path, folder: Path, pairs: int) -> None:
    """Print the seconds of both ways."""
    from meshnet.runs.jobs import Job
    from meshnet.runs.launch import make_launcher

    launcher = make_launcher("local", workers=1, gpus_per_worker=0)
    found: dict[str, list[float]] = {"forked": [], "fresh": []}
    for pair in range(pairs + 1):  # the first one starts the server and fills the disk's cache
        for way in found:
            run = folder / f"{way}{pair}"
            flags = ("--data", str(data), *SMALL, "--run_dir", str(run))
            log, since = folder / f"{way}{pair}.log", time.monotonic()
            if way == "forked":
                launcher.submit(Job("train.py", flags, run, log))
                seconds = begins(log, since)
                while launcher.running():
                    launcher.poll()
                    time.sleep(0.01)
            else:
                environment = {**os.environ, "OMP_NUM_THREADS": str(launcher.threads)}
                with open(log, "wb") as output:
                    process = subprocess.Popen([sys.executable, ROOT / "train.py", *flags], stdout=output,
                                               stderr=subprocess.STDOUT, env=environment)
                seconds = begins(log, since)
                process.wait()
            if pair:
                found[way].append(seconds)
    launcher.close()
    for way, seconds in found.items():
        print(f"{way}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"forked / fresh: {statistics.median(found['forked']) / statistics.median(found['fresh']):.2f}", flush=True)


def searches(data: Path, folder: Path, other: Path, pairs: int, record: Path) -> None:
    """Print the seconds of the same small search by both checkouts. What ``record`` has already is not run again."""
    (folder / "space.yaml").write_text(SPACE)
    rows = [json.loads(line) for line in record.open()] if record.exists() else []
    for pair in range(pairs):
        for name, checkout in (("other", other), ("this", ROOT)):
            if any((row["by"], row["pair"]) == (name, pair) for row in rows):
                continue
            since, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, checkout / "search.py", "--data", data, "--recipe",
                            ROOT / "recipes/meshnet5.yaml", folder / "space.yaml", "--study", folder / f"{name}-{pair}",
                            "--max_trials", "12", "--workers", "1", "--rungs", "3", "--sampler", "random",
                            "--data.workers", "0", "--gpus_per_worker", "0"],
                           check=True, cwd=checkout, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows.append({"by": name, "pair": pair, "seconds": time.monotonic() - since, "cpu": cpu})
            with record.open("a") as out:
                out.write(json.dumps(rows[-1]) + "\n")
            print(f"search by {name}: {rows[-1]['seconds']:.1f} s, {cpu:.1f} s of CPU time", flush=True)
    for key in ("seconds", "cpu"):
        this, that = (statistics.median(row[key] for row in rows if row["by"] == name) for name in ("this", "other"))
        print(f"this / other, {key}: {this / that:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, help="another checkout, for the search")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--record", type=Path, help="file of the searches that are done: the same command goes on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        subprocess.run([sys.executable, ROOT / "prepare.py", "--format", "synthetic", "--cases", "12", "--voxel_mm",
                        "4", "--out", data], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        if arguments.other:
            searches(data, folder, arguments.other.resolve(), arguments.pairs, arguments.record or folder / "record")
        else:
            starts(data, folder, arguments.pairs)


if __name__ == "__main__":
    main()
