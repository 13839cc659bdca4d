"""Run early exits: images that an exit is confident of skip the later stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from numbers import Real

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ofav2.errors import UserError
from ofav2.messages import show
from ofav2.tasks.classification import confidence_of, confidences, predict
from supernets.graphs import split

NEVER = 2.0
"""A threshold that no confidence reaches."""


@dataclass(frozen=True)
class Prediction:
    """A network's prediction of N images, and the exit of each."""

    classes: Tensor
    """The most likely class of each image, int64 (N,)."""
    logits: Tensor
    """The logits that it was read off, (N, classes): of the image's exit, or of the ensemble up to there."""
    exits: Tensor
    """The exit of each image, by index from 1, int64 (N,)."""


@dataclass(frozen=True)
class ExitPolicy:
    """When an image exits: as soon as an exit's confidence is at least the threshold.

    Raises:
        UserError: If a threshold is no number of at least 0, or there is no such confidence.
    """

    threshold: float | tuple[float, ...]
    """For all exits, or one for each but the last: 0 lets every image exit there, anything over 1 none."""
    confidence: str = "max_softmax"
    """How confidence is measured, one of `confidences()`."""
    ensemble: bool = False
    """Whether an exit averages the logits of all exits up to it, see `EarlyExits`."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.confidence, str) or self.confidence not in confidences():
            raise UserError(f"confidence ({show(str(self.confidence))}) is unknown: use {', '.join(confidences())}")
        if not isinstance(self.ensemble, bool):
            raise UserError(f"ensemble ({show(str(self.ensemble))}) must be true or false")
        for value in self.threshold if isinstance(self.threshold, tuple) else (self.threshold,):
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise UserError(f"threshold ({show(str(value))}) must be 0 (all exit) or more; over 1, none exits")

    def per_exit(self, exits: int) -> tuple[float, ...]:
        """Return the thresholds of a network's exits but the last, at which all images exit.

        Raises:
            UserError: If there are more or fewer.
        """
        if not isinstance(self.threshold, tuple):
            return (self.threshold,) * (exits - 1)
        if len(self.threshold) != exits - 1:
            raise UserError(
                f"thresholds ({len(self.threshold)}) must be one for each exit but the last, {exits - 1} here:"
                " at the last exit all images exit"
            )
        return self.threshold


class EarlyExits(nn.Module):
    """A network whose images exit at the first exit that is confident of them.

    Called like a module it returns the logits of all exits; `predict` lets images exit early.

    With `ensemble`, exit k returns the weighted mean of the logits of exits 1 … k.

    Args:
        parts: One part per exit, as `split` makes them.
        exits: The exits' indices, ascending.
        weights: Weights of the exits in the ensemble, the first one over 0; None weighs exit i with i (AEP's ascending
            weights, which OFAv2's ENS-KD uses as well; of exits 1 … k they are the ascending weights of k exits).
    """

    def __init__(
        self, parts: Sequence[nn.Module], exits: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.exits = tuple(exits)
        # Of exits 2 and 4, exit 4 counts twice as much, as it does among all exits that were trained.
        shares = [Fraction(number, sum(self.exits)) for number in self.exits]
        if weights is not None:
            shares = list(map(Fraction, weights))
        self._shares = tuple(map(float, shares))
        self._sums = tuple(map(float, accumulate(shares)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every exit, (N, classes) each; no image exits early."""
        values: Sequence[Tensor] = (images,)
        outputs = []
        for part in self.parts:
            logits, *values = part(*values)
            outputs.append(logits)
        return tuple(outputs)

    def exit_outputs(self, outputs: Sequence[Tensor], ensemble: bool) -> tuple[Tensor, ...]:
        """Return each exit's logits, its own or the ensemble's up to there; (N, classes) each.

        Args:
            outputs: The logits of every exit, as a call gives them.
            ensemble: Whether an exit averages the logits of all exits up to it.
        """
        total: Tensor | None = None
        exit_outputs = []
        for position, logits in enumerate(outputs):
            own, total = self._exit_output(position, logits, total, ensemble)
            exit_outputs.append(own)
        return tuple(exit_outputs)

    def predict(
        self,
        images: Tensor,
        threshold: float | Sequence[float],
        *,
        confidence: str = "max_softmax",
        ensemble: bool = False,
    ) -> Prediction:
        """Classify images; each exits at the first exit whose confidence is at least its threshold.

        Args:
            images: (N, C, H, W), normalised.
            threshold: For all exits, or one for each but the last; 0 lets every image exit at the first one, anything
                over 1 none before the last.
            confidence: One of `confidences()`.
            ensemble: Whether an exit averages the logits of all exits up to it.

        Raises:
            UserError: If a value can't be, the network is in training mode, or a value that one part of it hands to the
                next has no row per image.
        """
        given = tuple(threshold) if isinstance(threshold, Sequence) else threshold
        return self.decide(images, ExitPolicy(given, confidence, ensemble))

    def decide(self, images: Tensor, policy: ExitPolicy) -> Prediction:
        """Classify images by an exit policy, such as one that `ofav2 calibrate` has calibrated; see `predict`."""
        if self.training:
            raise UserError("network is in training mode, where images change each other's logits: call .eval() first")
        thresholds = policy.per_exit(len(self.exits))
        exited: list[tuple[Tensor | None, Tensor, int]] = []
        values: Sequence[Tensor] = (images,)
        rows: Tensor | None = None
        total: Tensor | None = None
        with torch.inference_mode():
            for position, (number, part) in enumerate(zip(self.exits, self.parts, strict=True)):
                logits, *values = part(*values)
                own, total = self._exit_output(position, logits, total, policy.ensemble)
                if position == len(thresholds):
                    exited.append((rows, own, number))
                    break
                sure = confidence_of(policy.confidence, own) >= thresholds[position]
                exiting = int(sure.count_nonzero())
                if exiting == len(own):
                    exited.append((rows, own, number))
                    break
                if exiting:
                    rows = torch.arange(len(own), device=own.device) if rows is None else rows
                    exited.append((rows[sure], own[sure], number))
                    stay = (~sure).nonzero().squeeze(1)
                    rows, values = rows[stay], [_kept(value, stay, len(own)) for value in values]
                    total = total if total is None else total[stay]
            return _gathered(exited)

    def _exit_output(
        self, position: int, logits: Tensor, total: Tensor | None, ensemble: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return an exit's logits, and the weighted sum of the logits so far."""
        # Half precision has too few digits to tell sure from surer.
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if not ensemble:
            return wide, None
        own = wide * self._shares[position]
        total = own if total is None else total + own
        return total / self._sums[position], total


def early_exits(
    module: GraphModule, exits: Sequence[int] | None = None, weights: Sequence[float] | None = None
) -> EarlyExits:
    """Make a network whose images can exit early, from one with several outputs; weights are shared.

    Args:
        module: Images (N, C, H, W) -> a tuple of logits (N, classes), the earliest exit first: what `load_subnet` gives
            for several exits, or any other `torch.fx` graph.
        exits: The exits' indices, ascending, from 1 up; None counts them from 1.
        weights: Weights of the exits in the ensemble, as for `EarlyExits`.

    Returns:
        The network, in training or evaluation mode as `module` is. A call returns the logits of all exits; `predict`
        and `decide` let images exit early.

    Raises:
        UserError: If it has only one exit, or exits or weights don't fit it.
        GraphError: If it can't be split (see `split`).
    """
    parts = split(module)
    indices = tuple(range(1, len(parts) + 1)) if exits is None else tuple(exits)
    if len(parts) < 2:
        raise UserError("network has one exit, so images can't exit early: extract it with --exits all")
    if len(indices) != len(parts):
        raise UserError(f"exits ({show(list(indices))}) must be one number per output of the network, {len(parts)}")
    if indices[0] < 1 or any(second <= first for first, second in pairwise(indices)):
        raise UserError(f"exits ({show(list(indices))}) must be ascending whole numbers from 1 up: give them in order")
    if weights is not None and (len(weights) != len(parts) or min(weights) < 0 or weights[0] == 0):
        raise UserError(
            f"weights ({show(list(weights))}) must be one number of at least 0 per exit, {len(parts)}, the first over 0"
        )
    return EarlyExits(parts, indices, weights).train(module.training)


def _gathered(exited: Sequence[tuple[Tensor | None, Tensor, int]]) -> Prediction:
    """Return the outputs of all groups of images, in the order in which the images came."""
    if len(exited) == 1:
        ((_, logits, number),) = exited
        exits = torch.full((len(logits),), number, device=logits.device)
    else:
        back = torch.cat([rows for rows, _, _ in exited if rows is not None]).argsort()
        logits = torch.cat([own for _, own, _ in exited])[back]
        exits = torch.cat([rows.new_full((len(rows),), number) for rows, _, number in exited if rows is not None])[back]
    return Prediction(predict(logits), logits, exits)


def _kept(value: Tensor, stay: Tensor, count: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
        raise UserError(
            "network hands a value without a row per image from one exit to the next, so images can't exit: compute it"
            " anew after each exit"
        )
    return value[stay]
