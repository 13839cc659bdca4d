"""How a step's sub-networks are drawn: a sampler is a function of a space, a generator and a count."""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from supernets import Space, Subnet

Sampler = Callable[[Space, np.random.Generator, int], tuple[Subnet, ...]]


def uniform(space: Space, generator: np.random.Generator, count: int) -> tuple[Subnet, ...]:
    """`count` independent random networks (OFA, section 3.3)."""
    return tuple(space.sample(generator) for _ in range(count))


def sandwich(space: Space, generator: np.random.Generator, count: int) -> tuple[Subnet, ...]:
    """The largest network, the smallest, and random ones up to `count` (BigNAS, Yu et al., ECCV 2020, section 3.1)."""
    return (space.largest(), space.smallest(), *uniform(space, generator, count - 2))


SAMPLERS: MappingProxyType[str, Sampler] = MappingProxyType({"uniform": uniform, "sandwich": sandwich})
"""Samplers by the name that a recipe calls them."""
