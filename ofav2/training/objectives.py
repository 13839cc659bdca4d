"""Define what a step minimises. An objective owns its sub-networks and its teacher.

It yields one loss after another, and the loop runs a backward pass for each, so one sub-network's activations are in
memory at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

import distill
from ofav2.rng import Stream
from ofav2.runtime.compiling import Compiler, Forward, compiled
from ofav2.tasks.base import Task
from ofav2.training.samplers import Sampler
from supernets import Space, Subnet
from supernets.multi_exit import Network
from supernets.outputs import Outputs, exit_logits

Losses = Mapping[str, Tensor]
"""`loss`, the scalar to differentiate, and its detached parts."""
AllExits = Callable[[Tensor, Subnet], tuple[Tensor, ...]]
"""(Input (N, C, H, W), sub-network) -> the outputs of all its exits."""
Teacher = Callable[[Tensor], "distill.Target"]
"""Input (N, C, H, W) -> the teacher's output."""


class Objective(Protocol):
    """What a step minimises."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield the step's losses, each to be differentiated on its own.

        Args:
            images: The step's input (N, C, H, W).
            target: The task's target of it.
            step: Steps taken before it.
        """
        ...

    def counted(self, target: Tensor) -> Tensor | None:
        """Return which values of a target the losses are means over, as `Task.counted`."""
        ...

    def describe(self, step: int, resolution: int) -> str:
        """Return what the step trains, for messages, such as its sub-networks."""
        ...


@dataclass(frozen=True)
class Draw:
    """Draws a step's sub-networks from (seed, phase, step): reproducible, and equal on all processes."""

    sampler: Sampler
    """How they are drawn."""
    space: Space
    """What they are drawn from, at any of its resolutions."""
    stream: Stream
    """The phase's random numbers."""

    def at(self, step: int, resolution: int) -> tuple[Subnet, ...]:
        """Return the sub-networks of a step whose images have this side in pixels."""
        space = replace(self.space, resolution=(resolution,))
        return self.sampler.draw(space, self.stream.at("subnets", step))

    def describe(self, step: int, resolution: int) -> str:
        """Return the sub-networks of a step for messages."""
        return f"sub-networks {'; '.join(map(str, self.at(step, resolution)))}"


@dataclass(frozen=True)
class SubnetObjective:
    """An objective that trains sub-networks drawn anew in each step."""

    task: Task
    """What is learnt."""
    draw: Draw
    """Which sub-networks a step trains."""

    def counted(self, target: Tensor) -> Tensor | None:
        """Return which values count in the task."""
        return self.task.counted(target)

    def describe(self, step: int, resolution: int) -> str:
        """Return the step's sub-networks for messages."""
        return self.draw.describe(step, resolution)


@dataclass(frozen=True)
class Joint(SubnetObjective):
    """All exits of each sub-network together: the sum of a_i * loss_i (AEP; OFAv2, full phase)."""

    weights: tuple[Fraction, ...]
    """One weight a_i per exit."""
    forward: AllExits
    """The supernet's forward pass."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield a loss per sub-network, as `Objective.losses`."""
        for subnet in self.draw.at(step, images.shape[-1]):
            loss = partial(self.task.loss, target=target)
            yield distill.joint_loss(self.forward(images, subnet), loss, self.weights)


@dataclass(frozen=True)
class TeacherObjective(SubnetObjective):
    """An objective whose sub-networks learn from targets and a teacher, which sees a batch once."""

    net: Network
    """The supernet."""
    teacher: Teacher | None
    """The teacher; None trains on targets alone."""
    distance: distill.Distance
    """How far a student is from the teacher's output."""
    kd_ratio: float
    """Weight of that distance beside the task's loss; at 0 the teacher does not run."""

    def teacher_target(self, images: Tensor, target: Tensor) -> distill.Target | None:
        """Return what the teacher says of a step's input, where its target counts; None without a teacher."""
        return self.teacher(images).at(self.task.counted(target)) if self.teacher and self.kd_ratio else None


@dataclass(frozen=True)
class Distill(TeacherObjective):
    """Each sub-network's own exit, from targets and teacher (OFAv2, ENS-KD)."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield a loss per sub-network, as `Objective.losses`."""
        teacher_target = self.teacher_target(images, target)
        for subnet in self.draw.at(step, images.shape[-1]):
            output = self.net(images, subnet)
            yield distill.student_loss(
                output,
                self.task.loss(output, target),
                target=teacher_target,
                distance=self.distance,
                kd_ratio=self.kd_ratio,
            )


@dataclass(frozen=True)
class DistillExits(TeacherObjective):
    """All unlocked exits of each sub-network as students: one forward and one backward pass train them together.

    `draw` gives sub-networks that have the last exit. With even weights, the expected gradient is that of `Distill`
    with exits drawn evenly; it varies less, as it holds all exits.
    """

    weights: Mapping[int, Fraction]
    """Exit -> weight a_i of its loss, for the exits that are trained."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield a loss per sub-network, as `Objective.losses`."""
        teacher_target = self.teacher_target(images, target)
        for subnet in self.draw.at(step, images.shape[-1]):
            yield distill.students_loss(
                outputs_of(self.net, images, subnet, self.weights),
                partial(self.task.loss, target=target),
                self.weights,
                target=teacher_target,
                distance=self.distance,
                kd_ratio=self.kd_ratio,
            )


@dataclass(frozen=True)
class InPlace(SubnetObjective):
    """In-place distillation: the step's first sub-network learns from targets and teaches the others (BigNAS, 3.1).

    All unlocked exits of each sub-network are trained together; `draw` gives the largest one first, and all have the
    last exit. The teacher is the first one's ensemble of exits on the same batch, in training mode, so it costs no
    forward pass of its own. `kd` counts it too, with 0: over all of a step, it is the others' mean times their share.
    """

    net: Network
    """The supernet."""
    weights: Mapping[int, Fraction]
    """Exit -> weight a_i of its loss, for the exits that are trained."""
    ensemble: Mapping[int, Fraction]
    """Exit -> weight b_i of its output in the ensemble."""
    distance: distill.Distance
    """How far a student is from the teacher's output."""
    kd_ratio: float
    """Weight of that distance beside the task's loss; at 0 nobody teaches."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield a loss per sub-network, as `Objective.losses`."""
        largest, *others = self.draw.at(step, images.shape[-1])
        exits = sorted({*self.weights, *self.ensemble})
        outputs = outputs_of(self.net, images, largest, exits)
        teacher_target = self._ensemble_target(outputs).at(self.task.counted(target)) if self.kd_ratio else None
        loss = partial(
            distill.students_loss,
            loss=partial(self.task.loss, target=target),
            weights=self.weights,
            distance=self.distance,
            kd_ratio=self.kd_ratio,
        )
        yield loss({number: outputs[number] for number in self.weights}, target=None)
        del outputs
        for subnet in others:
            yield loss(outputs_of(self.net, images, subnet, self.weights), target=teacher_target)

    def _ensemble_target(self, outputs: Mapping[int, Tensor]) -> distill.Target:
        """Return what the ensemble of exits says, of their outputs by number."""
        return distill.teacher_target([outputs[number] for number in self.ensemble], list(self.ensemble.values()))


@dataclass(frozen=True)
class Plain:
    """All exits of one plain network together, as in fine-tuning; of a single exit, the task's loss."""

    task: Task
    """What is learnt."""
    forward: Forward
    """The network, or a compiled form of it."""
    weights: tuple[Fraction, ...]
    """One weight a_i per exit."""

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        """Yield the one loss, as `Objective.losses`."""
        loss = partial(self.task.loss, target=target)
        yield distill.joint_loss(exit_logits(self.forward(images)), loss, self.weights)

    def counted(self, target: Tensor) -> Tensor | None:
        """Return which values count in the task."""
        return self.task.counted(target)

    def describe(self, step: int, resolution: int) -> str:
        """Return what is trained, for messages."""
        return "the network"


def all_exits(net: Network) -> AllExits:
    """Return the forward pass that gives the outputs of all exits which a sub-network passes."""
    return lambda images, subnet: net(images, subnet, exits="all")


def outputs_of(net: Network, images: Tensor, subnet: Subnet, exits: Iterable[int]) -> dict[int, Tensor]:
    """Return outputs of a sub-network by exit, from one forward pass.

    Args:
        net: The supernet.
        images: Input (N, C, H, W).
        subnet: A sub-network that passes these exits.
        exits: The exits, ascending.
    """
    numbers = tuple(exits)
    return dict(zip(numbers, net(images, subnet, exits=numbers), strict=True))


def compiled_exits(net: Network, subnet: Subnet, compiler: Compiler | None) -> AllExits:
    """Return `all_exits` for one network, compiled; it trains the supernet's own parameters and statistics.

    Args:
        net: The supernet.
        subnet: The network, at any resolution.
        compiler: What compiles it; None: it is `all_exits`.
    """
    if compiler is None:
        return all_exits(net)

    def exits(images: Tensor) -> Outputs:
        return net(images, subnet, exits="all")

    forward = compiled("largest network", exits, net, compiler)

    def of_this_network(images: Tensor, other: Subnet) -> tuple[Tensor, ...]:
        assert replace(other, resolution=subnet.resolution) == subnet
        return exit_logits(forward(images))

    return of_this_network


def as_teacher(
    forward: Forward,
    weights: Sequence[Fraction],
    arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Teacher:
    """Return a network in evaluation mode as a teacher.

    It runs in inference mode; its target does not, so that a loss may save it for its backward pass.

    Args:
        forward: The network, or a compiled form of it.
        weights: One ensemble weight b_i per exit.
        arithmetic: Makes the context in which it runs, such as `Runtime.autocast`; the target is computed
            outside of it, in float32 or wider.
    """

    def teach(images: Tensor) -> distill.Target:
        with torch.inference_mode(), arithmetic():
            outputs = exit_logits(forward(images))
        with torch.no_grad():
            return distill.teacher_target([output.clone() for output in outputs], weights)

    return teach
