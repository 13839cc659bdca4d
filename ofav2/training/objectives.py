"""What a step minimises: an objective gives one loss after another, and the trainer runs a backward pass for each.

This is where the task stands: today classification with one or several exits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction

import torch
from torch import Tensor, nn

import distill
from supernets import Subnet, Supernet

Losses = Mapping[str, Tensor]
"""`loss`, the scalar to differentiate, and its detached parts."""
Objective = Callable[[Supernet, Tensor, Tensor, Sequence[Subnet]], Iterator[Losses]]
"""(net, images (N, C, H, W), labels, the step's sub-networks) -> losses, each to be differentiated on its own.

Labels are classes (N,), or of mixed images probabilities (N, classes)."""
Teacher = Callable[[Tensor], "distill.Target"]
"""Images (N, C, H, W) -> what the teacher says of them."""


def joint(weights: Sequence[Fraction], label_smoothing: float) -> Objective:
    """All exits of each sub-network together: sum of a_i * CE_i (AEP; OFAv2, full phase)."""

    def losses(net: Supernet, images: Tensor, labels: Tensor, subnets: Sequence[Subnet]) -> Iterator[Losses]:
        for subnet in subnets:
            yield distill.joint_loss(net(images, subnet, exits="all"), labels, weights, label_smoothing)

    return losses


def students(teacher: Teacher | None, distance: distill.Distance, kd_ratio: float, label_smoothing: float) -> Objective:
    """Each sub-network's own exit, from labels and teacher (OFAv2, ENS-KD); the teacher looks at a batch once."""

    def losses(net: Supernet, images: Tensor, labels: Tensor, subnets: Sequence[Subnet]) -> Iterator[Losses]:
        target = teacher(images) if teacher and kd_ratio else None
        for subnet in subnets:
            yield distill.student_loss(
                net(images, subnet),
                labels,
                label_smoothing=label_smoothing,
                target=target,
                distance=distance,
                kd_ratio=kd_ratio,
            )

    return losses


def as_teacher(
    module: nn.Module,
    weights: Sequence[Fraction],
    arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Teacher:
    """A network in evaluation mode as teacher.

    It runs in inference mode; what it says does not, so that a loss may save it for its backward pass.

    Args:
        module: Images -> logits, or a tuple of the exits' logits.
        weights: One ensemble weight b_i per exit.
        arithmetic: Makes the context in which the module runs, such as `Runtime.autocast`; the target is computed
            outside of it, in float32 or wider.
    """

    def teach(images: Tensor) -> distill.Target:
        with torch.inference_mode(), arithmetic():
            logits = exit_logits(module(images))
        with torch.no_grad():
            return distill.teacher_target([exit.clone() for exit in logits], weights)

    return teach


def exit_logits(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A network's outputs as one tensor per exit."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs
