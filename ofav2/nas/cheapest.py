"""Find the least that networks of a space can cost, exactly, and networks that cost it.

Costs are sums (of memory: the maximum) over parts that are chosen independently of each other once resolution, depth
and exit are known. So the cheapest networks are found part by part: of the partial networks, only those are kept that
no other one beats in every cost at once (dynamic programming over a Pareto front).
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter, le
from typing import NamedTuple

from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.limits import Limits
from supernets import BlockChoice, Space, Subnet
from supernets.parts import BlockPart, ExitPart, StemPart
from supernets.subnet_cost import Position


class Cheapest(NamedTuple):
    """A network that no other one of its resolution and exit beats in every cost."""

    price: Price
    subnet: Subnet


class _Partial(NamedTuple):
    """A network's first blocks."""

    price: Price
    choices: tuple[tuple[BlockChoice, ...], ...]


def within(price: Price, limits: Limits) -> bool:
    """Return whether a network of this price keeps all limits."""
    return all(getattr(price, name) <= most for name, most in limits.named.items())


def cheapest(model: CostModel, space: Space, names: Sequence[str]) -> dict[tuple[int, int], tuple[Cheapest, ...]]:
    """Find the cheapest networks of each resolution and exit.

    Args:
        model: What networks cost; with a latency table where latency is looked at.
        space: The networks to look among.
        names: The costs to look at: `params`, `macs`, `memory`, `latency`.

    Returns:
        By resolution and exit, every network that no other one beats or equals in all the named costs; of equals, one.
    """
    found: dict[tuple[int, int], tuple[Cheapest, ...]] = {}
    for resolution in space.resolution:
        front = [_Partial(model.part(StemPart(), resolution), ())]
        for stage in range(max(space.height)):
            longer: list[_Partial] = []
            for depth in space.depth:
                longer += _through(front, _stage_blocks(model, space, stage, depth, resolution), names)
            front = _front(longer, names)
            if stage + 1 in space.height:
                exit = ExitPart(stage + 1)
                head = model.part(exit, resolution)
                whole = _front((_Partial(partial.price.then(head), partial.choices) for partial in front), names)
                found[resolution, exit.exit] = tuple(
                    Cheapest(partial.price, Subnet.of_blocks(resolution, partial.choices)) for partial in whole
                )
    return found


def _stage_blocks(model: CostModel, space: Space, stage: int, depth: int, resolution: int) -> list[list[_Partial]]:
    """Return every block that may stand at each position of a stage of this depth."""
    blocks = []
    for block in range(depth):
        position = Position(block, depth)
        parts = [BlockPart(stage, block > 0, choice) for choice in space.block_choices]
        blocks.append([_Partial(model.block(part, position, resolution), ((part.choice,),)) for part in parts])
    return blocks


def _through(front: Sequence[_Partial], blocks: Sequence[Sequence[_Partial]], names: Sequence[str]) -> list[_Partial]:
    """Return the cheapest partial networks with one more stage, made of a block out of each list."""
    partials = [_Partial(partial.price, (*partial.choices, ())) for partial in front]
    for block in blocks:
        cheap = _front(block, names)
        partials = _front(
            (
                _Partial(
                    partial.price.then(own.price),
                    (*partial.choices[:-1], (*partial.choices[-1], *own.choices[0])),
                )
                for partial in partials
                for own in cheap
            ),
            names,
        )
    return partials


def _front(partials: Iterable[_Partial], names: Sequence[str]) -> list[_Partial]:
    """Return those that no other one beats or equals in all the named costs; of equals, the first."""
    indices = [Price._fields.index(name) for name in names]
    ordered = sorted(
        ((tuple(partial.price[index] for index in indices), partial) for partial in partials), key=itemgetter(0)
    )
    kept: list[tuple[tuple[int, ...], _Partial]] = []
    for costs, partial in ordered:
        if not any(all(map(le, better, costs)) for better, _ in kept):
            kept.append((costs, partial))
    return [partial for _, partial in kept]
