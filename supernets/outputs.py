"""What a network returns: one tensor, or one per exit."""

from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
"""Outputs (N, …) of a network with one exit, or a tuple of such tensors, one per exit."""


def exit_logits(outputs: Outputs) -> tuple[Tensor, ...]:
    """A network's outputs as one tensor per exit."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs
