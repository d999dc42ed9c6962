"""What a run says: the line of an epoch, how far it is and how long it will take, and whether it is learning."""

import time
from collections.abc import Collection
from pathlib import Path

from meshnet.display import Live, bar, command, minutes
from meshnet.runs.folder import read_metrics
from meshnet.training.run import Progress, Run

WAIT_BEFORE_COLLAPSE = 3  # validated epochs without any predicted lesion before a word about it
FALLS = 0.01  # of the first validation loss: so much it must have fallen meanwhile for a network to be learning


class Pace:
    """How far a run is and how long the rest will take, at the mean time of an epoch since this start."""

    def __init__(self, run: Run, stop_epoch: int, live: Live):
        self.run, self.live, self.stop_epoch = run, live, stop_epoch
        self.started, self.first = time.monotonic(), self.epochs_done(0.0)

    def epochs_done(self, share: float) -> float:
        """Epochs that are done, with the ``share`` of the present one."""
        return self.run.progress.epoch + share

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Seconds until ``stop_epoch``; None before anything is known."""
        done = self.epochs_done(share) - self.first
        if done <= 0:
            return None
        return (time.monotonic() - self.started) / done * (self.stop_epoch - self.epochs_done(share))

    def left_in_words(self) -> str:
        """How long the run takes after an epoch, for the end of its line."""
        return "" if self.run.progress.finished else in_words(self.seconds_left())

    def after_batch(self, batches: int) -> None:
        """Show how far the epoch is after another of its ``batches``."""
        progress = self.run.progress
        left = self.seconds_left(0.9 * progress.batches / batches)  # a validation follows
        loss = progress.loss_sum / progress.batches
        self.live.show(f"{self.epoch()} {bar(progress.batches, batches)} loss {loss:.4f}{self.best()}{in_words(left)}")

    def after_case(self, done: int, cases: int) -> None:
        """Show how far a validation is."""
        left = self.seconds_left(0.9 + 0.1 * done / cases)
        self.live.show(f"{self.epoch()} validating {done} of {cases}{self.best()}{in_words(left)}")

    def epoch(self) -> str:
        """``epoch 3/50``."""
        return f"epoch {self.run.progress.epoch + 1}/{self.run.config.training.max_epochs}"

    def best(self) -> str:
        """The best Dice so far, once there is one."""
        progress = self.run.progress
        return f"  best Dice {progress.best_dice:.3f}" if progress.best_epoch > 0 else ""


def in_words(left: float | None) -> str:
    """Seconds that are left, for the end of a line; nothing at the end, and before anything is known."""
    return f"  about {minutes(left)} left" if left else ""


def epoch_line(row: dict, epochs: int) -> str:
    """The line that is printed after an epoch."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if row.get("val_loss") is not None:
        parts.append(f"val loss {row['val_loss']:.4f}")
    if row.get("val_dice") is not None:
        parts.append(dice_in_words(row))
    if row.get("val_dice_swept_ema") is not None:
        parts.append(f"averaged weights {row['val_dice_swept_ema']:.3f}")
    return "  ".join([*parts, f"lr {row['learning_rate']:.2e}", f"{row['seconds']:.1f} s"])


def dice_in_words(row: dict) -> str:
    """The validation Dice at both thresholds, from a line of metrics.jsonl."""
    if row.get("val_threshold") is None:
        return f"val Dice {row['val_dice']:.3f}"
    seen = "" if row["val_highest"] >= 0.5 else f", highest probability {row['val_highest']:.2g}"
    return (f"val Dice {row['val_dice_swept']:.3f} at threshold {row['val_threshold']:g} ({row['val_dice']:.3f} at 0.5"
            f"{seen})")


def judged(progress: Progress, summary: dict, nothing: bool, cases: int) -> tuple[str, bool]:
    """Whether a network that marks nothing at 0.5 is learning all the same, judged by its validation loss.

    Args:
        progress: its memory of earlier validations is brought up to date.
        summary: this validation's values, by their names in metrics.jsonl.
        nothing: whether it found no lesion in any of its ``cases``.

    Returns:
        The line to print, "" for none, and whether the network has collapsed: for ``WAIT_BEFORE_COLLAPSE`` validations
        it has marked nothing, and none of their losses is lower than all before by ``FALLS`` of the first one.
    """
    losses = [*progress.losses, summary["val_loss"]]
    lately = losses[-WAIT_BEFORE_COLLAPSE:]
    before = min(losses[:-WAIT_BEFORE_COLLAPSE] or losses[:1])
    progress.losses = losses
    progress.without_lesion = progress.without_lesion + 1 if nothing else 0
    waited = progress.without_lesion
    flat = waited >= WAIT_BEFORE_COLLAPSE and before - min(lately) < FALLS * abs(losses[0])
    line = ""
    if flat and not progress.warned:
        line = (f"warning: no lesion predicted in any of the {cases} validation cases for {waited} validations, and "
                "the validation loss is flat: the network has collapsed to 'no lesion anywhere'; try a lower "
                "--loss.background_weight, --loss.name dice_ce, or another --optimizer.lr")
    elif waited == WAIT_BEFORE_COLLAPSE and not flat:
        highest = summary.get("val_highest")
        known = "" if highest is None else f" (the highest is {highest:.2g})"
        line = (f"no probability above 0.5 yet{known}; the validation loss is still falling, from {before:.3g} to "
                f"{summary['val_loss']:.3g}: the network is learning, keep training")
    progress.warned = nothing and (progress.warned or flat)
    return line, flat


def own_cases(train: Collection[int], val: Collection[int]) -> str:
    """What the last line says of a Dice on cases that training saw too, as ``prepare.py --inner 1`` has it; else ""."""
    return "" if set(train).isdisjoint(val) else "; validated on its own training cases: an upper bound"


def better_threshold(row: dict) -> tuple[float, float] | None:
    """The threshold at which validation Dice is more than twice that at 0.5, and that Dice, of an epoch's ``row`` in
    metrics.jsonl; None where 0.5 is not so far off."""
    swept, threshold = row.get("val_dice_swept") or 0.0, row.get("val_threshold")
    if threshold in (None, 0.5) or swept <= 2 * row.get("val_dice", 1.0):
        return None
    return threshold, swept


def needed_threshold(run: Run) -> tuple[float, float] | None:
    """``better_threshold`` of a finished run's best epoch; None where it has a threshold of its own."""
    if not run.progress.finished or run.progress.threshold is not None:
        return None
    rows = (row for row in read_metrics(run.folder) if row.get("epoch") == run.progress.best_epoch)
    return better_threshold(next(rows, {}))


def faint_line(threshold: float, dice: float) -> str:
    """What is said of a network that needs another threshold, at the end of its training."""
    return (f"at probability 0.5 the network marks little or nothing; on the validation cases a --threshold of "
            f"{threshold:g} gives Dice {dice:.3f}. Longer training may mend that (--training.max_epochs)")


def segmenting(folder: Path, better: tuple[float, float] | None) -> str:
    """How to segment with the network of a run, at the threshold that it needs where that is not its own."""
    return command("python", "infer.py", "SCAN.nii.gz", "--model", folder,
                   *(["--threshold", f"{better[0]:g}"] if better else []))
