"""Define a covariance of networks for Gaussian processes, with a weight for each group of features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from ofav2.nas.engine.problem import Floats

_ROOT3 = 3**0.5


class GroupKernel(Kernel):  # type: ignore[misc]
    """A linear trend and a smooth deviation from it: a linear kernel and a Matern 1.5 kernel, added.

    Both have one parameter for each group of features: how much the trend varies with it, and the length scale of the
    deviation. So the likelihood decides which features matter.

    Args:
        sizes: Number of features of each group, in the order of the columns.
        trend: Variance of the trend by group.
        length: Length scale of the deviation by group.
        deviation: Variance of the deviation.
    """

    def __init__(
        self, sizes: Sequence[int], trend: Sequence[float], length: Sequence[float], deviation: float = 1.0
    ) -> None:
        self.sizes = sizes
        self.trend = trend
        self.length = length
        self.deviation = deviation

    @property
    def hyperparameter_trend(self) -> Hyperparameter:
        """The trend's variances."""
        return Hyperparameter("trend", "numeric", (1e-5, 1e2), len(self.sizes))

    @property
    def hyperparameter_length(self) -> Hyperparameter:
        """The length scales."""
        return Hyperparameter("length", "numeric", (5e-2, 1e2), len(self.sizes))

    @property
    def hyperparameter_deviation(self) -> Hyperparameter:
        """The variance of the deviation."""
        return Hyperparameter("deviation", "numeric", (1e-4, 1e2), 1)

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        """Return the covariance (N, M) of X (N, F) and Y (M, F), and its gradient by the logarithms of parameters."""
        left, right = self._groups(X), self._groups(X if Y is None else Y)
        products = [a @ b.T for a, b in zip(left, right, strict=True)]
        trends = [weight * product for weight, product in zip(np.atleast_1d(self.trend), products, strict=True)]
        squares = [
            np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * product, 0) / length**2
            for a, b, product, length in zip(left, right, products, np.atleast_1d(self.length), strict=True)
        ]
        distance = np.sqrt(sum(squares)) * _ROOT3
        decay = np.exp(-distance)
        smooth = self.deviation * (1 + distance) * decay
        value = sum(trends) + smooth
        if not eval_gradient:
            return value
        # Parameters in alphabetical order, as scikit-learn has them.
        slopes = [3 * self.deviation * square * decay for square in squares]
        return value, np.stack([smooth, *slopes, *trends], -1)

    def diag(self, X: Floats) -> Floats:
        """Return the variances (N,) of X (N, F)."""
        trend = sum(
            weight * (group**2).sum(1) for weight, group in zip(np.atleast_1d(self.trend), self._groups(X), strict=True)
        )
        return np.asarray(trend + self.deviation)

    def is_stationary(self) -> bool:
        """Return False: the trend depends on where a network is."""
        return False

    def _groups(self, features: Floats) -> list[Floats]:
        return np.split(np.atleast_2d(features), np.cumsum(self.sizes)[:-1], axis=1)
