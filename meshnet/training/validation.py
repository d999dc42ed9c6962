"""Scores of the validation cases while training, segmented as infer.py segments them, and pictures of some."""

import math
from pathlib import Path

import numpy as np
import torch

from meshnet.inference import predict
from meshnet.networks.card import DEFAULTS
from meshnet.runs.folder import Heartbeat
from meshnet.scans import metrics
from meshnet.scans.mask import decide, scored_classes, what_counts, what_is_true
from meshnet.training.run import Run


@torch.no_grad()
def score_share(run: Run, network: torch.nn.Module, heart: Heartbeat) -> list[tuple[int, dict]]:
    """Scores of this process's share of the validation cases in the conformed grid, as infer.py would segment them.

    Returns (position in ``run.val``, row) pairs; every case is in the share of one process.
    """
    accelerator = run.accelerator
    network.eval()
    rows, info = [], run.data.info
    for position in range(accelerator.process_index, len(run.val), accelerator.num_processes):
        index = run.val[position]
        with accelerator.autocast():
            logits = predict.predict_logits(network, run.data.image(index), device=accelerator.device)
        logits = torch.as_tensor(logits)
        truth = torch.from_numpy(run.data.read(index, "mask"))
        loss = run.criterion(logits[None].to(accelerator.device), truth[None].to(accelerator.device)).item()
        found = logits.argmax(0).to(torch.uint8)
        if info.get("marks"):
            found = what_counts(logits.float().softmax(0), info)[0] >= DEFAULTS["threshold"]
        scores = metrics.overlap_metrics(found, what_is_true(truth, info), [info["voxel_mm"]] * 3, scored_classes(info))
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
        guess = decide(what_counts(probabilities, run.data.info), run.data.info, DEFAULTS["threshold"])
        paths[name] = run.folder / "pictures" / f"{name}.png"
        affine = np.array(run.data.rows[index]["conformed_affine"]).reshape(4, 4)
        draw_overlay(image[0], guess, paths[name], what_is_true(run.data.read(index, "mask"), run.data.info), affine,
                     run.data.rows[index]["case"])
    return paths


def summarise(rows: list[dict]) -> dict:
    """Means over the cases, by the names that metrics.jsonl uses; NaN (AVD without a lesion) is left out."""
    names = ["loss", *[name for name in ("dice", "dice_macro", "avd", "mcc") if name in rows[0]]]
    means = {}
    for name in names:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[f"val_{name}"] = sum(values) / len(values) if values else math.nan
    return {name: value if math.isfinite(value) else None for name, value in means.items()}
