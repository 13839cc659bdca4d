"""Draw sub-networks that keep the limits of a device.

Under a tight limit all but one draw in a billion may miss, so draws that miss are not thrown away. Resolution and exit
are drawn among those that can keep the limits at all. A draw starts from the largest network there, or as
often from one drawn uniformly; while it is over a limit, one choice after the other, in random order, is replaced by
that of a cheapest network, which keeps the limits by construction. So the networks gather just below the limits, where
the accurate ones are: uniform draws alone cost about half of the largest network, and would leave a loose limit unused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ofav2.errors import UserError
from ofav2.nas.cheapest import Cheapest, cheapest, within
from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.limits import Limits, Method, show
from ofav2.rng import generator
from ofav2.tasks.base import Metric
from supernets import BlockChoice, Space, Subnet

MOST_CANDIDATES = 100_000
"""More candidates than anyone would wait for are a slip."""
PATIENCE = 300
"""Draws in a row that find nothing new, after which drawing ends."""


@dataclass(frozen=True)
class Candidate:
    """A network that keeps the limits, measured."""

    subnet: Subnet
    """The network."""
    price: Price
    """What it costs."""
    score: float
    """The task's main metric on validation, batch norm recalibrated; of a front, on the half that confirms it."""


@dataclass(frozen=True)
class Ranking:
    """The outcome of a choice."""

    limits: Limits
    """The most that a network may cost."""
    ranked: tuple[Candidate, ...]
    """The chosen network, then the others. Those that `choose` measured are sorted by score, the best first, and equal
    ones by multiply-adds; those of a search's front by its first cost, the cheapest first."""
    space: Space
    """The part of the run's space that they are from."""
    seed: int
    """Seed of the draw and the search."""
    metric: Metric
    """What the candidates are ranked by."""
    method: Method = "random"
    """Where the candidates are from."""
    rule: str = "best"
    """Which of them is chosen: `best`, `knee`, or `number` and its number."""
    measured: int | None = None
    """Networks that were measured to find the candidates; None if these are all."""

    @property
    def best(self) -> Candidate:
        """The chosen network."""
        return self.ranked[0]


def draw_within(
    model: CostModel, space: Space, limits: Limits, *, candidates: int, seed: int = 0
) -> tuple[Subnet, ...]:
    """Draw different networks that keep the limits.

    Args:
        model: What networks cost; a limit of latency needs its table.
        space: The networks to draw from.
        limits: The most that a network may cost.
        candidates: How many; fewer are returned where the limits leave hardly any others.
        seed: Seed of the draw.

    Raises:
        UserError: If no network can keep the limits; the message says what can be kept.
    """
    check_candidates(candidates)
    if limits.latency is not None and model.table is None:
        raise UserError("limit latency needs a latency table: measure one with `ofav2 latency RUN`")
    anchors = feasible(model, space, limits)
    keys = sorted(anchors)
    rng = generator("choose", seed)
    found: dict[Subnet, None] = {}
    idle = 0
    while len(found) < candidates and idle < PATIENCE:
        resolution, exit = keys[int(rng.integers(len(keys)))]
        here = anchors[resolution, exit]
        anchor = here[int(rng.integers(len(here)))].subnet
        part = space.restrict(resolution=(resolution,), height=(exit,))
        start = part.largest() if rng.integers(2) else part.sample(rng)
        subnet = _moved(start, anchor, model, limits, rng)
        idle = idle + 1 if subnet in found else 0
        found[subnet] = None
    return tuple(found)


def check_candidates(candidates: int) -> None:
    """Refuse numbers of candidates that nobody can want.

    Raises:
        UserError: If it is no whole number, none, or too many.
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int) or not 1 <= candidates <= MOST_CANDIDATES:
        raise UserError(f"candidates ({candidates}) must be a whole number from 1 to {MOST_CANDIDATES}")


def feasible(model: CostModel, space: Space, limits: Limits) -> dict[tuple[int, int], tuple[Cheapest, ...]]:
    """Find the cheapest networks that keep the limits, by resolution and exit; those without any are left out.

    Raises:
        UserError: If there is none at all; the message says, for each limit, the least that it would have to be.
    """
    names = tuple(limits.named) or ("macs",)
    by_key = cheapest(model, space, names)
    kept = {key: tuple(one for one in ones if within(one.price, limits)) for key, ones in by_key.items()}
    kept = {key: ones for key, ones in kept.items() if ones}
    if not kept:
        raise UserError(_refusal([one.price for ones in by_key.values() for one in ones], limits))
    return kept


def _refusal(prices: Sequence[Price], limits: Limits) -> str:
    """Return why no network keeps the limits, and the nearest values that one does."""
    alone = {name: min(getattr(price, name) for price in prices) for name in limits.named}
    missed = [name for name, most in limits.named.items() if alone[name] > most]
    if missed:
        reasons = ", ".join(
            f"{name} ({_exact(name, limits.named[name])}) is less than any network needs: the least is"
            f" {show(name, alone[name])} ({_exact(name, alone[name])})"
            for name in missed
        )
        return f"limit {reasons}"
    nearest = []
    for name in limits.named:
        others = Limits(**{other: most for other, most in limits.named.items() if other != name})
        values = [getattr(price, name) for price in prices if within(price, others)]
        if values:
            nearest.append(f"{name} {show(name, min(values))}")
    way = f"with the others kept, raise one to {' or '.join(nearest)}" if nearest else "raise more than one of them"
    return f"limits {limits} can each be kept, but by no network all at once: {way}"


def _exact(name: str, value: int) -> str:
    units = {"memory": " bytes", "latency": " ns"}
    return f"{value:,}{units.get(name, '')}"


def _moved(start: Subnet, anchor: Subnet, model: CostModel, limits: Limits, rng: np.random.Generator) -> Subnet:
    """Replace choices of the network, in random order, by the anchor's, until it keeps the limits."""
    depth, blocks = list(start.depth), [_filled(start.blocks(i), anchor.blocks(i)) for i in range(start.height)]
    genes = [(stage, block) for stage in range(start.height) for block in range(-1, len(blocks[stage]))]
    subnet = start
    for gene in rng.permutation(len(genes)).tolist():
        if within(model.price(subnet), limits):
            break
        stage, block = genes[gene]
        if block < 0:
            depth[stage] = anchor.depth[stage]
        elif block < anchor.depth[stage]:
            blocks[stage][block] = anchor.blocks(stage)[block]
        subnet = Subnet.of_blocks(start.resolution, blocks, depth)
    assert within(model.price(subnet), limits), "the anchor itself keeps the limits"
    return subnet


def _filled(own: tuple[BlockChoice, ...], anchor: tuple[BlockChoice, ...]) -> list[BlockChoice]:
    """Return a stage's choices, followed by the anchor's for further blocks."""
    return [*own, *anchor[len(own) :]]
