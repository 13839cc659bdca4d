"""Small supernets in which nothing is left at a value that hides a mistake: no identity matrix, no norm of mean 0."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import supernets
from supernets import Subnet, Supernet

CLASSES = 7


def randomise(module: nn.Module, seed: int) -> None:
    """Draws every parameter and every batch-norm statistic, of our networks and of OFA's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * std + mean

    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            if "matri" in name:
                size = tensor.shape[0]
                tensor.copy_(torch.eye(size) + normal(tensor, 0, 0.5 / size))
            elif tensor.ndim > 1:
                tensor.copy_(normal(tensor, 0, tensor[0].numel() ** -0.5))
            elif name.endswith("running_var"):
                tensor.copy_(normal(tensor, 0, 0.5).exp())
            elif name.endswith("weight"):
                tensor.copy_(normal(tensor, 0.5, 0.1))
            else:
                tensor.copy_(normal(tensor, 0, 0.2))


def small_net(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **choices: Any) -> Supernet:
    """A narrow randomised supernet in evaluation mode."""
    options = {"num_classes": CLASSES, "width_mult": 0.25, "resolutions": (32, 48, 64)} | choices
    net = supernets.create(name, **options).to(dtype)
    randomise(net, seed)
    return net.eval()


def images_for(net: Supernet, count: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Random images in the network's precision."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, net.architecture.in_channels, height, width
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(next(net.parameters()).dtype)


def some_subnets(net: Supernet, count: int, seed: int = 0) -> list[Subnet]:
    """The largest, the smallest and `count` random sub-networks."""
    generator = np.random.default_rng(seed)
    return [net.space.largest(), net.space.smallest(), *(net.space.sample(generator) for _ in range(count))]


def exit_choices(net: Supernet, subnet: Subnet) -> list[Any]:
    """Every kind of `exits` argument that fits the sub-network."""
    pair = tuple(exit for exit in (2, 4) if exit in net.architecture.exits and exit <= subnet.height)
    return ["last", "all", *([pair] if pair else [])]
