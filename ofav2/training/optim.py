"""Optimisers and schedules."""

import math

import torch
from torch import nn

from ofav2.config.schema import OptimConfig


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """A fresh optimiser; batch norms and biases, that is all vectors, have no weight decay (OFA's and OFAv2's rule).

    Its fused form passes over the parameters once instead of once per term of its formula.
    """
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.momentum:
        # What a parameter's first gradient would start. In the fused form (up to torch 2.12 at least), all parameters
        # have to start in one step, and those of a supernet take part when they are drawn.
        for parameter in net.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Cosine from `peak` to zero, after a linear warm-up from zero to it (OFAv2's schedule).

    Args:
        step: Steps taken, from 0.
        steps: Steps of the phase.
        warmup_steps: Steps of warm-up, fewer than `steps`.
        peak: Largest learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
