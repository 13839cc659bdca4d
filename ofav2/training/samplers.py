"""Sample a step's sub-networks. To add one, write a frozen class with `draw` and name it below."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from ofav2.config.schema import PhaseConfig
from supernets import BlockChoice, Space, Subnet

Choice = TypeVar("Choice")


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


@dataclass(frozen=True)
class Marginals:
    """Draw `count` networks whose choices are those of given networks, each choice on its own (NAT, TPAMI 2021).

    A choice is drawn as often as the networks make it that have it to make: depth of a stage among those that reach the
    stage, kernel of a block among those that have the block. One in `1 / EVEN` draws is uniform, as are choices that no
    network makes, so that no part of the supernet is never trained.
    """

    count: int
    networks: tuple[Subnet, ...]

    EVEN: ClassVar[float] = 0.04

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Draw the networks."""
        return tuple(self._one(space, rng) for _ in range(self.count))

    def _one(self, space: Space, rng: np.random.Generator) -> Subnet:
        height = _pick([one.height for one in self.networks], space.height, rng)
        blocks = []
        for stage in range(height):
            reaching = [one for one in self.networks if one.height > stage]
            depth = _pick([one.depth[stage] for one in reaching], space.depth, rng)
            having = [
                [one.blocks(stage)[block] for one in reaching if one.depth[stage] > block] for block in range(depth)
            ]
            blocks.append([_block(seen, space, rng) for seen in having])
        return Subnet.of_blocks(_pick([one.resolution for one in self.networks], space.resolution, rng), blocks)


def batch_resolutions(sampler: Sampler, resolutions: Sequence[int]) -> tuple[int, ...]:
    """Return the resolutions that a phase's batches are drawn from, each as likely; what is likelier is repeated.

    A step's networks have its batch's resolution, so a sampler can't choose it. With `Marginals`, batches have those of
    its networks, as often as these have them, but for one in `1 / EVEN`.

    Args:
        sampler: The phase's.
        resolutions: All resolutions in pixels.
    """
    if not isinstance(sampler, Marginals):
        return tuple(resolutions)
    seen = [network.resolution for network in sampler.networks]
    often = (1 / Marginals.EVEN - 1) * len(resolutions) / len(seen)
    return (*seen * math.ceil(often), *resolutions)


def _block(seen: Sequence[BlockChoice], space: Space, rng: np.random.Generator) -> BlockChoice:
    return BlockChoice(
        kernel=_pick([block.kernel for block in seen if block.kernel is not None], space.kernel, rng),
        expand=_pick([block.expand for block in seen if block.expand is not None], space.expand, rng),
        level=_pick([block.level for block in seen], space.levels, rng),
    )


def _pick(seen: Sequence[Choice], choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """Return one of those that were seen, each as likely; now and then, or if none is a choice, any choice."""
    known = [choice for choice in seen if choice in choices]
    pool = known if rng.random() >= Marginals.EVEN and known else choices
    return pool[int(rng.integers(len(pool)))]


SAMPLERS: MappingProxyType[str, Callable[[PhaseConfig], Sampler]] = MappingProxyType(
    {
        "uniform": lambda phase: Uniform(phase.subnets),
        "sandwich": lambda phase: Sandwich(phase.subnets),
        "marginals": lambda phase: Marginals(phase.subnets, tuple(map(Subnet.from_json, phase.networks))),
    }
)
"""Samplers by the name that a recipe calls them; each is made of a phase's settings."""
