"""What does a validation case cost besides the network? Before: logits to the host, argmax, loss and scores there.

``python benchmarks/speed/validation.py runs/tiny --factor 6 [--runs 5] [--threads 1]``

A validation case of a finished run, its volume, mask and logits enlarged by ``--factor`` (each voxel repeated), goes
both ways in turn: as ``training.validation`` does it now, and as before counts were taken where the logits are.
The network itself is not run: both ways are given its logits, and writing these is not counted. Prints CPU seconds.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script


def enlarged(volume: np.ndarray, factor: int) -> np.ndarray:
    """``volume`` (…, X, Y, Z) with every voxel repeated ``factor`` times along each axis."""
    for axis in (-1, -2, -3):
        volume = volume.repeat(factor, axis)
    return np.ascontiguousarray(volume)


def before(network, image: np.ndarray, labels: np.ndarray, criterion) -> dict:
    """The scores of a case as ``score_share`` computed them on a whole volume of logits on the host."""
    import torch

    from meshnet.inference import predict
    from meshnet.scans import metrics

    logits = torch.as_tensor(predict.predict_logits(network, image))
    truth = torch.from_numpy(labels)
    loss = criterion(logits[None], truth[None]).item()
    found = logits.argmax(0).to(torch.uint8)
    return {"loss": loss, **metrics.overlap_metrics(found, truth, [1.0] * 3, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of a MeshNet, finished")
    parser.add_argument("--factor", type=int, default=6)
    parser.add_argument("--share", type=float, default=1.0, help="of the volume that is kept; the rest is made air")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    from meshnet.config import LossConfig
    from meshnet.data.reader import PreparedData
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.inference import by_kernels, predict
    from meshnet.networks.build import load_model
    from meshnet.recipe import read_mapping
    from meshnet.scans.intensity import as_input
    from meshnet.training.loss import SegmentationLoss
    from meshnet.training.validation import score_share

    torch.set_num_threads(options.threads)
    about = read_mapping(options.run / "config.yaml")["run"]
    data = PreparedData(about["data_path"])
    subjects = fold_subjects(load_splits(data.path / "splits.json"), about["fold"], about["inner_fold"])["val"]
    index = data.indices(subjects)[0]
    network = load_model(options.run).network
    small = predict.predict_logits(network, data.image(index))
    logits = enlarged(small, options.factor)
    volume, labels = (enlarged(data.read(index, name), options.factor) for name in ("image", "mask"))
    if options.share < 1:
        edge = options.share ** (1 / 3)
        inside = tuple(slice(round(n * (1 - edge) / 2), round(n * (1 + edge) / 2)) for n in labels.shape)
        kept = np.zeros(labels.shape, bool)
        kept[inside] = True
        volume, labels = volume * kept, labels * kept
    network_seconds = [0.0]

    def given(task):
        def compute(box):
            started = time.process_time()
            where = (slice(None), *(slice(a, b) for a, b in box))
            task.result[where] = logits[where]
            network_seconds[0] += time.process_time() - started
        return compute

    by_kernels.make_compute = given
    criterion = SegmentationLoss(LossConfig(), 2)
    copies = SimpleNamespace(image=lambda i: as_input(volume.copy()), read=lambda i, name: labels.copy(),
                             rows=[{"case": "one", "subject": "one"}], info={"voxel_mm": 1.0}, marking=data.marking)
    accelerator = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"), autocast=torch.no_grad)
    run = SimpleNamespace(data=copies, val=[0], accelerator=accelerator, criterion=criterion,
                          config=SimpleNamespace(loss=LossConfig()), seen={})
    heart = SimpleNamespace(beat=lambda: None)
    ways = {"before": lambda: before(network, copies.image(0), copies.read(0, "mask"), criterion),
            "now": lambda: score_share(run, network, heart)[0][1]}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.runs):
        for name, way in ways.items():
            started, network_seconds[0] = time.process_time(), 0.0
            found = way()
            seconds[name].append(time.process_time() - started - network_seconds[0])
            print(f"{name:<7} {seconds[name][-1]:.3f} s  loss {found['loss']:.6f}  Dice {found['dice']:.6f}")
    one, other = (statistics.median(seconds[name]) for name in ways)
    print(f"{' x '.join(map(str, labels.shape))}: {one:.3f} s before, {other:.3f} s now: {other / one:.3f} of it")
    return 0


if __name__ == "__main__":
    run_script(main)
