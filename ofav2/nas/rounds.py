"""Run a search that is recorded: its rounds from where they ended, then the front on images that it never saw."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from ofav2.nas.found import FRONT, FRONT_FORMAT, Finalist, Found, FrontRecord, SearchedRun, SearchRecord, located
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency_table import load_latency_table
from ofav2.nas.measured import STORE, MeasuredStore
from ofav2.nas.plugins import SearchPlugins
from ofav2.nas.runs_problem import RunNetwork, RunsProblem
from ofav2.nas.search_clock import SearchClock
from ofav2.nas.search_log import SearchLog
from ofav2.nas.search_snapshot import read_search_snapshot
from ofav2.nas.supernet_problem import SupernetProblem
from ofav2.nas.tracked import track_search
from ofav2.progress import log_progress
from ofav2.runs import folder
from ofav2.runtime.processes import Processes
from ofav2.tasks.base import Metric
from ofav2.tasks.class_results import share_error
from ofav2.typed_json import write_record

logger = logging.getLogger(__name__)

LEAST_KNOWN = 8
"""Measurements from which something can be learned."""


@dataclass(frozen=True)
class Halved:
    """A run that is searched, and the images that guide the search and confirm its front."""

    run: OpenedRun
    """The opened run."""
    halves: Halves
    """The halves of its validation images."""


def run_search(place: Path, record: SearchRecord, runs: Sequence[Halved], plugins: SearchPlugins) -> Found:
    """Measure round after round from where a search's archive ends, then confirm the front.

    Args:
        place: The search's folder.
        record: What is searched, and how.
        runs: The runs of the record.
        plugins: The user's own costs, predictors and pickers.
    """
    first = runs[0].run
    processes = first.runtime.processes
    with (
        folder.lock(place) if processes.rank == 0 else nullcontext(),
        track_search(place, record, recipe.parse(first.recipe, "recipe of the run").tracking, processes) as tracker,
    ):
        with log_progress("searching", record.measurements) as advance:

            def measured(value: float) -> None:
                advance(**{record.metric.name: record.metric.show(value)})

            parts = [
                _problem(place, record, one, run, plugins, measured) for one, run in zip(record.runs, runs, strict=True)
            ]
            problem = RunsProblem(tuple(parts))
            log = SearchLog(place, problem, record.metric)
            past, clock = processes.on_main(lambda: (log.read(), SearchClock(place)))
            for event in past:
                tracker.know(event)
                if isinstance(event, Measured):
                    advance()
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
        front = _confirmed(place, record, runs, problem, plugins)
        processes.on_main(lambda: write_record(place / FRONT, front, FRONT_FORMAT))
        tracker.front(front)
    return Found(place, record, front)


def _problem(
    place: Path,
    record: SearchRecord,
    searched: SearchedRun,
    run: Halved,
    plugins: SearchPlugins,
    measured: Callable[[float], None],
) -> SupernetProblem:
    """Return one of the runs as a problem."""
    path = searched.latency_table
    table = load_latency_table(located(path, place), searched.architecture) if path else None
    model = CostModel(searched.architecture, table)
    genes = GeneSpace(record.space, model, record.limits, record.costs, plugins.costs)
    store = MeasuredStore(run.run.loaded.folder / STORE, searched.measurement, run.run.runtime.processes)
    return SupernetProblem(run.run, genes, run.halves.search, store, measured)


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
    place: Path, record: SearchRecord, runs: Sequence[Halved], problem: RunsProblem, plugins: SearchPlugins
) -> FrontRecord:
    """Measure the front's networks on images that the search never saw."""
    predictor, on_main = plugins.all_predictors[record.settings.predictor], runs[0].run.runtime.processes.on_main
    snapshot = on_main(lambda: read_search_snapshot(place))
    values = {RunNetwork(one.run, one.subnet): one.value for one in snapshot.networks}
    front = on_main(lambda: front_of(problem, values, record.metric, predictor))
    confirmed: dict[RunNetwork, float] = {}
    with log_progress("confirming the front", len(front)) as advance:
        for number, one in enumerate(runs):
            own = [network.subnet for network in front if network.run == number]
            for score in one.run.evaluator.scores(one.run.loaded.net, own, one.halves.confirmation):
                confirmed[RunNetwork(number, score.subnet)] = score.value
                advance(**{record.metric.name: record.metric.show(score.value)})
    finalists = []
    for network in front:
        price, searched = problem.price(network), values[network]
        own_costs = {
            name: float(plugins.costs[name](network.subnet, price)) for name in record.costs if name in plugins.costs
        }
        finalists.append(Finalist(*network, *price, searched=searched, confirmed=confirmed[network], own=own_costs))
    finalists.sort(key=lambda one: (one.cost(record.costs[0]), -record.metric.rank(one.searched)))
    return FrontRecord(snapshot.measured, len(values), tuple(finalists), *front_optimism(record, finalists))


def front_optimism(record: SearchRecord, finalists: Sequence[Finalist]) -> tuple[float, float | None]:
    """Return by how much a front is better on the images of the search, on average, and the standard error of that.

    The error is that by the numbers of images alone, as all finalists share both halves; None of a metric that is no
    share of images.
    """
    rank = record.metric.rank
    mean = float(np.mean([rank(one.searched) - rank(one.confirmed) for one in finalists]))
    if not record.metric.counts_images:
        return mean, None
    share = float(np.mean([one.confirmed for one in finalists]))
    images = (record.search_images, record.confirmation_images)
    return mean, math.hypot(*(share_error(share, count) for count in images))


def front_of(
    problem: RunsProblem, values: Mapping[RunNetwork, float], metric: Metric, predictor: Predictor
) -> tuple[RunNetwork, ...]:
    """Return the networks that no other one beats, by losses less the noise that similar networks do not share."""
    networks = tuple(values)
    genes = np.array([problem.encode(network) for network in networks])
    losses = np.array([-metric.rank(values[network]) for network in networks])
    archive = Archive.empty(problem).plus(problem, genes, losses)
    points = archive.points if len(archive) < LEAST_KNOWN else learn(problem, archive, predictor).points
    return tuple(network for network, kept in zip(networks, on_front(points), strict=True) if kept)
