"""Experiment trackers through Accelerate: Weights & Biases, MLflow, TensorBoard, Trackio.

The names are those of the guide: ``learning_rate``, ``train_loss``, ``val_dice``, ``val_loss``. A resumed run continues
in the same tracker run, whose identifier is in the run folder's ``tracking.json``.

A tracker is no part of training: one that fails is said in a line and left out, and the run goes on.
"""

import contextlib
import importlib.util
import json
import math
import netrc
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from meshnet.config import TrackingConfig
from meshnet.errors import UserError, decoration, first_line
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
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Sends the values of an epoch, and pictures of cases, to every tracker of the config.

    An epoch that was killed between its line in metrics.jsonl and its resume point is sent again, with the same values.
    """

    def __init__(self, accelerator, config: TrackingConfig, folder: Path, flat_config: dict):
        self.accelerator, self.config, self.folder, self.flat_config = accelerator, config, folder, flat_config
        self.open: list = []  # Accelerate's trackers, on the main process

    def begin(self, epochs: int) -> None:
        """Open the trackers for a run that has finished ``epochs``; a resumed run continues in its tracker run."""
        if not self.config.trackers or not self.accelerator.is_main_process:
            return
        known = self._known()
        values = {key: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                  for key, value in self.flat_config.items()}
        for name in self.config.trackers:
            with decoration(f"tracking.trackers: {name} cannot begin"):
                tracker = self._begin(name, self._ways(name, known, values, epochs))
                if name == "mlflow":
                    known["mlflow"] = tracker.tracker.info.run_id
                    known["mlflow_store"] = self._mlflow_store()
                self.open.append(tracker)
                if name not in known["begun"]:  # MLflow refuses it a second time, TensorBoard makes another run
                    tracker.store_init_configuration(values)
                known["begun"] = sorted({*known["begun"], name})
        with decoration(f"{self.folder / TRACKING}: not written", "a resumed run begins a new one in its trackers"):
            write_json(self.folder / TRACKING, known)

    def _known(self) -> dict:
        """What tracking.json holds, or a new unique name: trackers would merge runs of folders with the same name."""
        path = self.folder / TRACKING
        known = {"name": f"{self.folder.name}-{uuid.uuid4().hex[:8]}", "begun": []}
        with decoration(f"{path}: cannot be read", "the trackers begin a new run"):
            if path.is_file():
                known |= json.loads(path.read_text(encoding="utf-8"))
        with decoration(f"{path}: not written", "a resumed run begins a new one in its trackers"):
            write_json(path, known)
        return known

    def _ways(self, name: str, known: dict, values: dict, epochs: int) -> list[tuple[dict, Callable[[], str]]]:
        """Arguments with which a tracker is begun, best first; each with what to say where it came to that."""
        if name == "wandb":
            given = {"id": known["name"], "name": self.folder.name, "resume": "allow", "dir": str(self.folder)}
            place = self.folder / "wandb"
            offline = given | {"mode": "offline"}, lambda: f"logged offline in {place}; send it later with wandb sync"
            if not wandb_has_key() and "WANDB_MODE" not in os.environ:
                return [offline]
            return [(given, str), offline]
        if name == "mlflow":
            fresh = {"run_name": self.folder.name, "run_id": None}

            def anew() -> str:
                known["begun"] = [other for other in known["begun"] if other != "mlflow"]
                was = f", which was begun in {known['mlflow_store']}" if "mlflow_store" in known else ""
                return f"run {known['mlflow']}{was}, cannot be continued in {self._mlflow_store()}: a new run there"

            same = fresh | {"run_id": known.get("mlflow")}
            return [(same, str), (fresh, anew)] if same["run_id"] else [(fresh, str)]
        if name == "tensorboard":
            return [({"purge_step": epochs + 1}, str)]
        # Trackio does not see the configuration where Accelerate puts it.
        return [({"name": known["name"], "resume": "allow", "config": values}, str)]

    def _begin(self, name: str, ways: list[tuple[dict, Callable[[], str]]]):
        """Accelerate's tracker ``name``, begun in the first of the ways that works; what the last one raises."""
        accelerator = self.accelerator
        wanted = [one for one in accelerator.log_with if str(one) == name]
        for position, (arguments, _) in enumerate(ways):
            everyone, accelerator.trackers = accelerator.log_with, []
            try:
                accelerator.log_with = wanted
                accelerator.init_trackers(self.config.project, None, {name: arguments})
            except Exception as error:  # trackers have no error in common; the last one's goes on to decoration
                self._leave(name)
                if position + 1 == len(ways):
                    raise
                print(f"warning: tracking.trackers: {name}: {ways[position + 1][1]()} ({first_line(error)})",
                      file=sys.stderr, flush=True)
            else:
                return accelerator.trackers[-1]
            finally:
                accelerator.log_with, accelerator.trackers = everyone, []
        raise ValueError(f"no way to begin {name}")

    def _leave(self, name: str) -> None:
        """Undo what a beginning that failed has left open in a library."""
        if name == "mlflow":
            with contextlib.suppress(Exception):  # of a library that has just failed
                import mlflow

                mlflow.end_run()

    def _mlflow_store(self) -> str:
        """Where MLflow keeps its runs."""
        import mlflow

        return mlflow.get_tracking_uri()

    def _each(self, send: Callable[[object], None]) -> None:
        """``send`` to every open tracker; one that fails is closed for the rest of this call."""
        for tracker in list(self.open):
            with decoration(f"tracking.trackers: {tracker.name} failed"):
                try:
                    send(tracker)
                except Exception:  # raised again
                    self.open.remove(tracker)
                    raise

    def log(self, row: dict, step: int) -> None:
        """Log the numbers of an epoch; its ``step`` as ``optimizer_step``, since a tracker's step is the epoch."""
        numbers = {"optimizer_step" if key == "step" else key: value for key, value in row.items()
                   if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def log_pictures(self, draw: Callable[[], dict[str, Path]], step: int) -> None:
        """Log the PNG files that ``draw`` makes, by name; on the main process only."""
        if not self.open:
            return
        pictures: dict[str, np.ndarray] = {}
        with decoration(f"{self.folder}: the pictures of epoch {step} are not drawn"):
            from PIL import Image

            pictures = {name: np.asarray(Image.open(path).convert("RGB")) for name, path in draw().items()}
        if pictures:
            self._each(lambda tracker: send_pictures(tracker, pictures, step))

    def end(self) -> None:
        """Close the trackers, so that everything is written, and the group of processes if there are several."""
        self._each(lambda tracker: tracker.finish())
        if self.config.trackers or self.accelerator.num_processes > 1:
            self.accelerator.trackers = []
            self.accelerator.end_training()


def send_pictures(tracker, pictures: dict[str, np.ndarray], step: int) -> None:
    """Send pictures (H, W, 3) uint8 to one tracker."""
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
