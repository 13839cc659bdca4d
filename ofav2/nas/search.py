"""Search a run for the best trade-offs between its metric and costs, and confirm what was found on other images."""

import logging
import math
import os.path
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ofav2.data.halves import Halves, halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import OpenedRun, load_run, open_run, require_supernet
from ofav2.nas.constraints import constrain
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import learn
from ofav2.nas.engine.fronts import on_front
from ofav2.nas.engine.loop import Learned, Measured, Picked, Settings
from ofav2.nas.engine.loop import search as search_events
from ofav2.nas.engine.predictors import PREDICTORS
from ofav2.nas.found import FORMAT, FRONT, FRONT_FORMAT, RECORD, Finalist, Found, FrontRecord, SearchRecord, load_search
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency_table import TABLE, load_table
from ofav2.nas.limits import Limits
from ofav2.nas.measured import STORE, MeasuredStore, measurement_key
from ofav2.nas.objectives import read_objectives
from ofav2.nas.search_log import SearchLog, measured_networks
from ofav2.nas.supernet_problem import SupernetProblem
from ofav2.output_folder import check_free
from ofav2.progress import log_progress
from ofav2.runs import folder
from ofav2.typed_json import read_record, write_record
from supernets import Subnet

logger = logging.getLogger(__name__)

MOST_MEASUREMENTS = 100_000
"""More measurements than anyone would wait for are a slip."""
LEAST_KNOWN = 8
"""Measurements from which something can be learned."""


def search(
    run: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    limits: Limits | None = None,
    exits: str | None = None,
    resolutions: str | None = None,
    table: str | Path | None = None,
    measurements: int = 300,
    minutes: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Found:
    """Search a run for the networks that no other one beats in all objectives at once.

    Half of the validation images guide the search. The other half confirms the front at the end. Test images are not
    looked at. The search's folder grows line by line; `resume_search` goes on with it.

    Args:
        run: A run folder.
        objectives: The metric's name and one or more of `macs`, `params`, `memory`, `latency`, in any order; None takes
            the metric and `macs`.
        limits: The most that a network may cost.
        exits: Exits to end at, such as `3`, `2,4` or `3..5`; None takes all.
        resolutions: Resolutions, likewise.
        table: Latency table; None takes the run folder's where latency counts.
        measurements: Bodies to measure; one measurement scores a body at all its exits.
        minutes: Time after which no other body is measured.
        seed: Seed of the search.
        out: Folder to make; None takes `search`, `search-2` and so on in the run folder.

    Raises:
        UserError: If an argument is out of range, or no network keeps the limits; the message says what can be kept.
        RunError: If the folder is no run, or a file can't be written.
    """
    loaded = load_run(run)
    metric, net = loaded.record.metric, require_supernet(loaded.net, "extract it with `ofav2 extract`")
    names = tuple(objectives) if objectives is not None else (metric.name, "macs")
    limits = limits or Limits()
    _check_budget(measurements, minutes, seed)
    asks_latency = "latency" in names or limits.latency is not None
    wanted = table or (Path(run) / TABLE if asks_latency else None)
    constraints = constrain(run, limits, exits=exits, resolutions=resolutions, table=wanted)
    costs = read_objectives(names, metric, constraints.table is not None)
    if constraints.space.size() == 1:
        raise UserError(f"run ({run}) has one network at these exits and resolutions: there is nothing to search")
    if out is not None:
        check_free(Path(out))
    opened = open_run(run)
    halves = halve(opened.data.val, opened.evaluator.seed)
    place = folder.take_folder(Path(out)) if out is not None else folder.new_folder(Path(run), "search")
    record = SearchRecord(
        run=str(run),
        phase=loaded.phase,
        weights=loaded.sha256,
        data_fingerprint=opened.data.fingerprint,
        architecture=net.architecture,
        space=constraints.space,
        metric=metric,
        costs=costs,
        limits=limits,
        latency_table=str(wanted) if wanted else None,
        measurements=measurements,
        minutes=minutes,
        seed=seed,
        settings=settings_for(measurements),
        search_images=len(halves.search),
        confirmation_images=len(halves.confirmation),
    )
    write_record(place / RECORD, record, FORMAT)
    return _run(place, record, opened, halves)


def resume_search(place: str | Path) -> Found:
    """Go on with a search that stopped, as if it had not; of one that has finished, return what it found.

    Raises:
        RunError: If the folder is no search, or the run has other weights or images now.
    """
    path = Path(place)
    record = read_record(path / RECORD, SearchRecord, FORMAT, "search again with `ofav2 search RUN`")
    if os.path.exists(path / FRONT):
        return load_search(path)
    opened = open_run(record.run, record.phase)
    for what, before, now in (
        ("weights", record.weights, opened.loaded.sha256),
        ("images", record.data_fingerprint, opened.data.fingerprint),
    ):
        if before != now:
            raise RunError(f"search ({path}) is of other {what} than run {record.run} has now: start a new search")
    return _run(path, record, opened, halve(opened.data.val, opened.evaluator.seed))


def settings_for(measurements: int) -> Settings:
    """Return how to search with a budget: a sixth of it before anything is predicted, then twelfths, within bounds."""
    return Settings(start=min(50, max(LEAST_KNOWN, measurements // 6)), batch=min(25, max(1, measurements // 12)))


def _check_budget(measurements: int, minutes: float | None, seed: int) -> None:
    if (
        isinstance(measurements, bool)
        or not isinstance(measurements, int)
        or not 1 <= measurements <= MOST_MEASUREMENTS
    ):
        raise UserError(f"measurements ({measurements}) must be a whole number from 1 to {MOST_MEASUREMENTS}")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"minutes ({minutes}) must be a number over zero")
    if seed < 0:
        raise UserError(f"seed ({seed}) must be a whole number from 0 up")


def _run(place: Path, record: SearchRecord, run: OpenedRun, halves: Halves) -> Found:
    with folder.lock(place):
        table = load_table(record.latency_table, record.architecture) if record.latency_table else None
        genes = GeneSpace(record.space, CostModel(record.architecture, table), record.limits, record.costs)
        log = SearchLog(place, genes, record.metric)
        past = log.read()
        store = MeasuredStore(Path(record.run) / STORE, measurement_key(run, halves.search))
        with log_progress("searching", record.measurements) as advance:
            for event in past:
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
                stop=_time_is_up(record.minutes),
            )
            for event in events:
                log.append(event)
                _say(event)
        front = _confirmed(place, record, run, problem, halves)
        write_record(place / FRONT, front, FRONT_FORMAT)
    return Found(place, record, front)


def _time_is_up(minutes: float | None) -> Callable[[], bool]:
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= end


def _say(event: Picked | Measured | Learned) -> None:
    if isinstance(event, Learned):
        ranked = (
            f", the predictor ranked this round's networks with tau {event.tau:.2f}" if event.tau is not None else ""
        )
        logger.info(f"round {event.round}: {event.networks} networks, hypervolume {event.hypervolume:.6g}{ranked}")


def _confirmed(
    place: Path, record: SearchRecord, run: OpenedRun, problem: SupernetProblem, halves: Halves
) -> FrontRecord:
    """Measure the front's networks on images that the search never saw."""
    values = {subnet: value for _, subnet, value in measured_networks(place)}
    front = front_of(problem, values)
    confirmed: dict[Subnet, float] = {}
    with log_progress("confirming the front", len(front)) as advance:
        for score in run.evaluator.scores(run.loaded.net, front, halves.confirmation):
            confirmed[score.subnet] = score.value
            advance(**{record.metric.name: record.metric.show(score.value)})
    finalists = [
        Finalist(subnet, *problem.genes.model.price(subnet), searched=values[subnet], confirmed=confirmed[subnet])
        for subnet in front
    ]
    finalists.sort(key=lambda one: (getattr(one, record.costs[0]), -record.metric.rank(one.searched)))
    gaps = np.array([record.metric.rank(one.searched) - record.metric.rank(one.confirmed) for one in finalists])
    error = _chance(record, finalists, halves)
    bodies = sum(1 for event in SearchLog(place, problem.genes, record.metric).read() if isinstance(event, Measured))
    return FrontRecord(bodies, len(values), tuple(finalists), float(gaps.mean()), error)


def _chance(record: SearchRecord, finalists: Sequence[Finalist], halves: Halves) -> float | None:
    """Return the standard error of the difference of the two halves, of a share; all finalists share both halves."""
    if record.metric.unit != "%":
        return None
    share = float(np.mean([one.confirmed for one in finalists]))
    return math.sqrt(share * (1 - share) * (1 / len(halves.search) + 1 / len(halves.confirmation)))


def front_of(problem: SupernetProblem, values: dict[Subnet, float]) -> tuple[Subnet, ...]:
    """Return the networks that no other one beats, by losses less the noise that similar networks do not share."""
    subnets = tuple(values)
    metric = problem.run.evaluator.task.metrics[0]
    genes = np.array([problem.genes.encode(subnet) for subnet in subnets])
    losses = np.array([-metric.rank(values[subnet]) for subnet in subnets])
    archive = Archive.empty(problem).plus(problem, genes, losses)
    points = archive.points if len(archive) < LEAST_KNOWN else learn(problem, archive, PREDICTORS["ensemble"]).points
    return tuple(subnet for subnet, kept in zip(subnets, on_front(points), strict=True) if kept)
