"""Kill training again and again, and compare what comes out with a run that was never killed, bit for bit.

    python benchmarks/kills.py --kills 200 --out /tmp/kills

Each round starts a small run (dropout, EMA, accumulation, resume points inside epochs), kills it with SIGKILL at random
moments until ``--per_run`` kills have hit it, lets it finish, and compares weights, averaged weights and the lines of
metrics.jsonl. Rounds are remembered in OUT/rounds.jsonl: the same command goes on. Synthetic data.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--model.channels", "3", "--model.dilations", "1", "2", "1", "--data.workers", "0", "--optimizer.lr", "0.01",
         "--training.max_epochs", "6", "--ema.enabled", "true", "--model.dropout", "0.2",
         "--training.accumulation", "2", "--training.save_every_steps", "1"]


def start(data: Path, run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, ROOT / "train.py", "--data", data, "--run_dir", run, *FLAGS],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(data: Path, run: Path) -> None:
    process = start(data, run)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{run}: exit code {process.returncode}: {errors.decode()}")


def kill_once(data: Path, run: Path, delay: float) -> bool:
    """Start the run, kill it ``delay`` seconds after its first sign of life; whether it was still running."""
    before = time.time()
    process = start(data, run)
    config = run / "config.yaml"
    while process.poll() is None and not (config.exists() and config.stat().st_mtime >= before):
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def outcome(run: Path) -> dict:
    """Everything that must be equal: file contents of the weights, and the lines without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"lines": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
            "weights": {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per_run", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data, whole, log = (arguments.out / name for name in ("data", "whole", "rounds.jsonl"))
    if not data.exists():
        subprocess.run([sys.executable, ROOT / "prepare.py", "--format", "synthetic", "--cases", "9", "--voxel_mm", "8",
                        "--out", data], check=True)
    finish(data, whole)
    expected = outcome(whole)
    span = sum(json.loads(line)["seconds"] for line in (whole / "metrics.jsonl").read_text().splitlines()) + 0.5
    rounds = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    while sum(r["kills"] for r in rounds) < arguments.kills:
        generator = random.Random(len(rounds))
        run = arguments.out / "run"
        shutil.rmtree(run, ignore_errors=True)
        kills = tries = 0
        while kills < arguments.per_run and tries < 3 * arguments.per_run:
            kills += kill_once(data, run, generator.uniform(0, span / 2))
            tries += 1
        finish(data, run)
        rounds.append({"kills": kills, "equal": outcome(run) == expected})
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(rounds[-1]) + "\n")
        print(f"{sum(r['kills'] for r in rounds)} kills in {len(rounds)} runs, "
              f"{sum(r['equal'] for r in rounds)} runs equal", flush=True)


if __name__ == "__main__":
    main()
