"""Kill training again and again, and compare what comes out with a run that was never killed, bit for bit.

    python benchmarks/trust/kills.py --out /tmp/kills --kills 200

Each round starts a small run (dropout, EMA, accumulation, resume points inside epochs), kills it with SIGKILL until
``--per_run`` kills have hit it, lets it finish, and compares weights, averaged weights, validation cases and the lines
of metrics.jsonl. The moments are random; in every other round each kill falls in the middle of writing a file. A run is
``train.py`` in a forked process, so that torch is imported once. Rounds are kept in OUT/rounds.jsonl: the same command
resumes. Synthetic data.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.runs.folder import CASES, CONFIG_YAML, METRICS

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--model.channels", "3", "--model.dilations", "1", "2", "1", "--data.workers", "0", "--optimizer.lr", "0.01",
         "--training.max_epochs", "6", "--ema.enabled", "true", "--model.dropout", "0.2",
         "--training.accumulation", "2", "--training.save_every_steps", "1", "--training.validate_every", "2"]


def fork(script: str, arguments: list[str], log: Path, writes: int = 0) -> int:
    """Run one of the root's scripts in a process of its own group; returns its id.

    With ``writes`` it is killed in its n-th write: the content is written, but the file is not renamed yet.
    """
    process = os.fork()
    if process:
        return process
    os.setsid()
    sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115 (open to its end)
    sys.argv = [script, *arguments]
    fsync, left = os.fsync, iter(range(writes - 1))

    def fsync_or_die(descriptor: int) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    if writes:
        os.fsync = fsync_or_die
    code = 1
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(script: str, arguments: list[str], log: Path) -> None:
    _, status = os.waitpid(fork(script, arguments, log), 0)
    if status:
        sys.exit(f"{script}: exit code {os.waitstatus_to_exitcode(status)}: {log.read_text()}")


def kill_once(arguments: list[str], run: Path, log: Path, delay: float) -> bool:
    """Start the run, kill it ``delay`` seconds after its first sign of life; whether it was still running."""
    before = time.time()
    process = fork("train.py", arguments, log)
    config = run / CONFIG_YAML
    ended, status = 0, 0
    while not ended and not (config.exists() and config.stat().st_mtime >= before):
        time.sleep(0.002)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        time.sleep(delay)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.killpg(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return was_killed(status, log)


def kill_in_a_write(arguments: list[str], log: Path, writes: int) -> bool:
    """Start the run, let it be killed in the middle of its n-th write; whether there were that many."""
    _, status = os.waitpid(fork("train.py", arguments, log, writes), 0)
    return was_killed(status, log)


def was_killed(status: int, log: Path) -> bool:
    """Whether a process was killed rather than finished; ends this script where it failed by itself."""
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"the run ended by itself with exit code {code}: {log.read_text()}")
    return code != 0


def outcome(run: Path) -> dict:
    """Everything that must be equal: file contents of the weights, and the lines without their times."""
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return {"lines": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
            "cases": (run / CASES).read_text(),
            "weights": {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per_run", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    import meshnet.data.synthetic.case  # noqa: F401 (forked processes need them)
    from meshnet.runs.folder import git_commit

    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data, whole, log = out / "data", out / "whole", out / "log.txt"
    finish("prepare.py", ["--format", "synthetic", "--cases", "9", "--voxel_mm", "8", "--out", str(data)], log)
    flags = ["--data", str(data), *FLAGS, "--run_dir"]
    shutil.rmtree(whole, ignore_errors=True)
    finish("train.py", [*flags, str(whole)], log)
    expected = outcome(whole)
    span = sum(line["seconds"] for line in map(json.loads, (whole / METRICS).read_text().splitlines())) + 0.3
    remembered = out / "rounds.jsonl"
    # Rounds of other code say nothing of this one.
    made_by = {"commit": git_commit(), "flags": [str(flag) for flag in FLAGS]}
    rounds = [json.loads(line) for line in remembered.read_text().splitlines()] if remembered.exists() else []
    rounds = [each for each in rounds if each.items() >= made_by.items()]
    while sum(r["kills"] for r in rounds) < arguments.kills:
        generator, run = random.Random(len(rounds)), out / "run"
        shutil.rmtree(run, ignore_errors=True)
        kills, tries, in_writes = 0, 0, len(rounds) % 2 == 1
        while kills < arguments.per_run and tries < 3 * arguments.per_run:
            if in_writes:
                kills += kill_in_a_write([*flags, str(run)], log, generator.randint(2, 20))
            else:
                kills += kill_once([*flags, str(run)], run, log, generator.uniform(0, span / 3))
            tries += 1
        finish("train.py", [*flags, str(run)], log)
        rounds.append({"kills": kills, "in_writes": kills * in_writes, "equal": outcome(run) == expected, **made_by})
        with open(remembered, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(rounds[-1]) + "\n")
        print(f"{sum(r['kills'] for r in rounds)} kills in {len(rounds)} runs, "
              f"{sum(r['in_writes'] for r in rounds)} of them in the middle of writing a file, "
              f"{sum(r['equal'] for r in rounds)} runs equal", flush=True)
    return 0 if all(each["equal"] for each in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
