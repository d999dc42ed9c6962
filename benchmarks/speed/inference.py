"""How fast one volume is segmented: PyTorch and other engines against the compiled kernels.

    python benchmarks/speed/inference.py --channels 26 --size 128 --runs 5
    python benchmarks/speed/inference.py --channels 26 --volume T2w.nii.gz --model runs/NAME --compare
    python benchmarks/speed/inference.py --channels 5 --variants plain kernels onnxruntime --onnxruntime PYTHON

Each variant runs in a process of its own, in turn; results go to ``--results`` and are not measured twice. ``plain`` is
PyTorch's convolution with fused batch norm and in-place ReLU on the whole volume, ``channels_last`` the same in that
layout, ``bf16`` that in bfloat16, ``torch_compile`` the network compiled by PyTorch (compiling is not counted);
``torch`` is this project's way without a compiler, ``kernels`` its way with one. ``onnxruntime`` and ``brainchop`` run
in the Python interpreter that the flag of that name gives. ``--compare`` compares logits with ``plain``'s.
"""

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.speed import measure

PEERS = ["onnxruntime", "brainchop"]
VARIANTS = ["plain", "channels_last", "bf16", "torch_compile", "torch", "torch_crop", "kernels", "kernels_max_memory",
            "kernels_crop", *PEERS]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=26, help="of a MeshNet with random weights")
    parser.add_argument("--model", help="a model folder, instead of random weights")
    parser.add_argument("--size", type=int, default=128, help="edge of a random volume")
    parser.add_argument("--volume", type=Path, help="a conformed scan, instead of a random volume")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_memory", type=float, default=1.5, help="GB, for kernels_max_memory")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS,
                        default=["plain", "channels_last", "torch", "kernels"])
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"the Python of an environment that has {peer}")
    parser.add_argument("--results", type=Path, default=Path("inference.jsonl"))
    parser.add_argument("--compare", action="store_true", help="largest logit difference and Dice of each variant")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(options: argparse.Namespace):
    """The network and the volume (1, X, Y, Z)."""
    import torch

    from meshnet.networks.meshnet import MeshNet

    torch.manual_seed(0)
    model = MeshNet.from_pretrained(options.model) if options.model else MeshNet(options.channels)
    if options.volume is None:
        return model.eval(), np.random.default_rng(0).random((1, *(options.size,) * 3), dtype=np.float32)
    import nibabel as nib

    values = np.asarray(nib.load(options.volume).dataobj, dtype=np.float32)
    return model.eval(), values[None] / values.max()


def plain(model, volume: np.ndarray, layout: str = "contiguous_format", dtype: str = "float32") -> np.ndarray:
    """Logits by PyTorch's own convolution on the whole volume, in the memory format ``layout``."""
    import torch
    from torch.nn import functional

    from meshnet.inference import by_torch
    from meshnet.networks import fuse

    layout = getattr(torch, layout)
    with torch.inference_mode():
        x = torch.from_numpy(volume)[None].to(getattr(torch, dtype)).contiguous(memory_format=layout)
        for layer in fuse.fuse(model):
            weight = layer.weight.to(x.dtype).contiguous(memory_format=layout)
            x = functional.conv3d(x, weight, layer.bias.to(x.dtype), padding=layer.reach, dilation=layer.dilation)
            x = by_torch.activate(x, layer.activation)
        return x[0].float().numpy()


@functools.cache
def by_torch_compile(model):
    """``model`` compiled for inference."""
    import torch

    return torch.compile(model)


def compute(variant: str, model, volume: np.ndarray, max_memory: float, logits: bool) -> np.ndarray:
    """Labels (X, Y, Z), or logits (K, X, Y, Z), by one variant."""
    from meshnet.inference import predict
    from meshnet.kernels import calls

    if variant in ("plain", "channels_last", "bf16", "torch_compile"):
        if variant == "torch_compile":
            import torch

            with torch.inference_mode():
                found = by_torch_compile(model)(torch.from_numpy(volume)[None])[0].numpy()
        else:
            found = plain(model, volume, "contiguous_format" if variant == "plain" else "channels_last_3d",
                          "bfloat16" if variant == "bf16" else "float32")
        return found if logits else (found[1:] > found[:1]).any(axis=0)  # numpy's arg-max is slow
    ceiling = int(max_memory * 1e9) if variant == "kernels_max_memory" else None
    with calls.switched_off() if variant.startswith("torch") else contextlib.nullcontext():
        return (predict.predict_logits if logits else predict.predict_labels)(
            model, volume, crop="head" if variant.endswith("crop") else "none", max_memory=ceiling)


def operations(model, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a full pass by the textbook: two for each product of a direct convolution."""
    convolutions = [*(block.conv for block in model.blocks), model.head]
    return 2.0 * np.prod(shape) * sum(conv.weight.numel() for conv in convolutions)


def write_for_peers(model, volume: np.ndarray, folder: Path) -> None:
    """The input of ``engines.py``, with the labels that it should find."""
    from meshnet.inference import predict
    from meshnet.networks.fuse import fuse

    layers = fuse(model)
    arrays = {f"{name}{i}": getattr(layer, name).numpy()
              for i, layer in enumerate(layers) for name in ("weight", "bias")}
    np.savez(folder / "layers.npz", dilations=[layer.dilation for layer in layers],
             activations=[layer.activation for layer in layers], **arrays)
    np.save(folder / "volume.npy", volume)
    np.save(folder / "labels.npy", predict.predict_labels(model, volume, crop="none"))


def main() -> None:
    options = arguments()
    if options.one:
        import torch

        from meshnet.inference import predict

        torch.set_num_threads(options.threads)
        model, volume = load(options)
        predict.predict_labels(model, volume[:, :3, :3, :3])  # what the first call loads and builds is not counted
        if options.one == "torch_compile":
            compute(options.one, model, volume, options.max_memory, False)
        print(json.dumps(measure.timed(
            lambda: compute(options.one, model, volume, options.max_memory, False), operations(model, volume.shape))))
        return
    setting = {"channels": options.channels, "model": options.model, "threads": options.threads,
               "size": str(options.volume or options.size)}
    passed = [part for name in ("channels", "model", "size", "volume", "threads", "max_memory")
              for part in (f"--{name}", str(getattr(options, name))) if getattr(options, name) is not None]
    with tempfile.TemporaryDirectory() as folder:
        others = {peer: [getattr(options, peer), str(Path(__file__).with_name("engines.py")), peer, folder,
                         str(options.threads)] for peer in PEERS if peer in options.variants}
        model, volume = load(options)
        if others:
            write_for_peers(model, volume, Path(folder))
        lines = measure.in_turn(__file__, passed, options.variants, options.runs, options.results, setting, others,
                                operations(model, volume.shape))
    print(setting)
    print(measure.table(lines, options.variants))
    if options.compare:
        compare(options, model, volume)


def compare(options: argparse.Namespace, model, volume: np.ndarray) -> None:
    """Print how each variant's logits and lesion differ from plain PyTorch's."""
    expected = plain(model, volume)
    for variant in options.variants:
        if variant == "plain" or variant in PEERS:
            continue
        found = compute(variant, model, volume, options.max_memory, True)
        both = (found.argmax(0) > 0, expected.argmax(0) > 0)
        marked = both[0].sum() + both[1].sum()
        dice = 2 * np.sum(both[0] & both[1]) / marked if marked else float("nan")
        print(f"{variant:20} largest logit difference {np.abs(found - expected).max():.2e}, Dice {dice:.6f}, "
              f"{both[1].sum()} voxels marked by plain")


if __name__ == "__main__":
    main()
