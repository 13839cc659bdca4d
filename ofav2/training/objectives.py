"""What a step minimises: an objective gives one loss after another, and the trainer runs a backward pass for each.

This is where the task stands: today classification with one or several exits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

import distill
from ofav2.runtime.compiling import Compiler, Forward, compiled
from supernets import Subnet, Supernet
from supernets.outputs import Outputs, exit_logits

Losses = Mapping[str, Tensor]
"""`loss`, the scalar to differentiate, and its detached parts."""
Objective = Callable[[Supernet, Tensor, Tensor, Sequence[Subnet]], Iterator[Losses]]
"""(net, images (N, C, H, W), labels, the step's sub-networks) -> losses, each to be differentiated on its own.

Labels are classes (N,), or of mixed images probabilities (N, classes)."""
AllExits = Callable[[Supernet, Tensor, Subnet], tuple[Tensor, ...]]
"""(net, images (N, C, H, W), sub-network) -> the logits of all its exits."""
Teacher = Callable[[Tensor], "distill.Target"]
"""Images (N, C, H, W) -> what the teacher says of them."""


def all_exits(net: Supernet, images: Tensor, subnet: Subnet) -> tuple[Tensor, ...]:
    """The logits of all exits that a sub-network passes."""
    return net(images, subnet, exits="all")


def compiled_exits(net: Supernet, subnet: Subnet, compiler: Compiler | None) -> AllExits:
    """`all_exits` for one network, which trains the supernet's own parameters and statistics, compiled.

    Args:
        net: The supernet.
        subnet: The network, at any resolution.
        compiler: What compiles it; None: it is `all_exits`.
    """
    if compiler is None:
        return all_exits

    def exits(images: Tensor) -> Outputs:
        return net(images, subnet, exits="all")

    forward = compiled("largest network", exits, net, compiler)

    def of_this_network(asked: Supernet, images: Tensor, other: Subnet) -> tuple[Tensor, ...]:
        assert asked is net
        assert replace(other, resolution=subnet.resolution) == subnet
        return exit_logits(forward(images))

    return of_this_network


def joint(weights: Sequence[Fraction], label_smoothing: float, forward: AllExits = all_exits) -> Objective:
    """All exits of each sub-network together: sum of a_i * CE_i (AEP; OFAv2, full phase)."""

    def losses(net: Supernet, images: Tensor, labels: Tensor, subnets: Sequence[Subnet]) -> Iterator[Losses]:
        for subnet in subnets:
            yield distill.joint_loss(forward(net, images, subnet), labels, weights, label_smoothing)

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
    forward: Forward,
    weights: Sequence[Fraction],
    arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Teacher:
    """A network in evaluation mode as teacher.

    It runs in inference mode; what it says does not, so that a loss may save it for its backward pass.

    Args:
        forward: The network, or a compiled form of it.
        weights: One ensemble weight b_i per exit.
        arithmetic: Makes the context in which it runs, such as `Runtime.autocast`; the target is computed
            outside of it, in float32 or wider.
    """

    def teach(images: Tensor) -> distill.Target:
        with torch.inference_mode(), arithmetic():
            logits = exit_logits(forward(images))
        with torch.no_grad():
            return distill.teacher_target([exit.clone() for exit in logits], weights)

    return teach
