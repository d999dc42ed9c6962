"""Model folders that tests write and spoil."""

import json

import torch

from meshnet.networks import folder as model_folder
from meshnet.networks.card import Card
from meshnet.networks.meshnet import MeshNet

CARD = {"channels": ["T2w"], "classes": ["background", "lesion"]}


def write_model(folder, **arguments):
    torch.manual_seed(1)
    model = MeshNet(**{"channels": 4, "dilations": (1, 2), **arguments})
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    model_folder.save_model(folder, model, Card(**CARD))
    return model.eval()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
