"""How quickly one volume is segmented: PyTorch plain and channels-last against the compiled kernels.

    python benchmarks/inference.py --channels 26 --size 128 --runs 5
    python benchmarks/inference.py --channels 26 --volume T2w.nii.gz --model weights/NAME --threads 2

Each variant runs in a process of its own, in turn; results go to ``--results`` and are not measured twice. ``plain`` is
PyTorch's convolution with folded batch norm and in-place ReLU on the whole volume. Logits are compared with ``plain``
where both were run on the same volume (``--compare``).
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import measure

VARIANTS = ["plain", "channels_last", "kernels", "kernels_max_memory", "channels_last_crop", "kernels_crop"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=26, help="of a MeshNet with random weights")
    parser.add_argument("--model", help="a model folder, instead of random weights")
    parser.add_argument("--size", type=int, default=128, help="edge of a random volume")
    parser.add_argument("--volume", type=Path, help="a conformed scan, instead of a random volume")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_memory", type=float, default=1.5, help="GB, for kernels_max_memory")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:4])
    parser.add_argument("--results", type=Path, default=Path("inference.jsonl"))
    parser.add_argument("--compare", action="store_true", help="largest logit difference and Dice of each variant")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(options: argparse.Namespace):
    """The network and the volume (1, X, Y, Z)."""
    import torch

    from meshnet.model import MeshNet

    torch.manual_seed(0)
    model = MeshNet.from_pretrained(options.model) if options.model else MeshNet(options.channels)
    if options.volume is None:
        return model.eval(), np.random.default_rng(0).random((1, *(options.size,) * 3), dtype=np.float32)
    import nibabel as nib

    values = np.asarray(nib.load(options.volume).dataobj, dtype=np.float32)
    return model.eval(), values[None] / values.max()


def plain(model, volume: np.ndarray) -> np.ndarray:
    """Logits by PyTorch's own convolution on the whole volume."""
    import torch
    from torch.nn import functional

    from meshnet import segment

    with torch.inference_mode():
        x = torch.from_numpy(volume)[None]
        for layer in segment.fold(model):
            x = functional.conv3d(x, layer.weight, layer.bias, padding=layer.reach, dilation=layer.dilation)
            x = segment.activate(x, layer.activation)
        return x[0].numpy()


def compute(variant: str, model, volume: np.ndarray, max_memory: float, logits: bool) -> np.ndarray:
    """Labels (X, Y, Z), or logits (K, X, Y, Z), by one variant."""
    from meshnet import kernels, segment

    if variant == "plain":
        found = plain(model, volume)
        return found if logits else found.argmax(axis=0)
    ceiling = int(max_memory * 1e9) if variant == "kernels_max_memory" else None
    with kernels.switched_off() if variant.startswith("channels_last") else contextlib.nullcontext():
        return (segment.predict_logits if logits else segment.predict_labels)(
            model, volume, crop="head" if variant.endswith("crop") else "none", max_memory=ceiling)


def operations(model, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a full pass by the textbook: two for each product of a direct convolution."""
    convolutions = [*(block.conv for block in model.blocks), model.head]
    return 2.0 * np.prod(shape) * sum(conv.weight.numel() for conv in convolutions)


def main() -> None:
    options = arguments()
    if options.one:
        import torch

        from meshnet import segment

        torch.set_num_threads(options.threads)
        model, volume = load(options)
        segment.predict_labels(model, volume[:, :3, :3, :3])  # what the first call loads and builds is not counted
        print(json.dumps(measure.timed(
            lambda: compute(options.one, model, volume, options.max_memory, False), operations(model, volume.shape))))
        return
    setting = {"channels": options.channels, "model": options.model, "threads": options.threads,
               "size": str(options.volume or options.size)}
    passed = [part for name in ("channels", "model", "size", "volume", "threads", "max_memory")
              for part in (f"--{name}", str(getattr(options, name))) if getattr(options, name) is not None]
    lines = measure.in_turn(__file__, passed, options.variants, options.runs, options.results, setting)
    print(setting)
    print(measure.table(lines, options.variants))
    if options.compare:
        model, volume = load(options)
        expected = plain(model, volume)
        for variant in options.variants[1:]:
            found = compute(variant, model, volume, options.max_memory, True)
            both = (found.argmax(0) > 0, expected.argmax(0) > 0)
            marked = both[0].sum() + both[1].sum()
            dice = 2 * np.sum(both[0] & both[1]) / marked if marked else 1.0  # nothing marked by either
            print(f"{variant:24} largest logit difference {np.abs(found - expected).max():.2e}, Dice {dice:.6f}")


if __name__ == "__main__":
    main()
