"""What each layer has to compute for a box, and where it may copy the answer to air."""

from small import network

from meshnet.inference.boxes import air_gaps, layer_boxes
from meshnet.networks import fuse


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


def test_layers_compute_what_the_head_looks_at_and_no_more():
    folded = fuse.fuse(network(dilations=(1, 2, 4)))
    boxes = layer_boxes(folded, ((50, 60), (3, 10), (0, 200)), (200, 200, 200))
    assert [box[0] for box in boxes] == [(43, 67), (44, 66), (46, 64), (50, 60), (50, 60)]
    assert [box[1] for box in boxes] == [(0, 17), (0, 16), (0, 14), (3, 10), (3, 10)]
    assert {box[2] for box in boxes} == {(0, 200)}
