"""Tell networks of one name apart by what they compute: another version of timm may make another one."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from ofav2.networks.timm_models import refusal
from supernets.backbone import Backbone

SAME = 1e-3
"""Largest difference of an exit's logit, as a share of it, or of 1 if it is smaller: rounding alone makes less."""


def behaviour_of(network: GraphModule, arch: Backbone) -> tuple[float, ...]:
    """Return the first logit of each exit, of a fixed image and fixed weights; the network keeps its own.

    Raises:
        UserError: If one is not finite, so that it tells no networks apart.
    """
    # Not torch.func.functional_call: of a layer with several names it leaves the fixed weights behind.
    network = copy.deepcopy(network)
    side = arch.resolution
    images = _spread(arch.in_channels * side**2).reshape(1, arch.in_channels, side, side)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(_fixed(name, tensor))
        outputs = network(images)
    found = tuple(float(output[0, 0]) for output in outputs)
    if not all(map(math.isfinite, found)):
        raise refusal(arch.name, "its logits for a fixed image and fixed weights are not finite")
    return found


def same_behaviour(before: Sequence[float], now: Sequence[float]) -> bool:
    """Return whether two behaviours are those of the same network."""
    return len(before) == len(now) and all(
        abs(a - b) <= SAME * max(1.0, abs(a)) for a, b in zip(before, now, strict=True)
    )


def _fixed(name: str, tensor: Tensor) -> Tensor:
    """Return a weight's fixed value: of the size that keeps activations near one; statistics as they start."""
    if not tensor.is_floating_point() or name.endswith("running_mean"):
        return torch.zeros_like(tensor) if name.endswith("running_mean") else tensor
    if name.endswith("running_var"):
        return torch.ones_like(tensor)
    return scaled(name, _spread(tensor.numel()).reshape(tensor.shape))


def scaled(name: str, values: Tensor) -> Tensor:
    """Scale numbers of [-1, 1) to weights that keep activations near one."""
    if values.ndim <= 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    return values * (3 / max(1, values.numel() // values.shape[0])) ** 0.5


def _spread(count: int) -> Tensor:
    """Return numbers spread over [-1, 1), by whole-number arithmetic that all machines share."""
    period = 2**16
    values = (torch.arange(period) * 40503 % period).float() / (period / 2) - 1
    return values.repeat(-(-count // period))[:count]
