"""Networks run by the kernels: shared rooms, and air that is copied instead of computed."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small import by_model, network, scan
from torch import nn

from meshnet.inference import predict
from meshnet.kernels import calls


@pytest.mark.parametrize("start", range(40, 56))
def test_what_lies_beyond_the_volume_is_zero_whichever_layer_had_the_room_before(start):
    """Layers that look at different columns share their planes' slots: what one wrote must not be another's padding."""
    model, volume = network(4, (1, 4, 16, 1)), scan(1, (40, 20, 64))
    box = ((0, 40), (0, 20), (start, 64))
    found, expected = predict.predict_logits(model, volume, crop=box), by_model(model, volume)
    assert np.abs(found - expected)[..., start:].max() < 1e-5


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
    volume = predict.permute_axes(scan(1, shape, content, air), axes)
    volume = predict.permute_axes(np.ascontiguousarray(volume), np.argsort(axes))
    inside = (slice(None), *(slice(a, b) for a, b in wanted))
    expected = by_model(model, volume)
    error = np.abs(predict.predict_logits(model, volume, crop=wanted) - expected)[inside].max()
    # What is wanted may be one small value among large ones, whose rounding it shares.
    assert error < max(1e-5 * max(1, np.abs(expected[inside]).max()), 1e-6 * np.abs(expected).max())
