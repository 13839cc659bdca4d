"""Run a search that is recorded: its rounds from where they ended, then the front on images that it never saw."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ofav2.config import recipe
from ofav2.data.halves import Halves
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import learn
from ofav2.nas.engine.fronts import on_front
from ofav2.nas.engine.loop import Learned, Measured, Picked
from ofav2.nas.engine.loop import search as search_events
from ofav2.nas.engine.predictors import Predictor
from ofav2.nas.found import FRONT, FRONT_FORMAT, Finalist, Found, FrontRecord, SearchRecord, located
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency_table import load_table
from ofav2.nas.measured import STORE, MeasuredStore
from ofav2.nas.plugins import SearchPlugins
from ofav2.nas.search_clock import SearchClock
from ofav2.nas.search_log import SearchLog, measured_bodies, measured_networks
from ofav2.nas.supernet_problem import SupernetProblem
from ofav2.nas.tracked import track_search
from ofav2.progress import log_progress
from ofav2.runs import folder
from ofav2.runtime.processes import Processes
from ofav2.typed_json import write_record
from supernets import Subnet

logger = logging.getLogger(__name__)

LEAST_KNOWN = 8
"""Measurements from which something can be learned."""


def run_search(place: Path, record: SearchRecord, run: OpenedRun, halves: Halves, plugins: SearchPlugins) -> Found:
    """Measure round after round from where a search's archive ends, then confirm the front.

    Args:
        place: The search's folder.
        record: What is searched, and how.
        run: The opened run.
        halves: The images that guide the search, and those that confirm its front.
        plugins: The user's own costs, predictors and pickers.
    """
    processes = run.runtime.processes
    with (
        folder.lock(place) if processes.rank == 0 else nullcontext(),
        track_search(place, record, recipe.parse(run.recipe, "recipe of the run").tracking, processes) as tracker,
    ):
        table = load_table(located(record.latency_table, place), record.architecture) if record.latency_table else None
        genes = GeneSpace(
            record.space, CostModel(record.architecture, table), record.limits, record.costs, plugins.costs
        )
        log = SearchLog(place, genes, record.metric)
        past, clock = processes.on_main(lambda: (log.read(), SearchClock(place)))
        store = MeasuredStore(run.loaded.folder / STORE, record.measurement, processes)
        with log_progress("searching", record.measurements) as advance:
            for event in past:
                tracker.know(event)
                if isinstance(event, Measured):
                    advance()

            def measured(value: float) -> None:
                advance(**{record.metric.name: record.metric.show(value)})

            problem = SupernetProblem(run, genes, halves.search, store, measured)
            events = search_events(
                problem,
                record.settings,
                seed=record.seed,
                measurements=record.measurements,
                past=past,
                stop=_time_is_up(record.minutes, clock, processes),
                predictors=plugins.all_predictors,
                pickers=plugins.all_pickers,
                agree=processes.on_main,
            )
            for event in events:
                if processes.rank == 0:
                    log.append(event)
                    clock.note()
                tracker.event(event)
                _say(event)
        front = _confirmed(place, record, run, problem, halves, plugins)
        processes.on_main(lambda: write_record(place / FRONT, front, FRONT_FORMAT))
        tracker.front(front)
    return Found(place, record, front)


def _time_is_up(minutes: float | None, clock: SearchClock, processes: Processes) -> Callable[[], bool]:
    """Return whether the first process's clock has reached a time."""
    if minutes is None:
        return lambda: False
    return lambda: processes.on_main(lambda: clock.seconds >= 60 * minutes)


def _say(event: Picked | Measured | Learned) -> None:
    if isinstance(event, Learned):
        ranked = (
            f", the predictor ranked this round's networks with tau {event.tau:.2f}" if event.tau is not None else ""
        )
        logger.info(f"round {event.round}: {event.networks} networks, hypervolume {event.hypervolume:.6g}{ranked}")


def _confirmed(
    place: Path,
    record: SearchRecord,
    run: OpenedRun,
    problem: SupernetProblem,
    halves: Halves,
    plugins: SearchPlugins,
) -> FrontRecord:
    """Measure the front's networks on images that the search never saw."""
    predictor, on_main = plugins.all_predictors[record.settings.predictor], run.runtime.processes.on_main
    measured = on_main(lambda: sum(1 for _ in measured_bodies(place)))
    values = on_main(lambda: {subnet: value for _, subnet, value in measured_networks(place)})
    front = on_main(lambda: front_of(problem, values, predictor))
    confirmed: dict[Subnet, float] = {}
    with log_progress("confirming the front", len(front)) as advance:
        for score in run.evaluator.scores(run.loaded.net, front, halves.confirmation):
            confirmed[score.subnet] = score.value
            advance(**{record.metric.name: record.metric.show(score.value)})
    finalists = []
    for subnet in front:
        price = problem.genes.model.price(subnet)
        own = {name: float(plugins.costs[name](subnet, price)) for name in record.costs if name in plugins.costs}
        finalists.append(Finalist(subnet, *price, searched=values[subnet], confirmed=confirmed[subnet], own=own))
    finalists.sort(key=lambda one: (one.cost(record.costs[0]), -record.metric.rank(one.searched)))
    gaps = np.array([record.metric.rank(one.searched) - record.metric.rank(one.confirmed) for one in finalists])
    error = _chance(record, finalists, halves)
    return FrontRecord(measured, len(values), tuple(finalists), float(gaps.mean()), error)


def _chance(record: SearchRecord, finalists: Sequence[Finalist], halves: Halves) -> float | None:
    """Return the standard error of the difference of the two halves, of a share; all finalists share both halves."""
    if record.metric.unit != "%":
        return None
    share = float(np.mean([one.confirmed for one in finalists]))
    return math.sqrt(share * (1 - share) * (1 / len(halves.search) + 1 / len(halves.confirmation)))


def front_of(problem: SupernetProblem, values: Mapping[Subnet, float], predictor: Predictor) -> tuple[Subnet, ...]:
    """Return the networks that no other one beats, by losses less the noise that similar networks do not share."""
    subnets = tuple(values)
    metric = problem.run.evaluator.task.metrics[0]
    genes = np.array([problem.genes.encode(subnet) for subnet in subnets])
    losses = np.array([-metric.rank(values[subnet]) for subnet in subnets])
    archive = Archive.empty(problem).plus(problem, genes, losses)
    points = archive.points if len(archive) < LEAST_KNOWN else learn(problem, archive, predictor).points
    return tuple(subnet for subnet, kept in zip(subnets, on_front(points), strict=True) if kept)
