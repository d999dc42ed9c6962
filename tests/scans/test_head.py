"""The box around the head: all of it, and little more."""

import numpy as np
from scipy.ndimage import binary_opening
from small import array

from meshnet.scans.grid import conform
from meshnet.scans.head import _opened, head_box
from meshnet.scans.nifti import read_image


def test_head_box_holds_the_head_and_little_more():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    x, y, z = np.indices((96, 96, 96))
    head = ((x - 50) / 25) ** 2 + ((y - 45) / 30) ** 2 + ((z - 48) / 20) ** 2 < 1
    haze = np.abs(gaussian_filter(rng.normal(0, 200, head.shape), 3))  # smooth, so that no opening removes it
    assert np.percentile(haze, 99) > 10
    volume = haze + head * (80 + 40 * rng.random(head.shape))
    volume[2, 2, 2] = 255  # a speck
    box = head_box(np.clip(volume, 0, 255).astype(np.uint8))
    for (low, high), (first, last) in zip(box, ((26, 75), (16, 75), (29, 68))):
        assert first - 6 <= low <= first and last <= high <= last + 7


def test_head_box_of_nothing_is_the_volume():
    assert head_box(np.zeros((20, 30, 40), np.uint8)) == ((0, 20), (0, 30), (0, 40))


def test_head_boxes_of_real_heads(shared_data):
    for path in ("t2_stroke/M2265_T2w.nii.gz", "brainchop/t1_256.nii.gz", "ms/sub-07/FLAIR.nii.gz"):
        volume = array(conform(read_image(shared_data / path)))
        box = head_box(volume)
        share = np.prod([high - low for low, high in box]) / volume.size
        assert 0.15 < share < 0.5, path
        bright = volume > 100
        assert bright.sum() == bright[tuple(slice(*b) for b in box)].sum(), path


def test_the_opening_by_slices_is_scipys():
    rng = np.random.default_rng(0)
    for shape in ((9, 8, 7), (3, 3, 3), (2, 9, 9), (12, 1, 5)):
        for share in (0.5, 0.9, 1.0):
            mask = rng.random(shape) < share
            assert (_opened(mask) == binary_opening(mask)).all()


def test_only_long_axes_are_halved():
    volume = np.zeros((80, 80, 9), np.uint8)
    volume[21:50, 30:61, 2:5] = 200
    assert head_box(volume, margin=0) == ((22, 50), (30, 62), (2, 5))
