"""Tensors that make no MeshNet are one line."""

import pytest
import torch
from as_published import run_command

from meshnet.errors import UserError


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "found list"), ({}, "found dict"), ({"a": 1}, "found dict"),
    ({"fc.weight": torch.zeros(3, 3)}, "expected a 3D convolution"),
    ({"a.weight": torch.zeros(2, 1, 3, 3, 3), "b.weight": torch.zeros(2, 3, 1, 1, 1)}, "takes 3 channels"),
    ({"a.weight": torch.zeros(2, 1, 5, 5, 5), "b.weight": torch.zeros(2, 2, 1, 1, 1)}, "kernel of"),
])
def test_other_networks_are_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1")
