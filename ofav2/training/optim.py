"""Build optimisers and learning-rate schedules."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ofav2.config.schema import OptimConfig


@dataclass(frozen=True)
class Updates:
    """How a step's gradients change the parameters."""

    optimizer: torch.optim.Optimizer
    """The optimiser of the network's parameters."""
    learning_rate: Callable[[int], float]
    """Steps taken before -> learning rate."""
    grad_clip: float = 0.0
    """Largest allowed norm of the gradient; 0 turns clipping off."""

    def clip(self, parameters: Sequence[Tensor]) -> float:
        """Clip a network's gradients, and return their norm before."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return float(norm)

    def apply(self, step: int) -> None:
        """Change the parameters, after `step` steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()

    def reset(self) -> None:
        """Set gradients to None: an optimiser skips parameters that take no part in the next step."""
        self.optimizer.zero_grad(set_to_none=True)


def make_updates(net: nn.Module, config: OptimConfig, *, steps: int, warmup_steps: int, peak: float) -> Updates:
    """Make a fresh optimiser with its schedule.

    Args:
        net: The network.
        config: The optimiser's settings.
        steps: Steps of the schedule.
        warmup_steps: Steps of linear warm-up, fewer than `steps`.
        peak: Largest learning rate.
    """
    curves: Mapping[str, Callable[..., float]] = {"cosine": learning_rate, "constant": constant_rate}
    schedule = partial(curves[config.schedule], steps=steps, warmup_steps=warmup_steps, peak=peak)
    return Updates(build_optimizer(net, config), schedule, config.grad_clip)


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build a fresh optimiser; batch norms and biases, that is all vectors, have no weight decay (OFA, OFAv2).

    Its fused form passes over the parameters once instead of once per term of its formula.
    """
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    assert config.name == "sgd"
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.momentum:
        # What a parameter's first gradient would start. In the fused form (up to torch 2.12 at least), all parameters
        # have to start in one step, and those of a supernet take part when they are drawn.
        for parameter in trained:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate: a cosine from `peak` to zero, after a linear warm-up from zero (OFAv2's schedule).

    Args:
        step: Steps taken, from 0.
        steps: Steps of the phase.
        warmup_steps: Steps of warm-up, fewer than `steps`.
        peak: Largest learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def constant_rate(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate: `peak`, after a linear warm-up from zero; arguments as for `learning_rate`."""
    return learning_rate(step, steps=steps, warmup_steps=warmup_steps, peak=peak) if step < warmup_steps else peak
