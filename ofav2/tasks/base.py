"""Define the protocol of tasks and metrics, which training, evaluation, search and report use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ofav2.config.schema import DataConfig
from ofav2.errors import UserError
from ofav2.tasks.class_results import share_error

if TYPE_CHECKING:
    # Loading an extracted network needs this file, and must not need numpy.
    import numpy as np


@dataclass(frozen=True)
class Metric:
    """One number that says how good a network is."""

    name: str
    """Its name, such as `top-1`."""
    unit: str
    """Its unit as people read it: `%` for a share in 0..1, or empty."""
    higher_is_better: bool
    """Whether a larger value is better."""

    @property
    def title(self) -> str:
        """Its name at the start of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    def show(self, value: float | None, digits: int = 2) -> str:
        """Return a value as people read it, such as `98.31 %`; a dash for None, and for NaN.

        Args:
            value: The value; of unit `%`, a share in 0..1.
            digits: Decimals of a percentage, or significant digits beyond two of another value.
        """
        if value is None or math.isnan(value):
            return "–"
        if self.unit == "%":
            return f"{100 * value:.{digits}f} %"
        return f"{value:.{digits + 2}g} {self.unit}".rstrip()

    @property
    def counts_images(self) -> bool:
        """Whether it is a share of images, such as top-1; shares of pixels or areas have another standard error."""
        return self.unit == "%" and self.name.startswith("top-")

    def show_from(self, value: float | None, images: int, digits: int = 1) -> str:
        """Return a value with its standard error, such as `98.3 ± 0.2 %`, see `share_error`.

        Args:
            value: The value; only a share of images has such an error.
            images: How many images it was measured on.
            digits: As for `show`.
        """
        if value is None or math.isnan(value) or not self.counts_images or not images:
            return self.show(value, digits)
        return f"{100 * value:.{digits}f} ± {100 * share_error(value, images):.{digits}f} %"

    def grain(self, images: int, split: str) -> str | None:
        """Return a sentence on how much one image is where that is over 0.3 points; None where it is not.

        Args:
            images: How many images were measured on.
            split: What to call them.
        """
        if not self.counts_images or not images or 100 / images <= 0.3:
            return None
        return f"One of the {images:,} {split} images is {100 / images:.2g} points."

    @property
    def nearly(self) -> str:
        """How far from the best a value may be and still be near it (`is_near`), as people read it."""
        return "within a point" if self.unit == "%" else "within 1 %"

    def is_near(self, value: float, best: float) -> bool:
        """Say whether a value is at most a point worse than the best, or 1 % of it where it is no share."""
        return self.rank(value) >= self.rank(best) - (0.01 if self.unit == "%" else 0.01 * abs(best))

    def rank(self, value: float) -> float:
        """Return a number that is larger for a better value."""
        return value if self.higher_is_better else -value

    def best(self, *values: float) -> float:
        """Return the best of some values."""
        return max(values, key=self.rank)

    def worst(self, *values: float) -> float:
        """Return the worst of some values."""
        return min(values, key=self.rank)


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on its own device, or where that has no float64 (MPS), on the CPU."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def unless_nan(output: Tensor, sums: Tensor) -> Tensor:
    """Return a tally of outputs; all NaN if one of them is, as `argmax` would take NaN for a sure class."""
    return torch.where(output.isnan().any().to(sums.device), math.nan, sums)


class Task(Protocol):
    """What a network learns.

    A task is a frozen value. Its sums are added over images, batches and processes, so they must not depend on how
    images are batched.
    """

    @property
    def name(self) -> str:
        """Its name in recipes and records."""
        ...

    @property
    def outputs(self) -> int:
        """Outputs of every exit's head."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured, the main metric first."""
        ...

    @property
    def distances(self) -> tuple[str, ...]:
        """Names of the distances to a teacher (`distill.distances()`) that make sense."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether a target may be probabilities of classes (N, classes), which mixup and cutmix make."""
        ...

    @property
    def dense(self) -> bool:
        """Whether heads are dense: an output is (N, outputs, H, W), not (N, outputs)."""
        ...

    def pose(self, images: Tensor, targets: Tensor, rng: "np.random.Generator | None") -> tuple[Tensor, Tensor]:
        """Make a network's input and its target of a batch.

        Args:
            images: Normalised images (N, C, H, W), in training already cropped, flipped and recoloured.
            targets: What the data set says of them, (N, …).
            rng: Random numbers of a training step, for a task that hides or moves parts of its input; None in
                evaluation, where an image is always posed alike.
        """
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how wrong an exit's output (N, …) is: the mean over what counts, a scalar in float32 or wider."""
        ...

    def counted(self, target: Tensor) -> Tensor | None:
        """Return which values of a target count, bool, of its shape; None: all. A teacher is not asked about others."""
        ...

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        """Return sums over a batch, float64 (S,), from which the metrics are read; sums of batches are added.

        Of outputs that are NaN, sums of the main metric must be NaN, too (`unless_nan`).
        """
        ...

    def read(self, sums: Tensor) -> Mapping[str, float]:
        """Return the metrics by name of added sums (S,), the main one first.

        Any but the main one may be NaN: that of a class, for example, of which there is nothing. The main one is NaN if
        outputs were.

        Raises:
            UserError: If the main metric can't be told from so little; the message says what is missing.
        """
        ...


def log_weights(shares: Sequence[float]) -> tuple[float, ...]:
    """Return weights of classes in the loss that grow with rarity: in proportion to 1 / ln(1.02 + share).

    Over the training targets they are 1 on average, so a loss keeps its size.

    Args:
        shares: Each class's share of the training targets, in 0..1.

    Source: Paszke et al., ENet, 2016, section 5.
    """
    weights = [1 / math.log(1.02 + share) for share in shares]
    mean = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    return tuple(weight / mean for weight in weights)


def refuse_mixing(task: Task, config: DataConfig) -> None:
    """Refuse mixup, cutmix and balanced classes for a task without classes.

    Raises:
        UserError: If a recipe mixes images or balances classes, and the task has none.
    """
    if config.balance == "classes" and not task.mixes:
        raise UserError(f"data.balance (classes) needs classes, which task {task.name} has none of: set it to none")
    for key, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)):
        if alpha and not task.mixes:
            raise UserError(f"data.{key} ({alpha:g}) mixes classes, which task {task.name} has none of: set it to 0")
