"""Name what a search optimises: the task's metric, and costs."""

from collections.abc import Collection, Sequence

from ofav2.errors import UserError
from ofav2.messages import refuse_text
from ofav2.nas.cost_model import Price
from ofav2.tasks.base import Metric


def read_objectives(
    names: Sequence[str], metric: Metric, has_latencies: bool, own: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the costs that objectives name, in one fixed order, so that the order given changes nothing.

    Args:
        names: The metric's name and one or more of `params`, `macs`, `memory` and `latency`, in any order.
        metric: The task's metric.
        has_latencies: Whether there is a latency table.
        own: Names of the user's own costs, which come after the others.

    Raises:
        UserError: If a name is unknown, given twice, or one is missing.
    """
    refuse_text("objectives", names)
    if metric.name in own:
        raise UserError(f"cost ({metric.name}) has the metric's name: give it another one")
    known = (metric.name, *Price._fields, *own)
    for name in names:
        if name not in known:
            raise UserError(f"objective ({str(name)[:40]}) is unknown: use {', '.join(known)}")
        if names.count(name) > 1:
            raise UserError(f"objective ({name}) is given twice: name each once")
    costs = tuple(name for name in (*Price._fields, *sorted(own)) if name in names)
    if metric.name not in names or not costs:
        raise UserError(
            f"objectives ({', '.join(names)}) must be {metric.name} and at least one of {', '.join(known[1:])}"
        )
    if "latency" in costs and not has_latencies:
        raise UserError("objective latency needs a latency table: measure one with `ofav2 latency RUN`")
    return costs
