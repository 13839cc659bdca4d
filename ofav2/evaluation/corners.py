"""Tabulate the corner sub-networks, and summarise the table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ofav2.evaluation.evaluator import Score
from ofav2.networks.cost import network_cost
from ofav2.tasks.base import Metric
from supernets import Space, Subnet
from supernets.backbone import AnyArchitecture

CHOICES = ("resolution", "kernel", "expand", "depth", "level", "exit")
"""Columns of the corner table that describe a uniform network."""


def columns(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the columns of the corner table; `macs` are multiply-adds per image, the last one is the main metric."""
    main, *others = (metric.name for metric in metrics)
    return (*CHOICES, "params", "macs", *others, main)


def chosen_corners(space: Space, which: Literal["all", "ends", "none"]) -> tuple[Subnet, ...]:
    """Return all corner sub-networks of a space, its largest and smallest network, or none; each once."""
    if which == "all":
        return space.corners()
    return tuple(dict.fromkeys([space.largest(), space.smallest()])) if which == "ends" else ()


def corner_row(arch: AnyArchitecture, score: Score) -> tuple[str | float | None, ...]:
    """Return a uniform sub-network's row: kernel and expand are None where its MBConv branches are off."""
    subnet = score.subnet
    cost = network_cost(arch, subnet)
    return (
        subnet.resolution,
        subnet.kernel[0][0],
        subnet.expand[0][0],
        subnet.depth[0],
        "+".join(subnet.level[0][0]),
        subnet.height,
        cost.params,
        cost.macs,
        *score.others,
        score.value,
    )


def keeps_mbconv(subnet: Subnet) -> bool:
    """Return whether the MBConv branch is on in every block."""
    return all("mbconv" in branches for values in subnet.level for branches in values)


def usable(subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    """Return the networks that are meant to be used: those that keep the branch; all where none does, as timm's.

    Training draws the others practically never, so a mean over all would say little of either.
    """
    given = tuple(subnets)
    return tuple(filter(keeps_mbconv, given)) or given


def usable_mean(scores: Mapping[Subnet, float]) -> float:
    """Return the mean score of the networks that are meant to be used."""
    kept = usable(scores)
    return sum(scores[subnet] for subnet in kept) / len(kept)


def summary_rows(scores: Sequence[Score], metric: Metric) -> list[tuple[object, ...]]:
    """Return, per exit, the number of corners that keep the MBConv branch, and their worst, mean and best score.

    Corners without that branch are in one row below: training draws such networks practically never, so their weights
    are not meant to be used.
    """
    kept = [score for score in scores if keeps_mbconv(score.subnet)]
    rows: list[tuple[object, ...]] = []
    for exit in sorted({score.subnet.height for score in kept}):
        rows.append((exit, *_summary([score.value for score in kept if score.subnet.height == exit], metric)))
    others = [score.value for score in scores if not keeps_mbconv(score.subnet)]
    return [*rows, ("without MBConv, not to be used", *_summary(others, metric))] if others else rows


def _summary(values: Sequence[float], metric: Metric) -> tuple[object, ...]:
    shown = (metric.worst(*values), sum(values) / len(values), metric.best(*values))
    return (len(values), *(metric.show(value, 1) for value in shown))


SUMMARY_COLUMNS = ("exit", "corners", "worst", "mean", "best")
"""Columns of `summary_rows`."""


def exit_table(
    arch: AnyArchitecture, scores: Sequence[Score], metric: Metric
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return columns and rows of a network's exits: what a network costs that ends there, and its score."""
    rows: list[tuple[object, ...]] = []
    for score in sorted(scores, key=lambda score: (score.subnet.resolution, score.subnet.height)):
        cost = network_cost(arch, score.subnet)
        costs = (f"{cost.params:,}", f"{cost.macs:,}")
        rows.append((score.subnet.resolution, score.subnet.height, *costs, metric.show(score.value, 1)))
    return ("resolution", "exit", "parameters", "multiply-adds", metric.name), rows


def by_cost(arch: AnyArchitecture, scores: Iterable[Score]) -> list[Score]:
    """Scores from the most expensive to the cheapest network, by multiply-adds."""
    return sorted(scores, key=lambda score: -network_cost(arch, score.subnet).macs)
