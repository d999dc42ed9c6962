"""The training loop: epochs of steps, validation, resume points. One network, one fold, one seed.

Accelerate handles devices, precision and processes. Everything that the resulting weights depend on is in ``Progress``
and in the state dictionaries, so that a run killed at any moment ends with the same weights.
"""

import contextlib
import dataclasses
import math
import time

import torch
from accelerate.utils import gather_object

from meshnet.config import TrainingConfig
from meshnet.data.batches import TrainingCases, batches_of_rank, choose_workers, epoch_order, load_batches
from meshnet.display import Live
from meshnet.errors import Diverged
from meshnet.networks.folder import save_weights
from meshnet.runs.folder import (
    LAST,
    STATES,
    UNSCHEDULED,
    Heartbeat,
    append_metrics,
    keep_metrics,
)
from meshnet.training.agree import first_line_of, with_others
from meshnet.training.keep import keep_thresholds, validate_and_keep
from meshnet.training.resume import load_state, random_state, save_state, set_random_state
from meshnet.training.run import Progress, Run, cases_per_step
from meshnet.training.said import Pace, epoch_line

MOST_SKIPPED = 20  # optimizer steps in a row that fp16 may skip: the loss scale then is a millionth of its start


def is_validated(training: TrainingConfig, epoch: int) -> bool:
    """Whether a run validates after this epoch (counted from 1), wherever ``--stop_epoch`` ends it for now."""
    return epoch % training.validate_every == 0 or epoch == training.max_epochs


def fit(run: Run, stop_epoch: int, live: Live) -> None:
    """Train until ``stop_epoch`` epochs are finished, or early stopping ends the run.

    A run that ``--stop_epoch`` ends between two validations is scored all the same, but that score has no effect on the
    best weights, the learning rate or early stopping. When the run is continued, the score is removed from its line, so
    that the run ends as one that was never stopped.

    Args:
        run: newly assembled, or with a state loaded by ``resume``.
        stop_epoch: at most ``training.max_epochs``, the schedule's horizon.
        live: shows how far the run is, on the main process only.

    Raises:
        Diverged: when the loss is NaN or infinite; the last resume point stays.
    """
    progress, folder = run.progress, run.folder
    heart = Heartbeat(folder, run.accelerator.is_main_process)
    going_on = progress.epoch < stop_epoch and not progress.finished
    pace = Pace(run, stop_epoch, live)
    if run.accelerator.is_main_process:
        keep_metrics(folder, progress.epoch, going_on)
    if going_on:
        run.tracker.begin(progress.epoch)
    while progress.epoch < stop_epoch and not progress.finished:
        started = time.monotonic() - progress.seconds  # resume points inside the epoch move progress.seconds
        run.schedule.begin_epoch(progress.epoch)
        row = {"epoch": progress.epoch + 1, **train_epoch(run, heart, pace)}
        row["step"] = progress.step
        scheduled = is_validated(run.config.training, progress.epoch + 1)
        if scheduled:
            row |= validate_and_keep(run, heart, pace)
        watched = row.get(run.config.scheduler.monitor)
        if not scheduled and progress.epoch + 1 == stop_epoch:
            row |= validate_and_keep(run, heart, pace, scheduled=False) | {UNSCHEDULED: True}
        line = run.schedule.end_epoch(watched)
        if line:
            live.say(line)
        row["seconds"] = round(time.monotonic() - started, 2)
        close_epoch(run, row, watched)
        save(run)
        live.say(epoch_line(row, run.config.training.max_epochs) + pace.left_in_words())
        run.leave.end(progress.epoch < stop_epoch and not progress.finished and run.leave.now(run.accelerator))
    if run.accelerator.is_main_process:
        save_weights(folder / LAST, run.network.state_dict())  # the card is that of the best epoch
        keep_thresholds(run)


def close_epoch(run: Run, row: dict, value: float | None) -> None:
    """Count the epoch as finished, write its line to metrics.jsonl, and stop early by the monitored ``value``."""
    progress, training = run.progress, run.config.training
    progress.epoch += 1
    progress.batches, progress.loss_sum, progress.seconds, progress.skipped = 0, 0.0, 0.0, 0
    if value is not None and math.isfinite(value):
        best = progress.monitor_best
        better = best is None or (value > best if run.config.scheduler.mode == "max" else value < best)
        if better:
            progress.monitor_best, progress.monitor_epoch = value, progress.epoch
    waited = progress.epoch - progress.monitor_epoch
    # Only after a validation: train_loss is known after every epoch, and a run must not end unvalidated.
    early = (value is not None and training.early_stopping and waited >= training.early_stopping_patience
             and is_validated(training, progress.epoch))
    progress.finished = early or progress.epoch >= training.max_epochs
    if early:
        row["stopped_early"] = True
    if run.accelerator.is_main_process:
        append_metrics(run.folder, row)
    run.tracker.log(row, step=progress.epoch)


def train_epoch(run: Run, heart: Heartbeat, pace: Pace) -> dict:
    """One epoch of optimizer steps, continued from ``run.progress``; returns its means for metrics.jsonl."""
    progress, config, accelerator = run.progress, run.config, run.accelerator
    order = epoch_order(run.train, run.seed, progress.epoch, cases_per_step(config, accelerator.num_processes))
    batches = batches_of_rank(order, config.training.batch_size, accelerator.process_index, accelerator.num_processes)
    cases = TrainingCases(run.data, run.box, config.model.patch, run.seed, run.augment)
    on_gpu = accelerator.device.type == "cuda"
    workers = choose_workers(config.data.workers, on_gpu, run.augment is not None)
    todo = load_batches(cases, batches[progress.batches:], progress.epoch, workers, on_gpu)
    started = time.monotonic()
    earlier, rate = progress.seconds, run.schedule.rates()[0]
    begin_training(run)
    run.leave.in_steps = True
    for batch in todo:
        with accelerator.accumulate(run.model):
            loss = train_batch(run, batch)
        progress.batches += 1
        progress.loss_sum += loss
        heart.beat()
        pace.after_batch(len(batches))
        if not accelerator.sync_gradients:
            continue
        rate = run.schedule.rates()[0]
        run.schedule.end_step()
        progress.step += 1
        count_skipped(run)
        if run.ema is not None:
            run.ema.update_parameters(run.network)
        every = config.training.save_every_steps
        leaving = run.leave.now(accelerator)
        if (leaving or (every and progress.step % every == 0)) and progress.batches < len(batches):
            progress.seconds = earlier + time.monotonic() - started
            save(run)
            run.leave.end(leaving)
    run.leave.in_steps = False
    sums = gather_object([progress.loss_sum])
    skipped = {} if accelerator.scaler is None else {"skipped_steps": progress.skipped}
    return {"learning_rate": rate, "train_loss": sum(sums) / (len(batches) * len(sums)), **skipped}


def count_skipped(run: Run) -> None:
    """Count the optimizer step that was just due if fp16 skipped it, since its gradients overflowed.

    A few are how the loss scale finds its place: each halves it. Where it has come to nothing, the weights stand still
    for good while the loss stays finite.

    Raises:
        Diverged: after ``MOST_SKIPPED`` in a row.
    """
    progress = run.progress
    if not run.optimizer.step_was_skipped:
        progress.skipped_in_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_row += 1
    if progress.skipped_in_row >= MOST_SKIPPED:
        raise Diverged(f"{progress.skipped_in_row} optimizer steps in a row were skipped, up to epoch "
                       f"{progress.epoch + 1}, step {progress.step}: the gradients overflow fp16 at every loss scale, "
                       f"now {run.accelerator.scaler.get_scale():.3g}; try --training.precision bf16 or no, or a lower "
                       "--optimizer.lr")


def begin_training(run: Run) -> None:
    """Set training mode; frozen batch norms stay in evaluation mode, with their running statistics."""
    run.model.train()
    if run.config.training.freeze_batch_norm:
        for module in run.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


def train_batch(run: Run, batch: dict, watch=contextlib.nullcontext) -> float:
    """Forward, loss, backward, and the optimizer step when the gradients are complete. Returns the loss.

    ``watch(phase)`` gives a context for each phase.
    """
    accelerator, training = run.accelerator, run.config.training
    on_gpu = accelerator.device.type == "cuda"
    with watch("forward"):
        image = batch["image"].to(accelerator.device, non_blocking=True)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        logits = run.model(image.contiguous(memory_format=run.layout))
    with watch("loss"):
        loss = run.criterion(logits, batch["mask"].to(accelerator.device, non_blocking=True))
        both = with_others(accelerator, loss.detach())
        value = both.to("cpu", non_blocking=True)  # a GPU goes on, and is read once it has been waited for
    del logits, image
    if not on_gpu:
        check_loss(run, batch, *value.tolist())
    with watch("backward"):
        accelerator.backward(loss)
    with watch("optimizer"):
        if accelerator.sync_gradients and training.gradient_clipping:
            accelerator.clip_grad_norm_(run.model.parameters(), training.max_grad_norm)  # unscales fp16 gradients first
        run.optimizer.step()
        run.optimizer.zero_grad()
        if on_gpu and not (accelerator.scaler is not None and accelerator.sync_gradients):
            value = both  # the optimizer has not waited, as it does to look for gradients that overflow
        found, wrong = value.tolist()
    if on_gpu:
        check_loss(run, batch, found, wrong)
    return found


def check_loss(run: Run, batch: dict, value: float, wrong: float) -> None:
    """Raise Diverged where the loss is NaN or infinite on this process or on another, on all with the same words.

    ``wrong`` is the number of such processes, by ``agree.with_others``.
    """
    if wrong:
        mine = None if math.isfinite(value) else explain_divergence(run, value, batch["index"].tolist())
        raise Diverged(first_line_of(run.accelerator, mine))


def explain_divergence(run: Run, value: float, indices: list[int]) -> str:
    """Where the loss became NaN or infinite, and what to try."""
    names = ", ".join(run.data.rows[index]["case"] for index in indices)
    tries = ["a lower --optimizer.lr"]
    if not run.config.training.gradient_clipping:
        tries.append("--training.gradient_clipping true")
    if run.accelerator.mixed_precision == "fp16":
        tries.append("--optimizer.eps 1e-4 or --training.precision bf16")
    return (f"the loss is {value} at epoch {run.progress.epoch + 1}, step {run.progress.step + 1}, case {names}, "
            f"learning rate {run.schedule.rates()[0]:.3g}; try {', '.join(tries)}")


def save(run: Run) -> None:
    """Write a resume point; all processes take part, the main one writes."""
    accelerator = run.accelerator
    if not all(torch.isfinite(parameter).all() for parameter in run.network.parameters()):
        raise Diverged(f"the weights are NaN or infinite after step {run.progress.step}; try a lower --optimizer.lr")
    mine = {"progress": dataclasses.asdict(run.progress), "random": random_state(accelerator.device)}
    ranks = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
    if accelerator.is_main_process:
        state = {"ranks": ranks, "network": run.network.state_dict(), "optimizer": run.optimizer.state_dict(),
                 "schedule": run.schedule.state_dict(), "ema": run.ema.state_dict() if run.ema else None,
                 "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}
        save_state(run.folder / STATES, run.progress.step, state, run.config.training.keep_states)
    accelerator.wait_for_everyone()


def resume(run: Run) -> bool:
    """Load the newest resume point into ``run``; False where there is none."""
    state = load_state(run.folder / STATES, run.accelerator)
    if state is None:
        return False
    mine = state["ranks"][run.accelerator.process_index]
    progress = dict(mine["progress"])
    if "silent" in progress:  # its name in resume points of earlier versions
        progress["without_lesion"] = progress.pop("silent")
    run.progress = Progress(**progress)
    run.network.load_state_dict(state["network"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    if run.accelerator.scaler is not None and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    set_random_state(mine["random"], run.accelerator.device)
    return True
