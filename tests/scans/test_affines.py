"""Products and inverses of affines: numpy's to the last digits, rounded in one known order."""

import numpy as np
import pytest
from small import affine_of

from meshnet.scans.affines import inverse, product


def affines():
    generator = np.random.default_rng(0)
    return [affine_of(generator.uniform(0.4, 5, 3), generator.uniform(-3, 3, 3), generator.uniform(-90, 90, 3))
            for _ in range(50)]


def test_the_inverse_is_numpys_to_the_last_digits():
    for affine in [*affines(), np.eye(4)[[2, 0, 1, 3]], np.diag([1e-9, 1, 1e9, 1])]:
        np.testing.assert_allclose(inverse(affine), np.linalg.inv(affine), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(product(inverse(affine), affine), np.eye(4), atol=1e-12)
    with pytest.raises(np.linalg.LinAlgError):
        inverse(np.diag([1.0, 0, 1, 1]))


def test_a_product_rounds_each_term_and_adds_from_left_to_right():
    """As the page does; a BLAS that multiplies and adds in one step gives 2 to the power of -60 below."""
    small = 1 + 2.0 ** -30
    assert product([[small, -1.0]], [small, 1 + 2.0 ** -29]) == [0]
    one, other = affines()[:2]
    for row, expected in zip(product(one, other), one):
        for column, found in zip(other.T, row):
            total = 0.0
            for a, b in zip(expected, column):
                total = total + float(a) * float(b)
            assert found == total
    assert (product(one, other[:, 3]) == product(one, other)[:, 3]).all()
