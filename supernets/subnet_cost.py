"""Price sub-networks from the recorded graphs of their parts.

Stem, blocks and exits are recorded from a supernet on the meta device, which holds no weights, and priced once at each
side of their input. A network's cost is put together from them: parameters and multiply-adds are summed; of memory, the
largest peak counts, with the tensors that wait for later parts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import add
from typing import NamedTuple

import torch
from torch import nn

from supernets.architecture import Architecture
from supernets.blocks import Stage
from supernets.cost import (
    BYTES,
    Cost,
    LayerCost,
    Step,
    alive_tensors,
    graph_steps,
    steps_cost,
    tensor_sizes,
    weighted_layers,
)
from supernets.layers import ElasticLayer
from supernets.mobilenetv3 import Exits, Supernet, choose_exits
from supernets.parts import BlockPart, ExitPart, Part, StemPart, input_shapes, part_side
from supernets.recorder import record
from supernets.space import Subnet


@dataclass(frozen=True)
class PartCost:
    """What a part of the network costs: the stem, a body stage or an exit."""

    name: str
    """`stem`, `stage 1` and so on, or `exit 5`."""
    cost: Cost
    """Its cost; memory counts everything that is alive while the part runs."""


def subnet_cost(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> Cost:
    """Return the cost of a sub-network as it is extracted.

    Args:
        arch: The supernet's architecture.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.

    Returns:
        Trainable parameters, and of one image multiply-adds and peak activation memory, in bytes of float32.

    Raises:
        SpaceError: If an exit is not on the sub-network's way.
    """
    return reduce(add, (part.cost for part in stage_costs(arch, subnet, exits)))


def stage_costs(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> tuple[PartCost, ...]:
    """Return the cost of the stem, each body stage and each exit, in the order in which they run.

    Args:
        arch: The supernet's architecture.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.

    Returns:
        The parts with their costs, as for `subnet_cost`. Parameters and multiply-adds add up to the network's; the
        largest peak of memory is the network's.

    Raises:
        SpaceError: If an exit is not on the sub-network's way.
    """
    chosen, resolution = choose_exits(arch.exits, subnet, exits), subnet.resolution
    parts = [PartCost("stem", part_cost(arch, StemPart(), resolution))]
    read = frozenset(feature for exit in chosen for feature in arch.head_reads(exit))
    for stage in range(subnet.height):
        choices = subnet.blocks(stage)
        blocks = (
            waited_block_cost(
                arch, BlockPart(stage, block > 0, choice), Position(block, len(choices)), resolution, read
            )
            for block, choice in enumerate(choices)
        )
        parts.append(PartCost(f"stage {stage + 1}", reduce(add, blocks)))
    for done, exit in enumerate(chosen):
        own = frozenset(arch.head_reads(exit))
        later = frozenset(feature for after in chosen[done + 1 :] for feature in arch.head_reads(after))
        assert own <= later or not own & later, "an exit's features are all read again, or none"
        part = ExitPart(exit)
        cost = _head_cost(arch, part, part_side(arch, part, resolution), bool(own & later))
        held = _feature_bytes(arch, later - own, resolution) + BYTES * done * arch.output_values(resolution)
        parts.append(PartCost(f"exit {exit}", _beside(cost, held)))
    return tuple(parts)


def waited_block_cost(
    arch: Architecture, part: BlockPart, position: "Position", resolution: int, read: frozenset[int]
) -> Cost:
    """Return the cost of a block while features wait for the heads that read them.

    Args:
        arch: The supernet's architecture.
        part: The block.
        position: Where it stands.
        resolution: Side of the image in pixels.
        read: The features that heads read: 0 is the stem's output, k that of body stage k.
    """
    # A first block's own input may be one of them; later in the stage, that is one of the other tensors.
    kept = not part.later and part.stage in read
    own = block_cost(arch, part, position, part_side(arch, part, resolution), kept)
    waiting = frozenset(feature for feature in read if feature < part.stage + part.later)
    return _beside(own, _feature_bytes(arch, waiting, resolution))


@lru_cache(maxsize=2**12)
def _feature_bytes(arch: Architecture, features: frozenset[int], resolution: int) -> int:
    return BYTES * sum(
        arch.feature_channels(feature) * arch.stage_side(feature, resolution) ** 2 for feature in features
    )


@lru_cache(maxsize=2**12)
def _head_cost(arch: Architecture, part: ExitPart, side: int, kept: bool) -> Cost:
    steps = part_steps(arch, part, side)
    return steps_cost(steps, kept=len(arch.head_reads(part.exit)) if kept else 0)


def layer_costs(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> tuple[LayerCost, ...]:
    """Return the cost of each layer with weights, in the order in which they run, named as in the extracted network.

    Args:
        arch: The supernet's architecture.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.

    Returns:
        The layers with their trainable parameters, and multiply-adds of one image.

    Raises:
        SpaceError: If an exit is not on the sub-network's way.
    """
    layers = _named_layers(arch, StemPart(), subnet.resolution, "")
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            part = BlockPart(stage, block > 0, choice)
            side = part_side(arch, part, subnet.resolution)
            layers += _named_layers(arch, part, side, f"stages.{stage}.blocks.{block}.")
    for exit in choose_exits(arch.exits, subnet, exits):
        side = part_side(arch, ExitPart(exit), subnet.resolution)
        layers += _named_layers(arch, ExitPart(exit), side, f"exits.{exit}.")
    return layers


class Position(NamedTuple):
    """Where a block stands in its stage."""

    block: int
    """Block position, from 0."""
    depth: int
    """Blocks of the stage that run: dense skips keep outputs for later blocks."""


# The functions below are pure; their values are kept, as sub-networks are made of few different parts.


@lru_cache(maxsize=2**17)
def block_cost(arch: Architecture, part: BlockPart, position: Position, side: int, kept: bool = False) -> Cost:
    """Return the cost of a block, with the dense skips that meet at its end.

    Args:
        arch: The supernet's architecture.
        part: The block.
        position: Where it stands.
        side: Side of its input in pixels.
        kept: Whether its input is read again after the stage.
    """
    steps, around = part_steps(arch, part, side), _surroundings(arch.dense, position.depth)[position.block]
    (returned,) = steps[-1].reads
    output = BYTES * tensor_sizes(steps)[returned]
    cost = _beside(steps_cost(steps, kept=kept or around.input_kept), around.others * output)
    return replace(cost, memory=max(cost.memory, around.in_sums * output))


@lru_cache(maxsize=2**12)
def part_cost(arch: Architecture, part: Part, side: int) -> Cost:
    """Return the cost of a part alone.

    Args:
        arch: The supernet's architecture.
        part: The part.
        side: What `part_side` gives.
    """
    return steps_cost(part_steps(arch, part, side))


@lru_cache(maxsize=2**14)
def part_steps(arch: Architecture, part: Part, side: int) -> tuple[Step, ...]:
    """Return what each node of a part does.

    Args:
        arch: The supernet's architecture.
        part: The part.
        side: What `part_side` gives.
    """
    return graph_steps(_recorded(arch, part), *input_shapes(arch, part, side))


@lru_cache(maxsize=2**12)
def _recorded(arch: Architecture, part: Part) -> torch.fx.GraphModule:
    return part.record(_meta_supernet(arch))


@lru_cache(maxsize=8)
def _meta_supernet(arch: Architecture) -> Supernet:
    with torch.device("meta"):
        net = Supernet(arch, (arch.stride_to(len(arch.stages)),), dropout=0.0, seed=0)
    return net.eval()


class _Surroundings(NamedTuple):
    """Tensors that are alive beside a block, all of the size of its output."""

    others: int
    """While it runs, without its own input and output."""
    input_kept: bool
    """Whether its input is read again later in the stage."""
    in_sums: int
    """The most that are alive while skips are added to its output; 0 without skips."""


@lru_cache(maxsize=64)
def _surroundings(dense: bool, depth: int) -> tuple[_Surroundings, ...]:
    """Return what is alive around each block of a stage, from a record of the stage's own forward."""
    stage = Stage([_AnyBlock() for _ in range(depth)], dense).eval()
    steps = graph_steps(record(stage, (None,) * depth).eval(), (1, 1, 1))
    alive = alive_tensors(steps)
    indices = [index for index, step in enumerate(steps) if step.name.startswith("blocks.")]
    found = []
    for index, following in zip(indices, [*indices[1:], len(steps) - 1], strict=True):
        (given,) = steps[index].reads
        in_sums = max((len(alive[later]) for later in range(index + 1, following)), default=0)
        found.append(_Surroundings(len(alive[index]) - 2, given in alive[index + 1], in_sums))
    return tuple(found)


class _AnyBlock(ElasticLayer):
    """Stands for a block when a stage is recorded."""

    def plain(self, choice: None) -> nn.Module:
        """Return a layer that makes one tensor."""
        return nn.ReLU()


def _beside(cost: Cost, held: int) -> Cost:
    """Return the cost while `held` bytes of other tensors are alive."""
    return Cost(cost.params, cost.macs, cost.memory + held)


def _named_layers(arch: Architecture, part: Part, side: int, prefix: str) -> tuple[LayerCost, ...]:
    layers = weighted_layers(part_steps(arch, part, side))
    return tuple(replace(layer, name=prefix + layer.name) for layer in layers)
