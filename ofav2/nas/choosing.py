"""Choose a sub-network for a device: measure networks that keep its limits, and search for better ones.

Random networks come first. A search then goes on from their scores, for the one best network instead of a front. With a
small budget all networks are random: a search has too little to learn from.
"""

import logging

import numpy as np

from ofav2.evaluation.opened_run import OpenedRun, require_supernet
from ofav2.nas.candidates import Candidate, Ranking, check_candidates, draw_within
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.loop import Picked, SearchSettings
from ofav2.nas.engine.loop import search as search_events
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency_table import LatencyTable
from ofav2.nas.limits import Limits
from ofav2.nas.measured import MeasuredValues
from ofav2.nas.runs_problem import RunsProblem
from ofav2.nas.supernet_problem import SupernetProblem
from ofav2.progress import log_progress
from supernets import Space, Subnet

logger = logging.getLogger(__name__)

LEAST_SEARCHED = 40
"""Networks to measure from which a part of them is searched for."""
ROUNDS = 6
"""Rounds of the search."""


def choose(
    run: OpenedRun,
    limits: Limits,
    *,
    space: Space | None = None,
    candidates: int = 200,
    seed: int = 0,
    table: LatencyTable | None = None,
) -> Ranking:
    """Search for the best network that keeps the limits by a metric on validation; test images are not looked at.

    The first quarter of the networks are random, and all of them if fewer than 40 are measured. A measurement scores a
    network at all its exits. Under tight limits random draws may find fewer; the search goes on from those.

    Args:
        run: The opened run.
        limits: The most that a network may cost.
        space: Part of the run's space to choose from, such as `space.restrict(height=(3,))`; None takes all of it.
        candidates: How many networks to measure; fewer where the limits leave hardly any others.
        seed: Seed of the draw and the search.
        table: The latency table, needed for a limit of latency.

    Returns:
        All measured networks with their costs and validation scores, the best first; `best` is the chosen one.

    Raises:
        UserError: If no network can keep the limits, the run has no supernet, or an argument can't be used; the message
            says what can be kept, or used.
        SpaceError: If a network that is drawn from `space` is outside the run's space.
        RunError: If a network has no finite score.
    """
    net = require_supernet(run.loaded.net, "`ofav2 plan` lists what its exits cost")
    space = space or net.space
    model, metric = CostModel(net.architecture, table), run.evaluator.task.metrics[0]
    check_candidates(candidates)
    first = candidates // 4 if candidates >= LEAST_SEARCHED else candidates
    drawn = draw_within(model, space, limits, candidates=first, seed=seed)
    for subnet in drawn:
        net.space.check(subnet)
    genes, values = GeneSpace(space, model, limits, ()), MeasuredValues()
    scored: list[float] = []
    with log_progress("choosing on val", candidates) as advance:

        def measured(value: float) -> None:
            scored.append(value)
            advance(**{metric.name: metric.show(value)})

        _search(SupernetProblem(run, genes, run.data.val, values, measured), drawn, candidates, seed)
    if len(scored) < candidates:
        logger.info(f"the limits leave few networks: {len(scored)} different ones were measured, not {candidates}")
    found = [Candidate(subnet, model.price(subnet), value) for subnet, value in values.known.items()]
    # Encodings break the remaining ties, so that the same seed always chooses the same network.
    ranked = sorted(found, key=lambda one: (-metric.rank(one.score), one.price.macs, net.space.encode(one.subnet)))
    return Ranking(limits, tuple(ranked), space, seed, metric, "search" if len(scored) > len(drawn) else "random")


def _search(problem: SupernetProblem, drawn: tuple[Subnet, ...], measurements: int, seed: int) -> None:
    """Measure networks that were drawn, and then others, until so many are measured or no new ones are left."""
    bodies = np.array([problem.genes.encode(subnet) for subnet in drawn])
    first = Picked(0, bodies, ("first",) * len(bodies), ())
    batch = max(1, -(-(measurements - len(drawn)) // ROUNDS))
    settings = SearchSettings(start=len(drawn), batch=batch, growth=0.0, picker="best")
    for _ in search_events(RunsProblem((problem,)), settings, seed=seed, measurements=measurements, past=(first,)):
        pass
