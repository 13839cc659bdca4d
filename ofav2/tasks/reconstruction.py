"""Reconstruct hidden parts of images, to learn from images without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ofav2.tasks.base import Metric
from ofav2.tasks.regression import Regression

NAME = "reconstruct"
HIDDEN = 0.5
"""Side of the hidden square, as a share of the image's."""


@dataclass(frozen=True)
class Reconstruction:
    """Tell what a hidden square of an image shows, and beside it planes that the data set may bring.

    In training each image's square lies elsewhere; in evaluation it is in the middle. Bands count inside the square
    alone, where the image has data; planes count everywhere that they are numbers.
    """

    bands: tuple[str, ...]
    """Names of the images' bands."""
    planes: tuple[str, ...] = ()
    """Names of the target's planes, such as elevation."""

    name: ClassVar[str] = NAME
    distances: ClassVar[tuple[str, ...]] = Regression.distances
    mixes: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    @property
    def numbers(self) -> Regression:
        """The task on what is hidden."""
        return Regression((*self.bands, *self.planes))

    @property
    def outputs(self) -> int:
        """One number per band and per plane."""
        return self.numbers.outputs

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of a regression, of normalised bands."""
        return self.numbers.metrics

    def pose(self, images: Tensor, targets: Tensor, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Hide a square of each image, by its mean; return the image, and what was hidden with the planes."""
        hidden = _squares(images, rng)
        # A pixel without data is 0 in every band, which no other pixel is.
        counted = hidden & (images != 0).any(1, keepdim=True)
        target = torch.where(counted, images, torch.nan)
        if self.planes:
            target = torch.cat([target, targets.to(target.dtype)], 1)
        return torch.where(hidden, 0.0, images), target

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error over what counts."""
        return self.numbers.loss(output, target)

    def counted(self, target: Tensor) -> Tensor:
        """Return which numbers count, bool (N, bands and planes, H, W)."""
        return self.numbers.counted(target)

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sums of a regression."""
        return self.numbers.tally(output, target)

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return the metrics of a regression."""
        return self.numbers.read(sums)


def _squares(images: Tensor, rng: np.random.Generator | None) -> Tensor:
    """Return the hidden pixels of each image, bool (N, 1, H, W)."""
    count, sizes = len(images), np.array(images.shape[-2:])
    sides = np.maximum(1, np.round(HIDDEN * sizes).astype(np.int64))
    free = sizes - sides
    starts = np.tile(free // 2, (count, 1)) if rng is None else rng.integers(0, free + 1, (count, 2))
    rows, columns = (
        (np.arange(size) >= start[:, None]) & (np.arange(size) < start[:, None] + side)
        for size, start, side in zip(sizes, starts.T, sides, strict=True)
    )
    return torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
