"""Classify images: one class per image."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ofav2.errors import UserError
from ofav2.tasks.base import Metric, to_float64, unless_nan

NAME = "classification"
TOP1 = Metric("top-1", "%", higher_is_better=True)
"""Share of images whose most likely class is the right one."""


@dataclass(frozen=True)
class Classification:
    """Tell which class an image belongs to.

    Targets are classes, int64 (N,), or in training, where images are mixed, probabilities of classes (N, classes).
    """

    classes: int
    """How many classes there are."""
    label_smoothing: float = 0.0
    """Share of the label's probability spread over all classes in training; 0 turns it off."""
    weights: tuple[float, ...] | None = None
    """How much each class's images weigh in the loss, 1 on average over training; None: all alike."""

    name: ClassVar[str] = NAME
    metrics: ClassVar[tuple[Metric, ...]] = (TOP1,)
    distances: ClassVar[tuple[str, ...]] = ("cross_entropy", "mse")
    mixes: ClassVar[bool] = True
    dense: ClassVar[bool] = False

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return self.classes

    def pose(self, images: Tensor, targets: Tensor, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Return images and targets as they are given."""
        return images, targets

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of logits (N, classes) with the labels, smoothed, in nats."""
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        target = target.to(wide.dtype) if target.is_floating_point() else target
        if self.weights is None:
            return functional.cross_entropy(wide, target, label_smoothing=self.label_smoothing)
        # A mean over images, not over their weights, so that it does not depend on how images are batched.
        weights = wide.new_tensor(self.weights)
        total = functional.cross_entropy(wide, target, weights, label_smoothing=self.label_smoothing, reduction="sum")
        return total / len(wide)

    def counted(self, target: Tensor) -> Tensor | None:
        """Return None: all targets count."""
        return None

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how many images are classified rightly, and how many there are: float64 (2,)."""
        right = (predict(output) == target).sum()
        return unless_nan(output, to_float64(torch.stack([right, right.new_tensor(len(target))])))

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return top-1, a share in 0..1."""
        right, images = sums.tolist()
        return {TOP1.name: right / images}


def predict(logits: Tensor) -> Tensor:
    """Return the most likely class of each image, int64 (N,), from logits (N, classes)."""
    return logits.argmax(1)


def ranks(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Return the rank of each image's right class, (N,): 0 where it is the most likely one.

    Top-1 is the share of ranks under 1, top-5 that of ranks under 5. Of equal logits the lower class comes first, as in
    `predict`.

    Args:
        logits: (classes, N), without NaN. Images come last, which counts many times faster.
        targets: The right classes, (N,).
    """
    classes, images = logits.shape
    own = logits[targets, np.arange(images)]
    found = np.add.reduce((logits > own).view(np.uint8), axis=0, dtype=np.uint16)
    equal = logits == own
    if np.count_nonzero(equal) > images:
        found += (equal & (np.arange(classes)[:, None] < targets)).sum(0, dtype=np.uint16)
    return found


def confidences() -> tuple[str, ...]:
    """Return the names of the confidences; all are from 0 to 1, and higher is surer.

    `max_softmax` is the probability of the most likely class, `margin` its distance to that of the second, `entropy`
    one minus the entropy of the probabilities as a share of the largest possible one.
    """
    return tuple(_CONFIDENCES)


def confidence_of(name: str, logits: Tensor) -> Tensor:
    """Return how confident logits are.

    Args:
        name: One of `confidences()`.
        logits: (N, classes), two classes or more.

    Returns:
        (N,), from 0 to 1; NaN, which reaches no threshold, where a logit is NaN or plus infinity.

    Raises:
        UserError: If there is only one class.
    """
    if logits.shape[1] < 2:
        raise UserError("network has one class, so no confidence can be measured: early exits need two or more")
    return _CONFIDENCES[name](logits.softmax(1))


def _max_softmax(probabilities: Tensor) -> Tensor:
    return probabilities.amax(1)


def _margin(probabilities: Tensor) -> Tensor:
    first, second = probabilities.topk(2, 1).values.unbind(1)
    return first - second


def _entropy(probabilities: Tensor) -> Tensor:
    share = torch.special.entr(probabilities).sum(1) / math.log(probabilities.shape[1])
    return (1 - share).clamp(0, 1)


_CONFIDENCES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"max_softmax": _max_softmax, "entropy": _entropy, "margin": _margin}
)
