"""The compiled kernels against PyTorch, and what happens where they cannot be had."""

import platform
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from meshnet.kernels import build, calls, convolution, normalise
from meshnet.networks.meshnet import Block

CASES = [  # in, out, dilation, (X, Y, Z): odd sizes, axes of one voxel, dilations past the volume, many channels
    (1, 5, 1, (5, 6, 7)), (3, 5, 2, (9, 40, 33)), (26, 26, 16, (18, 70, 65)), (5, 5, 4, (1, 33, 1)),
    (4, 31, 3, (1, 1, 40)), (2, 1, 7, (8, 3, 130)), (6, 13, 1, (4, 9, 16)),
]
needs_kernels = pytest.mark.skipif(not calls.available(), reason="no C++ compiler here: PyTorch does the work")


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_a_compiler_means_kernels():
    if any(map(shutil.which, build.COMPILERS)):
        assert calls.available()


@needs_kernels
@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "elu", "gelu"])
@pytest.mark.parametrize(("inputs", "outputs", "dilation", "shape"), CASES)
def test_convolution_is_that_of_pytorch(inputs, outputs, dilation, shape, activation, pair):
    x, weight, bias = draw((inputs, *shape), (outputs, inputs, 3, 3, 3), (outputs,))
    out = torch.full((outputs, *shape), torch.nan)
    calls.run_column([weight], [bias], [dilation], [activation], x, out, pairs=[pair])
    expected = functional.conv3d(x[None], weight, bias, padding=dilation, dilation=dilation)[0]
    expected = expected if activation == "none" else getattr(functional, activation)(expected)
    assert torch.allclose(out, expected, atol=2e-5 * expected.abs().max().item())


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=5), st.integers(1, 30))
def test_any_mixture_of_planes_alone_and_in_pairs(layers, planes):
    dilations, pairs = zip(*layers)
    weights = draw(*[(4, 4, 3, 3, 3)] * len(layers))
    x, = draw((4, planes, 14, 6))
    out = torch.full_like(x, torch.nan)
    calls.run_column(weights, [None] * len(layers), dilations, ["relu"] * len(layers), x, out, pairs=pairs)
    for weight, dilation in zip(weights, dilations):
        x = functional.conv3d(x[None], weight, padding=dilation, dilation=dilation)[0].relu()
    assert torch.allclose(out, x, atol=1e-4 * x.abs().max().item())


@needs_kernels
def test_pairs_are_chosen_as_far_as_the_room_goes():
    widths, dilations, shape = [1, *[6] * 4], [1, 8, 2, 4], (64, 64, 64)
    boxes = [tuple((0, n) for n in shape)] * 5
    need = [calls.column_bytes(widths, dilations, boxes, shape, pairs) for pairs in
            ([False, True, True, True], [False, False, True, True], [False] * 4)]
    assert need == sorted(need, reverse=True) and need[0] > need[2] + 6 * 64 * 64 * 4 * sum(dilations[1:])
    chosen = [calls.choose_pairs(widths, dilations, boxes, shape, budget)
              for budget in (None, need[0], need[0] - 1, need[1], need[2], 0)]
    assert chosen == [*[[False, True, True, True]] * 2, *[[False, False, True, True]] * 2, [False] * 4, [False] * 4]


@needs_kernels
@pytest.mark.parametrize(("inputs", "outputs", "dilation", "shape"), CASES)
def test_gradients_are_those_of_pytorch(inputs, outputs, dilation, shape):
    x, weight, gradient = draw((2, inputs, *shape), (outputs, inputs, 3, 3, 3), (2, outputs, *shape))
    ours = convolution.gradients(x, weight, dilation, gradient, (True, True, True))
    theirs = convolution.torch_gradients(x.double(), weight.double(), dilation, gradient.double(), (True, True, True))
    for one, other in zip(ours, theirs):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


@needs_kernels
def test_same_bits_for_any_number_of_threads():
    x, weight, gradient = draw((6, 9, 37, 50), (7, 6, 3, 3, 3), (7, 9, 37, 50))
    outs = [torch.empty((7, 9, 37, 50)) for _ in range(3)]
    for threads, out in enumerate(outs, 1):
        calls.run_column([weight], [None], [2], ["none"], x, out, threads=threads)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    of_weight = [calls.weight_gradient(x, gradient, 2, threads=threads) for threads in (1, 2, 3)]
    assert torch.equal(of_weight[0], of_weight[1]) and torch.equal(of_weight[0], of_weight[2])


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm", "affine"), [("batch", True), ("batch", False), ("none", False), ("instance", True),
                                              ("instance", False), ("group", True)])
@pytest.mark.parametrize("activation", ["relu", "elu", "gelu"])
def test_norm_and_activation_are_those_of_pytorch(activation, norm, affine, training):
    block = Block(3, 3, 1, norm, affine, 0, activation, True, 0.0).train(training).double()
    y, gradient = draw((2, 3, 5, 41, 90), (2, 3, 5, 41, 90))
    y = y * 0.3 + torch.tensor([5.0, -1.0, 0.2])[:, None, None, None]  # a mean far from zero loses no digits
    if affine:
        nn.init.uniform_(block.norm.weight, 0.5, 1.5)
        nn.init.uniform_(block.norm.bias)
    leaf = y.double().requires_grad_()
    before = leaf if norm == "none" else block.norm(leaf)
    if activation == "relu":
        gradient *= before.abs() > 1e-4  # at its kink rounding decides
    expected = functional.relu(before) if activation == "relu" else block.act(before)
    expected.backward(gradient.double())
    expected_buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
    expected_parameters = {} if norm == "none" else {n: p.grad for n, p in block.norm.named_parameters()}

    block = block.float()
    if norm == "batch":
        block.norm.reset_running_stats()
    z, statistics = normalise.normalise(block, y, None)
    of_y, found = normalise.normalise_backward(block, y, statistics, gradient)
    assert (z - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (of_y - leaf.grad).abs().max() < 2e-5 * leaf.grad.abs().max()
    for name, value in expected_parameters.items():
        assert (found[dict(block.norm.named_parameters())[name]] - value).norm() < 1e-5 * value.norm()
    for name, buffer in block.named_buffers():
        assert torch.allclose(buffer.double(), expected_buffers[name].double(), rtol=1e-5, atol=1e-6)


def test_switched_off_by_the_environment(monkeypatch):
    monkeypatch.setenv("MESHNET_KERNELS", "0")
    assert calls.library.__wrapped__() is None


def test_no_compiler_or_a_broken_one_means_pytorch(monkeypatch, tmp_path):
    broken = tmp_path / "kernels.cpp"
    broken.write_text("this is no C++")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", broken)
        assert build.build(tmp_path / "cache") is None
        assert not list((tmp_path / "cache").glob("*")), "nothing half-built may stay"
    monkeypatch.setattr(build, "COMPILERS", ())
    assert build.build(tmp_path / "cache") is None


def test_another_header_is_another_library(monkeypatch, tmp_path):
    shutil.copy(build.SOURCE, tmp_path)
    headers = shutil.copytree(build.SOURCE.parent / "cpu", tmp_path / "cpu")
    before = build.fingerprint(sys.executable)
    monkeypatch.setattr(build, "SOURCE", tmp_path / build.SOURCE.name)
    assert build.fingerprint(sys.executable) == before
    (headers / "inner.h").write_text("// changed")
    assert build.fingerprint(sys.executable) != before


def test_a_library_that_computes_something_else_is_refused():
    class Idle:
        @staticmethod
        def meshnet_run(request):
            return 0

    assert not calls.agrees_with_numpy(Idle())


@needs_kernels
@pytest.mark.slow
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path, root):
    command = [sys.executable, "-c", "from meshnet import kernels; print(kernels.available())"]
    environment = {"MESHNET_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": str(root)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@needs_kernels
def test_a_nan_stays_a_nan():
    """A ReLU that turned it into 0 would let training go on with weights that are no numbers."""
    x = torch.full((1, 1, 6, 6, 20), float("nan"))
    out = convolution.convolve(x, torch.ones(2, 1, 3, 3, 3), None, 1)
    block = Block(1, 2, 1, "none", True, 0, "relu", True, 0.0)
    assert torch.isnan(out).all() and torch.isnan(normalise.normalise(block, out, None)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flags", "lanes"), [
    ("g++", ["-march=native"], None), ("g++", ["-march=haswell"], 8), ("g++", ["-march=x86-64"], 4),
    ("aarch64-linux-gnu-g++", ["-static"], 4)])
def test_builds_for_other_cpus_compute_the_same(compiler, flags, lanes, root, tmp_path):
    """Each width of vectors against sums in double; 64-bit ARM by an emulator."""
    runner = ["qemu-aarch64-static"] if compiler.startswith("aarch64") else []
    for program in (compiler, *runner):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    if not runner and platform.machine() != "x86_64":
        pytest.skip("these are builds for x86-64")
    program = tmp_path / "check"
    usual = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    source = root / "tests" / "kernels" / "kernels_check.cpp"
    subprocess.run([compiler, *usual, *flags, source, "-o", program], check=True)
    found = subprocess.run([*runner, program, "25" if runner else "60"], stdout=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 0 and (lanes is None or found.stdout.startswith(f"{lanes} lanes")), found.stdout
