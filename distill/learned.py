"""Learn the weights of exits' ensembles on outputs that no exit was trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import DistillError

TOLERANCE = 1e-9
"""Largest part of the gradient that may be left, in nats per unit of weight."""
_STEPS = 100
"""Newton steps, of which three to eight are taken."""


def learned_weights(logits: Tensor, targets: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
    """Return the ensemble weights of least cross-entropy, for several choices of exits.

    The cross-entropy of softmax(sum of w_i * logits_i) is convex in the weights; weights may not be negative. A normal
    prior around the mean of all exits, with unit variance, is added, as much as one image counts: it decides where
    images can't, such as when all are classified rightly by any multiple of the weights. So there is one minimum, and
    the same weights come out each time.

    Args:
        logits: Every exit's logits, (exits, N, classes).
        targets: The right classes, int64 (N,).
        choices: Which exits, from 0, ascending; weights are learned for each choice.

    Returns:
        (choices, exits), float64; 0 for exits that are not in the choice, or that it is better without. Their sum is
        free: softmax of the weighted sum is calibrated.

    Raises:
        DistillError: If there are no images, or a logit is not finite.
    """
    exits, images, _ = logits.shape
    if not images or not bool(torch.isfinite(logits).all()):
        raise DistillError(f"logits ({images} images) must be finite, and of one image or more, to learn weights from")
    # The loss depends on differences to the right class's logit alone.
    own = logits.gather(2, targets.expand(exits, -1)[:, :, None])
    margins = (logits.double() - own.double()).contiguous()
    solved: dict[int, Tensor] = {}
    for choice in sorted(map(_bits, choices), key=lambda bits: (-bits.bit_count(), bits)):
        solved.setdefault(choice, _solved(margins, choice, solved))
    return torch.stack([solved[_bits(choice)] for choice in choices])


def _bits(choice: Sequence[int]) -> int:
    return sum(1 << exit_ for exit_ in set(choice))


class _Point(NamedTuple):
    """The loss at some weights."""

    value: float
    gradient: Tensor
    hessian: Tensor


def _solved(margins: Tensor, choice: int, solved: dict[int, Tensor]) -> Tensor:
    """Return the weights of a choice; a larger one that leaves out the same exits by itself has them already."""
    exits = len(margins)
    supersets = (choice | 1 << exit_ for exit_ in range(exits) if not choice >> exit_ & 1)
    larger = [solved[bits] for bits in supersets if bits in solved]
    for weights in larger:
        if not any(weights[exit_] for exit_ in range(exits) if not choice >> exit_ & 1):
            return weights
    chosen = torch.tensor([exit_ for exit_ in range(exits) if choice >> exit_ & 1])
    start = larger[0][chosen] if larger else torch.full((len(chosen),), 1 / exits, dtype=torch.float64)
    found = torch.zeros(exits, dtype=torch.float64)
    found[chosen] = _minimised(margins[chosen], start, 1 / exits)
    return found


def _minimised(margins: Tensor, weights: Tensor, centre: float) -> Tensor:
    """Minimise by projected Newton steps (Bertsekas, SIAM J. Control and Optimization 20, 1982)."""
    point = _loss(margins, weights, centre)
    for _ in range(_STEPS):
        before = weights
        if float((weights - (weights - point.gradient).clamp(min=0)).abs().max()) <= TOLERANCE:
            return weights
        held = (weights <= 0) & (point.gradient > 0)
        direction = torch.zeros_like(weights)
        free = (~held).nonzero().squeeze(1)
        direction[free] = -torch.linalg.solve(point.hessian[free][:, free], point.gradient[free])
        weights, point = _stepped(margins, weights, point, direction, centre)
        if torch.equal(weights, before):
            # As far as numbers of this precision go.
            return weights
    raise AssertionError("a strictly convex loss has its minimum found")


def _stepped(
    margins: Tensor, weights: Tensor, point: _Point, direction: Tensor, centre: float
) -> tuple[Tensor, _Point]:
    """Go as far along the direction as the loss falls by a part of what its slope promises (Armijo's rule)."""
    # Near the minimum the loss changes by less than its rounding, which is that of the weighted sums in it.
    rounding = 1e-15 * float(margins.abs().max() * weights.sum()) + 1e-14 * abs(point.value)
    length = 1.0
    while True:
        new = (weights + length * direction).clamp(min=0)
        found = _loss(margins, new, centre)
        promised = float(point.gradient @ (weights - new))
        if found.value <= point.value - 1e-4 * promised + rounding or length < 1e-9:
            return new, found
        length /= 2


def _loss(margins: Tensor, weights: Tensor, centre: float) -> _Point:
    """Return the loss with its derivatives.

    Args:
        margins: Each exit's logits less that of the right class, (exits, N, classes), float64.
        weights: (exits,).
        centre: The prior's mean.
    """
    exits, images, classes = margins.shape
    flat = margins.view(exits, -1)
    total = (weights @ flat).view(images, classes)
    likelihood = total.logsumexp(1)
    weighted = flat * (total - likelihood[:, None]).exp_().view(-1)
    means = weighted.view(margins.shape).sum(2)
    prior = weights - centre
    hessian = (weighted @ flat.T - means @ means.T + torch.eye(exits, dtype=weights.dtype)) / images
    gradient = (means.sum(1) + prior) / images
    return _Point(float(likelihood.sum() + prior @ prior / 2) / images, gradient, hessian)
