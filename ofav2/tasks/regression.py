"""Regress planes: numbers for each pixel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ofav2.errors import UserError
from ofav2.tasks.base import Metric, to_float64

NAME = "regress"
R2 = Metric("R2", "", higher_is_better=True)
"""Share of the targets' variance that outputs explain: of several planes the mean."""
RMSE = Metric("RMSE", "", higher_is_better=False)
"""Root of the mean squared error."""
MAE = Metric("MAE", "", higher_is_better=False)
"""Mean absolute error."""
ZERO = Metric("RMSE of zero", "", higher_is_better=False)
"""RMSE of a network that always says 0."""
MEAN = Metric("RMSE of the mean", "", higher_is_better=False)
"""RMSE of the best constant: each plane's mean over the very targets that are measured on."""
_SUMS = 5


@dataclass(frozen=True)
class Regression:
    """Tell numbers of each pixel. Targets are planes (N, planes, H, W); NaN counts nowhere."""

    planes: tuple[str, ...]
    """Names of the planes."""

    name: ClassVar[str] = NAME
    distances: ClassVar[tuple[str, ...]] = ("mse",)
    mixes: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """One number per plane."""
        return len(self.planes)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """R2, errors, the errors of two networks that look at nothing, and of several planes, each one's R2."""
        own = self.planes if len(self.planes) > 1 else ()
        return R2, RMSE, MAE, ZERO, MEAN, *(Metric(f"R2 {name}", "", True) for name in own)

    def pose(self, images: Tensor, targets: Tensor, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Return images and targets as they are given."""
        return images, targets

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error over the numbers that count; 0 of none."""
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        counted = self.counted(target)
        # NaN times 0 is NaN: what does not count is taken out before it is squared.
        errors = torch.where(counted, wide - target, 0.0)
        return errors.square().sum() / counted.sum().clamp(min=1)

    def counted(self, target: Tensor) -> Tensor:
        """Return which numbers count, bool (N, planes, H, W)."""
        return ~target.isnan()

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Return five sums per plane, float64 (5 * planes,): values, squared and absolute errors, targets, squares."""
        target, output = to_float64(target), to_float64(output)
        counted = self.counted(target)
        truth = torch.where(counted, target, 0.0)
        errors = torch.where(counted, output - truth, 0.0)
        sums = (counted.double(), errors.square(), errors.abs(), truth, truth.square())
        return torch.stack([values.sum((0, 2, 3)) for values in sums]).flatten()

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return the metrics; R2 of a plane whose targets are all equal is NaN, and left out of the mean.

        Of outputs that are NaN in any plane, the mean is NaN, too.
        """
        count, squared, absolute, truth, truth_squared = sums.view(_SUMS, -1)
        # Without a value this is NaN.
        spread = truth_squared - truth.square() / count
        varies = spread > 1e-12 * truth_squared
        r2 = torch.where(varies, 1 - squared / spread, math.nan)
        if not bool(varies.any()):
            raise UserError(
                f"targets have {int(count.sum())} numbers that count, all equal, so R2 can't be told: give more images"
            )
        values = count.sum()
        means = (squared.sum(), truth_squared.sum(), spread.nansum())
        rmse, zero, mean = (float((total / values).clamp(min=0).sqrt()) for total in means)
        # A plane that does not vary has no R2 to show that its outputs are NaN.
        mean_r2 = math.nan if bool(squared.isnan().any()) else float(r2[varies].mean())
        found = (mean_r2, rmse, float(absolute.sum() / values), zero, mean, *r2.tolist())
        return {metric.name: value for metric, value in zip(self.metrics, found, strict=False)}
