"""Measure chosen sub-networks of a run, as a table."""

from collections.abc import Iterable

from ofav2.evaluation.opened_run import OpenedRun
from ofav2.networks.cost import network_cost
from ofav2.progress import log_progress
from supernets import Subnet


def measure(run: OpenedRun, subnets: Iterable[Subnet], split: str) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return columns and rows of measured sub-networks, batch norm recalibrated, the most expensive first.

    Shares of images have one standard error beside them.

    Args:
        run: The opened run.
        subnets: Networks of the run's space.
        split: `val` or `test`.

    Raises:
        SpaceError: If a sub-network is outside the space that was trained.
    """
    net, (metric, *others) = run.loaded.net, run.evaluator.task.metrics
    chosen = tuple(subnets)
    for subnet in chosen:
        net.space.check(subnet)
    images = {"val": run.data.val, "test": run.data.test}[split]
    with log_progress(f"measuring on {split}", len(set(chosen))) as advance:
        scores = []
        for score in run.evaluator.scores(net, chosen, images):
            scores.append(score)
            advance(**{metric.name: metric.show(score.value)})
    ordered = sorted(
        ((network_cost(net.architecture, score.subnet), score) for score in scores), key=lambda pair: -pair[0].macs
    )
    rows: list[tuple[object, ...]] = [
        (
            str(score.subnet),
            f"{cost.params:,}",
            f"{cost.macs:,}",
            metric.show_from(score.value, score.images, 2),
            *(other.show_from(value, score.images, 2) for other, value in zip(others, score.others, strict=True)),
        )
        for cost, score in ordered
    ]
    return ("sub-network", "parameters", "multiply-adds", metric.name, *(other.name for other in others)), rows
