"""One training step on the simulated GPU: the project's own ``assemble`` and ``train_batch``, on fake tensors.

    python -m benchmarks.simulated.whole_step --size 256 --set model.channels=26 training.precision=fp16

prints a line of JSON: the bytes foretold, their peak, kernels, waits and layout copies. ``--processes 2`` makes a
process group of two of which this is one. In a process of its own, since the library must be loaded before torch. """

import argparse
import contextlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock


class Cases:
    """What ``PreparedData`` is asked for, made up."""

    def __init__(self, size: int, classes: int, channels: int):
        import numpy as np

        self.size, self.path = size, Path("simulated")
        self.info = {"shape": [size] * 3, "box": [0, size] * 3, "channels": [f"channel {i}" for i in range(channels)],
                     "classes": ["background", *[f"class {i}" for i in range(1, classes)]], "voxel_mm": 1.0,
                     "orientation": "LIA", "scaling": "conform_uint8", "window": None, "averaged": False,
                     "source": "simulated", "fingerprint": "simulated"}
        self.rows = [{"case": f"case {i}", "subject": f"{i}", "conformed_affine": np.eye(4).ravel().tolist()}
                     for i in range(8)]

    def box(self, multiple: int = 1):
        return None

    def read(self, index: int, name: str, box=None):
        import numpy as np

        shape = [self.size] * 3
        return np.zeros(shape if name == "mask" else [len(self.info["channels"]), *shape], np.uint8)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--inputs", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the configuration")
    parser.add_argument("--log", action="store_true", help="also every operation")
    parser.add_argument("--lines", action="store_true", help="read such arguments from standard input, a case a line")
    return parser.parse_args(given)


def configuration(settings: list[str]):
    """The configuration of a run with these ``section.field=value``."""
    from meshnet.config import Config, resolve

    config = Config()
    config.data.crop, config.data.workers, config.optimizer.eps = "none", 0, 1e-4
    config.training.pad_channels = config.training.cudnn_benchmark = "false"  # what is simulated has no speed
    for setting in settings:
        field, value = setting.split("=", 1)
        section, name = field.split(".")
        setattr(getattr(config, section), name, json.loads(value) if value[:1] in "[{" else value)
    return resolve(config)


def step(options: argparse.Namespace) -> dict:
    """Assemble a run and train ``options.steps`` batches of it on the simulated device."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from benchmarks.simulated.device import Account, simulated_gpu
    from meshnet.data.batches import TrainingCases
    from meshnet.training import assemble, loop

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    config = configuration(options.set)
    data = Cases(options.size, options.classes, options.inputs)
    device = torch.device("cuda", 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.processes > 1:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            torch.distributed.init_process_group("fake", rank=0, world_size=options.processes, store=FakeStore())
            stack.callback(torch.distributed.destroy_process_group)
        stack.enter_context(simulated_gpu(engine=True))
        stack.enter_context(mock.patch("meshnet.training.gpu_check.agrees", lambda *a: True))  # there are no numbers
        box = assemble.training_box(config, data)
        network = assemble.build_network(config, data, box, 0, None)
        accelerator = assemble.make_accelerator(config, folder)
        PartialState._shared_state["device"] = device
        accelerator.state._shared_state["device"] = device
        if options.processes > 1:  # DistributedDataParallel, which adds buffers of the gradients' size, is left out
            PartialState._shared_state["num_processes"] = options.processes
            accelerator.state._shared_state["num_processes"] = options.processes
            accelerator.prepare_model = lambda model, **k: with_autocast(accelerator, model)
        foretold = assemble.estimate_step(config, data, network, box, accelerator.mixed_precision, device)
        with Account() as account:
            card = SimpleNamespace(training_data={})
            run = assemble.assemble(accelerator, config, folder, 0, data, list(range(4)), [4, 5], box, card, network)
            loop.begin_training(run)
            cases = TrainingCases(run.data, run.box, config.model.patch, 0, None)
            base = account.held()
            for _ in range(options.steps):
                items = [cases[(i, 0)] for i in range(config.training.batch_size)]
                batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "mask")}
                batch["index"] = torch.arange(len(items))
                with accelerator.accumulate(run.model):
                    loop.train_batch(run, batch, account.watch)
                with account.watch("after"):
                    if run.ema is not None:
                        run.ema.update_parameters(run.network)
                del batch, items
    return {"foretold": foretold, "peak": account.peak - base, "at": account.at,
            "peaks": {k: v - base for k, v in account.peaks.items()}, "kernels": dict(account.kernels),
            "waits": dict(account.waits), "copies": account.copies, "small": account.small,
            "moved": dict(account.moved), "flops": dict(account.flops), "blocks": len(config.model.dilations),
            **({"log": account.log} if options.log else {})}


def with_autocast(accelerator, model):
    """``Accelerator.prepare_model`` for several processes, without DistributedDataParallel."""
    import torch

    kind, forward = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision), model.forward
    if kind is not None:
        model.forward = torch.autocast("cuda", kind)(forward)
    accelerator._models.append(model)
    return model


def main() -> int:
    """Every case that is asked for; the exit code."""
    from benchmarks.simulated import library

    options = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not library.load(hooks=True):
        print("no C++ compiler: the simulated GPU cannot be built", file=sys.stderr)
        return 3
    for given in (line.split() for line in sys.stdin) if options.lines else (sys.argv[1:],):
        try:
            print(json.dumps(step(arguments(given))), flush=True)
        except Exception as error:  # noqa: BLE001 (whatever it is, the process must end by os._exit)
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            if not options.lines:
                return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
