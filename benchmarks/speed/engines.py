"""One pass of a MeshNet by another engine, for ``inference.py``; runs in an environment that has that engine.

    python benchmarks/speed/engines.py onnxruntime|brainchop FOLDER THREADS

FOLDER holds ``layers.npz`` (fused weights) and ``volume.npy`` (C, X, Y, Z), as ``inference.py`` writes them. One-time
compiling and loading is not counted: brainchop's network runs once before, which fills tinygrad's cache.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.speed import measure


def onnxruntime(layers: list[dict], volume: np.ndarray, threads: int):
    """A function that gives labels by onnxruntime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "volume"
    for i, layer in enumerate(layers):
        weights += [numpy_helper.from_array(layer["weight"], f"w{i}"), numpy_helper.from_array(layer["bias"], f"b{i}")]
        reach = layer["dilation"] * (layer["weight"].shape[-1] // 2)
        nodes.append(helper.make_node("Conv", [name, f"w{i}", f"b{i}"], [f"y{i}"], pads=[reach] * 6,
                                      dilations=[layer["dilation"]] * 3))
        name = f"y{i}"
        if layer["activation"] != "none":
            nodes.append(helper.make_node(layer["activation"].capitalize(), [name], [f"z{i}"]))
            name = f"z{i}"
    classes = layers[-1]["weight"].shape[0]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, channels, *volume.shape[1:]])
            for end, channels in (("volume", volume.shape[0]), (name, classes))]
    graph = helper.make_graph(nodes, "meshnet", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"volume": volume[None]})[0].argmax(1)


def brainchop(layers: list[dict], volume: np.ndarray, threads: int):
    """A function that gives labels by brainchop's network class and its fused last layer, on tinygrad's CPU device."""
    os.environ.update(DEV="CPU", CPU="1", CPU_COUNT=str(threads))
    from brainchop.tiny_meshnet import MeshNet
    from tinygrad import Tensor

    shapes = [layer["weight"].shape for layer in layers]
    config = {"bnorm": False, "bias": True, "dropout_p": 0, "layers": [
        {"in_channels": i, "out_channels": o, "kernel_size": k, "stride": 1, "dilation": layer["dilation"],
         "padding": layer["dilation"] * (k // 2)} for layer, (o, i, k, *_) in zip(layers, shapes)]}
    assert all(layer["activation"] == "relu" for layer in layers[:-1])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as handle:
        json.dump(config, handle)
        handle.flush()
        network = MeshNet(shapes[0][1], shapes[-1][0], shapes[0][0], handle.name)
    convolutions = [part for part in network.model if hasattr(part, "weight")]
    for part, layer in zip(convolutions, layers):
        part.weight, part.bias = Tensor(layer["weight"]).realize(), Tensor(layer["bias"]).realize()
    network.init_seq_conv_argmax()
    return lambda: network(Tensor(volume[None])).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("onnxruntime", "brainchop"))
    parser.add_argument("folder", type=Path, help="with layers.npz, volume.npy and labels.npy")
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    engine, folder, threads = options.engine, options.folder, options.threads
    stored = np.load(folder / "layers.npz")
    layers = [{"weight": stored[f"weight{i}"], "bias": stored[f"bias{i}"], "dilation": int(stored["dilations"][i]),
               "activation": str(stored["activations"][i])} for i in range(len(stored["dilations"]))]
    volume = np.load(folder / "volume.npy")
    run = {"onnxruntime": onnxruntime, "brainchop": brainchop}[engine](layers, volume, threads)
    labels = run() if engine == "brainchop" else None
    start, others = measure.status("VmRSS"), measure.Elsewhere()
    measure.forget_peak()
    clock, cpu = time.perf_counter(), time.process_time()
    labels = run()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    share, peak = others.share(), measure.status("VmHWM")
    expected = np.load(folder / "labels.npy")
    differ = int((labels.reshape(expected.shape) != expected).sum())
    print(json.dumps({"seconds": clock, "cpu_seconds": cpu, "peak_gb": peak / 1e9, "elsewhere": share,
                      "above_start_gb": (peak - start) / 1e9, "labels_differ": differ}))


if __name__ == "__main__":
    main()
