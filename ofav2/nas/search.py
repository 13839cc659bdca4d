"""Search a run for the best trade-offs between its metric and costs, and confirm what was found on other images."""

import logging
import math
import os.path
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ofav2 import files
from ofav2.config import recipe
from ofav2.data import refuse_inside
from ofav2.data.halves import Halves, halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import OpenedRun, load_run, open_loaded, require_supernet
from ofav2.nas.constraints import Constraints, constrain
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import learn
from ofav2.nas.engine.fronts import on_front
from ofav2.nas.engine.loop import Learned, Measured, Picked, SearchSettings
from ofav2.nas.engine.loop import search as search_events
from ofav2.nas.engine.predictors import Predictor
from ofav2.nas.found import (
    FORMAT,
    FRONT,
    FRONT_FORMAT,
    RECORD,
    SEARCH_AGAIN,
    Finalist,
    Found,
    FrontRecord,
    SearchRecord,
    load_search,
    located,
    located_from,
)
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency_table import TABLE, load_table
from ofav2.nas.limits import Limits
from ofav2.nas.measured import STORE, MeasuredStore, measurement_key
from ofav2.nas.objectives import read_objectives
from ofav2.nas.plugins import SearchPlugins, check_settings, require_costs
from ofav2.nas.search_clock import SearchClock
from ofav2.nas.search_log import SearchLog, measured_bodies, measured_networks
from ofav2.nas.supernet_problem import SupernetProblem
from ofav2.nas.tracked import track_search
from ofav2.output_folder import check_free
from ofav2.progress import log_progress
from ofav2.runs import folder
from ofav2.runs.records import versions
from ofav2.runtime.processes import Processes, process_group
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
    settings: SearchSettings | None = None,
    plugins: SearchPlugins | None = None,
    out: str | Path | None = None,
) -> Found:
    """Search a run for the networks that no other one beats in all objectives at once.

    Half of the validation images guide the search. The other half confirms the front at the end. Test images are not
    looked at. The search's folder grows line by line; `resume_search` goes on with it. Under torchrun each process
    measures other networks; the result is that of one process.

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
        settings: How to search; None chooses by the budget.
        plugins: The user's own costs, predictors and pickers.
        out: Folder to make; None takes `search`, `search-2` and so on in the run folder.

    Raises:
        UserError: If an argument is out of range, or no network keeps the limits; the message says what can be kept.
        RunError: If the folder is no run, or a file can't be written.
    """
    plugins = plugins or SearchPlugins()
    _check_budget(measurements, minutes, seed)
    check_settings(settings := settings or settings_for(measurements), plugins)

    def begin(processes: Processes) -> tuple[Constraints, tuple[str, ...], Path | None, OpenedRun, Halves]:
        loaded = load_run(run)
        metric = loaded.record.metric
        require_supernet(loaded.net, "extract it with `ofav2 extract`")
        names = tuple(objectives) if objectives is not None else (metric.name, "macs")
        asked = limits or Limits()
        asks_latency = "latency" in names or asked.latency is not None
        wanted = Path(table) if table else loaded.folder / TABLE if asks_latency else None
        constraints = constrain(loaded, asked, exits=exits, resolutions=resolutions, table=wanted)
        costs = read_objectives(names, metric, constraints.table is not None, plugins.costs)
        if constraints.space.size() == 1:
            raise UserError(f"run ({run}) has one network at these exits and resolutions: there is nothing to search")
        if out is not None:
            check_free(Path(out))
        opened = open_loaded(loaded, processes)
        if out is not None:
            refuse_inside(opened.data.trees, Path(out), "output folder")
        return constraints, costs, wanted, opened, halve(opened.data.val, opened.evaluator.seed)

    with process_group() as processes:
        constraints, costs, wanted, opened, halves = processes.on_all(lambda: begin(processes))
        place = processes.on_main(
            lambda: folder.take_folder(Path(out)) if out is not None else folder.new_folder(Path(run), "search")
        )
        loaded = opened.loaded
        record = SearchRecord(
            run=located_from(Path(run), place, Path(run)),
            phase=loaded.phase,
            weights=loaded.sha256,
            data_fingerprint=opened.data.fingerprint,
            architecture=require_supernet(loaded.net, "extract it").architecture,
            space=constraints.space,
            metric=loaded.record.metric,
            costs=costs,
            limits=constraints.limits,
            latency_table=located_from(wanted, place, Path(run)) if wanted else None,
            latency_sha256=_digest(wanted) if wanted else None,
            measurements=measurements,
            minutes=minutes,
            seed=seed,
            settings=settings,
            search_images=len(halves.search),
            confirmation_images=len(halves.confirmation),
            measurement=measurement_key(opened, halves.search),
            versions=versions(),
        )
        processes.on_main(lambda: write_record(place / RECORD, record, FORMAT))
        return _run(place, record, opened, halves, plugins)


def resume_search(place: str | Path, *, plugins: SearchPlugins | None = None) -> Found:
    """Go on with a search that stopped, as if it had not; of one that has finished, return what it found.

    Args:
        place: The search's folder.
        plugins: Those that it was begun with.

    Raises:
        RunError: If the folder is no search, or a measurement would not be now what it was when the search was begun.
        UserError: If a plugin is missing.
    """
    path, plugins = Path(place), plugins or SearchPlugins()
    with process_group() as processes:
        record = processes.on_all(lambda: read_record(path / RECORD, SearchRecord, FORMAT, SEARCH_AGAIN))
        if processes.on_main(lambda: os.path.exists(path / FRONT)):
            return processes.on_all(lambda: load_search(path))
        check_settings(record.settings, plugins)
        require_costs(record.costs, plugins)

        def begin() -> tuple[OpenedRun, Halves]:
            opened = open_loaded(load_run(located(record.run, path), record.phase), processes)
            halves = halve(opened.data.val, opened.evaluator.seed)
            _require_same(path, record, opened, halves)
            return opened, halves

        opened, halves = processes.on_all(begin)
        return _run(path, record, opened, halves, plugins)


def _require_same(path: Path, record: SearchRecord, opened: OpenedRun, halves: Halves) -> None:
    """Refuse to go on where a search would end otherwise than if it had not stopped."""
    table = located(record.latency_table, path) if record.latency_table else None
    now = versions()
    packages = sorted({*record.versions, *now})
    for what, before, after in (
        ("weights", record.weights, opened.loaded.sha256),
        ("images", record.data_fingerprint, opened.data.fingerprint),
        ("latencies", record.latency_sha256, _digest(table) if table else None),
        *((f"{name} ({record.versions.get(name)})", record.versions.get(name), now.get(name)) for name in packages),
        ("validation images, calibration or device", record.measurement, measurement_key(opened, halves.search)),
    ):
        if before != after:
            raise RunError(
                f"search ({path}) is of other {what} than run {opened.loaded.folder} has now: start a new search"
            )


def _digest(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); restore the latency table") from error


def settings_for(measurements: int) -> SearchSettings:
    """Return how to search with a budget: a fifteenth of it before anything is predicted, then small rounds."""
    return SearchSettings(
        start=min(50, max(LEAST_KNOWN, measurements // 15)), batch=min(10, max(1, measurements // 12))
    )


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


def _run(place: Path, record: SearchRecord, run: OpenedRun, halves: Halves, plugins: SearchPlugins) -> Found:
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
