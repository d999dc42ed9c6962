"""A model that marks what is bright, and scans for it."""

import nibabel as nib
import numpy as np
from conftest import run_script_file

from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet

CARD = {"channels": ["T2w"], "classes": ["background", "lesion"], "voxel_mm": 8.0, "shape": [32, 32, 32],
        "threshold": 0.5}


def bright_model(folder, channels=1, scale=40.0, level=0.6, **card):
    """A network whose lesion logit is ``scale * (first channel - level)``: bright is lesion, worked by hand."""
    model = MeshNet(channels=1, in_channels=channels, classes=len(card.get("classes", CARD["classes"])), dilations=[1],
                    norm="none")
    for parameter in model.parameters():
        parameter.data.zero_()
    model.blocks[0].conv.weight.data[0, 0, 1, 1, 1] = 1
    model.head.weight.data[1] = scale
    model.head.bias.data[1] = -scale * level
    names = [f"channel{i}" for i in range(channels)] if channels > 1 else ["T2w"]
    save_model(folder, model, Card(**(CARD | {"channels": names} | card)))
    return folder


def scan_file(path, bright=(slice(20, 30), slice(22, 34), slice(24, 40)), codes=(2, 1)):
    """An oblique scan of 8 mm voxels: a dim head with a bright block."""
    data = np.zeros((50, 60, 64), np.float32)
    data[8:-8, 8:-8, 8:-8] = 300
    data[bright] = 1000
    turn = np.eye(4)
    angle = np.deg2rad(12)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [90, -120, -100]
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, path)
    return path


def infer(*arguments, check=True, **options):
    return run_script_file("infer.py", *arguments, check=check, **options)
