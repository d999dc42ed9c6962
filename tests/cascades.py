"""Cascades of tiny networks, and a scan for them."""

import nibabel as nib
import numpy as np
import torch
from small import network

from meshnet.networks.build import add_variants
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.mirror import find_plane

F = np.float32
CLASSES = ["background", "lesion", "fluid"]


def first_network(channels=1, norm="none", seed=0):
    """A network that takes what is bright in the first channel for lesion, and grey for fluid, roughly."""
    torch.manual_seed(seed)
    model = MeshNet(1, in_channels=channels, classes=3, dilations=(1,), norm=norm, bias=True, final_bias=True).eval()
    with torch.no_grad():
        model.blocks[0].conv.weight.uniform_(-0.02, 0.02)
        model.blocks[0].conv.weight[0, 0, 1, 1, 1] = 1
        model.blocks[0].conv.bias.zero_()
        model.head.weight.copy_(torch.tensor([0.0, 40, 15]).reshape(3, 1, 1, 1, 1))
        model.head.bias.copy_(torch.tensor([0.0, -22, -5]))
    return model


def write_cascade(folder, channels=("T1w",), shifted=True, scaling="lesions_bright", first_norm="none",
                  second_norm="batch", marks="lesion", mirror=False, voxels=(16.0, 8.0), own=(), **card):
    """A cascade of random networks at 16 mm and 8 mm (``voxels``), whose first one finds a part of the head, with other
    weights for the contrasts ``own``."""
    both = {"channels": list(channels), "classes": CLASSES, "scaling": scaling, "marks": marks}
    first = Card(**both, voxel_mm=voxels[0], averaged=True, shifted=shifted, centre="middle")
    save_model(folder / "first", first_network(len(channels), first_norm), first)
    second, *others = [second_network((len(channels) + 2) * (2 if mirror else 1), second_norm, 3 + number)
                       for number in range(1 + len(own))]
    if own:
        add_variants(second, dict(zip(own, others)))
        card["contrasts"] = {name: {"own_weights": True} for name in own}
    card |= {"voxel_mm": voxels[1], "averaged": True, "mirror": mirror}
    save_model(folder, second, Card(**both, first=CLASSES[1:], **card))
    return folder


def second_network(given, norm, seed):
    """A random network for three classes of ``given`` channels, for which air is background."""
    second = network(5, (1, 2, 1), seed=seed, in_channels=given, classes=3, norm=norm)
    with torch.no_grad():
        second.head.weight.mul_(8)
        air = second(torch.zeros(1, given, 17, 17, 17))[0, :, 8, 8, 8]
        second.head.bias.sub_(air - torch.tensor([1.0, 0, 0]))
    return second


def head_file(path, seed=0, bright=1.0):
    """A head of smooth noise with a bright block, on an oblique grid of 4 mm voxels."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    data = np.zeros((50, 60, 64), np.float32)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij")
    inside = x ** 2 + y ** 2 + z ** 2 < 0.6
    data[inside] = (400 + 3000 * gaussian_filter(generator.standard_normal(data.shape), 2))[inside].clip(50)
    data[20:30, 22:34, 24:36] += 600 * bright
    angle, turn = 0.2, np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [90, -120, -100]
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def plain_input(scan, p, voxel_mm, across=None):
    """What a cascade's second network is given: the specification, voxel by voxel. Arguments as ``second_input``."""
    above = np.argwhere(p.max(0) > F(0.3))
    if not len(above):
        return None
    margin = round(8 / voxel_mm)
    low = np.maximum(above.min(0) - margin, 0)
    high = np.minimum(above.max(0) + 1 + margin, p.shape[1:])
    size = high - low
    lines = [np.linspace(-1, 1, n).astype(np.float32) for n in size]
    places = [tuple(one) for one in np.ndindex(*size)]
    result = np.zeros((len(scan) + len(p), *scan.shape[1:]), np.uint8)
    for c, channel in enumerate(scan):
        core = []
        for i, j, k in places:
            x, q = channel[low[0] + i, low[1] + j, low[2] + k], p[:, low[0] + i, low[1] + j, low[2] + k].max()
            g = F(F(F(lines[0][i] ** 2) + F(lines[1][j] ** 2)) + F(lines[2][k] ** 2))
            if x > 0 and q < F(0.5) and g < F(0.64):
                core.append(int(x))
        core.sort()
        q1, median, q3 = 0, 64, 128
        if len(core) > 500:
            q1, median, q3 = (core[int(np.ceil(share * len(core))) - 1] for share in (0.25, 0.5, 0.75))
        for i, j, k in places:
            at = (low[0] + i, low[1] + j, low[2] + k)
            z = F(F(int(channel[at]) - median) / F(max(4, q3 - q1)))
            z = min(max(z, F(-4)), F(8))
            result[(c, *at)] = np.rint(F(F(F(255) * F(z + F(4))) / F(12)))
    for c, one in enumerate(p):
        for i, j, k in places:
            at = (low[0] + i, low[1] + j, low[2] + k)
            result[(len(scan) + c, *at)] = np.rint(F(255) * one[at])
    if across is None:
        return result
    box, images = tuple(slice(*ends) for ends in zip(low, high)), np.zeros_like(result)
    for image, channel in zip(images, result):
        turned = np.moveaxis(channel[box], across, 0)
        plane = find_plane(np.moveaxis(result[0][box], across, 0))
        image[box] = np.moveaxis(plain_mirror_image(turned, plane), 0, across)
    return np.concatenate([result, images])


def plain_mirror_image(volume, plane):
    """An image of ``mirror.mirror_images``, voxel by voxel, in the numbers of Python."""
    a, b, shift = plane
    result = np.zeros_like(volume)
    middle = [(n - 1) / 2 for n in volume.shape]
    for place in np.ndindex(*volume.shape):
        x, y, z = (i - m for i, m in zip(place, middle))
        apart = ((x - shift) + a * y + b * z) * (2 / (1 + a * a + b * b))
        there = [int(np.floor(own - tilt * apart + m + 0.5)) for own, tilt, m in zip((x, y, z), (1, a, b), middle)]
        if all(0 <= i < n for i, n in zip(there, volume.shape)):
            result[place] = volume[tuple(there)]
    return result
