"""Check the command line's constraints on a network before images are opened, and describe the choice."""

from dataclasses import dataclass
from pathlib import Path

from ofav2.evaluation.opened_run import LoadedSupernet, OpenedRun, require_supernet
from ofav2.nas.candidates import Ranking, feasible
from ofav2.nas.cost_model import CostModel
from ofav2.nas.latency_table import TABLE, LatencyTable, load_latency_table, measure_subnet
from ofav2.nas.limits import Limits, narrowed, show
from supernets import Space

CANDIDATE_COLUMNS = ("sub-network", "parameters", "multiply-adds", "memory", "latency", "validation")
"""Columns of `candidate_rows`."""
SHOWN = 5
"""Candidates that are shown."""


@dataclass(frozen=True)
class Constraints:
    """What a network has to be."""

    limits: Limits
    """The most that it may cost."""
    space: Space
    """The part of the run's space that it is in."""
    table: LatencyTable | None
    """The latency table, where latency is limited or a table is named."""


def constrain(
    run: LoadedSupernet,
    limits: Limits,
    *,
    exits: str | None = None,
    resolutions: str | None = None,
    table: str | Path | None = None,
) -> Constraints:
    """Read the constraints on a run's networks, and refuse limits that none of them can keep.

    Args:
        run: The run.
        limits: The most that a network may cost.
        exits: Exits to end at, such as `3`, `2,4` or `3..5`; None takes all.
        resolutions: Resolutions, likewise.
        table: Latency table; None takes the run folder's where latency is limited.

    Raises:
        UserError: If a text can't be read, or no network keeps the limits; the message says what can be kept.
    """
    net = require_supernet(run.net, "name a network, with --largest or --subnet FILE")
    space = narrowed(net.space, exits, resolutions)
    path = table or (run.folder / TABLE if limits.latency is not None else None)
    loaded = load_latency_table(path, net.architecture) if path else None
    feasible(CostModel(net.architecture, loaded), space, limits)
    return Constraints(limits, space, loaded)


def candidate_rows(ranking: Ranking) -> list[tuple[object, ...]]:
    """Return the most accurate candidates, the chosen one first."""
    return [
        (
            str(one.subnet),
            f"{one.price.params:,}",
            f"{one.price.macs:,}",
            show("memory", one.price.memory),
            show("latency", one.price.latency) if one.price.latency else "-",
            ranking.metric.show(one.score),
        )
        for one in ranking.ranked[:SHOWN]
    ]


def describe_choice(run: OpenedRun, ranking: Ranking, table: LatencyTable | None) -> list[str]:
    """Return notes on a choice: the measured latency beside the predicted one."""
    notes = []
    if table:
        subnet, predicted = ranking.best.subnet, ranking.best.price.latency
        real = measure_subnet(run.loaded.net, subnet, run.runtime, table.batch, table.machine.threads)
        notes.append(f"latency: predicted {show('latency', predicted)}, measured {real}")
        # A table holds first quartiles, too: the times when the machine does little else.
        if ranking.limits.latency is not None and real.lower > ranking.limits.latency:
            notes.append(
                "even the first quartile is over the limit: the table is old, or the machine is busy; renew it with"
                " `ofav2 latency`"
            )
        if (real.machine.name, real.machine.device) != (table.machine.name, table.machine.device):
            notes.append(f"the latency table was measured on {table.machine.name}, not here: limits hold there")
    return notes
