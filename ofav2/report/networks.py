"""Collect a run's measured sub-networks, their cost by part, and the Pareto front.

They come from the tables in `metrics.jsonl` that have the column `macs`; their last column is the task's metric. A
corner table's row describes its uniform network completely; a table of other networks brings a column `subnet` with
each network's JSON.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ofav2.networks.cost import network_cost, network_parts
from ofav2.runs.folder import METRICS
from ofav2.runs.snapshot import RunSnapshot, checked
from ofav2.tasks.base import Metric
from supernets import Space, Subnet
from supernets.backbone import AnyArchitecture, Backbone
from supernets.cost import Cost


@dataclass(frozen=True)
class Measured:
    """A sub-network and how it did."""

    subnet: Subnet
    """The network."""
    cost: Cost
    """Its parameters and multiply-adds."""
    score: float
    """The task's main metric, batch norm recalibrated."""


@dataclass(frozen=True)
class Table:
    """Sub-networks that were measured together."""

    name: str
    """Its name in the metrics, such as `kernel/corners` or `test/corners`."""
    split: str
    """The images that they were measured on: `validation` or `test`."""
    networks: tuple[Measured, ...]
    """The networks, from the cheapest to the most expensive."""

    @property
    def title(self) -> str:
        """How a person calls it."""
        group = self.name.split("/")[0]
        return "at the end, on test" if group == "test" else f"after {group}, on validation"


def tables(run: RunSnapshot) -> tuple[Table, ...]:
    """Return the tables of measured sub-networks, in the order in which they were written; a repeated name counts once.

    Raises:
        RunError: If a table in the metrics is damaged.
    """
    with checked(run.folder / METRICS):
        found = {
            line["name"]: line
            for line in run.metrics
            if line.get("kind") == "table" and "macs" in line["columns"][:-1] and line["rows"]
        }
        return tuple(_table(run, name, line) for name, line in found.items())


def to_choose_from(measured: Sequence[Table]) -> Table | None:
    """Return the table to choose networks from: the newest of validation, or of test where there is no other.

    Whoever chooses on test images has none left that tell how good the choice is.
    """
    validation = [table for table in measured if table.split != "test"]
    return next(reversed(validation or [*measured]), None)


def front(networks: Sequence[Measured], metric: Metric) -> tuple[int, ...]:
    """Positions of the networks that no other one beats: each better than all that cost no more.

    Args:
        networks: Networks from the cheapest to the most expensive, in multiply-adds.
        metric: What their scores are.
    """
    return front_of([(network.cost.macs, metric.rank(network.score)) for network in networks])


def front_of(points: Sequence[tuple[int, float]]) -> tuple[int, ...]:
    """Positions of the points that no other one beats, from the cheapest on.

    Args:
        points: Multiply-adds and scores of networks, where a higher score is better, in any order.
    """
    best, kept = -math.inf, []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return tuple(kept)


def cheapest_near_best(networks: Sequence[Measured], metric: Metric) -> Measured | None:
    """Return the cheapest network whose score is near the best one's (`Metric.is_near`); None of none.

    Args:
        networks: Networks from the cheapest to the most expensive, in multiply-adds.
        metric: What their scores are.
    """
    if not networks:
        return None
    best = metric.best(*(network.score for network in networks))
    return next(network for network in networks if metric.is_near(network.score, best))


def part_names(arch: AnyArchitecture) -> tuple[str, ...]:
    """Return the names of the parts whose costs `part_costs` returns."""
    return ("stem", *(f"stage {stage}" for stage in range(1, _stages(arch) + 1)), "exit head")


def _stages(arch: AnyArchitecture) -> int:
    return arch.exits[-1]


def part_costs(arch: AnyArchitecture, subnet: Subnet) -> tuple[Cost, ...]:
    """Return what each part of a network costs: stem, every stage (nothing past the exit), exit head."""
    stem, *stages, head = (part.cost for part in network_parts(arch, subnet))
    idle = [Cost(0, 0)] * (_stages(arch) - subnet.height)
    return (stem, *stages, *idle, head)


def drawn_supernet(arch: AnyArchitecture, space: Space) -> dict[str, Any]:
    """Return what a page's drawing shows of the stages."""
    if isinstance(arch, Backbone):
        stages = [{"module": f"up to {tap.module}"} for tap in arch.taps] + [{"module": "the rest, and its own head"}]
    else:
        stages = [asdict(stage) for stage in arch.stages]
    return {
        "stages": stages,
        "blocks": space.blocks,
        "branches": space.branches,
        "exits": arch.exits,
        "expand": max(space.expand),
    }


def _table(run: RunSnapshot, name: str, line: Mapping[str, Any]) -> Table:
    networks = sorted(_networks(run, line), key=lambda network: (network.cost.macs, network.cost.params))
    return Table(name, "test" if name.split("/")[0] == "test" else "validation", tuple(networks))


def _networks(run: RunSnapshot, line: Mapping[str, Any]) -> Iterator[Measured]:
    for cells in line["rows"]:
        row = dict(zip(line["columns"], cells, strict=True))
        subnet = Subnet.from_json(row["subnet"]) if "subnet" in row else _uniform(run.record.space, row)
        run.record.space.check_architecture(subnet)
        if isinstance(cells[-1], str):
            raise ValueError(f"{line['columns'][-1]} ({cells[-1]!r}) must be a number")
        if cells[-1] is not None:
            yield Measured(subnet, network_cost(run.record.architecture, subnet), cells[-1])


def _uniform(space: Space, row: Mapping[str, Any]) -> Subnet:
    return space.uniform(
        **{name: row[name] for name in ("resolution", "kernel", "expand", "depth")},
        level=row["level"].split("+"),
        height=row["exit"],
    )
