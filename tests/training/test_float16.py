"""float16 numerics without a GPU: autocast forward and backward, and a loss scale that halves on an overflow."""

import nibabel as nib
import numpy as np
import pytest
import torch

from meshnet.config import LossConfig
from meshnet.networks.meshnet import MeshNet
from meshnet.training.loss import SegmentationLoss


@pytest.fixture(scope="module")
def real_part(shared_data):
    part = (slice(150, 168), slice(95, 113), slice(118, 136))  # float16 is slow on a CPU: 18³ voxels
    volume, mask = (np.asarray(nib.load(shared_data / "t2_stroke" / name).dataobj)[part]
                    for name in ("M2265_T2w.nii.gz", "M2265_model_output.nii.gz"))
    image = torch.from_numpy(volume.astype(np.float32) / 255)
    return image[None, None], torch.from_numpy((mask > 0).astype(np.uint8))[None]


@pytest.mark.parametrize("channels", [5, 26])
def test_forward_and_backward_stay_finite(real_part, channels):
    torch.manual_seed(0)
    model, criterion = MeshNet(channels), SegmentationLoss(LossConfig(), 2)
    image, target = real_part
    scale = 2.0 ** 12
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(image)
    assert logits.dtype == torch.float16 and torch.isfinite(logits).all()
    loss = criterion(logits, target)
    assert loss.dtype == torch.float32
    (loss * scale).backward()
    halves = {name: p.grad / scale for name, p in model.named_parameters()}
    assert all(torch.isfinite(grad).all() for grad in halves.values())

    model.zero_grad()
    criterion(model(image), target).backward()
    for name, p in model.named_parameters():
        if not name.endswith("conv.bias"):  # batch norm takes it out again: its gradient is rounding noise
            assert torch.nn.functional.cosine_similarity(halves[name].flatten(), p.grad.flatten(), 0) > 0.9, name


def test_the_loss_scale_halves_on_a_planted_inf_and_the_step_is_skipped():
    model = MeshNet(3, dilations=[1, 2])
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    before = [p.clone() for p in model.parameters()]
    for planted, expected in ((True, 2.0 ** 9), (False, 2.0 ** 9)):
        scaler.scale(model(torch.rand(1, 1, 6, 6, 6)).float().square().mean()).backward()
        if planted:
            next(model.parameters()).grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert scaler.get_scale() == expected
        assert planted is all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
