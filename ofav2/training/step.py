"""The training loop: one for every phase, and for what else is trained."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ofav2.config.schema import OptimConfig
from ofav2.data import Batch
from ofav2.rng import code, generator
from ofav2.runtime.device import Runtime, seed_torch
from ofav2.training.objectives import Losses, Objective
from ofav2.training.optim import learning_rate
from ofav2.training.phases import Phase
from ofav2.training.samplers import SAMPLERS
from supernets import Subnet, Supernet

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    number: int
    """Steps taken in the phase, from 1."""
    metrics: Mapping[str, float]
    """Loss and its parts (means over the step's sub-networks and images), gradient norm, learning rate, resolution,
    images per second of all processes together."""
    guard: "Guard"
    """The guard after it."""
    refused: str | None
    """Why the step changed nothing, naming its place and sub-networks; None for a step that trained."""


@dataclass(frozen=True)
class Guard:
    """What loss is usable."""

    loss_jump: float
    """A loss of more than so many times the usual one is not; 0 accepts every finite loss."""
    usual: float | None = None
    """Moving average of the loss so far in the phase; None before the first step."""

    def refuses(self, loss: float, gradient: float) -> str | None:
        """What is wrong with a step of this loss and gradient norm; None for nothing."""
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            return f"loss ({loss}) or gradient norm ({gradient}) is not finite"
        if self.loss_jump and self.usual is not None and loss > self.loss_jump * self.usual:
            return f"loss ({loss:.4g}) is over {self.loss_jump:g} times the usual {self.usual:.4g}"
        return None

    def after(self, loss: float) -> "Guard":
        """The guard that has seen a usable loss."""
        return replace(self, usual=loss if self.usual is None else 0.95 * self.usual + 0.05 * loss)


def step_subnets(phase: Phase, seed: int, step: int, resolution: int) -> tuple[Subnet, ...]:
    """The sub-networks of a step, from its place alone: the same in every process, and without running earlier steps.

    Args:
        phase: The phase.
        seed: The run's seed.
        step: Steps taken before it in the phase.
        resolution: Image side of the step's batch in pixels.
    """
    space = replace(phase.space, resolution=(resolution,))
    if phase.joint:
        return (space.largest(),)
    rng = generator("subnets", seed, code(phase.name), step)
    return SAMPLERS[phase.config.sampler](space, rng, phase.config.subnets)


def train_phase(
    net: Supernet,
    phase: Phase,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    guard: Guard,
    start_step: int = 0,
    prepare: Callable[[Tensor], Tensor],
    runtime: Runtime,
    seed: int,
) -> Iterator[Step]:
    """Trains a phase, step by step; whoever iterates may look at the network between steps.

    Args:
        net: The supernet, on the runtime's device; trained in place.
        phase: What is drawn, and for how long.
        batches: The phase's batches from `start_step` on; of several processes, this one's part of each batch.
        objective: What is minimised.
        optimizer: The optimiser of the network's parameters.
        optim: Its settings.
        guard: What loss is usable. Of a step with another one nothing is kept: neither weights nor statistics change.
        start_step: Steps of the phase that are taken already.
        prepare: Makes a batch's images (N, C, H, W) the network's normalised input.
        runtime: Device, precision and processes.
        seed: The run's seed.

    Yields:
        What each step did, after it.
    """
    net.set_dropout(phase.config.dropout)
    yield from train_steps(
        net,
        batches,
        objective,
        name=phase.name,
        draw=partial(step_subnets, phase, seed),
        schedule=partial(learning_rate, steps=phase.steps, warmup_steps=phase.warmup_steps, peak=phase.config.lr),
        optimizer=optimizer,
        optim=optim,
        guard=guard,
        start_step=start_step,
        prepare=prepare,
        runtime=runtime,
        seed=seed,
    )


def train_steps(
    net: Net,
    batches: Iterable[Batch],
    objective: Callable[[Net, Tensor, Tensor, Sequence[Subnet]], Iterator[Losses]],
    *,
    name: str,
    draw: Callable[[int, int], tuple[Subnet, ...]],
    schedule: Callable[[int], float],
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    guard: Guard,
    start_step: int = 0,
    prepare: Callable[[Tensor], Tensor],
    runtime: Runtime,
    seed: int,
) -> Iterator[Step]:
    """Trains a network, which need not be a supernet, step by step.

    Args:
        net: The network, on the runtime's device; trained in place.
        batches: The batches from `start_step` on; of several processes, this one's part of each.
        objective: What is minimised.
        name: What the training is called; its random draws and its messages depend on it.
        draw: (steps taken before, image side in pixels) -> the step's sub-networks.
        schedule: Steps taken before -> learning rate.
        optimizer: The optimiser of the network's parameters.
        optim: Its settings.
        guard: What loss is usable. Of a step with another one nothing is kept: neither weights nor statistics change.
        start_step: Steps that are taken already.
        prepare: Makes a batch's images (N, C, H, W) the network's normalised input.
        runtime: Device, precision and processes.
        seed: Seed of the rng.

    Yields:
        What each step did, after it.
    """
    for number, batch in enumerate(batches, start_step):
        started = time.perf_counter()
        net.train()
        resolution = batch.images.shape[-1]
        subnets = draw(number, resolution)
        seed_torch(seed, code(name), number, runtime.processes.rank)
        lr = schedule(number)
        images, labels = prepare(runtime.send(batch.images)), runtime.send(batch.labels)
        statistics = [buffer.clone() for buffer in net.buffers()]
        metrics = step_gradients(net, objective, images, labels, subnets, runtime)
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        if optim.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(net.parameters(), optim.grad_clip, norm)
        refused = guard.refuses(metrics["loss"], float(norm))
        if refused is None:
            guard = guard.after(metrics["loss"])
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        else:
            drawn = "; ".join(map(str, subnets))
            refused += f" in step {number} of phase {name}, resolution {resolution}, sub-networks {drawn}"
            for buffer, before in zip(net.buffers(), statistics, strict=True):
                buffer.copy_(before)
        optimizer.zero_grad(set_to_none=True)
        rate = len(labels) * runtime.processes.count / (time.perf_counter() - started)
        measured = {"gradient_norm": float(norm), "lr": lr, "resolution": resolution, "images_per_second": rate}
        yield Step(number + 1, metrics | measured, guard, refused)


def step_gradients(
    net: Net,
    objective: Callable[[Net, Tensor, Tensor, Sequence[Subnet]], Iterator[Losses]],
    images: Tensor,
    labels: Tensor,
    subnets: tuple[Subnet, ...],
    runtime: Runtime,
) -> dict[str, float]:
    """Leaves a step's gradients in the network: summed over its sub-networks, averaged over the processes.

    They are exchanged once, after the last backward pass, and only those of parameters that took part. As all processes
    have equally many images, they are those of one process with all images, but for what batch norm makes of a part.

    Args:
        net: The network, without gradients.
        objective: What is minimised.
        images: This process's normalised images (N, C, H, W).
        labels: Their labels (N,), or of mixed images (N, classes).
        subnets: The step's sub-networks, the same in all processes.
        runtime: Precision and processes.

    Returns:
        The loss and its parts, means over sub-networks and processes.
    """
    totals = _backward(net, objective, images, labels, subnets, runtime)
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    elements = sum(gradient.numel() for gradient in gradients)
    metrics = {name: float(total) / len(subnets) for name, total in totals.items()}
    means = runtime.processes.mean({**metrics, "elements": elements})
    assert means.pop("elements") == elements, "the same parameters took part in all processes"
    runtime.processes.average(gradients)
    return means


def _backward(
    net: Net,
    objective: Callable[[Net, Tensor, Tensor, Sequence[Subnet]], Iterator[Losses]],
    images: Tensor,
    labels: Tensor,
    subnets: tuple[Subnet, ...],
    runtime: Runtime,
) -> dict[str, Tensor]:
    """A backward pass for every loss of the objective, gradients summed; returns the sums of losses and their parts."""
    totals: dict[str, Tensor] = {}
    losses = objective(net, images, labels, subnets)
    with runtime.training_products():
        while True:
            with runtime.autocast():
                parts = next(losses, None)
            if parts is None:
                return totals
            parts["loss"].backward()
            for name, value in parts.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
