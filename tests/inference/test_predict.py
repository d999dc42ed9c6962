"""Whole volumes: equal to the network itself, cropped or not, in one piece or in tiles, compiled or by PyTorch."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small import VARIANTS, by_model, network, scan
from torch import nn

from meshnet.errors import UserError
from meshnet.inference import by_kernels, by_torch, crop, predict
from meshnet.inference.boxes import air_gaps, layer_boxes, voxels
from meshnet.inference.tiles import plan_tiles
from meshnet.kernels import calls
from meshnet.networks import fuse
from meshnet.networks.meshnet import MeshNet


@pytest.fixture(params=["compiled", "torch"])
def way(request):
    if request.param == "compiled" and not calls.available():
        pytest.skip("no C++ compiler here")
    with calls.switched_off() if request.param == "torch" else contextlib.nullcontext():
        yield request.param


@pytest.mark.parametrize("arguments", VARIANTS)
@pytest.mark.parametrize("shape", [(17, 22, 35), (1, 33, 20), (9, 1, 1)])
def test_full_volume_is_the_network_itself(way, arguments, shape):
    if shape[0] == 9 and arguments.get("norm") == "instance":
        shape = (9, 1, 2)
    model = network(**arguments)
    volume = scan(arguments.get("in_channels", 1), shape)
    logits = predict.predict_logits(model, volume, crop="none")
    expected = by_model(model, volume)
    assert logits.shape == expected.shape and logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("shape", [(20, 9, 11), (3, 8, 8), (9, 7, 6)])
def test_slabs_change_nothing(shape, planes, monkeypatch):
    model, volume = network(5, (1, 4, 2, 5)), scan(1, shape)
    monkeypatch.setattr(by_torch, "SLAB", 4 * 5 * planes * shape[1] * shape[2])
    with calls.switched_off():
        logits = predict.predict_logits(model, volume, crop="none")
    assert np.abs(logits - by_model(model, volume)).max() < 1e-5
    want = ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    parts = by_torch.slabs(want, want, 4, 4 * 5)
    assert [plane for (a, b), *_ in parts for plane in range(a, b)] == list(range(shape[0]))
    assert max(b - a for (a, b), *_ in parts) <= planes


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.tuples(*[st.integers(1, 24)] * 3), st.integers(1, 15),
       st.sampled_from(["relu", "elu", "gelu"]))
def test_any_dilations_and_sizes(dilations, shape, channels, activation):
    model, volume = network(channels, dilations, activation=activation), scan(1, shape)
    assert np.abs(predict.predict_logits(model, volume, crop="none") - by_model(model, volume)).max() < 1e-4


@pytest.mark.parametrize("start", range(40, 56))
def test_what_lies_beyond_the_volume_is_zero_whichever_layer_had_the_room_before(start):
    """Layers that look at different columns share their planes' slots: what one wrote must not be another's padding."""
    model, volume = network(4, (1, 4, 16, 1)), scan(1, (40, 20, 64))
    box = ((0, 40), (0, 20), (start, 64))
    found, expected = predict.predict_logits(model, volume, crop=box), by_model(model, volume)
    assert np.abs(found - expected)[..., start:].max() < 1e-5


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


SIDE = st.tuples(st.integers(12, 64), *[st.floats(0, 1)] * 4)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=2, max_size=5), st.tuples(SIDE, SIDE, SIDE),
       st.sampled_from([2, 5, 9]), st.sampled_from([0.0, 0.3]), st.booleans(), st.permutations([0, 1, 2]))
@example([1, 1, 1], ((12, 0, 0, 0, 0), (12, 1, 0, 0, 0), (12, 0, 0, 0, 0)), 2, 0.3, False, [1, 0, 2])
@example([1] * 5, ((12, 0, 0, 0, 1), (12, 0, 0, 0, 0), (12, 0, 0, 0, 1)), 2, 0.0, False, [0, 1, 2])
@example([2, 4, 8, 4], ((64, 0.3, 0.4, 0, 0), (60, 0.35, 0.3, 0, 0), (62, 0.4, 0.2, 0, 0)), 9, 0.3, True, [2, 0, 1])
def test_air_that_is_copied_is_what_the_network_gives(dilations, sides, channels, air, all_of_it, axes):
    """Constant air around random content, in any box asked for, near the volume's ends and far from them."""
    if not calls.available():
        pytest.skip("no C++ compiler here")
    def part(n, start, length):
        a = int(start * (n - 1))
        return a, a + 1 + int(length * (n - 1 - a))

    shape = tuple(n for n, *_ in sides)
    content, other = (tuple(part(side[0], *side[k:k + 2]) for side in sides) for k in (1, 3))
    wanted = content if all_of_it else other
    model = network(channels, dilations)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv3d)):
        conv.weight.data *= 2.5  # so that what is furthest away counts
    volume = predict.turn(np.ascontiguousarray(predict.turn(scan(1, shape, content, air), axes)), np.argsort(axes))
    inside = (slice(None), *(slice(a, b) for a, b in wanted))
    expected = by_model(model, volume)
    error = np.abs(predict.predict_logits(model, volume, crop=wanted) - expected)[inside].max()
    # What is wanted may be one small value among large ones, whose rounding it shares.
    assert error < max(1e-5 * max(1, np.abs(expected[inside]).max()), 1e-6 * np.abs(expected).max())


def test_gaps_by_hand():
    folded = fuse.fuse(network(dilations=(1, 2, 3)))
    head = ((20, 30), (8, 10), (15, 19))
    boxes = layer_boxes(folded, head, (40, 20, 19))
    gaps = [dict(zip("xyz", sides)) for sides in air_gaps(folded, boxes, (40, 20, 19), head)]
    # Layer 1 sees 1 voxel far, is wanted 5 beyond the head; layer 2 sees 3, is wanted 3 beyond; the last is the head.
    assert [gap["x"] for gap in gaps] == [(14, 14, 36, 36), (15, 18, 32, 35), (17, 17, 33, 33), (20, 20, 30, 30),
                                          (20, 20, 30, 30)]
    assert gaps[1]["y"] == (3, 6, 12, 15) and gaps[1]["z"] == (10, 13, 19, 19)
    near = ((4, 30), (8, 10), (15, 19))  # wanted from 0, where layer 1 sees the end: 0 and 1 are computed, 2 is not
    boxes = layer_boxes(folded, near, (40, 20, 19))
    assert air_gaps(folded, boxes, (40, 20, 19), ((5, 30), *near[1:]))[1][0] == (2, 3, 32, 35)
    assert air_gaps(folded, boxes, (40, 20, 19), None)[1][0] == (0, 0, 35, 35)


def test_outside_the_head_stands_the_answer_to_air(way):
    model, volume = network(dilations=(1, 2)), scan(1, (40, 40, 40), ((30, 35), (30, 35), (30, 35)), 0.5)
    model.head.bias.data[0] += 10  # nothing is marked
    cropped, expected = predict.predict_logits(model, volume), by_model(model, volume)
    far = (slice(None),) + (slice(5, 20),) * 3
    assert np.abs(cropped - expected)[far].max() < 1e-5
    assert np.ptp(cropped[:, :30], axis=(1, 2, 3)).max() == 0


def smearing(toward: tuple[int, int, int], dilations=(1, 2, 4, 8), marked=1) -> MeshNet:
    """A network that gives class ``marked`` to each voxel above 0.5, and to what lies up to ``sum(dilations)`` voxels
    beyond it."""
    model = MeshNet(1, dilations=dilations, norm="none", bias=False, final_bias=True).eval()
    for block in model.blocks:
        nn.init.zeros_(block.conv.weight)
        block.conv.weight.data[0, 0, 1, 1, 1] = 1
        block.conv.weight.data[(0, 0, *(1 - t for t in toward))] = 1
    model.head.weight.data[:] = 0
    model.head.weight.data[marked] = 20
    model.head.bias.data = torch.zeros(2)
    model.head.bias.data[marked] = -10
    return model


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
    assert crop.marked_sides(labels, box, none, "labels") == []
    labels[19, 3, 6] = labels[12, 0, 5] = 1  # the second lies at two sides, of which the volume ends at one
    sides = [(0, True), (2, False)]
    assert crop.marked_sides(labels, box, none, "labels") == sides
    assert crop.marked_sides(1 - labels, box, np.uint8(1), "labels") == sides
    for seen, found in ((0.31, sides), (0.29, [])):  # air itself has 0.2
        probabilities = np.stack([0.8 - (seen - 0.2) * labels, 0.2 + (seen - 0.2) * labels])
        of_air = np.array([0.8, 0.2])
        assert crop.marked_sides(probabilities, box, of_air, "probabilities") == found
        assert crop.marked_sides(np.log(probabilities), box, np.log(of_air), "logits") == found
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


def test_layers_compute_what_the_head_looks_at_and_no_more():
    folded = fuse.fuse(network(dilations=(1, 2, 4)))
    boxes = layer_boxes(folded, ((50, 60), (3, 10), (0, 200)), (200, 200, 200))
    assert [box[0] for box in boxes] == [(43, 67), (44, 66), (46, 64), (50, 60), (50, 60)]
    assert [box[1] for box in boxes] == [(0, 17), (0, 16), (0, 14), (3, 10), (3, 10)]
    assert {box[2] for box in boxes} == {(0, 200)}


@pytest.mark.parametrize("crop", ["head", "none"])
def test_tiles_change_nothing(way, crop, monkeypatch):
    model = network(8, (1, 2, 3))
    model.head.bias.data[0] += 10  # nothing is marked, so the head's box stays as it is
    volume = scan(1, (70, 60, 66), ((5, 60), (10, 58), (3, 64)))
    monkeypatch.setattr(predict, "resident_bytes", lambda: 0)
    cuts = []
    for module in (by_kernels, by_torch):
        monkeypatch.setattr(module, "plan_tiles", lambda *a: cuts.append(plan_tiles(*a)) or cuts[-1])
    one = predict.predict_logits(model, volume, crop=crop)
    many = predict.predict_logits(model, volume, crop=crop, max_memory=one.nbytes + 3_000_000)
    assert len(cuts[0]) == 1 and len(cuts[1]) > 1
    assert np.abs(one - many).max() < 1e-5


def test_every_tile_fits_the_budget():
    folded, shape, head = fuse.fuse(network(8, (1, 2, 3))), (40, 40, 40), ((10, 40),) * 3

    def need(tile):
        return by_torch.torch_bytes(folded, layer_boxes(folded, tile, shape), shape)

    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        tiles = plan_tiles(folded, head, shape, int(share * need(head)), by_torch.torch_bytes)
        assert max(map(need, tiles)) <= share * need(head)
        assert (len(tiles) == 1) == (share == 1.0)


def test_a_long_volume_is_cut_as_finely_as_it_must_be():
    folded, shape = fuse.fuse(network(8, (1, 1))), (400, 16, 16)

    def need(tile):
        return by_torch.torch_bytes(folded, layer_boxes(folded, tile, shape), shape)

    budget = need(((100, 110), (0, 8), (0, 8)))
    tiles = plan_tiles(folded, ((0, 400), (0, 16), (0, 16)), shape, budget, by_torch.torch_bytes)
    assert max(map(need, tiles)) <= budget and sum(map(voxels, tiles)) == 400 * 16 * 16


DEFAULT = (1, 2, 4, 8, 16, 16, 8, 4, 2)


@pytest.mark.parametrize(("shape", "head", "threads", "channels", "dilations", "least"), [
    ((299, 250, 379), ((104, 286), (55, 229), (164, 225)), 4, 16, DEFAULT, 0.5),
    ((256, 256, 256), ((60, 200), (90, 240), (100, 225)), 16, 16, DEFAULT, 0.5),
    # Tiles without gaps need less than others that are smaller: their layers share room.
    ((16, 256, 256), ((0, 16), (25, 231), (25, 231)), 2, 5, (1, 2, 4, 8, 4, 2, 1), 0.1327)])
def test_every_tile_with_gaps_fits_the_budget(shape, head, threads, channels, dilations, least):
    if not calls.available():
        pytest.skip("no C++ compiler here")
    folded = fuse.fuse(network(channels, dilations))

    def needs(folded, boxes, shape):
        return by_kernels.compiled_bytes(folded, boxes, shape, head, threads)

    whole = needs(folded, layer_boxes(folded, head, shape), shape)
    for share in np.linspace(least, 0.95, 6):
        tiles = plan_tiles(folded, head, shape, int(share * whole), needs, head)
        assert max(needs(folded, layer_boxes(folded, tile, shape), shape) for tile in tiles) <= share * whole


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_box_is_that_of_the_volume_however_it_lies(way, order):
    model, volume = network(3, (1, 2)), np.asarray(scan(1, (9, 8, 7)), order=order)
    box = ((2, 9), (0, 3), (1, 6))
    inside = (slice(None), *(slice(a, b) for a, b in box))
    found = predict.predict_logits(model, volume, crop=np.array(box))
    assert np.abs(found - by_model(model, np.ascontiguousarray(volume)))[inside].max() < 1e-5
    for wrong in (((20, 30), (0, 3), (0, 3)), ((0, 3), (0, 3))):
        with pytest.raises(UserError, match=str(wrong).replace("(", r"\(").replace(")", r"\)")):
            predict.predict_logits(model, volume, crop=wrong)


def test_a_ceiling_that_nothing_fits_is_the_users_mistake(way):
    with pytest.raises(UserError, match="max_memory"):
        predict.predict(network(), scan(1, (20, 20, 20)), max_memory=1000)
    with pytest.raises(UserError, match="max_memory"):
        predict.predict(network(norm="group"), scan(1, (20, 20, 20)), max_memory=1000)
    with pytest.raises(UserError, match=r"max_memory.*Conv3d"):  # a network that cannot be cut
        predict.predict(nn.Conv3d(1, 3, 1).eval(), scan(1, (9, 8, 7)), max_memory=10**10)


def test_the_three_kinds_of_answer_agree(way):
    model, volume = network(classes=4), scan(1, (21, 18, 37), ((2, 18), (3, 15), (4, 30)))
    logits = predict.predict_logits(model, volume)
    assert np.abs(predict.predict(model, volume) - torch.from_numpy(logits).softmax(0).numpy()).max() < 1e-5
    labels = predict.predict_labels(model, volume)
    assert labels.dtype == np.uint8 and np.array_equal(labels, logits.argmax(0))


def test_on_a_real_head(way, shared_data):
    import nibabel as nib

    image = nib.load(shared_data / "t2_stroke" / "M2265_T2w.nii.gz")
    part = np.asarray(image.dataobj[90:130, 20:100, 60:130], dtype=np.float32)[None] / 255
    model = network(16, (1, 2, 4, 8, 16, 2))
    assert np.abs(predict.predict_logits(model, part, crop="none") - by_model(model, part)).max() < 1e-3


def test_other_networks_run_as_they_are():
    model, volume = nn.Conv3d(1, 3, 1).eval(), scan(1, (9, 8, 7))
    assert np.allclose(predict.predict_logits(model, volume), by_model(model, volume), atol=1e-6)
    mirrored = predict.predict_logits(model, volume[:, ::-1])
    assert np.allclose(mirrored[:, ::-1], by_model(model, volume), atol=1e-6)


@pytest.mark.slow
def test_patch_networks_slide():
    model, volume = nn.Conv3d(1, 3, 1).eval(), scan(1, (20, 18, 17))
    model.patch = 8
    assert np.allclose(predict.predict_logits(model, volume), by_model(model, volume), atol=1e-4)


@pytest.mark.parametrize(("volume", "crop", "message"), [
    (np.zeros((5, 5, 5), np.float32), "head", "expected \\(C, X, Y, Z\\)"),
    (np.zeros((2, 5, 5, 5), np.float32), "head", "with C = 1"),
    (np.full((1, 5, 5, 5), np.nan, np.float32), "head", "NaN"),
    (np.zeros((1, 5, 5, 5), np.float32), "brain", "crop: found 'brain'"),
    (np.zeros((1, 5, 5, 5), np.float32), ((2, 2), (0, 5), (0, 5)), "crop: found the box"),
])
def test_mistakes_are_named(volume, crop, message):
    with pytest.raises(UserError, match=message):
        predict.predict(network(), volume, crop=crop)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    predict.predict(network(), scan(1, (5, 5, 5)), threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not calls.available(), reason="minutes without the kernels")
@pytest.mark.parametrize("crop", ["head", "none"])
def test_published_network_marks_a_whole_real_head_as_published(shared_data, crop):
    import nibabel as nib

    from meshnet.sharing.tfjs import read_tfjs

    model = read_tfjs(shared_data / "brainchop" / "model.json")[0].eval()
    scan = np.asarray(nib.load(shared_data / "brainchop" / "t1_256.nii.gz").dataobj, dtype=np.float32)
    volume = ((scan - scan.min()) / np.ptp(scan))[None]
    reference = np.asarray(nib.load(shared_data / "brainchop" / "labels_reference.nii.gz").dataobj)
    assert np.array_equal(predict.predict_labels(model, volume, crop=crop), reference)
