"""A step on a GPU is compared with PyTorch's modules before it is trusted."""

import cuda_on_cpu
import pytest
import torch
from cuda_on_cpu import steps_of_a_gpu

from meshnet.training.gpu_check import agrees

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_right_step_is_trusted_and_nothing_is_drawn():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with steps_of_a_gpu():
        assert agrees(CPU, torch.float32)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("wrong", [lambda g: g * float("nan"), lambda g: g.flip(1)])
def test_a_wrong_one_is_not(monkeypatch, wrong):
    right = cuda_on_cpu.backward_elemt
    monkeypatch.setattr(cuda_on_cpu, "backward_elemt", lambda *arguments: wrong(right(*arguments)))
    with steps_of_a_gpu():
        assert not agrees(CPU, torch.float32)
