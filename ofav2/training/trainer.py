"""The training loop: one for every phase."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ofav2.config import OptimConfig
from ofav2.data import Batch
from ofav2.draws import code, generator
from ofav2.errors import RunError
from ofav2.training.objectives import Objective
from ofav2.training.optim import build_optimizer, learning_rate
from ofav2.training.phases import Phase
from ofav2.training.runtime import Runtime, seed_torch
from ofav2.training.samplers import SAMPLERS
from supernets import Subnet, Supernet


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    number: int
    """Steps taken in the phase, from 1."""
    numbers: Mapping[str, float]
    """Loss and its parts (means over the step's sub-networks), learning rate, resolution, images per second."""


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
    draws = generator("subnets", seed, code(phase.name), step)
    return SAMPLERS[phase.config.sampler](space, draws, phase.config.subnets)


def train_phase(
    net: Supernet,
    phase: Phase,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    optim: OptimConfig,
    prepare: Callable[[Tensor], Tensor],
    runtime: Runtime,
    seed: int,
) -> Iterator[Step]:
    """Trains a phase, step by step; whoever iterates may look at the network between steps.

    Args:
        net: The supernet, on the runtime's device; trained in place.
        phase: What is drawn, and for how long.
        batches: As many batches as the phase has steps.
        objective: What is minimised.
        optim: The optimiser's settings.
        prepare: Makes uint8 images (N, C, H, W) the network's normalised input.
        runtime: Device and precision.
        seed: The run's seed.

    Yields:
        What each step did, after it.

    Raises:
        RunError: If a loss is not finite; the message names step, sub-networks and resolution.
    """
    optimizer = build_optimizer(net, optim)
    net.set_dropout(phase.config.dropout)
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        net.train()
        resolution = batch.images.shape[-1]
        subnets = step_subnets(phase, seed, number, resolution)
        seed_torch(seed, code(phase.name), number)
        lr = learning_rate(number, steps=phase.steps, warmup_steps=phase.warmup_steps, peak=phase.config.lr)
        images, labels = prepare(runtime.send(batch.images)), runtime.send(batch.labels)
        totals = _backward(net, objective, images, labels, subnets, runtime)
        numbers = {name: float(total) / len(subnets) for name, total in totals.items()}
        if not torch.isfinite(totals["loss"]):
            raise RunError(
                f"loss ({numbers['loss']}) is not finite: step {number} of phase {phase.name}, resolution {resolution},"
                f" sub-networks {'; '.join(map(str, subnets))}; lower phases.{phase.name}.lr or set optim.grad_clip"
            )
        if optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate = len(labels) / (time.perf_counter() - started)
        yield Step(number + 1, {**numbers, "lr": lr, "resolution": resolution, "images_per_second": rate})


def _backward(
    net: Supernet,
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    subnets: tuple[Subnet, ...],
    runtime: Runtime,
) -> dict[str, Tensor]:
    """A backward pass for every loss of the objective, gradients summed; returns the sums of losses and their parts."""
    totals: dict[str, Tensor] = {}
    losses = objective(net, images, labels, subnets)
    while True:
        with runtime.autocast():
            parts = next(losses, None)
        if parts is None:
            return totals
        parts["loss"].backward()
        for name, value in parts.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
