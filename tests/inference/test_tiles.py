"""Tiles fit the memory that is there and change nothing."""

import numpy as np
import pytest
from small import network, scan

from meshnet.inference import by_kernels, by_torch, predict
from meshnet.inference.boxes import layer_boxes, voxels
from meshnet.inference.tiles import plan_tiles
from meshnet.kernels import calls
from meshnet.networks import fuse


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


def test_a_tile_may_take_the_whole_budget():
    folded, shape, head = fuse.fuse(network(8, (1, 2, 3))), (40, 40, 40), ((10, 40),) * 3

    def need(tile):
        return by_torch.torch_bytes(folded, layer_boxes(folded, tile, shape), shape)

    for budget in (need(head), need(head) - 1, need(head) // 2):
        tiles = plan_tiles(folded, head, shape, budget, by_torch.torch_bytes)
        largest = max(map(need, tiles))
        assert plan_tiles(folded, head, shape, largest, by_torch.torch_bytes) == tiles
        assert len(plan_tiles(folded, head, shape, largest - 1, by_torch.torch_bytes)) > len(tiles)
