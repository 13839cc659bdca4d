"""Treat one output and several outputs alike: one tensor per exit."""

from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
"""Outputs (N, …) of a network with one exit, or a tuple of such tensors, one per exit."""


def exit_logits(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return a network's outputs as one tensor per exit."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs
