"""The second look: mirrored scans come back where they were, and disagreement is what a hand computes."""

import numpy as np
import pytest
from bright import bright_model, scan_file

from meshnet.inference.agreement import agreement, mirrored, overlap
from meshnet.inference.scan import load_models, read_case, segment_case
from meshnet.networks.build import load_model


def look(scan, *folders, **settings):
    models = load_models(folders)
    case = read_case([scan], models)
    found = segment_case(case, models, **settings)
    mask = np.asanyarray(found.mask.dataobj)
    return agreement(case, models, mask, **settings), mask


def test_a_network_that_does_not_know_left_from_right_agrees_with_itself_on_an_oblique_scan(model, tmp_path):
    scan = scan_file(tmp_path / "a.nii.gz")
    found, mask = look(scan, model)
    assert found == 1.0 and mask.any()
    view = read_case([scan], load_models([model])).inputs[0][0]
    volume, affine = mirrored(view)
    assert np.linalg.det(affine) * np.linalg.det(view[1]) < 0 and not np.array_equal(volume, view[0])
    again = mirrored((volume, affine))
    assert np.array_equal(again[0], view[0]) and np.allclose(again[1], view[1])


def test_a_network_that_looks_to_one_side_disagrees_by_what_it_moves(tmp_path):
    """It marks a voxel whose neighbour on one side is bright: mirrored, the mask is two voxels further."""
    from meshnet.networks.folder import save_model

    network, card = load_model(bright_model(tmp_path / "model"))
    weight = network.blocks[0].conv.weight.data
    weight[0, 0, 1, 1, 1], weight[0, 0, 0, 1, 1] = 0, 1
    save_model(tmp_path / "model", network, card)
    found, mask = look(scan_file(tmp_path / "a.nii.gz"), tmp_path / "model")
    ml = np.count_nonzero(mask) * 0.064
    # A block of 10 scan voxels, turned by 12 degrees; the two masks are 2 model voxels apart, 4 of the scan's.
    assert mask.any() and found == pytest.approx((2 * ml * 6 / 10 + 1) / (2 * ml + 1), abs=0.06)


def test_several_models_are_compared_with_each_other(tmp_path):
    scan = scan_file(tmp_path / "a.nii.gz")
    folders = [bright_model(tmp_path / name, level=level) for name, level in (("a", 0.6), ("b", 0.6), ("c", 2.0))]
    assert look(scan, *folders[:2])[0] == 1.0
    found, _ = look(scan, *folders)  # the third marks nothing
    ml = np.count_nonzero(look(scan, folders[0])[1]) * 0.064
    assert found == pytest.approx((1 + 2 / (ml + 1)) / 3, abs=2e-3)


def test_overlap_by_hand():
    empty, speck, block = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool), np.ones((10, 10, 10), bool)
    speck[0, 0, 0] = True
    assert overlap(empty, empty, 1.0) == 1.0 and overlap(block, block, 1.0) == 1.0
    assert overlap(empty, speck, 1.0) == pytest.approx(1 / 1.001)  # a voxel of 1 mm³ is no disagreement
    assert overlap(empty, block, 1.0) == 0.5 and overlap(block, speck, 1000.0) == 3 / 1002
