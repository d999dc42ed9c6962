"""Experiment trackers through Accelerate: Weights & Biases, MLflow, TensorBoard, Trackio.

The names are the guide's: ``learning_rate``, ``train_loss``, ``val_dice``, ``val_loss``. A resumed run goes on in the
same tracker run, whose identifier lies in the run folder's ``tracking.json``.
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

MODULES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard", "trackio": "trackio"}


def check_installed(config: TrackingConfig) -> None:
    """Raise a UserError for a tracker whose package is not installed."""
    for name in config.trackers:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise UserError(f"tracking.trackers: '{name}' is not installed; pip install -r requirements-tracking.txt")


def wandb_has_key() -> bool:
    """Whether Weights & Biases could log in; otherwise a run is kept offline, to be synced later."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class Tracker:
    """Sends an epoch's values, and pictures of cases, to every tracker of the config; nothing where there is none."""

    def __init__(self, accelerator, config: TrackingConfig, folder: Path, flat_config: dict):
        self.accelerator, self.config, self.folder = accelerator, config, folder
        if not config.trackers:
            return
        identifier = self.identifier(folder.name)
        arguments = {"wandb": {"id": identifier["wandb"], "name": folder.name, "resume": "allow", "dir": str(folder)},
                     "mlflow": {"run_name": folder.name, "run_id": identifier.get("mlflow")},
                     "trackio": {"name": folder.name, "resume": "allow"}}
        if not wandb_has_key() and "WANDB_MODE" not in os.environ:
            arguments["wandb"]["mode"] = "offline"
        values = {key: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                  for key, value in flat_config.items()}
        if identifier.get("mlflow"):
            values = {}  # MLflow refuses to set a parameter of an existing run again
        accelerator.init_trackers(config.project, values,
                                  {name: arguments[name] for name in config.trackers if name in arguments})
        if "mlflow" in config.trackers and accelerator.is_main_process:
            run = accelerator.get_tracker("mlflow", unwrap=True)
            write_json(folder / "tracking.json", identifier | {"mlflow": run.info.run_id})

    def identifier(self, name: str) -> dict:
        """The identifiers of this run in its trackers, made once and kept in the run folder."""
        path = self.folder / "tracking.json"
        if path.is_file():
            return json.loads(path.read_text())
        made = {"wandb": f"{name}-{uuid.uuid4().hex[:8]}"}
        if self.accelerator.is_main_process:
            write_json(path, made)
        return made

    def log(self, row: dict, step: int) -> None:
        """The numbers of an epoch's line."""
        if self.config.trackers:
            numbers = {key: value for key, value in row.items()
                       if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
            self.accelerator.log(numbers, step=step)

    def log_pictures(self, paths: dict[str, Path], step: int) -> None:
        """PNG files by name, to the trackers that take pictures."""
        from PIL import Image

        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                extra = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: np.asarray(Image.open(path).convert("RGB"))[None]
                                    for name, path in paths.items()}, step=step, **extra)

    def end(self) -> None:
        """Close the trackers, so that what they hold is written."""
        if self.config.trackers:
            self.accelerator.end_training()
