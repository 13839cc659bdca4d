"""Optimisers and schedules."""

import math

import torch
from torch import nn

from ofav2.config import OptimConfig


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """A fresh optimiser; batch norms and biases, that is all vectors, have no weight decay (OFA's and OFAv2's rule)."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas)
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0)


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
