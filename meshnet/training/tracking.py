"""Experiment trackers through Accelerate: Weights & Biases, MLflow, TensorBoard, Trackio.

The names are those of the guide: ``learning_rate``, ``train_loss``, ``val_dice``, ``val_loss``. A resumed run continues
in the same tracker run, whose identifier is in the run folder's ``tracking.json``.
"""

import importlib.util
import json
import math
import netrc
import os
import uuid
from pathlib import Path

import numpy as np

from meshnet.config import TrackingConfig
from meshnet.errors import UserError
from meshnet.files import write_json
from meshnet.runs.folder import TRACKING

MODULES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard", "trackio": "trackio"}


def check_installed(config: TrackingConfig) -> None:
    """Raise a UserError for a tracker whose package is not installed."""
    for name in config.trackers:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise UserError(f"tracking.trackers: '{name}' is not installed; pip install -r requirements-tracking.txt")


def wandb_has_key() -> bool:
    """Whether Weights & Biases can log in; otherwise a run is logged offline, to be synced later."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class Tracker:
    """Sends the values of an epoch, and pictures of cases, to every tracker of the config.

    An epoch that was killed between its line in metrics.jsonl and its resume point is sent again, with the same values.
    """

    def __init__(self, accelerator, config: TrackingConfig, folder: Path, flat_config: dict):
        self.accelerator, self.config, self.folder, self.flat_config = accelerator, config, folder, flat_config

    def begin(self, epochs: int) -> None:
        """Open the trackers for a run that has finished ``epochs``; a resumed run continues in its tracker run."""
        trackers, path = self.config.trackers, self.folder / TRACKING
        if not trackers or not self.accelerator.is_main_process:
            return
        # A unique name: trackers would merge runs of folders with the same name.
        known = json.loads(path.read_text()) if path.is_file() else {
            "name": f"{self.folder.name}-{uuid.uuid4().hex[:8]}", "begun": []}
        write_json(path, known)
        values = {key: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                  for key, value in self.flat_config.items()}
        arguments = {"wandb": {"id": known["name"], "name": self.folder.name, "resume": "allow",
                               "dir": str(self.folder)},
                     "mlflow": {"run_name": self.folder.name, "run_id": known.get("mlflow")},
                     "tensorboard": {"purge_step": epochs + 1},
                     # Trackio does not see the configuration where Accelerate puts it.
                     "trackio": {"name": known["name"], "resume": "allow", "config": values}}
        if not wandb_has_key() and "WANDB_MODE" not in os.environ:
            arguments["wandb"]["mode"] = "offline"
        self.accelerator.init_trackers(self.config.project, None, {name: arguments[name] for name in trackers})
        for tracker in self.accelerator.trackers:
            if tracker.name == "mlflow":
                known["mlflow"] = tracker.tracker.info.run_id
            if tracker.name not in known["begun"]:  # MLflow refuses it a second time, TensorBoard makes another run
                tracker.store_init_configuration(values)
        write_json(path, known | {"begun": sorted({*known["begun"], *trackers})})

    def log(self, row: dict, step: int) -> None:
        """Log the numbers of an epoch; its ``step`` as ``optimizer_step``, since a tracker's step is the epoch."""
        if self.config.trackers:
            numbers = {"optimizer_step" if key == "step" else key: value for key, value in row.items()
                       if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
            self.accelerator.log(numbers, step=step)

    def log_pictures(self, paths: dict[str, Path], step: int) -> None:
        """Log PNG files by name; on the main process only."""
        from PIL import Image

        pictures = {name: np.asarray(Image.open(path).convert("RGB")) for name, path in paths.items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "mlflow":
                import mlflow

                for name, picture in pictures.items():
                    mlflow.log_image(picture, key=name, step=step)
            elif tracker.name == "trackio":
                import trackio

                tracker.log({name: trackio.Image(picture) for name, picture in pictures.items()}, step=step)
            else:
                extra = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: picture[None] for name, picture in pictures.items()}, step=step, **extra)

    def end(self) -> None:
        """Close the trackers, so that everything is written."""
        if self.config.trackers:
            self.accelerator.end_training()
