"""Search a run for the best trade-offs between its metric and costs, and confirm what was found on other images."""

import math
import os.path
from collections.abc import Sequence
from pathlib import Path

from ofav2 import files
from ofav2.data import refuse_inside
from ofav2.data.halves import Halves, halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import OpenedRun, load_run, open_loaded, require_supernet
from ofav2.nas.constraints import Constraints, constrain
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.found import (
    FORMAT,
    FRONT,
    RECORD,
    SEARCH_AGAIN,
    Found,
    SearchRecord,
    load_search,
    located,
    located_from,
)
from ofav2.nas.latency_table import TABLE
from ofav2.nas.limits import Limits
from ofav2.nas.measured import measurement_key
from ofav2.nas.objectives import read_objectives
from ofav2.nas.plugins import SearchPlugins, check_settings, require_costs
from ofav2.nas.rounds import LEAST_KNOWN, run_search
from ofav2.output_folder import check_free
from ofav2.runs import folder
from ofav2.runs.records import versions
from ofav2.runtime.processes import Processes, process_group
from ofav2.typed_json import read_record, write_record

MOST_MEASUREMENTS = 100_000
"""More measurements than anyone would wait for are a slip."""


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
        return run_search(place, record, opened, halves, plugins)


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
        return run_search(path, record, opened, halves, plugins)


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
