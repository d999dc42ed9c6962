"""A cascade in the page: what its second network is given is Python's to the byte, and its mask is infer.py's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_steps import Page

from meshnet.scans import second
from meshnet.sharing.to_web import script


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def by_page(page, scan, probabilities, voxel_mm):
    """What the page gives the second network, (C + K, X, Y, Z) uint8, or None."""
    paths = {name: Path(page.folder.name) / name for name in ("scan", "probabilities", "out")}
    for name, volume in (("scan", scan), ("probabilities", probabilities)):
        np.ascontiguousarray(volume).tofile(paths[name])
    answer = page.ask("second", **{name: str(path) for name, path in paths.items()}, shape=scan.shape[1:],
                      voxel_mm=voxel_mm)
    assert "error" not in answer, answer
    return np.fromfile(paths["out"], np.uint8).reshape(-1, *scan.shape[1:]) if answer["found"] else None


@st.composite
def findings(draw):
    """A conformed scan (C, X, Y, Z) and probabilities (K, X, Y, Z) of something in it, up to the faces or not."""
    shape = tuple(draw(st.lists(st.integers(1, 26), min_size=3, max_size=3)))
    generator = np.random.default_rng(draw(st.integers(0, 9999)))
    low, high = sorted(draw(st.lists(st.sampled_from([0, 1, 30, 100, 110, 200, 256]), min_size=2, max_size=2,
                                     unique=True)))
    scan = generator.integers(low, high, (draw(st.integers(1, 2)), *shape), np.uint8)
    p = np.zeros((draw(st.integers(1, 3)), *shape), np.float32)
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in shape]
    inside = (slice(None), *(slice(a, b + 1) for a, b in ends))
    p[inside] = generator.random(p[inside].shape, np.float32) ** draw(st.sampled_from([1, 4, 12]))
    levels = np.array([0.3, 0.5, 1, np.nextafter(np.float32(0.3), np.float32(1)), 0.5 / 255], np.float32)
    where = generator.random(p.shape) < 0.05
    p[where] = generator.choice(levels, np.count_nonzero(where))
    return scan, p


@given(findings(), st.sampled_from([1.0, 2.0, 3.2, 4.0, 16.5]))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_second_network_is_given_pythons_bytes(page, found, voxel_mm):
    expected, answer = second.second_input(*found, voxel_mm), by_page(page, *found, voxel_mm)
    assert (answer is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(answer, expected)


def test_the_second_network_is_given_pythons_bytes_of_a_head(page):
    """With thousands of voxels of brain, so that their quartiles count, and with hardly any range between these."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in (56, 62, 50)], indexing="ij"))
    inside = (grid ** 2).sum(0) < 1
    for spread in (30, 1):
        scan = np.where(inside, 110 + spread * generator.standard_normal(inside.shape), 0).clip(0, 255)
        scan = scan.astype(np.uint8)[None]
        p = np.stack([np.float32(0.9) * (((grid - 0.3) ** 2).sum(0) < 0.06), np.float32(0.4) * inside]).astype("f4")
        expected = second.second_input(scan, p, 2.0)
        assert len(np.unique(expected[0])) > 3
        np.testing.assert_array_equal(by_page(page, scan, p, 2.0), expected)


def test_the_constants_are_pythons():
    text = re.search(r"^const SECOND = (\{.*\});$", script("second"), re.MULTILINE).group(1)
    values = json.loads(re.sub(r"(\w+):", r'"\1":', text))
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in vars(second).items()
            if name.isupper() and name != "SCALINGS"} == values
