"""Products and inverses of affines with the same bits on every machine, and in the page (``sharing/page/arrays.js``).

numpy leaves them to a BLAS, which rounds differently from one CPU to the next (some multiply and add in one step, some
do not). Where two grids are oblique, a coordinate's last bit may become a voxel's. Here each product is rounded, and
sums go from left to right.
"""

import numpy as np


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``one @ other`` for matrices (M, K) and (K, N), or a matrix and a vector (K,), in float64."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    total = np.zeros((len(one), *other.shape[1:]))
    for column, row in zip(one.T, other):
        total = total + np.multiply.outer(column, row)
    return total


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a matrix (N, N), float64, by elimination with partial pivoting.

    Raises:
        np.linalg.LinAlgError: for a singular one.
    """
    left = np.array(matrix, float)
    n = len(left)
    right = np.eye(n)
    for c in range(n):
        pivot = c + int(np.argmax(np.abs(left[c:, c])))
        if not left[pivot, c]:
            raise np.linalg.LinAlgError("Singular matrix")
        left[[c, pivot]], right[[c, pivot]] = left[[pivot, c]], right[[pivot, c]]
        for r in range(c + 1, n):
            factor = left[r, c] / left[c, c]
            left[r, c:] = left[r, c:] - factor * left[c, c:]
            right[r] = right[r] - factor * right[c]
    for r in reversed(range(n)):
        for c in range(r + 1, n):
            right[r] = right[r] - left[r, c] * right[c]
        right[r] = right[r] / left[r, r]
    return right
