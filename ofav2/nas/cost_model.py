"""Hold what networks of one supernet cost on one machine: all limited costs in one value."""

from dataclasses import dataclass
from typing import NamedTuple

from ofav2.errors import UserError
from ofav2.nas.latency_table import LatencyTable, part_latency, predict_latency
from supernets import Architecture, Exits, Subnet
from supernets.cost import Cost
from supernets.parts import BlockPart, ExitPart, Part, SkipPart, StemPart, part_side
from supernets.subnet_cost import Position, part_cost, subnet_cost, waited_block_cost


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
        """Return the price of both, one after the other."""
        return Price(
            self.params + other.params,
            self.macs + other.macs,
            max(self.memory, other.memory),
            self.latency + other.latency,
        )


@dataclass(frozen=True)
class CostModel:
    """Prices the networks of a supernet and their parts.

    Args:
        architecture: The supernet's architecture.
        table: Latencies of its parts, where latency counts.

    Raises:
        UserError: If the table is of another supernet.
    """

    architecture: Architecture
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        """Refuse another supernet's table, whose parts may have the same names."""
        if self.table is not None and self.table.supernet != self.architecture:
            raise UserError("latency table is of another supernet: measure one with `ofav2 latency RUN`")

    def cost(self, subnet: Subnet, exits: Exits = "last") -> Cost:
        """Return the cost of a network as it is extracted with these exits."""
        return subnet_cost(self.architecture, subnet, exits)

    def price(self, subnet: Subnet) -> Price:
        """Return the price of a network with its own exit.

        Raises:
            UserError: If the latency table lacks one of its parts.
        """
        latency = predict_latency(self.table, subnet) if self.table else 0
        return _price(self.cost(subnet), latency)

    def part(self, part: StemPart | ExitPart, resolution: int) -> Price:
        """Return the price of the stem or an exit.

        Args:
            part: The part.
            resolution: Side of the image in pixels.

        Raises:
            UserError: If the latency table lacks it.
        """
        cost = part_cost(self.architecture, part, part_side(self.architecture, part, resolution))
        return _price(cost, self._latency(part, resolution))

    def block(self, part: BlockPart, position: Position, resolution: int) -> Price:
        """Return the price of a block, with the dense skips that meet at its end.

        Features that a dense head reads wait meanwhile.

        Args:
            part: The block.
            position: Where it stands in its stage.
            resolution: Side of the image in pixels.

        Raises:
            UserError: If the latency table lacks it.
        """
        arch = self.architecture
        latency = self._latency(part, resolution)
        if skips := arch.skips(position.block):
            latency += skips * self._latency(SkipPart(part.stage), resolution)
        # Which exit it is does not matter: features after the block do not wait yet.
        read = frozenset(arch.head_reads(len(arch.stages)))
        return _price(waited_block_cost(arch, part, position, resolution, read), latency)

    def _latency(self, part: Part, resolution: int) -> int:
        return part_latency(self.table, part, part_side(self.architecture, part, resolution)) if self.table else 0


def _price(cost: Cost, latency: int) -> Price:
    return Price(cost.params, cost.macs, cost.memory, latency)
