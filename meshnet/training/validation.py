"""Scores of the validation cases during training, segmented as infer.py does it, and pictures of some of them."""

import math
from pathlib import Path

import numpy as np
import torch

from meshnet.inference import predict
from meshnet.runs.folder import Heartbeat
from meshnet.scans import metrics
from meshnet.training.run import Run


@torch.no_grad()
def score_share(run: Run, network: torch.nn.Module, heart: Heartbeat) -> list[tuple[int, dict]]:
    """Scores of this process's share of the validation cases on the conformed grid, segmented as infer.py would do it.

    Returns (position in ``run.val``, row) pairs; every case is in the share of exactly one process.
    """
    accelerator = run.accelerator
    network.eval()
    rows, info, marks = [], run.data.info, run.data.marking
    for position in range(accelerator.process_index, len(run.val), accelerator.num_processes):
        index = run.val[position]
        with accelerator.autocast():
            logits = predict.predict_logits(network, run.data.image(index), device=accelerator.device)
        logits = torch.as_tensor(logits)
        truth = torch.from_numpy(run.data.read(index, "mask"))
        loss = run.criterion(logits[None].to(accelerator.device), truth[None].to(accelerator.device)).item()
        found = logits.argmax(0).to(torch.uint8)
        if marks.marks:
            found = marks.of(logits.float().softmax(0))[0] >= marks.threshold
        scores = metrics.overlap_metrics(found, marks.truth(truth), [info["voxel_mm"]] * 3, marks.count)
        row = run.data.rows[index]
        rows.append((position, {"case": row["case"], "subject": row["subject"], "loss": loss, **scores}))
        heart.beat()
    return rows


def picture_cases(run: Run, rows: list[dict]) -> dict[str, Path]:
    """Pictures of the validation cases with the worst and the median Dice: ``pictures/worst.png``, ``…/median.png``."""
    from meshnet.scans.overlay import draw_overlay

    ranked = sorted(zip([row["dice"] for row in rows], run.val))
    chosen = {"worst": ranked[0][1], "median": ranked[len(ranked) // 2][1]}
    run.network.eval()
    paths = {}
    for name, index in chosen.items():
        image = run.data.image(index)
        probabilities = predict.predict(run.network, image, device=run.accelerator.device)
        guess = run.data.marking.labels(run.data.marking.of(probabilities))
        paths[name] = run.folder / "pictures" / f"{name}.png"
        affine = np.array(run.data.rows[index]["conformed_affine"]).reshape(4, 4)
        draw_overlay(image[0], guess, paths[name], run.data.marking.truth(run.data.read(index, "mask")), affine,
                     run.data.rows[index]["case"])
    return paths


def summarise(rows: list[dict]) -> dict:
    """Means over the cases, by their names in metrics.jsonl, without NaN (AVD of a case without lesion)."""
    names = ["loss", *[name for name in ("dice", "dice_macro", "avd", "mcc") if name in rows[0]]]
    means = {}
    for name in names:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[f"val_{name}"] = sum(values) / len(values) if values else math.nan
    return {name: value if math.isfinite(value) else None for name, value in means.items()}
