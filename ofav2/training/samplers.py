"""Sample a step's sub-networks. To add one, write a frozen class with `draw` and name it below."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from supernets import Space, Subnet


class Sampler(Protocol):
    """Draws the sub-networks of a training step."""

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Draw one or more sub-networks of a space."""
        ...


@dataclass(frozen=True)
class Largest:
    """Take the largest network, in every step."""

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Return the space's largest network."""
        return (space.largest(),)


@dataclass(frozen=True)
class Uniform:
    """Draw `count` independent random networks (OFA, section 3.3)."""

    count: int

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Draw the networks."""
        return tuple(space.sample(rng) for _ in range(self.count))


@dataclass(frozen=True)
class Sandwich:
    """Take the largest network, the smallest, and random ones up to `count` (BigNAS, ECCV 2020, section 3.1)."""

    count: int

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Draw the networks."""
        return (space.largest(), space.smallest(), *Uniform(self.count - 2).draw(space, rng))


SAMPLERS: MappingProxyType[str, Callable[[int], Sampler]] = MappingProxyType({"uniform": Uniform, "sandwich": Sandwich})
"""Samplers by the name that a recipe calls them; each is made of the sub-networks per step."""
