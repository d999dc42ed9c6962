"""Run a study to its end or to Ctrl-C, publish its state meanwhile, and write its results at the end."""

import contextlib
import functools
import math
import os
import signal
import socket
import time
from pathlib import Path

from meshnet.errors import UserError, decoration, ending_signals
from meshnet.files import write_json, write_text
from meshnet.search.confirm import Confirmation, best_finished, in_words, read_confirmed
from meshnet.search.page import PAGE, write_page
from meshnet.search.space import Space
from meshnet.search.status import STALE_SECONDS, Screen, read_status, snapshot, status_table

PATIENCE = 5.0  # seconds that runs have to stop after the first Ctrl-C
STATUS_SECONDS = 2.0


def refuse_other_host(folder: Path) -> None:
    """Refuse a study that is being run on another host, where its file lock may have no effect."""
    status = read_status(folder)
    if not status or status["state"] != "running" or "driver" not in status or (
            status["driver"]["host"] == socket.gethostname()):
        return
    age = time.time() - status["time"]
    if age < STALE_SECONDS:  # a time ahead of ours is no proof that the driver is gone: the clocks may differ
        ahead = f"by its clock, {-age:.0f} s ahead of this one; if it has ended, delete status.json"
        raise UserError(f"{folder}: this study is being run by process {status['driver']['pid']} on "
                        f"{status['driver']['host']} (last update {f'{age:.0f} s ago' if age >= 0 else ahead}); stop "
                        "that process first")


def drive(study, screen: Screen, began: float, prepare) -> str:
    """Run the study to its end or to a signal that asks to end; returns "finished" or "interrupted". No process is ever
    left behind."""
    asked: list[int] = []
    numbers = signals()
    for number in numbers:
        signal.signal(number, lambda number, _: asked.append(number))
    shown = 0.0
    state = "running"
    try:
        study.resume()
        prepare(study.asha)
        while not asked:
            if study.step():
                state = "finished"
                break
            if time.monotonic() - shown > STATUS_SECONDS:
                shown = time.monotonic()
                screen.draw(status_table(publish(study, "running", began)))
            time.sleep(0.05)
        else:
            state, study.ended_by = "interrupted", asked[0]
            study.say("stopping the runs; the same command continues later (Ctrl-C again kills them at once)")
            for number in numbers:
                signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
            study.stop(PATIENCE)
    except KeyboardInterrupt:
        state = "interrupted"
    except (UserError, OSError):
        with contextlib.suppress(OSError, UserError):  # a full disk, for example, also prevents this
            study.stop(0)
            publish(study, "stopped", began)
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        try:
            study.stop(0)
        finally:
            study.launcher.close()
    return state


def drive_confirmation(confirmation: Confirmation, study, began: float) -> str:
    """Carry out the runs of ``--confirm`` to their end or to a signal; returns "finished" or "interrupted"."""
    asked: list[int] = []
    numbers = signals()
    for number in numbers:
        signal.signal(number, lambda number, _: asked.append(number))
    shown = -math.inf
    try:
        while not asked:
            if confirmation.step():
                return "finished"
            if time.monotonic() - shown > STATUS_SECONDS:
                shown = time.monotonic()
                publish(study, "running", began)
            time.sleep(0.05)
        study.ended_by = asked[0]
        confirmation.say("stopping the runs; the same command continues later (Ctrl-C again kills them at once)")
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
        confirmation.launcher.close(PATIENCE)
        return "interrupted"
    except KeyboardInterrupt:
        return "interrupted"
    except (UserError, OSError):
        with contextlib.suppress(OSError, UserError):
            publish(study, "stopped", began)
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        confirmation.launcher.close()


@functools.cache
def signals() -> list[int]:
    """The signals that ask to end, as they were before the first of them was ignored here."""
    return ending_signals()


def confirmed_now(study) -> dict | None:
    """What ``--confirm`` has found, as long as the trials that it confirmed are still the best ones."""
    found = read_confirmed(study.plan.folder)
    trials = {one["trial"] for one in found["trials"]} if found else set()
    return found if trials and trials == set(best_finished(study.asha, len(trials))) else None


def publish(study, state: str, began: float) -> dict:
    """Replace status.json and trials.csv in the study folder."""
    status = snapshot(study, state, began)
    if study.watch:
        status["belief"] = (study.watch.latest if state == "running" else study.watch.final)(study.asha)
    status["confirmed"] = confirmed_now(study)
    status["driver"] = {"host": socket.gethostname(), "pid": os.getpid()}
    write_json(study.plan.folder / "status.json", status)
    study.ledger.write_export(study.plan.folder / "trials.csv", over=state == "finished")
    return status


def write_best(study, status: dict, recipe) -> None:
    """``best.yaml`` of a status that ``publish`` gave: the confirmed trial, else the best one."""
    best, confirmed = status["best"], status["confirmed"]
    if not best:
        return
    horizon = best["epochs"] if study.plan.own_schedule else study.asha.rungs[-1]
    head = (f"# trial {best['trial']} of {study.plan.folder}: {study.plan.metric} {best['score']:.4f} by epoch "
            f"{best['epochs']}\n")
    parameters = best["parameters"]
    if confirmed:
        parameters = study.asha.trials[confirmed["trial"]].parameters
        head = f"# trial {confirmed['trial']} of {study.plan.folder}\n# {in_words(confirmed)}\n"
    write_text(study.plan.folder / "best.yaml", head + recipe(parameters, horizon))


def report(study, screen: Screen, state: str, began: float, recipe, space: Space) -> None:
    """Write best.yaml, the final status, the figures and the page."""
    status = publish(study, state, began)
    write_best(study, status, recipe)
    screen.end(status_table(status))
    if status["best"]:
        drawn: list[Path] = []
        with decoration(f"{study.plan.folder}: its figures are not drawn", "nothing else depends on them"):
            from meshnet.search import figures

            drawn = figures.draw(study.plan.folder, study.asha, space, study.ledger.curves(), study.plan.metric)
        with decoration(f"{study.plan.folder / PAGE}: not written", "nothing else depends on it"):
            write_page(study, status, drawn)
