"""Train step by step: the inner loop of every phase and of fine-tuning."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ofav2.data import Batch
from ofav2.errors import RunError
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime, seed_torch
from ofav2.training.objectives import Losses, Objective
from ofav2.training.optim import Updates


class DivergedError(RunError):
    """A training has no usable loss, or no finite weights, any more; other settings may help from before that."""


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    number: int
    """Steps taken in the training, from 1."""
    metrics: Mapping[str, float]
    """Loss and its parts (means over the step's losses and images), gradient norm, learning rate, resolution, images
    per second of all processes together."""
    guard: "Guard"
    """The guard after it."""
    refused: str | None
    """Why the step changed nothing, with phase, step and what it trained; None for a step that trained."""


@dataclass(frozen=True)
class Guard:
    """Decides which loss is usable."""

    loss_jump: float
    """A loss of more than so many times the usual one is not; 0 accepts every finite loss."""
    first: float | None = None
    """Loss of the phase's first step; None before it."""
    usual: float | None = None
    """Moving average of the loss so far in the phase; None before the first step."""

    def refuses(self, loss: float, gradient: float) -> str | None:
        """Return what is wrong with a step of this loss and gradient norm; None for nothing."""
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            return f"loss ({loss}) or gradient norm ({gradient}) is not finite"
        if self.loss_jump and self.usual is not None and loss > self.loss_jump * self.usual:
            return f"loss ({loss:.4g}) is over {self.loss_jump:g} times the usual {self.usual:.4g}"
        return None

    def after(self, loss: float) -> "Guard":
        """Return the guard that has seen a usable loss."""
        if self.usual is None:
            return replace(self, first=loss, usual=loss)
        return replace(self, usual=0.95 * self.usual + 0.05 * loss)


def not_finite(module: nn.Module) -> str | None:
    """Return the name of a module's first weight or statistic with a value that is not finite; None if all are."""
    tensors = module.state_dict().items()
    return next((name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()), None)


def train_steps(
    net: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    updates: Updates,
    *,
    guard: Guard,
    stream: Stream,
    runtime: Runtime,
    start_step: int = 0,
) -> Iterator[Step]:
    """Train a network step by step; whoever iterates may look at the network between steps.

    Args:
        net: The network whose parameters are trained in place, on the runtime's device.
        batches: The network's inputs (N, C, H, W) and the task's targets, from `start_step` on; of several processes,
            this one's share of each batch.
        objective: What is minimised.
        updates: How gradients change parameters.
        guard: Which loss is usable. A step with another one keeps nothing: neither weights nor statistics change.
        stream: The training's random numbers, from which dropout's are derived; its name stands in messages.
        runtime: Device, precision and processes.
        start_step: Steps that are taken already.

    Yields:
        What each step did, after it.
    """
    # Walking through modules takes a noticeable part of a small network's step, so it is done once.
    parameters, buffers, modules = list(net.parameters()), list(net.buffers()), list(net.modules())
    started = time.perf_counter()
    for number, (images, target) in enumerate(batches, start_step):
        if not all(module.training for module in modules):
            net.train()
        seed_torch(stream, number, runtime.processes.rank)
        statistics = [buffer.clone() for buffer in buffers]
        weight = loss_weight(objective.counted(target), runtime)
        metrics = step_gradients(parameters, objective.losses(images, target, number), runtime, weight)
        norm = updates.clip(parameters)
        refused = guard.refuses(metrics["loss"], norm)
        if refused is None:
            guard = guard.after(metrics["loss"])
            updates.apply(number)
        else:
            refused += (
                f" in step {number} of phase {stream.name}, resolution {images.shape[-1]},"
                f" {objective.describe(number, images.shape[-1])}"
            )
            for buffer, before in zip(buffers, statistics, strict=True):
                buffer.copy_(before)
        updates.reset()
        rate = len(images) * runtime.processes.count / (time.perf_counter() - started)
        measured = {
            "gradient_norm": norm,
            "lr": updates.learning_rate(number),
            "resolution": images.shape[-1],
            "images_per_second": rate,
        }
        yield Step(number + 1, metrics | measured, guard, refused)
        # What was done meanwhile, such as a validation, is no part of a step; waiting for its images is.
        started = time.perf_counter()


def loss_weight(counted: Tensor | None, runtime: Runtime) -> float:
    """Return the factor of this process's losses that makes the processes' mean one over all values that count.

    Where pixels without data count nowhere, processes with equally many images do not have equally many values.

    Args:
        counted: Which values of this process's target count; None: all, and in all processes equally many.
        runtime: The processes.
    """
    if counted is None or runtime.processes.count == 1:
        return 1.0
    own = float(counted.sum())
    mean = runtime.processes.mean({"counted": own})["counted"]
    return own / mean if mean else 1.0


def step_gradients(
    parameters: Sequence[Tensor], losses: Iterator[Losses], runtime: Runtime, weight: float = 1.0
) -> dict[str, float]:
    """Compute a step's gradients: summed over its losses, averaged over the processes.

    They are exchanged once, after the last backward pass, and only those of parameters that took part. As all processes
    have equally many images, they are those of one process with all images, except for what batch norm makes of a part.

    Args:
        parameters: All parameters of the network, without gradients.
        losses: The step's losses, equally many in all processes.
        runtime: Precision and processes.
        weight: Factor of this process's losses, see `loss_weight`.

    Returns:
        The loss and its parts, means over losses and processes.
    """
    count, totals = _backward(losses, runtime, weight)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    elements = sum(gradient.numel() for gradient in gradients)
    metrics = {name: float(total) / count for name, total in totals.items()}
    means = runtime.processes.mean({**metrics, "elements": elements})
    assert means.pop("elements") == elements, "the same parameters took part in all processes"
    runtime.processes.average(gradients)
    return means


def _backward(losses: Iterator[Losses], runtime: Runtime, weight: float) -> tuple[int, dict[str, Tensor]]:
    """Run a backward pass for every loss; return how many there were, and the sums of losses and their parts."""
    count, totals = 0, dict[str, Tensor]()
    with runtime.tf32_for_training():
        while True:
            with runtime.autocast():
                parts = next(losses, None)
            if parts is None:
                return count, totals
            (parts["loss"] * weight).backward()
            count += 1
            for name, value in parts.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * weight
