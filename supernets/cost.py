"""Parameters, multiply-adds and peak activation memory of a sub-network, by formula: no network is built.

Multiply-adds are counted as everywhere in the field: of convolutions and linear layers, without biases; norms,
activations, pooling and sums are left out.

Memory is the largest sum of the sizes of all tensors that are alive at once while one image runs through the extracted
network in inference, at four bytes a value. A tensor lives from the layer that makes it to the last layer that reads
it; a layer's inputs and its output are alive together. Every layer makes a new tensor: nothing is fused or done in
place. Weights and what a kernel needs inside are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

from supernets import Architecture, BlockChoice, Exits, Subnet
from supernets.cost_layers import Layer, block_layers, block_side, exit_layers, stage_side, stem_layers

BYTES = 4
"""Bytes of a value, at float32."""


@dataclass(frozen=True)
class Cost:
    """What a network, or a part of it, costs per image."""

    params: int
    """Trainable parameters of the extracted network."""
    macs: int
    """Multiply-adds of one image at the sub-network's resolution."""
    memory: int = 0
    """Peak activation memory of one image, in bytes."""

    def __add__(self, other: "Cost") -> "Cost":
        """Cost of both, one after the other: of memory, the larger peak."""
        return Cost(self.params + other.params, self.macs + other.macs, max(self.memory, other.memory))


@dataclass(frozen=True)
class PartCost:
    """What a part of the network costs: the stem, a body stage or an exit."""

    name: str
    """`stem`, `stage 1` and so on, or `exit 5`."""
    cost: Cost
    """Its cost; memory counts everything that is alive while the part runs."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer with weights costs."""

    name: str
    """Name of the layer in the extracted network."""
    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one image."""


@dataclass(frozen=True)
class ExitMacs:
    """Multiply-adds of an image that leaves at an exit."""

    exit: int
    """The exit, from 1."""
    alone: int
    """Stem, stages up to the exit, and its own head: a network of that exit alone."""
    passed: int
    """The same with the heads of all earlier exits, which the image has passed."""


def subnet_cost(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> Cost:
    """Cost of the sub-network as it is extracted.

    Args:
        arch: The supernet's arch, `net.architecture`.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.
    """
    return reduce(add, (part.cost for part in stage_costs(arch, subnet, exits)))


def stage_costs(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> tuple[PartCost, ...]:
    """Cost of the stem, each body stage and each exit, in the order in which they run.

    Args:
        arch: The supernet's arch.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.
    """
    chosen = _exits(arch, subnet, exits)
    parts = [PartCost("stem", stem_cost(arch, subnet.resolution))]
    side = stage_side(arch, 0, subnet.resolution)
    waiting: list[int] = []  # sizes of the features that wait for their exit
    for stage in range(subnet.height):
        kept = stage in chosen
        held = BYTES * sum(waiting[:-1] if kept else waiting)
        before, choices = side, subnet.blocks(stage)
        cost = Cost(0, 0)
        for block, choice in enumerate(choices):
            own = block_cost(arch, stage, block, len(choices), choice, side, kept and block == 0)
            # From the second block on, the stage's input is one of the tensors that wait.
            over = held + (BYTES * waiting[-1] if kept and block else 0)
            cost += Cost(own.params, own.macs, own.memory + over)
            side = block_side(arch, stage, block, side)
        assert side == block_side(arch, stage, 0, before), "only a stage's first block strides"
        if stage + 1 in chosen:
            waiting.append(arch.stages[stage].channels * side**2)
        parts.append(PartCost(f"stage {stage + 1}", cost))
    for done, exit in enumerate(chosen):
        own = exit_cost(arch, exit, stage_side(arch, exit, subnet.resolution))
        held = BYTES * (sum(waiting[done + 1 :]) + done * arch.num_classes)
        parts.append(PartCost(f"exit {exit}", Cost(own.params, own.macs, own.memory + held)))
    return tuple(parts)


def exit_macs(arch: Architecture, subnet: Subnet, exits: Exits) -> tuple[ExitMacs, ...]:
    """Multiply-adds of one image by the exit at which it leaves, ascending.

    Args:
        arch: The supernet's arch.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`; stages after the last of them don't count.
    """
    macs = [part.cost.macs for part in stage_costs(arch, subnet, exits)]
    bodies, heads = macs[: 1 + subnet.height], macs[1 + subnet.height :]
    return tuple(
        ExitMacs(exit, sum(bodies[: 1 + exit]) + heads[place], sum(bodies[: 1 + exit]) + sum(heads[: place + 1]))
        for place, exit in enumerate(_exits(arch, subnet, exits))
    )


def layer_costs(arch: Architecture, subnet: Subnet, exits: Exits = "last") -> tuple[LayerCost, ...]:
    """Cost of each layer with weights, in the order in which they run, named as in the extracted network.

    Args:
        arch: The supernet's arch.
        subnet: A network of its space.
        exits: Exits that it is extracted with, as in `Supernet.extract`.
    """
    layers = list(stem_layers(arch, subnet.resolution))
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            side = stage_side(arch, stage + (block > 0), subnet.resolution)
            layers += block_layers(arch, stage, block, choice, side)
    for exit in _exits(arch, subnet, exits):
        layers += exit_layers(arch, exit, stage_side(arch, exit, subnet.resolution))
    return tuple(LayerCost(layer.name, layer.params, layer.macs) for layer in layers if layer.params)


# Parts are priced once and kept: sub-networks are made of few different ones. The functions are pure.


@lru_cache(maxsize=2**10)
def stem_cost(arch: Architecture, resolution: int) -> Cost:
    """Cost of stem and first block.

    Args:
        arch: The supernet's arch.
        resolution: Side of the image in pixels.
    """
    layers = stem_layers(arch, resolution)
    return _cost(layers, peak_elements(layers, kept=False))


@lru_cache(maxsize=2**17)
def block_cost(
    arch: Architecture, stage: int, block: int, depth: int, choice: BlockChoice, side: int, kept: bool = False
) -> Cost:
    """Cost of a block, with the dense skips that meet at its end.

    Args:
        arch: The supernet's arch.
        stage: Body stage, from 0.
        block: Block position, from 0.
        depth: Blocks of the stage that run: dense skips keep outputs for later blocks.
        choice: The block's choices.
        side: Side of its input in pixels.
        kept: Whether the stage's input is read again later; looked at for the first block.
    """
    layers = block_layers(arch, stage, block, choice, side)
    if not arch.dense:
        return _cost(layers, peak_elements(layers, kept))
    output = layers[-1].elements
    is_output = 0 < block <= 2  # else the input is a sum of its own
    held = min(block, depth - 2) if depth > 2 else 0
    input_held = is_output and block <= depth - 2
    inside = peak_elements(layers, kept or input_held) + (held - input_held) * output
    return _cost(layers, max(inside, _most_in_sum(block + 1, depth) * output))


@lru_cache(maxsize=2**10)
def exit_cost(arch: Architecture, exit: int, side: int) -> Cost:
    """Cost of an exit.

    Args:
        arch: The supernet's arch.
        exit: The exit, from 1.
        side: Side of its features in pixels.
    """
    layers = exit_layers(arch, exit, side)
    return _cost(layers, peak_elements(layers, kept=False))


def skip_sums(block: int) -> int:
    """How many tensors dense skips add to the output of block position `block`, counted from 0."""
    return max(0, block - 1)


def peak_elements(layers: Sequence[Layer], kept: bool) -> int:
    """Most values that are alive at once while a part runs.

    Args:
        layers: The part's layers; the first one stands for its input, the last one makes its output.
        kept: Whether the input is read again after the part.
    """
    last = {read: place for place, layer in enumerate(layers) for read in layer.reads}
    end = len(layers)
    last |= {end - 1: end, **({0: end} if kept else {})}
    alive = most = 0
    for place, layer in enumerate(layers):
        alive += layer.elements
        most = max(most, alive)
        alive -= sum(layers[read].elements for read in set(layer.reads) if last[read] == place)
    return most


def _most_in_sum(count: int, depth: int) -> int:
    """Most tensors alive while outputs 1 … count - 2 are added, one by one, to output `count` of a dense stage."""
    most = 0
    for added in range(1, count - 1):
        first = added if count == depth else 1
        waiting = sum(output <= depth - 2 for output in range(first, count))
        again = count <= depth - 2 and added > 1
        most = max(most, waiting + again + 2)
    return most


def _cost(layers: Sequence[Layer], elements: int) -> Cost:
    return Cost(sum(layer.params for layer in layers), sum(layer.macs for layer in layers), BYTES * elements)


def _exits(arch: Architecture, subnet: Subnet, exits: Exits) -> tuple[int, ...]:
    if exits == "last":
        return (subnet.height,)
    if exits == "all":
        return tuple(exit for exit in arch.exits if exit <= subnet.height)
    assert not isinstance(exits, str), "the supernet has refused other words"
    return tuple(exits)
