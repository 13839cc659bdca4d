"""Compute losses on exits' outputs: their ensemble, the teacher's target, the joint loss and the student's loss.

All of them compute in float32 (float64 stays float64) whatever precision the logits come in, and average over the
batch, so that they may be called inside or outside of autocast with the same result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from distill.errors import DistillError, near, shown


@dataclass(frozen=True)
class Target:
    """What a teacher says about a batch: computed once per step, compared with every student of the step.

    It carries the logits and their softmax, so it serves every distance; no gradient flows into either.
    """

    logits: Tensor
    """The teacher's weighted logits, (N, classes) or (N, classes, H, W), float32 or wider."""
    probabilities: Tensor
    """Their softmax over dimension 1, of the same shape."""
    counted: Tensor | None = None
    """Which pixels (N, H, W), or values (N, classes, H, W), distances are averaged over; None: all."""

    def at(self, counted: Tensor | None) -> "Target":
        """Return the same where only some pixels or values count."""
        return self if counted is None else replace(self, counted=counted)


Distance: TypeAlias = Callable[[Tensor, Target], Tensor]


def ensemble(logits: Sequence[Tensor], weights: Sequence[Fraction | float]) -> Tensor:
    """Return the exits' ensemble, the sum of b_i * logits_i (AEP; OFAv2, ENS-KD).

    Args:
        logits: One tensor (N, classes), or (N, classes, H, W), per exit, first exit first.
        weights: One weight b_i per exit, as in `ExitWeights.ensemble`; an exit of weight 0 is not touched.

    Returns:
        Weighted logits, of the same shape, float32 or wider.

    Raises:
        DistillError: Logits and weights differ in number, the logits differ in shape, or all weights are 0.
    """
    weighted = _weighted_exits(logits, weights)
    return reduce(torch.add, (weight * _wide(exit_logits) for _, weight, exit_logits in weighted))


def teacher_target(logits: Sequence[Tensor], weights: Sequence[Fraction | float]) -> Target:
    """Return what a teacher with these exits says, ready to be compared with any number of students.

    Args:
        logits: One tensor (N, classes) per exit of the teacher; a single-exit or external teacher gives one.
        weights: One weight b_i per exit; `(1,)` for a single exit, which makes it plain distillation.

    Raises:
        DistillError: As `ensemble`.
    """
    weighted = ensemble(logits, weights).detach()
    return Target(logits=weighted, probabilities=weighted.softmax(dim=1))


def ens_kd_target(logits: Sequence[Tensor], weights: Sequence[Fraction | float]) -> Tensor:
    """Return the target of ENS-KD, softmax(sum of b_i * logits_i), without gradient (OFAv2, ENS-KD).

    It is `teacher_target(logits, weights).probabilities`; a training step wants the whole `Target`.

    Args:
        logits: One tensor (N, classes) per exit of the teacher.
        weights: One weight b_i per exit.

    Returns:
        Probabilities, (N, classes), float32 or wider.

    Raises:
        DistillError: As `ensemble`.
    """
    return teacher_target(logits, weights).probabilities


def soft_cross_entropy(student_logits: Tensor, target: Target) -> Tensor:
    """Return the cross-entropy of the student with the teacher's probabilities, a scalar (OFA; OFAv2, ENS-KD).

    Args:
        student_logits: Student's logits, (N, classes) or (N, classes, H, W).
        target: What the teacher says about the same batch.

    Returns:
        Mean over the batch and, of maps, the pixels that count, in nats.

    Raises:
        DistillError: Student and teacher differ in shape.
    """
    _check_same_shape(student_logits, target)
    log_probabilities = _wide(student_logits).log_softmax(dim=1)
    nats = (target.probabilities * log_probabilities).sum(dim=1)
    counted = target.counted
    if counted is not None and counted.ndim != nats.ndim:
        raise DistillError(
            "counted pixels (a value per class) must be one per pixel: cross-entropy is over all classes"
        )
    return -_mean(nats, counted)


def mse(student_logits: Tensor, target: Target) -> Tensor:
    """Return the mean squared difference of the student's logits and the teacher's weighted logits, a scalar (OFA).

    Args:
        student_logits: Student's logits, (N, classes) or (N, classes, H, W).
        target: What the teacher says about the same batch.

    Returns:
        Mean over the batch, the classes and, of maps, the pixels that count.

    Raises:
        DistillError: Student and teacher differ in shape.
    """
    _check_same_shape(student_logits, target)
    if target.counted is None:
        return functional.mse_loss(_wide(student_logits), target.logits)
    squares = (_wide(student_logits) - target.logits).square()
    counted = target.counted if target.counted.ndim == squares.ndim else target.counted.unsqueeze(1)
    return _mean(squares, counted.expand_as(squares))


def distances() -> tuple[str, ...]:
    """Return the names of the distances that `distance` finds."""
    return ("cross_entropy", "mse")


def distance(name: str) -> Distance:
    """Return the distance of that name, a function (student logits, target) -> scalar.

    Raises:
        DistillError: There is no distance of that name.
    """
    match name:
        case "cross_entropy":
            return soft_cross_entropy
        case "mse":
            return mse
    raise DistillError(
        f"distance ({shown(name)}) is unknown{near(str(name), distances())}; use {' or '.join(distances())}"
    )


def joint_loss(
    outputs: Sequence[Tensor], loss: Callable[[Tensor], Tensor], weights: Sequence[Fraction | float]
) -> dict[str, Tensor]:
    """Return the joint loss of all exits, the sum of a_i * loss_i (AEP; OFAv2, full phase), and its parts.

    Args:
        outputs: One tensor (N, classes), or (N, C, H, W), per exit, first exit first.
        loss: How wrong an exit's output is: a scalar in float32 or wider, such as the cross-entropy with the labels.
        weights: One weight a_i per exit, as in `ExitWeights.losses`; an exit of weight 0 is left out.

    Returns:
        `loss`, the scalar to differentiate, and `exit_1`, `exit_2`, ...: the unweighted loss of each exit that is kept,
        detached.

    Raises:
        DistillError: As `ensemble`.
    """
    weighted = _weighted_exits(outputs, weights)
    losses = {number: loss(output) for number, _, output in weighted}
    total = reduce(torch.add, (weight * losses[number] for number, weight, _ in weighted))
    return {"loss": total} | {f"exit_{number}": value.detach() for number, value in losses.items()}


def student_loss(
    output: Tensor, task_loss: Tensor, *, target: Target | None, distance: Distance, kd_ratio: float
) -> dict[str, Tensor]:
    """Return a student's loss, kd_ratio * distance + task loss, and its parts (OFAv2, ENS-KD).

    Args:
        output: Student's output, (N, classes) or (N, C, H, W).
        task_loss: How wrong that output is beside the labels, a scalar in float32 or wider.
        target: What the teacher says about the same batch; None trains on the task loss alone.
        distance: How far a student is from a target: `soft_cross_entropy`, `mse` or any function like them.
        kd_ratio: Weight of the distance; at 0 it is not computed.

    Returns:
        `loss`, the scalar to differentiate; `task_loss`, and `kd`, the unweighted distance (0 where it was not
        computed), both detached.

    Raises:
        DistillError: If kd_ratio is negative or not finite, or student and teacher differ in shape.
    """
    if not (math.isfinite(kd_ratio) and kd_ratio >= 0):
        raise DistillError(f"kd_ratio ({shown(kd_ratio)}) must be 0 or more and finite; 0 turns distillation off")
    if target is None or kd_ratio == 0:
        return {"loss": task_loss, "task_loss": task_loss.detach(), "kd": torch.zeros_like(task_loss)}
    kd = distance(output, target)
    return {"loss": kd_ratio * kd + task_loss, "task_loss": task_loss.detach(), "kd": kd.detach()}


def students_loss(
    outputs: Mapping[int, Tensor],
    loss: Callable[[Tensor], Tensor],
    weights: Mapping[int, Fraction | float],
    *,
    target: Target | None,
    distance: Distance,
    kd_ratio: float,
) -> dict[str, Tensor]:
    """Return the loss of all exits of a sub-network as students, the sum of a_i * student_loss_i, and its parts.

    Args:
        outputs: Exit -> its output, (N, classes) or (N, C, H, W).
        loss: How wrong an exit's output is beside the labels: a scalar in float32 or wider.
        weights: The same exits -> weight a_i.
        target: As `student_loss`; None is the joint loss of these exits.
        distance: As `student_loss`.
        kd_ratio: As `student_loss`.

    Returns:
        `loss`, the scalar to differentiate; `task_loss` and `kd`, weighted sums; `exit_I`, the unweighted task loss of
        exit I. All but the first are detached.

    Raises:
        DistillError: As `student_loss`.
    """
    each = {
        exit_: student_loss(output, loss(output), target=target, distance=distance, kd_ratio=kd_ratio)
        for exit_, output in outputs.items()
    }
    sums = {
        name: reduce(torch.add, (float(weights[exit_]) * parts[name] for exit_, parts in each.items()))
        for name in ("loss", "task_loss", "kd")
    }
    return sums | {f"exit_{exit_}": parts["task_loss"] for exit_, parts in each.items()}


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean of those values that count; 0 where none does."""
    if counted is None:
        return values.mean()
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _weighted_exits(
    logits: Sequence[Tensor], weights: Sequence[Fraction | float]
) -> tuple[tuple[int, float, Tensor], ...]:
    """Return (number, weight, logits) of each exit whose weight is not 0; exits are numbered from 1."""
    if len(logits) != len(weights):
        raise DistillError(
            f"exits ({len(logits)} tensors of logits) must be as many as weights ({len(weights)}); "
            f"ask exit_weights for {len(logits)}"
        )
    weighted = tuple(
        (number, float(weight), exit_logits)
        for number, (weight, exit_logits) in enumerate(zip(weights, logits, strict=True), start=1)
        if weight != 0
    )
    if not weighted:
        raise DistillError(f"weights ({shown(list(map(float, weights)))}) leave no exit; give one exit a weight over 0")
    shapes = [tuple(exit_logits.shape) for _, _, exit_logits in weighted]
    if len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise DistillError(
            f"logits (shapes {shapes}) must all be (N, classes), or all (N, C, H, W); give every exit the same head"
        )
    return weighted


def _check_same_shape(student_logits: Tensor, target: Target) -> None:
    if student_logits.shape != target.logits.shape:
        raise DistillError(
            f"student logits (shape {tuple(student_logits.shape)}) must have the teacher's shape "
            f"{tuple(target.logits.shape)}; give both the same batch and a teacher of the same classes"
        )
