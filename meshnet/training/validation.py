"""Scores of the validation cases during training, segmented as infer.py does it, and pictures of some of them.

Everything is decided, counted and added up where the logits are: a few hundred numbers of a case leave the device, and
they are read once all cases have been computed. The next case is read meanwhile.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from meshnet.inference import predict
from meshnet.inference.by_torch import most_likely
from meshnet.runs.folder import Heartbeat
from meshnet.scans import metrics
from meshnet.scans.mask import Marks, slices
from meshnet.training.loss import sums_of
from meshnet.training.run import Run
from meshnet.training.sweep import THRESHOLDS, best_threshold, dice_by_threshold, histograms

SLAB = 1 << 20  # voxels that are counted at once on a CPU
MANY = 0.2  # share of voxels from which on picking them takes longer than counting all
SWEPT = "dice_swept"  # the Dice at the threshold with the highest mean Dice over the validation cases


class Tally(NamedTuple):
    """What a case's box counts, on the device that computed it.

    ``confusion`` (true label, predicted label) and ``sums`` (``loss.sums_of``) hold numbers of voxels; ``bins``
    (``sweep.histograms``) and ``highest``, the highest probability of lesion, are None where no threshold decides.
    """

    confusion: torch.Tensor
    sums: torch.Tensor
    bins: torch.Tensor | None
    highest: torch.Tensor | None


class Validation(NamedTuple):
    """Scores of all validation cases, in the order of ``run.val``. ``threshold`` has the highest mean Dice, ``highest``
    is the highest probability of lesion in any case; both None where no threshold decides about a mask."""

    rows: list[dict]
    threshold: float | None
    highest: float | None


@torch.no_grad()
def score_share(run: Run, network: torch.nn.Module, heart: Heartbeat, shown=None) -> list[tuple[int, dict]]:
    """Scores of this process's share of the validation cases on the conformed grid, segmented as infer.py would do it.

    ``shown`` is called with the number of cases done and in all.

    Returns (position in ``run.val``, row) pairs; every case is in the share of exactly one process. A row holds the
    scores at the data set's threshold, and for ``choose`` the case's Dice at all thresholds.
    """
    accelerator, marks = run.accelerator, run.data.marking
    network.eval()
    positions = range(accelerator.process_index, len(run.val), accelerator.num_processes)
    dice = run.config.loss.name != "ce"
    counted = []
    for position, image, labels in read_ahead(run, positions):
        with accelerator.autocast():
            answer = predict.answer(network, image, device=accelerator.device)
        truth = np.ascontiguousarray(labels[slices(answer.box)])
        beside = [np.count_nonzero(labels == k) - np.count_nonzero(truth == k) for k in range(1, len(answer.logits))]
        beside.insert(0, labels.size - truth.size - sum(beside))
        truth = torch.from_numpy(truth).to(answer.logits.device, non_blocking=True)
        fill = torch.from_numpy(np.asarray(answer.fill, np.float32))[:, None]
        outside = [tally(fill, torch.tensor([k]), marks, dice) for k in range(len(beside))] if any(beside) else []
        counted.append((position, tally(answer.logits, truth, marks, dice), list(zip(beside, outside))))
        heart.beat()
        if shown:
            shown(len(counted), len(positions))
    return [(position, row_of(run, position, inside, outside)) for position, inside, outside in counted]


def read_ahead(run: Run, positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(position, image (C, X, Y, Z), mask (X, Y, Z)) of each validation case; the next one is read meanwhile."""
    def read(position: int) -> tuple[int, np.ndarray, np.ndarray]:
        return position, run.data.image(run.val[position]), run.data.read(run.val[position], "mask")

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, position) for position in positions[:1]]
        for following in [*positions[1:], None]:
            if not coming:
                return
            found = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(read, following))
            yield found


def tally(logits: torch.Tensor, truth: torch.Tensor, marks: Marks, dice: bool) -> Tally:
    """Count a part of a case: ``logits`` (K, …), float32, and ``truth`` (…), class numbers, on the same device.

    ``dice`` asks for the sums of the soft Dice. A voxel is marked as ``Marks.labels`` does it, but for two classes
    with the same probability, of which it is the background here.
    """
    if logits.device.type != "cpu":
        return tally_part(logits, truth, marks, dice)
    thick = max(1, SLAB // max(1, logits[0, 0].numel()))  # what is computed at once stays in the cache
    parts = [tally_part(*each, marks, dice) for each in zip(logits.split(thick, 1), truth.split(thick))]
    confusion, sums, bins, highest = zip(*parts)
    if bins[0] is None:
        return Tally(sum(confusion), sum(sums), None, None)
    return Tally(sum(confusion), sum(sums), sum(bins), torch.stack(highest).amax())


def tally_part(logits: torch.Tensor, truth: torch.Tensor, marks: Marks, dice: bool) -> Tally:
    """``tally`` in one piece."""
    sums = sums_of(logits, truth, dice)
    if marks.marks is None and len(logits) > 2:
        table = torch.bincount((len(logits) * truth.long() + most_likely(logits)).flatten(), minlength=len(logits) ** 2)
        return Tally(table.view(len(logits), -1), sums, None, None)
    one = 1 if marks.marks is None else marks.classes.index(marks.marks)
    truth = truth == one
    true, voxels = torch.count_nonzero(truth), truth.numel()
    if len(logits) == 2:
        score, level = logits[one] - logits[1 - one], math.log(marks.threshold / (1 - marks.threshold))
    else:
        score, level = logits.softmax(0)[one], marks.threshold
    highest = score.amax()
    if logits.device.type == "cpu":  # nearly all voxels lie below the lowest threshold and are not looked at again
        lowest = math.log(THRESHOLDS[0] / (1 - THRESHOLDS[0])) - 1e-3 if len(logits) == 2 else THRESHOLDS[0]
        likely = score >= lowest
        if torch.count_nonzero(likely) < MANY * voxels:
            score, truth = score[likely], truth[likely]
    found = score > level if len(logits) == 2 else score >= level
    both, predicted = torch.count_nonzero(found & truth), torch.count_nonzero(found)
    bins = histograms(score.sigmoid() if len(logits) == 2 else score, truth)
    bins[0, 0], bins[1, 0] = voxels - true - bins[0, 1:].sum(), true - bins[1, 1:].sum()
    confusion = torch.stack([voxels - predicted - true + both, predicted - both, true - both, both]).view(2, 2)
    return Tally(confusion, sums, bins, highest.sigmoid() if len(logits) == 2 else highest)


def row_of(run: Run, position: int, inside: Tally, outside: list[tuple[int, Tally]]) -> dict:
    """The row of a case, from its box and from one voxel of each class outside it, of which there are so many."""
    parts = [(1, inside), *outside]
    confusion = sum(times * part.confusion.cpu() for times, part in parts)
    sums = sum(times * part.sums.cpu() for times, part in parts)
    case = run.data.rows[run.val[position]]
    row = {"case": case["case"], "subject": case["subject"], "loss": run.criterion.of_sums(sums),
           **metrics.confusion_metrics(confusion.tolist(), [run.data.info["voxel_mm"]] * 3)}
    if inside.bins is not None:
        bins = sum(times * part.bins.cpu() for times, part in parts)
        row["curve"] = dice_by_threshold(bins.tolist())
        row["highest"] = max(float(part.highest) for times, part in parts if times)
    return row


def choose(rows: list[dict]) -> Validation:
    """The rows with the Dice at the best threshold for all cases together, in place of the Dice at all thresholds."""
    curves = [row.pop("curve") for row in rows if "curve" in row]
    if len(curves) < len(rows):
        return Validation([row | {SWEPT: row["dice"]} for row in rows], None, None)
    threshold, place = best_threshold(curves)
    highest = max(row.pop("highest") for row in rows)
    return Validation([row | {SWEPT: curve[place]} for row, curve in zip(rows, curves)], threshold, highest)


def picture_cases(run: Run, rows: list[dict], threshold: float | None) -> dict[str, Path]:
    """Pictures of the validation cases with the worst and the median Dice at ``threshold`` (None: the model's own):
    ``pictures/worst.png``, ``…/median.png``."""
    from meshnet.scans.overlay import draw_overlay

    ranked = sorted(zip([row["dice"] for row in rows], run.val))
    chosen = {"worst": ranked[0][1], "median": ranked[len(ranked) // 2][1]}
    run.network.eval()
    paths = {}
    for name, index in chosen.items():
        image = run.data.image(index)
        probabilities = predict.predict(run.network, image, device=run.accelerator.device)
        guess = run.data.marking.labels(run.data.marking.of(probabilities), threshold)
        paths[name] = run.folder / "pictures" / f"{name}.png"
        affine = np.array(run.data.rows[index]["conformed_affine"]).reshape(4, 4)
        draw_overlay(image[0], guess, paths[name], run.data.marking.truth(run.data.read(index, "mask")), affine,
                     run.data.rows[index]["case"])
    return paths


def summarise(validation: Validation) -> dict:
    """Means over the cases, by their names in metrics.jsonl, without NaN (AVD of a case without lesion)."""
    rows = validation.rows
    names = ["loss", *[name for name in ("dice", SWEPT, "dice_macro", "avd", "mcc") if name in rows[0]]]
    means = {}
    for name in names:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[f"val_{name}"] = sum(values) / len(values) if values else math.nan
    if validation.threshold is not None:
        means |= {"val_threshold": validation.threshold, "val_highest": round(validation.highest, 6)}
    return {name: value if math.isfinite(value) else None for name, value in means.items()}
