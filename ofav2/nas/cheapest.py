"""Find the least cost in a space, exactly, and networks that have it.

Costs are sums (of memory: the maximum) over parts that are chosen independently of each other once resolution, depth
and exit are known. So the cheapest networks are found part by part: of the partial networks, only those are kept that
no other one beats in every cost at once (dynamic programming over a Pareto front).
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter, le
from typing import NamedTuple

from ofav2.nas.latency_table import LatencyTable, block_latency, exit_latency, predict_latency, stem_latency
from ofav2.nas.limits import Limits
from supernets import Architecture, BlockChoice, Space, Subnet
from supernets.cost import Cost, block_cost, exit_cost, stem_cost, subnet_cost
from supernets.cost_layers import block_choices, block_side, stage_side


class Price(NamedTuple):
    """Everything that can be limited, of a network or of a part of one."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one image."""
    memory: int
    """Peak activation memory of one image in bytes."""
    latency: int
    """Predicted latency in nanoseconds; 0 without a latency table."""

    def then(self, other: "Price") -> "Price":
        """Price of both, one after the other."""
        return Price(
            self.params + other.params,
            self.macs + other.macs,
            max(self.memory, other.memory),
            self.latency + other.latency,
        )


class Cheapest(NamedTuple):
    """A network that no other one of its resolution and exit beats in every cost."""

    price: Price
    subnet: Subnet


class _Partial(NamedTuple):
    """A network's first blocks."""

    price: Price
    choices: tuple[tuple[BlockChoice, ...], ...]


def price_of(arch: Architecture, table: LatencyTable | None, subnet: Subnet) -> Price:
    """Price of a network."""
    cost = subnet_cost(arch, subnet)
    return _price(cost, predict_latency(table, arch, subnet) if table else 0)


def within(price: Price, limits: Limits) -> bool:
    """Whether a network of this price keeps all limits."""
    return all(getattr(price, name) <= most for name, most in limits.named.items())


def cheapest(
    arch: Architecture, space: Space, names: Sequence[str], table: LatencyTable | None = None
) -> dict[tuple[int, int], tuple[Cheapest, ...]]:
    """The cheapest networks of each resolution and exit.

    Args:
        arch: The supernet's arch.
        space: The networks to look among.
        names: The costs to look at: `params`, `macs`, `memory`, `latency`.
        table: Latencies, where they are looked at.

    Returns:
        By resolution and exit, every network that no other one beats or equals in all the named costs; of equals, one.
    """
    choices = block_choices(space)
    found: dict[tuple[int, int], tuple[Cheapest, ...]] = {}
    for resolution in space.resolution:
        stem = _price(stem_cost(arch, resolution), stem_latency(table, resolution) if table else 0)
        front = [_Partial(stem, ())]
        for stage in range(max(space.height)):
            side = stage_side(arch, stage, resolution)
            front = _front(
                (
                    partial
                    for depth in space.depth
                    for partial in _through(arch, table, front, choices, stage, depth, side, names)
                ),
                names,
            )
            if stage + 1 in space.height:
                after = stage_side(arch, stage + 1, resolution)
                found[resolution, stage + 1] = _ended(arch, table, front, resolution, stage + 1, after, names)
    return found


def _through(
    arch: Architecture,
    table: LatencyTable | None,
    front: Sequence[_Partial],
    choices: Sequence[BlockChoice],
    stage: int,
    depth: int,
    side: int,
    names: Sequence[str],
) -> list[_Partial]:
    """Partial networks with one more stage, of this depth."""
    partials = [_Partial(partial.price, (*partial.choices, ())) for partial in front]
    for block in range(depth):
        output = block_side(arch, stage, block, side)
        blocks = _front(
            (
                _Partial(
                    _price(
                        block_cost(arch, stage, block, depth, choice, side),
                        block_latency(table, stage, block, choice, side, output) if table else 0,
                    ),
                    ((choice,),),
                )
                for choice in choices
            ),
            names,
        )
        partials = _front(
            (
                _Partial(
                    partial.price.then(own.price),
                    (*partial.choices[:-1], (*partial.choices[-1], *own.choices[0])),
                )
                for partial in partials
                for own in blocks
            ),
            names,
        )
        side = output
    return partials


def _ended(
    arch: Architecture,
    table: LatencyTable | None,
    front: Sequence[_Partial],
    resolution: int,
    exit: int,
    side: int,
    names: Sequence[str],
) -> tuple[Cheapest, ...]:
    head = _price(exit_cost(arch, exit, side), exit_latency(table, exit, side) if table else 0)
    whole = _front((_Partial(partial.price.then(head), partial.choices) for partial in front), names)
    return tuple(Cheapest(partial.price, _subnet(resolution, exit, partial.choices)) for partial in whole)


def _front(partials: Iterable[_Partial], names: Sequence[str]) -> list[_Partial]:
    """Those that no other one beats or equals in all the named costs; of equals, the first."""
    places = [Price._fields.index(name) for name in names]
    ordered = sorted(
        ((tuple(partial.price[place] for place in places), partial) for partial in partials), key=itemgetter(0)
    )
    kept: list[tuple[tuple[int, ...], _Partial]] = []
    for costs, partial in ordered:
        if not any(all(map(le, better, costs)) for better, _ in kept):
            kept.append((costs, partial))
    return [partial for _, partial in kept]


def _price(cost: Cost, latency: int) -> Price:
    return Price(cost.params, cost.macs, cost.memory, latency)


def _subnet(resolution: int, exit: int, choices: Sequence[Sequence[BlockChoice]]) -> Subnet:
    return Subnet(
        resolution=resolution,
        height=exit,
        depth=tuple(len(blocks) for blocks in choices),
        kernel=tuple(tuple(choice.kernel for choice in blocks) for blocks in choices),
        expand=tuple(tuple(choice.expand for choice in blocks) for blocks in choices),
        level=tuple(tuple(choice.level for choice in blocks) for blocks in choices),
    )
