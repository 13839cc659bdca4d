"""Write the networks of a supernet as genes, with vectorised exact costs and limits, as the search engine needs them.

Genes are indices into the space's choices: resolution, height, then for each stage its depth, and for each of its
blocks kernel, expand and level. What does not run has gene 0, so equal networks have equal genes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ofav2.errors import UserError
from ofav2.nas.candidates import feasible
from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.engine.problem import Floats, Genes, Mask
from ofav2.nas.limits import Limits
from ofav2.nas.plugins import OwnCost
from supernets import BlockChoice, Space, Subnet
from supernets.parts import BlockPart, ExitPart, StemPart
from supernets.subnet_cost import Position

RESOLUTION, HEIGHT = 0, 1
"""Columns of the genes of a whole network."""
_NETWORK, _BLOCK = 2, 3
TRAITS = ("params", "macs")
"""Costs that accuracy may depend on smoothly."""


@dataclass(frozen=True)
class GeneSpace:
    """The networks of a space that keep some limits, as genes.

    Args:
        space: The networks.
        model: What they cost; with a latency table where latency counts.
        limits: The most that a network may cost.
        cost_names: Names of the costs that are minimised.
        own_costs: The user's own costs, by name.

    Raises:
        UserError: If no network can keep the limits; the message says what can be kept.
    """

    space: Space
    model: CostModel
    limits: Limits
    cost_names: tuple[str, ...]
    own_costs: Mapping[str, OwnCost] = field(default_factory=dict)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """How many choices each gene has."""
        space = self.space
        block = (len(space.kernel), len(space.expand), len(space.levels))
        return (
            len(space.resolution),
            len(space.height),
            *((len(space.depth), *(block * space.blocks)) * space.stages),
        )

    def active(self, genes: Genes) -> Mask:
        """Return which genes have an effect, (N, genes)."""
        space, count = self.space, len(genes)
        heights, depths = np.array(space.height), np.array(space.depth)
        mbconv = np.array(["mbconv" in level for level in space.levels])
        stages = self._stages(genes)
        runs = np.arange(space.stages) < heights[genes[:, HEIGHT]][:, None]
        blocks = runs[:, :, None] & (np.arange(space.blocks) < depths[stages[:, :, 0]][:, :, None])
        kept = blocks & mbconv[self._blocks(stages)[..., 2]]
        of_blocks = np.stack([kept, kept, blocks], -1).reshape(count, space.stages, -1)
        of_stages = np.concatenate([runs[:, :, None], of_blocks], -1).reshape(count, -1)
        return np.concatenate([np.ones((count, _NETWORK), bool), of_stages], 1)

    def canonical(self, genes: Genes) -> Genes:
        """Return the same networks, (N, genes), with 0 for genes without effect."""
        return np.where(self.active(genes), genes, 0)

    def encode(self, subnet: Subnet) -> NDArray[np.int64]:
        """Return the genes (genes,) of a network of the space."""
        space = self.space
        space.check(subnet)
        genes = [space.resolution.index(subnet.resolution), space.height.index(subnet.height)]
        for stage in range(space.stages):
            blocks = subnet.blocks(stage) if stage < subnet.height else ()
            genes.append(space.depth.index(len(blocks)) if blocks else 0)
            for block in range(space.blocks):
                genes += self._block_genes(blocks[block]) if block < len(blocks) else (0, 0, 0)
        return np.array(genes, np.int64)

    def decode(self, genes: NDArray[np.int64]) -> Subnet:
        """Return the network of a vector of genes (genes,)."""
        space = self.space
        stages = self._stages(genes[None])[0]
        blocks = self._blocks(stages[None])[0]
        return Subnet(
            resolution=space.resolution[genes[RESOLUTION]],
            height=space.height[genes[HEIGHT]],
            depth=tuple(space.depth[index] for index in stages[:, 0]),
            kernel=tuple(tuple(space.kernel[index] for index in stage) for stage in blocks[..., 0]),
            expand=tuple(tuple(space.expand[index] for index in stage) for stage in blocks[..., 1]),
            level=tuple(tuple(space.levels[index] for index in stage) for stage in blocks[..., 2]),
        )

    def costs(self, genes: Genes) -> Floats:
        """Return the costs to minimise, (N, costs); those of ofav2 are whole numbers and come first.

        Raises:
            UserError: If one of the user's own is no finite number.
        """
        fixed = tuple(name for name in self.cost_names if name in Price._fields)
        found = self._costs(genes, fixed).astype(np.float64)
        own = [self.own_costs[name] for name in self.cost_names[len(fixed) :]]
        if not own:
            return found
        prices = self._costs(genes, Price._fields).tolist()
        networks = [(self.decode(row), Price(*price)) for row, price in zip(genes, prices, strict=True)]
        columns = [[cost(subnet, price) for cost in own] for subnet, price in networks]
        added = np.array(columns, np.float64).reshape(len(genes), len(own))
        if not np.isfinite(added).all():
            (row, column) = np.argwhere(~np.isfinite(added))[0]
            name, subnet = self.cost_names[len(fixed) + column], networks[row][0]
            raise UserError(f"cost ({name}) of sub-network ({subnet}) is no finite number: correct its function")
        return np.concatenate([found, added], 1)

    def all_costs(self, subnet: Subnet) -> dict[str, float]:
        """Return everything that a network costs, by name: what is limited, and the user's own costs."""
        price = self.model.price(subnet)
        own = {name: float(self.own_costs[name](subnet, price)) for name in self.cost_names if name in self.own_costs}
        return {**price._asdict(), **own}

    def keeps_limits(self, genes: Genes) -> Mask:
        """Return which canonical networks keep the limits, (N,)."""
        named = self.limits.named
        kept = self._costs(genes, tuple(named)) <= np.array(list(named.values()), np.int64)
        return np.asarray(kept.all(1))

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return canonical networks that keep the limits; those that are and do are returned as they are.

        Of a network that is over a limit, one gene after the other, in random order, takes the value that it has in a
        cheapest network of the same resolution and exit, until the limits are kept. Where even that one misses, the
        network moves to a resolution and exit that can keep them.
        """
        genes = self.canonical(genes)
        if not self.limits.named:
            return genes
        over = np.flatnonzero(~self.keeps_limits(genes))
        if len(over):
            genes[over] = self._moved(genes[over], rng)
        return genes

    def anchors(self) -> Genes:
        """Return the cheapest network of each resolution and exit, and the largest ones as far as limits allow."""
        rng = np.random.default_rng(0)
        cheapest = [group[0] for group in self._cheapest.values()]
        largest = np.array(
            [
                self.encode(self.space.restrict(resolution=(resolution,), height=(height,)).largest())
                for resolution, height in product(self.space.resolution, self.space.height)
            ]
        )
        return np.unique(np.concatenate([np.array(cheapest), self.repair(largest, rng)]), axis=0)

    def nested(self, body: NDArray[np.int64]) -> Genes:
        """Return the network cut at each exit of the space that is on its way, itself included; all keep the limits."""
        cut = np.repeat(body[None], int(body[HEIGHT]) + 1, axis=0)
        cut[:, HEIGHT] = np.arange(len(cut))
        cut = self.canonical(cut)
        return cut[self.keeps_limits(cut)] if self.limits.named else cut

    def _moved(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return networks (N, genes), all over a limit, moved towards cheapest ones until they keep the limits."""
        places = list(self._cheapest)
        anchors = []
        for row in genes:
            place = (int(row[RESOLUTION]), int(row[HEIGHT]))
            if place not in self._cheapest:
                place = places[int(rng.integers(len(places)))]
            group = self._cheapest[place]
            anchors.append(group[int(rng.integers(len(group)))])
        anchor = np.array(anchors)
        start = np.where(self.active(genes), genes, anchor)
        start[:, :_NETWORK] = anchor[:, :_NETWORK]
        count, width = start.shape
        order = rng.permuted(np.tile(np.arange(width), (count, 1)), axis=1)
        # All ways at once: step k has the anchor's value in the first k genes of the order.
        taken = order[:, None, :] < np.arange(width + 1)[None, :, None]
        ways = np.where(taken, anchor[:, None, :], start[:, None, :]).reshape(-1, width)
        ways = self.canonical(ways)
        keeps = self.keeps_limits(ways).reshape(count, width + 1)
        assert keeps[:, -1].all(), "the anchor itself keeps the limits"
        return ways.reshape(count, width + 1, width)[np.arange(count), keeps.argmax(1)]

    @cached_property
    def _cheapest(self) -> Mapping[tuple[int, int], Genes]:
        """Cheapest networks that keep the limits, by the genes of resolution and height."""
        found = feasible(self.model, self.space, self.limits)
        space = self.space
        return {
            (space.resolution.index(resolution), space.height.index(height)): np.array(
                [self.encode(one.subnet) for one in ones]
            )
            for (resolution, height), ones in sorted(found.items())
        }

    def traits(self, genes: Genes) -> tuple[Floats, Floats]:
        """Return parameters and multiply-adds, (N, 2), and those of each stage's blocks, (N, 2 * stages).

        A stage that does not run counts half of the least that it can cost, so that logarithms stay near each other;
        none counts less than 1.
        """
        columns = [Price._fields.index(name) for name in TRAITS]
        row, stage, prices = self._block_prices(genes)
        stages = max(self.space.height)
        place, count = row * stages + stage, len(genes) * stages
        sums = [np.bincount(place, prices[:, column], count).reshape(-1, stages) for column in columns]
        by_stage = np.stack(sums, -1)  # (N, stages, 2)
        ends = self._tables.ends[genes[:, RESOLUTION], genes[:, HEIGHT]][..., columns]  # (N, stem and exit, 2)
        floor = np.maximum(self._least_stage[:, columns] / 2, 1)
        return by_stage.sum(1) + ends.sum(1), np.maximum(by_stage, floor).reshape(len(genes), -1)

    def _costs(self, genes: Genes, names: Sequence[str]) -> NDArray[np.int64]:
        """Return whole numbers (N, names)."""
        columns = [Price._fields.index(name) for name in names]
        row, _, prices = self._block_prices(genes)
        parts = prices[:, columns]
        ends = self._tables.ends[genes[:, RESOLUTION], genes[:, HEIGHT]][..., columns]  # (N, stem and exit, costs)
        found = np.empty((len(genes), len(names)), np.int64)
        starts = np.searchsorted(row, np.arange(len(genes)))
        for column, name in enumerate(names):
            add = np.maximum if name == "memory" else np.add
            if len(genes):
                found[:, column] = add(add.reduceat(parts[:, column], starts), add.reduce(ends[..., column], axis=1))
        return found

    def _block_prices(self, genes: Genes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return, of every block that runs, its network and stage, (blocks,), ascending, and its price (blocks, 4)."""
        space = self.space
        resolution, height = genes[:, RESOLUTION], genes[:, HEIGHT]
        stages = self._stages(genes)
        blocks = self._blocks(stages)
        runs = np.arange(space.stages) < np.array(space.height)[height][:, None]
        active = runs[:, :, None] & (np.arange(space.blocks) < np.array(space.depth)[stages[:, :, 0]][:, :, None])
        row, stage, block = np.nonzero(active)
        chosen = blocks[active]
        prices = self._tables.blocks[
            resolution[row], stage, stages[row, stage, 0], block, chosen[:, 0], chosen[:, 1], chosen[:, 2]
        ]
        return row, stage, prices

    @cached_property
    def _least_stage(self) -> NDArray[np.int64]:
        """The least that the blocks of each stage that can run may cost, at any resolution and depth, (stages, 4)."""
        by_block = self._tables.blocks[:, : max(self.space.height)].min((4, 5, 6))
        return by_block.sum(3).min((0, 2))

    @cached_property
    def _tables(self) -> "_Tables":
        """Prices of all parts: by resolution, stage, depth, block, kernel, expand, level; and of stem and exits."""
        space, model = self.space, self.model
        block_shape = (len(space.kernel), len(space.expand), len(space.levels))
        shape = (len(space.resolution), space.stages, len(space.depth), space.blocks, *block_shape, len(Price._fields))
        blocks = np.zeros(shape, np.int64)
        ends = np.zeros((len(space.resolution), len(space.height), 2, len(Price._fields)), np.int64)
        for r, resolution in enumerate(space.resolution):
            for h, height in enumerate(space.height):
                ends[r, h] = model.part(StemPart(), resolution), model.part(ExitPart(height), resolution)
            for stage, (d, depth) in product(range(max(space.height)), enumerate(space.depth)):
                for block in range(depth):
                    for choice in space.block_choices:
                        part = BlockPart(stage, block > 0, choice)
                        price = model.block(part, Position(block, depth), resolution)
                        kernel, expand, level = self._block_genes(choice)
                        if choice.kernel:
                            blocks[r, stage, d, block, kernel, expand, level] = price
                        else:
                            blocks[r, stage, d, block, :, :, level] = price
        return _Tables(blocks, ends)

    def _block_genes(self, choice: BlockChoice) -> tuple[int, int, int]:
        space = self.space
        return (
            space.kernel.index(choice.kernel) if choice.kernel else 0,
            space.expand.index(choice.expand) if choice.expand else 0,
            space.levels.index(choice.level),
        )

    def _stages(self, genes: Genes) -> Genes:
        """Return the genes by stage, (N, stages, 1 + 3 * blocks): depth first."""
        return genes[:, _NETWORK:].reshape(len(genes), self.space.stages, 1 + _BLOCK * self.space.blocks)

    def _blocks(self, stages: Genes) -> Genes:
        """Return the genes by block, (N, stages, blocks, 3): kernel, expand, level."""
        return stages[:, :, 1:].reshape(len(stages), self.space.stages, self.space.blocks, _BLOCK)


@dataclass(frozen=True, eq=False)
class _Tables:
    blocks: NDArray[np.int64]
    ends: NDArray[np.int64]
