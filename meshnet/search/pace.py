"""How long an epoch takes with which parameters, as far as a study has seen: wider networks cost more a second."""

import math
from collections.abc import Sequence

SMALL = 0.1  # variance of the noise over that of a coefficient, both of logarithms of seconds


class Pace:
    """Seconds of an epoch over the parameters, relative to the study's mean.

    The logarithm of the seconds is a sum of one parabola in each parameter, by ridge regression. Without any times
    everything takes 1.
    """

    def __init__(self, points, seconds: Sequence[float]):
        """points: (N, C) features of the trials. seconds: (N,) of an epoch of each, above 0."""
        import numpy as np

        self.weights = self.middle = None
        if len(seconds):
            logs = np.log(seconds)
            self.level = float(logs.mean())
            design = self._design(points)
            self.middle = design.mean(0)
            design -= self.middle
            inner = design.T @ design + SMALL * np.eye(design.shape[1])
            self.weights = np.linalg.solve(inner, design.T @ (logs - self.level))

    @staticmethod
    def _design(points):
        import numpy as np

        return np.hstack([points, (points - 0.5) ** 2])

    def at(self, points):
        """Of points (M, C): their seconds over the geometric mean of those seen, (M,)."""
        import numpy as np

        if self.weights is None:
            return np.ones(len(points))
        return np.exp((self._design(points) - self.middle) @ self.weights)

    def seen(self, seconds: Sequence[float | None]):
        """Seconds that were seen, over the same mean; 1 where they are not known."""
        import numpy as np

        if self.weights is None:
            return np.ones(len(seconds))
        return np.array([math.exp(math.log(one) - self.level) if one else 1.0 for one in seconds])
