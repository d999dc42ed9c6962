"""The compiled convolution against PyTorch, whatever the planes, pairs and threads, and when it is not used."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CONVOLUTIONS, draw, needs_kernels
from torch.nn import functional

from meshnet.kernels import calls


@needs_kernels
@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "elu", "gelu"])
@pytest.mark.parametrize(("inputs", "outputs", "dilation", "shape"), CONVOLUTIONS)
def test_convolution_is_that_of_pytorch(inputs, outputs, dilation, shape, activation, pair):
    x, weight, bias = draw((inputs, *shape), (outputs, inputs, 3, 3, 3), (outputs,))
    out = torch.full((outputs, *shape), torch.nan)
    calls.run_column(calls.Column([weight], [bias], [dilation], [activation]), x, out, pairs=[pair])
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
    column = calls.Column(weights, [None] * len(layers), dilations, ["relu"] * len(layers))
    calls.run_column(column, x, out, pairs=pairs)
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
def test_same_bits_for_any_number_of_threads():
    x, weight, gradient = draw((6, 9, 37, 50), (7, 6, 3, 3, 3), (7, 9, 37, 50))
    outs = [torch.empty((7, 9, 37, 50)) for _ in range(3)]
    for threads, out in enumerate(outs, 1):
        calls.run_column(calls.Column([weight], [None], [2], ["none"]), x, out, threads=threads)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    of_weight = [calls.weight_gradient(x, gradient, 2, threads=threads) for threads in (1, 2, 3)]
    assert torch.equal(of_weight[0], of_weight[1]) and torch.equal(of_weight[0], of_weight[2])


def test_switched_off_by_the_environment(monkeypatch):
    monkeypatch.setenv("MESHNET_KERNELS", "0")
    assert calls.library.__wrapped__() is None


def test_a_library_that_computes_something_else_is_refused():
    class Idle:
        @staticmethod
        def meshnet_run(request):
            return 0

    assert not calls.agrees_with_numpy(Idle())


def test_threads_are_pytorchs_or_those_that_were_asked_for_or_all(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    assert calls.thread_count() == before + 2
    torch.set_num_threads(before)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(calls, "usable_cores", lambda: 9)
    for wanted, threads in (("3", 3), ("0", 9), ("all", 9), ("", 9)):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert calls.thread_count() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert calls.thread_count() == 9
