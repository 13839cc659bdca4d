"""Measure chosen sub-networks of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ofav2.evaluation.opened_run import OpenedRun
from ofav2.networks.cost import network_cost
from ofav2.progress import log_progress
from supernets import Subnet
from supernets.cost import Cost


@dataclass(frozen=True)
class MeasuredSubnet:
    """A sub-network of a run, measured with recalibrated batch norm."""

    subnet: Subnet
    """The network."""
    cost: Cost
    """What it costs, with its own exit."""
    metrics: Mapping[str, float | None]
    """The task's metrics by name, the main one first, such as `{"top-1": 0.98}`; None where one means nothing here."""
    images: int
    """Images, or patches, that it was measured on; windows of one patch count once, as they err together."""


def measure(run: OpenedRun, subnets: Iterable[Subnet], split: str) -> tuple[MeasuredSubnet, ...]:
    """Measure sub-networks, batch norm recalibrated.

    Args:
        run: The opened run.
        subnets: Networks of the run's space; equal ones are measured once.
        split: `val` or `test`.

    Returns:
        The networks, from the most expensive to the cheapest by multiply-adds.

    Raises:
        SpaceError: If a sub-network is outside the space that was trained.
        UserError: If there is no such split.
    """
    net, (main, *others) = run.loaded.net, run.evaluator.task.metrics
    chosen, images = tuple(dict.fromkeys(subnets)), run.data.held_out(split)
    for subnet in chosen:
        net.space.check(subnet)
    measured = []
    with log_progress(f"measuring on {split}", len(chosen)) as advance:
        for score in run.evaluator.scores(net, chosen, images):
            named = zip((main.name, *(other.name for other in others)), (score.value, *score.others), strict=True)
            cost = network_cost(net.architecture, score.subnet)
            measured.append(MeasuredSubnet(score.subnet, cost, dict(named), len(images)))
            advance(**{main.name: main.show(score.value)})
    return tuple(sorted(measured, key=lambda one: -one.cost.macs))
