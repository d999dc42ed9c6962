"""The head's box: found, followed where something is marked at its sides, and no change inside it."""

import numpy as np
import pytest
import torch
from small import by_model, network, scan, smearing

from meshnet.inference import by_kernels, by_torch, crop, predict
from meshnet.inference.boxes import layer_boxes, voxels
from meshnet.inference.tiles import plan_tiles
from meshnet.kernels import calls


@pytest.mark.parametrize("box", [((20, 40), (18, 33), (25, 44)), ((3, 20), (0, 33), (1, 44)), ((0, 1), (5, 6), (7, 8))])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_cropping_the_head_changes_nothing_inside_it(way, box, noise):
    model = network(dilations=(1, 2, 4, 5))
    volume = scan(1, (52, 48, 60), box, 0.25) + noise * scan(1, (52, 48, 60), seed=2)
    inside = (slice(None), *(slice(a, b) for a, b in box))
    cropped, expected = predict.predict_logits(model, volume, crop=box), by_model(model, volume)
    assert np.abs(cropped - expected)[inside].max() < 1e-5
    if not noise:
        found = predict.predict_logits(model, volume, crop="head")
        assert np.abs(found - expected)[inside].max() < 1e-5
        model.head.bias.data[0] += 50  # nothing is marked, so the box does not grow
        found, cropped = (predict.predict_logits(model, volume, crop=crop) for crop in ("head", box))
        assert np.array_equal(found, cropped)


def test_outside_the_head_stands_the_answer_to_air(way):
    model, volume = network(dilations=(1, 2)), scan(1, (40, 40, 40), ((30, 35), (30, 35), (30, 35)), 0.5)
    model.head.bias.data[0] += 10  # nothing is marked
    cropped, expected = predict.predict_logits(model, volume), by_model(model, volume)
    far = (slice(None),) + (slice(5, 20),) * 3
    assert np.abs(cropped - expected)[far].max() < 1e-5
    assert np.ptp(cropped[:, :30], axis=(1, 2, 3)).max() == 0


def block_of_ones(shape=(40, 36, 38)) -> np.ndarray:
    volume = np.zeros((1, *shape), np.float32)
    volume[0, 17:23, 16:21, 17:21] = 1
    return volume


@pytest.fixture
def parts(monkeypatch):
    """The boxes that are computed, in their order."""
    boxes = []
    for module in (by_kernels, by_torch):
        monkeypatch.setattr(module, "plan_tiles", lambda *a: boxes.append(a[1]) or plan_tiles(*a))
    return boxes


@pytest.mark.parametrize("toward", [(1, 0, 0), (-1, 0, 0), (0, -1, 1), (-1, 1, -1)])
@pytest.mark.parametrize(("output", "marked"), [("predict", 1), ("predict_labels", 1), ("predict_labels", 0),
                                                ("predict_logits", 1), ("predict_logits", 0)])
def test_what_begins_in_the_head_is_followed_out_of_it(way, toward, output, marked, monkeypatch):
    monkeypatch.setattr(crop, "STEP", 5)  # not far enough: the next one goes to the volume's end
    model, volume = smearing(toward, marked=marked), block_of_ones()
    found = getattr(predict, output)(model, volume)
    labels = found if output == "predict_labels" else found.argmax(axis=0)
    expected = by_model(model, volume).argmax(axis=0)
    assert (expected == marked).sum() > 2 * 6 * 5 * 4 and np.array_equal(labels, expected)


def test_a_probability_far_below_one_half_is_followed(way):
    model, volume = smearing((1, 0, 0)), block_of_ones()
    model.head.bias.data[1] = -20.7  # a third where the features are 1
    found, expected = predict.predict(model, volume), torch.from_numpy(by_model(model, volume)).softmax(dim=0).numpy()
    assert 0.3 < expected[1, -3, 18, 18] < 0.35 and np.abs(found - expected).max() < 1e-4


def test_a_head_whose_sides_are_clean_is_computed_once(way, parts):
    volume = block_of_ones() * 0.4
    volume[0, 19, 18, 18] = 1
    model = smearing((1, 0, 0), (1,))
    model.head.bias.data[1] = -19
    assert predict.predict_labels(model, volume).sum() == 2 and len(parts) == 1


def test_a_side_is_moved_twice_at_most(way, parts, monkeypatch):
    monkeypatch.setattr(crop, "STEP", 2)
    predict.predict_labels(smearing((1, 0, 0)), block_of_ones((200, 36, 38)))
    assert [box[0] for box in parts] == [(17, 23), (15, 25), (25, 200)]


def test_a_box_that_was_asked_for_does_not_grow(way, parts):
    box = ((17, 23), (16, 21), (17, 21))
    labels = predict.predict_labels(smearing((1, 0, 0)), block_of_ones(), crop=box)
    assert parts == [box] and labels.sum() == 6 * 5 * 4


def test_a_network_that_marks_all_it_sees_soon_gets_the_whole_volume(way, parts):
    model, volume = network(2, (1, 2, 4)), block_of_ones()
    model.head.bias.data += torch.tensor([-50.0, 50.0])
    for block in model.blocks:
        block.conv.weight.data.abs_()
    model.head.weight.data = torch.tensor([[0.0, 0.0], [-9.0, -9.0]])[..., None, None, None]
    assert np.array_equal(predict.predict_labels(model, volume), by_model(model, volume).argmax(axis=0))
    assert parts == [((17, 23), (16, 21), (17, 21)), ((0, 40), (0, 36), (0, 38))]


def test_what_is_marked_apart_from_the_head_is_not_looked_for(way):
    """A limit that is stated: this network answers nine voxels beside what it sees, so the head's sides are clean."""
    model = smearing((1, 0, 0), (9,))
    model.blocks[0].conv.weight.data[0, 0, 1, 1, 1] = 0
    assert by_model(model, block_of_ones()).argmax(axis=0).sum() == 6 * 5 * 4
    assert predict.predict_labels(model, block_of_ones()).sum() == 0


def test_added_parts_stay_under_the_ceiling(monkeypatch):
    if not calls.available():
        pytest.skip("no C++ compiler here")
    model, volume, needs, room = smearing((1, 0, 0)), block_of_ones((300, 90, 90)), [], 1_900_000
    run_compiled = by_kernels.run_compiled

    def watched(task, tile):
        boxes = layer_boxes(task.layers, tile, task.shape)
        needs.append(by_kernels.compiled_bytes(task.layers, boxes, task.shape, task.content))
        run_compiled(task, tile)

    monkeypatch.setattr(by_kernels, "run_compiled", watched)
    monkeypatch.setattr(predict, "resident_bytes", lambda: 0)
    labels = predict.predict_labels(model, volume, max_memory=volume[0].size + room)
    assert np.array_equal(labels, by_model(model, volume).argmax(axis=0))
    assert len(needs) > 2 and max(needs) <= room


def test_sides_by_hand():
    labels, box, none = np.zeros((50, 40, 30), np.uint8), ((10, 20), (0, 40), (5, 12)), np.uint8(0)
    assert crop.marked_faces(labels, box, none, "labels") == []
    labels[19, 3, 6] = labels[12, 0, 5] = 1  # the second lies at two sides, of which the volume ends at one
    sides = [(0, True), (2, False)]
    assert crop.marked_faces(labels, box, none, "labels") == sides
    assert crop.marked_faces(1 - labels, box, np.uint8(1), "labels") == sides
    for seen, found in ((0.31, sides), (0.29, [])):  # air itself has 0.2
        probabilities = np.stack([0.8 - (seen - 0.2) * labels, 0.2 + (seen - 0.2) * labels])
        of_air = np.array([0.8, 0.2])
        assert crop.marked_faces(probabilities, box, of_air, "probabilities") == found
        assert crop.marked_faces(np.log(probabilities), box, np.log(of_air), "logits") == found
    assert crop.grow_box(box, sides, {(2, False)}, labels.shape) == (
        ((10, 36), (0, 40), (0, 12)), [((20, 36), (0, 40), (5, 12)), ((10, 36), (0, 40), (0, 5))])
    assert crop.grow_box(box, [(0, True)], {(0, True)}, labels.shape)[0] == ((10, 50), (0, 40), (5, 12))


def test_head_box_by_hand():
    volume = np.zeros((2, 6, 7, 8), np.float32)
    volume[0, 2, 3, 4] = volume[1, 4, 3, 5] = 1
    assert crop.content_or_head_box(volume) == ((2, 5), (3, 4), (4, 6))
    volume[0] += 0.5  # other air
    assert crop.content_or_head_box(volume) == ((2, 5), (3, 4), (4, 6))
    assert crop.content_or_head_box(np.ones((1, 3, 4, 5), np.float32)) == ((0, 3), (0, 4), (0, 5)), "no contrast"


def test_noisy_air_is_cut_by_the_head():
    volume = 0.05 * scan(1, (64, 64, 64))
    volume[:, 20:44, 22:40, 25:50] += 0.8
    box = crop.content_or_head_box(volume)
    assert all(a <= c and d <= b for (a, b), (c, d) in zip(box, ((20, 44), (22, 40), (25, 50))))
    assert voxels(box) < 0.2 * 64**3
