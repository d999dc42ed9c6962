"""Scores of the validation cases during training, segmented as infer.py does it, and pictures of some of them.

Everything is decided, counted and added up where the logits are (``tally.py``): a few hundred numbers of a case leave
the device, and they are read once all cases have been computed. The next case is read and looked at meanwhile. So the
host waits for a GPU once a case, to know whether the head's box is large enough (``inference.on_gpu``), and once at the
end.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from meshnet.inference import predict
from meshnet.runs.folder import Heartbeat
from meshnet.scans import metrics
from meshnet.scans.mask import slices
from meshnet.training.run import Run
from meshnet.training.sweep import best_threshold, dice_by_threshold
from meshnet.training.tally import as_numbers, from_numbers, tally

SWEPT = "dice_swept"  # the Dice at the threshold with the highest mean Dice over the validation cases


class Counted(NamedTuple):
    """A case that is counted: its ``position`` in ``run.val``, the ``numbers`` of its box (``as_numbers``) where they
    were computed, and how many voxels of each class lie ``beside`` the box."""

    position: int
    numbers: torch.Tensor
    beside: list[int]


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
    dice, counted = run.config.loss.name != "ce", []
    for position, image, labels in read_ahead(run, network, positions):
        with accelerator.autocast():
            answer = predict.answer(network, image, accelerator.device, run.seen[position])
        inside = labels[slices(answer.box)]
        beside = [np.count_nonzero(labels == k) - np.count_nonzero(inside == k) for k in range(1, len(answer.logits))]
        beside.insert(0, labels.size - inside.size - sum(beside))
        truth = torch.from_numpy(labels).to(answer.logits.device, non_blocking=True)[slices(answer.box)].contiguous()
        counted.append(Counted(position, as_numbers(tally(answer.logits, truth, marks, dice), answer.fill), beside))
        heart.beat()
        if shown:
            shown(len(counted), len(positions))
    if not counted:
        return []
    numbers = torch.cat([case.numbers for case in counted]).cpu()  # here a GPU is waited for
    found = numbers.split([len(case.numbers) for case in counted])
    return [(case.position, row_of(run, case, each)) for case, each in zip(counted, found)]


def read_ahead(run: Run, network: torch.nn.Module,
               positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(position, image (C, X, Y, Z), mask (X, Y, Z)) of each validation case. The next one is read meanwhile, and
    looked at for the head if no earlier epoch has done that."""
    def read(position: int) -> tuple[int, np.ndarray, np.ndarray]:
        image, labels = run.data.image(run.val[position]), run.data.read(run.val[position], "mask")
        if run.accelerator.device.type == "cuda":  # it copies from such memory by itself
            image, labels = (torch.from_numpy(volume).pin_memory().numpy() for volume in (image, labels))
        if position not in run.seen:
            run.seen[position] = predict.seen_by(network, image)
        return position, image, labels

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, position) for position in positions[:1]]
        for following in [*positions[1:], None]:
            if not coming:
                return
            found = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(read, following))
            yield found


def row_of(run: Run, case: Counted, numbers: torch.Tensor) -> dict:
    """The row of a case, from the ``numbers`` of its box and from one voxel of each class beside it."""
    classes, marks = len(case.beside), run.data.marking
    inside, fill = from_numbers(numbers, classes, marks)
    parts = [(1, inside)]
    if any(case.beside):
        dice = run.config.loss.name != "ce"
        parts += [(times, tally(fill[:, None], torch.tensor([k]), marks, dice)) for k, times in enumerate(case.beside)]
    confusion, sums = (sum(times * part[field] for times, part in parts) for field in (0, 1))
    about = run.data.rows[run.val[case.position]]
    row = {"case": about["case"], "subject": about["subject"], "loss": run.criterion.of_sums(sums),
           **metrics.confusion_metrics(confusion.tolist(), [run.data.info["voxel_mm"]] * 3)}
    if inside.bins is not None:
        bins = sum(times * part.bins for times, part in parts)
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
