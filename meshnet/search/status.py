"""The state of a study: ``status.json`` for programs, and a table for people, which a terminal shows live."""

import json
import math
import shutil
import sys
import time
from pathlib import Path

from meshnet.display import count, minutes
from meshnet.errors import UserError
from meshnet.files import near
from meshnet.runs.folder import read_metrics
from meshnet.runs.jobs import Handle
from meshnet.search import belief
from meshnet.search.asha import Trial
from meshnet.search.confirm import in_words, searched_score
from meshnet.search.study import Study

STALE_SECONDS = 60.0  # a driver whose status is younger than this counts as alive


def read_status(folder: Path) -> dict:
    """status.json, or {} where there is none."""
    path = folder / "status.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not readable as JSON; delete it, the study's driver writes it again") from None
    try:
        status_table(found)
        time.time() - found["time"], found["state"]
        if driver := found.get("driver"):
            driver["host"], driver["pid"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        raise UserError(f"{path}: not what a study's driver writes; delete it, it is then written again") from None
    return found


def snapshot(study: Study, state: str, began: float) -> dict:
    """What ``--status`` shows, as plain JSON. ``began``: ``time.time()`` when this driver started."""
    asha, rungs = study.asha, []
    for rung, epochs in enumerate(asha.rungs):
        finished = [len(asha.finished[b][rung]) for b in range(asha.brackets)]
        rungs.append({
            "epochs": epochs, "finished": sum(finished),
            "promoted": sum(len(asha.promoted[b][rung]) for b in range(asha.brackets)),
            "running": sum(trial.running and trial.rung == rung for trial in asha.trials),
            "failed": sum(bool(trial.failed) and trial.rung == rung for trial in asha.trials),
        })
    best = asha.best()
    spent = sum(_epochs_of(study, trial) for trial in asha.trials)
    running = [_row(study, handle) for handle in study.launcher.running() if handle.token in study.running]
    return {
        "state": state, "time": time.time(), "seconds": time.time() - began, "metric": study.plan.metric,
        "rungs": rungs, "trials": len(asha.trials), "max_trials": asha.max_trials, "running": running,
        "waiting": len(study.waiting), "epochs": spent, "epochs_if_all_in_full": asha.max_trials * asha.rungs[-1],
        "seconds_left": _seconds_left(study), "seconds_per_epoch": study.ledger.seconds_per_epoch(),
        "inner_folds": len(study.plan.inner_folds), "belief": None, "failed": {
            str(trial.number): trial.failed for trial in asha.trials if trial.failed
        },
        "best": best and {
            "trial": best.number, "parameters": best.parameters,
            "epochs": asha.rungs[max(r for r, s in best.scores.items() if math.isfinite(s))],
            "score": searched_score(best),
        },
    }


def _row(study: Study, handle: Handle) -> dict:
    run = study.running[handle.token]
    return {
        "trial": run.decision.trial, "fold": run.fold, "epochs": run.decision.epochs,
        "epoch": len(read_metrics(study.run_dir(run))), "where": handle.where,
        "seconds": round(time.monotonic() - handle.since, 1),
    }


def _epochs_of(study: Study, trial: Trial) -> int:
    """Epochs trained for a trial so far; with ``own_schedule`` each rung starts from scratch."""
    rungs = study.asha.rungs
    done = [rungs[rung] for rung in trial.scores]
    return sum(done) if study.plan.own_schedule else max(done, default=0)


def _seconds_left(study: Study) -> float | None:
    """An estimate: the epochs still to be trained, at the mean time of an epoch so far."""
    seconds_per_epoch = study.ledger.seconds_per_epoch()
    if seconds_per_epoch is None:
        return None
    asha, epochs = study.asha, 0.0
    remaining = asha.max_trials - len(asha.trials)
    for rung, high in enumerate(asha.rungs):
        low = 0 if rung == 0 or study.plan.own_schedule else asha.rungs[rung - 1]
        running = sum(trial.running and trial.rung == rung for trial in asha.trials)
        arriving = remaining / float(asha.eta) ** rung
        epochs += (arriving + running / 2) * (high - low)
    return seconds_per_epoch * epochs * len(study.plan.inner_folds) / max(study.launcher.slots, 1)


def show_status(folder: Path) -> int:
    """Print the status table of a study folder, whether it is running or not."""
    status = read_status(folder)
    if not status:
        raise UserError(f"{folder}: no status.json, expected a study folder; start one with search.py --study {folder}"
                        f"{near(folder)}")
    print("\n".join(status_table(status)))
    silent = time.time() - status["time"]
    if status["state"] == "running" and abs(silent) > STALE_SECONDS:
        since = f"for {silent:.0f} s" if silent > 0 else f"by this clock, which is {-silent:.0f} s behind the driver's"
        print(f"no update from its driver {since}; run the same command again to continue")
    return 0


def status_table(status: dict) -> list[str]:
    """A status as lines of text: rungs, running trials, best trial, cost, time left."""
    share = status["epochs"] / status["epochs_if_all_in_full"]
    lines = [f"{status['state']}: {status['trials']} of {count(status['max_trials'], 'trial')}, "
             f"{count(status['epochs'], 'epoch')} ({share:.0%} of training every trial in full), "
             f"{minutes(status['seconds'])}", "  epochs  finished  promoted  running   failed"]
    lines += [f"  {rung['epochs']:>6}  {rung['finished']:>8}  {rung['promoted']:>8}  {rung['running']:>7}  "
              f"{rung['failed']:>7}" for rung in status["rungs"]]
    lines += [f"  trial {run['trial']} inner fold {run['fold']}: epoch {run['epoch']} of {run['epochs']} on "
              f"{run['where']}, {minutes(run['seconds'])}" for run in status["running"]]
    best = status["best"]
    if best:
        values = ", ".join(f"{name} {value}" for name, value in best["parameters"].items())
        lines.append(f"  best: trial {best['trial']}, {status['metric']} {best['score']:.4f} by epoch "
                     f"{best['epochs']} ({values})")
    if status.get("confirmed"):
        lines.append(f"  {in_words(status['confirmed'])}")
    if status.get("belief"):
        lines += [f"  {line}" for line in belief.in_words(status["belief"], status["metric"],
                                                          status["seconds_per_epoch"], status["inner_folds"])]
    if status["failed"]:
        lines.append(f"  failed trials: {len(status['failed'])}; trials.csv has the reasons")
    if status["state"] == "running" and status["seconds_left"] is not None:
        lines.append(f"  about {minutes(status['seconds_left'])} left")
    return lines


class Screen:
    """Messages above a table that is redrawn in place on a terminal; elsewhere only the messages are printed."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.drawn: list[str] = []

    def say(self, line: str) -> None:
        """Print a message."""
        self._clear()
        print(line, flush=True)
        self._show()

    def draw(self, lines: list[str]) -> None:
        """Replace the table."""
        self._clear()
        width = shutil.get_terminal_size().columns - 1  # a wrapped line would take two rows
        self.drawn = [line[:width] for line in lines]
        self._show()

    def end(self, lines: list[str]) -> None:
        """Print the final table, which stays."""
        self._clear()
        self.drawn = []
        print("\n".join(lines), flush=True)

    def _clear(self) -> None:
        if self.live and self.drawn:
            print(f"\x1b[{len(self.drawn)}A\x1b[J", end="")

    def _show(self) -> None:
        if self.live and self.drawn:
            print("\n".join(self.drawn), flush=True)
