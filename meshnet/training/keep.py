"""After a validation: the best weights are kept with their threshold, and a network that marks nothing is judged."""

import math

import torch
from accelerate.utils import broadcast, gather_object

from meshnet.config import SCORES
from meshnet.errors import Diverged
from meshnet.files import write_json
from meshnet.networks.card import CONFIG, read_card
from meshnet.networks.folder import save_model, save_weights
from meshnet.runs.folder import AVERAGED, CASES, LAST, Heartbeat, write_cases
from meshnet.training.run import Run
from meshnet.training.said import Pace, judged
from meshnet.training.validation import Validation, choose, picture_cases, score_share, summarise


def validate_and_keep(run: Run, heart: Heartbeat, pace: Pace, scheduled: bool = True) -> dict:
    """Validate, keep the best weights and their cases, warn of a collapse; returns the epoch's validation values.

    A validation that is not ``scheduled`` keeps weights only until the first scheduled one.
    """
    progress, main = run.progress, run.accelerator.is_main_process
    for buffer in run.network.buffers():  # without synchronised batch norm each process has its own
        if run.accelerator.num_processes > 1:
            broadcast(buffer)
    found = validate(run, run.network, heart, pace)
    progress.threshold_last = threshold_of(run, found)
    rows, summary = found.rows, summarise(found)
    bad = [row["case"] for row in rows if not math.isfinite(row["loss"])]
    if bad:
        raise Diverged(f"the validation loss of case {bad[0]} is NaN or infinite after epoch {progress.epoch + 1}, "
                       f"learning rate {run.schedule.rates()[0]:.3g}; try a lower --optimizer.lr")
    name = SCORES[run.config.training.score_at]
    epoch, kept = progress.epoch + 1, scheduled or progress.best_epoch < 0
    rank = rank_of(summary, name)
    if is_better(rank, progress.best_dice, progress.best_rank) and kept:
        threshold = threshold_of(run, found)
        if scheduled:
            progress.best_rank = rank
            progress.best_dice, progress.best_epoch, progress.best_half = summary[name], epoch, summary["val_dice"]
            progress.threshold = threshold
        if main:
            card = run.card.changed(metrics={"epoch": epoch, **summary})
            save_model(run.folder, run.network, card.changed(threshold=threshold or card.threshold))
            write_cases(run.folder / CASES, [{"epoch": epoch, **row} for row in rows])
    if run.ema is not None:
        summary |= keep_averaged(run, heart, pace, kept, scheduled)
    nothing = all(row["volume_ml"] == 0 for row in rows) and any(row["truth_ml"] > 0 for row in rows)
    line, flat = judged(progress, summary, nothing, len(rows)) if scheduled else ("", False)
    if line:
        pace.live.say(line)
    if run.config.tracking.trackers and run.config.tracking.pictures and main:
        run.tracker.log_pictures(lambda: picture_cases(run, rows, threshold_of(run, found)), step=epoch)
    return summary | ({"collapsed": True} if flat else {})


def validate(run: Run, network: torch.nn.Module, heart: Heartbeat, pace: Pace) -> Validation:
    """Scores of all validation cases in the order of ``run.val``, the same on every process."""
    rows = score_share(run, network, heart, pace.after_case)
    if run.accelerator.num_processes > 1:
        rows = gather_object(rows)
    return choose([row for _, row in sorted(rows, key=lambda item: item[0])])


def keep_averaged(run: Run, heart: Heartbeat, pace: Pace, kept: bool, scheduled: bool) -> dict:
    """Validate the averaged weights and keep the best; returns their values by the names of metrics.jsonl."""
    progress = run.progress
    found = validate(run, run.ema.module, heart, pace)
    summary = summarise(found)
    rank = rank_of(summary, SCORES[run.config.training.score_at])
    if is_better(rank, progress.best_dice_ema, progress.best_rank_ema) and kept:
        threshold = threshold_of(run, found)
        if scheduled:
            progress.best_dice_ema, progress.best_rank_ema, progress.threshold_ema = rank[0], rank, threshold
        if run.accelerator.is_main_process:
            save_weights(run.folder / AVERAGED, run.ema.module.state_dict())
    return {f"{name}_ema": value for name, value in summary.items()}


def rank_of(summary: dict, name: str) -> list[float]:
    """What decides which weights are kept: the score called ``name``, and between equal ones (all 0 as long as no
    probability reaches 0.5) the Dice at the best threshold, then the loss, lower first."""
    return [summary[name], summary.get("val_dice_swept") or 0.0, -summary["val_loss"]]


def is_better(rank: list[float], best: float, best_rank: list[float] | None) -> bool:
    """Whether a validation is better than the best one so far, of the score ``best`` and of ``best_rank``."""
    return rank[0] > best or (best_rank is not None and rank[0] == best and rank > best_rank)


def threshold_of(run: Run, found: Validation) -> float | None:
    """The threshold that kept weights are used with; None: the usual one."""
    return found.threshold if run.config.training.score_at == "best" else None


def keep_thresholds(run: Run) -> None:
    """Write the thresholds of the last and of the averaged weights beside that of the best ones, into the card."""
    path, progress = run.folder / CONFIG, run.progress
    others = {LAST: progress.threshold_last, AVERAGED: progress.threshold_ema}
    if path.is_file() and any(others.values()):
        card = read_card(run.folder)
        write_json(path, card.changed(thresholds={name: each for name, each in others.items() if each}).to_dict())
