"""Compare the logits of two forms of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ofav2.errors import RunError

COMPARED = 16
"""Real images on which two forms of a network are compared, at most."""
TOLERANCE = 1e-4
"""Largest difference that the order of additions may make, as a share of the largest logit."""


def largest_gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of logits, as a share of the largest expected logit.

    Args:
        found: Logits (N, classes), one tensor per exit.
        expected: The logits that they are compared with, likewise.

    Returns:
        The largest over all exits; infinite where an exit is missing, has another shape, or is not finite.
    """
    if [one.shape for one in found] != [one.shape for one in expected]:
        return float("inf")
    return max(_gap(one, other) for one, other in zip(found, expected, strict=True))


def _gap(found: Tensor, expected: Tensor) -> float:
    difference = (found.cpu().double() - expected.cpu().double()).abs().max()
    if not torch.isfinite(difference):
        return float("inf")
    scale = expected.abs().max().item()
    return float(difference) / scale if scale else float(difference > 0)


def require_same(found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> float:
    """Check that the logits agree within `TOLERANCE`, and return their `largest_gap`.

    Args:
        found: Logits (N, classes), one tensor per exit.
        expected: The logits that they must equal, likewise.
        what: The form that was checked, such as `model.onnx`.

    Raises:
        RunError: If they differ.
    """
    gap = largest_gap(found, expected)
    if not gap <= TOLERANCE:
        raise RunError(
            f"{what} does not compute what it should: its logits are off by {gap:.2g} of the largest, more than"
            f" {TOLERANCE}; nothing was written, please report it with the recipe and the sub-network"
        )
    return gap
