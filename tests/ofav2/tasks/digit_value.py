"""A second task, as another package would bring it: read a digit's value off its image, by regression."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ofav2.config.schema import OptimConfig
from ofav2.data import ImageData
from ofav2.tasks.base import Metric

MAE = Metric("MAE", "digits", higher_is_better=False)
"""Mean absolute error."""

NEAR = Metric("within a half", "%", higher_is_better=True)
"""Share of digits whose value is off by less than a half."""


@dataclass(frozen=True)
class DigitValue:
    """Tell how much a digit is worth, with a head of one output."""

    name: str = "digit_value"
    outputs: int = 1
    metrics: tuple[Metric, ...] = (MAE, NEAR)
    distances: tuple[str, ...] = ("mse",)
    mixes: bool = False
    dense: bool = False

    def pose(self, images: Tensor, targets: Tensor, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the images, and values (N, 1) for labels (N,)."""
        return images, targets.to(images.dtype).unsqueeze(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(output.float(), target.float())

    def counted(self, target: Tensor) -> Tensor | None:
        """Return None: all values count."""
        return None

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of absolute errors, how many are below a half, and how many values there are."""
        errors = (output.double() - target.double()).abs()
        return torch.stack([errors.sum(), (errors < 0.5).double().sum(), errors.new_tensor(target.numel())])

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return the mean absolute error, and the share of values that are near."""
        error, near, values = sums.tolist()
        return {MAE.name: error / values, NEAR.name: near / values}


def make(data: ImageData, optim: OptimConfig) -> DigitValue:
    """Make the task; the data set's labels are the values."""
    return DigitValue()
