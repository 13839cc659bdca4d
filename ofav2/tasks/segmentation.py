"""Segment images: one class per pixel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ofav2.data.patches import IGNORED
from ofav2.errors import UserError
from ofav2.tasks.base import Metric, to_float64, unless_nan

NAME = "segment"
MEAN_IOU = Metric("mIoU", "%", higher_is_better=True)
"""Mean of the classes' IoU: of a class's pixels and those taken for it, the share that are both."""
ACCURACY = Metric("pixel accuracy", "%", higher_is_better=True)
"""Share of pixels whose most likely class is the right one."""
ABSENT = Metric("absent classes", "", higher_is_better=False)
"""Classes that no pixel has; the mean leaves those out that no pixel is taken for, either."""


@dataclass(frozen=True)
class Segmentation:
    """Tell which class each pixel belongs to. Targets are classes, int64 (N, H, W)."""

    classes: tuple[str, ...]
    """Names of the classes."""
    label_smoothing: float = 0.0
    """Share of the right class's probability spread over all classes in training; 0 turns it off."""
    weights: tuple[float, ...] | None = None
    """How much each class's pixels weigh in the loss, 1 on average over training; None: all alike."""

    name: ClassVar[str] = NAME
    distances: ClassVar[tuple[str, ...]] = ("cross_entropy", "mse")
    mixes: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return len(self.classes)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean IoU, pixel accuracy, the number of absent classes, and each class's IoU."""
        return MEAN_IOU, ACCURACY, ABSENT, *(Metric(f"IoU {name}", "%", True) for name in self.classes)

    def pose(self, images: Tensor, targets: Tensor, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Return images and targets as they are given."""
        return images, targets

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of logits (N, classes, H, W) over the pixels that count; 0 of none."""
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        weights = None if self.weights is None else wide.new_tensor(self.weights)
        total = functional.cross_entropy(
            wide, target, weights, ignore_index=IGNORED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / self.counted(target).sum().clamp(min=1)

    def counted(self, target: Tensor) -> Tensor:
        """Return which pixels count, bool (N, H, W)."""
        return target != IGNORED

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Count pixels of class i that are taken for class j, at i * classes + j: float64 (classes * classes,)."""
        counted = self.counted(target)
        pairs = target[counted] * self.outputs + output.argmax(1)[counted]
        return unless_nan(output, to_float64(torch.bincount(pairs, minlength=self.outputs**2)))

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return the metrics; the IoU of a class that no pixel has or is taken for is NaN."""
        confusion = sums.view(self.outputs, self.outputs)
        right, rows = confusion.diagonal(), confusion.sum(1)
        if not confusion.any():
            raise UserError("targets have no pixel that counts, so nothing can be measured: give images with targets")
        # Of a class without a pixel this is 0 / 0.
        iou = right / (rows + confusion.sum(0) - right)
        values = (iou.nanmean(), right.sum() / confusion.sum(), (rows == 0).sum(), *iou)
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}
