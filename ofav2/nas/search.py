"""Search a run for the best trade-offs between its metric and costs, and confirm what was found on other images."""

import math
import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ofav2 import files
from ofav2.data import refuse_inside
from ofav2.data.halves import halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import LoadedSupernet, load_run, open_loaded, require_supernet
from ofav2.messages import show
from ofav2.nas.adapt import adapt_found, ask_adaptation, check_adaptation
from ofav2.nas.constraints import Constraints, constrain
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.found import (
    FORMAT,
    FRONT,
    RECORD,
    AdaptSettings,
    Found,
    SearchedRun,
    SearchRecord,
    located,
    located_from,
    read_adaptation,
    read_found,
    read_search,
)
from ofav2.nas.latency_table import TABLE, load_latency_table
from ofav2.nas.limits import Limits
from ofav2.nas.measured import IDLE_PACKAGES, measurement_key
from ofav2.nas.objectives import read_objectives
from ofav2.nas.plugins import SearchPlugins, check_settings, require_costs
from ofav2.nas.rounds import LEAST_KNOWN, Halved, run_search
from ofav2.output_folder import check_free
from ofav2.runs import folder
from ofav2.runs.kept_recipe import trained_recipe
from ofav2.runs.records import versions
from ofav2.runtime.processes import Processes, process_group
from ofav2.typed_json import to_plain, write_record
from supernets import DIMENSIONS

MOST_MEASUREMENTS = 100_000
"""More measurements than anyone would wait for are a slip."""
ENGINE_PACKAGES = ("scikit-learn", "scipy", "pymoo", "moocore")
"""Packages that decide what a search measures next, beside those that decide its values."""


def search(
    run: str | Path | Sequence[str | Path],
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
    adapt: AdaptSettings | None = None,
    out: str | Path | None = None,
) -> Found:
    """Search a run, or several as one space, for the networks that no other one beats in all objectives at once.

    Half of the validation images guide the search. The other half confirms the front at the end; of patches, it has
    other places. Test images choose nothing; a training by `adapt` measures them when it ends. The search's folder
    grows line by line; `resume_search` goes on with it. Under torchrun each process measures other networks; the result
    is that of one process.

    Args:
        run: A run folder, or several, which differ in width for example, of the same space, images and split.
        objectives: The metric's name and one or more of `macs`, `params`, `memory`, `latency`, in any order; None takes
            the metric and `macs`.
        limits: The most that a network may cost.
        exits: Exits to end at, such as `3`, `2,4` or `3..5`; None takes all.
        resolutions: Resolutions, likewise.
        table: Latency table; None takes each run folder's where latency counts.
        measurements: Bodies to measure; one measurement scores a body at all its exits.
        minutes: Time after which no other body is measured.
        seed: Seed of the search.
        settings: How to search; None chooses by the budget.
        plugins: The user's own costs, predictors and pickers.
        adapt: How the supernet is adapted to the front at the end; None leaves it as it is. The run is not changed, and
            the adapted weights are used only if the confirmed front covers more with them.
        out: Folder to make; None takes `search`, `search-2` and so on in the first run folder.

    Returns:
        The search. `final.finalists` are the networks of its front, the cheapest first; `best` and `knee` pick one.

    Raises:
        UserError: If an argument can't be used, the runs don't fit together, a data set can't be opened, or no network
            keeps the limits; the message says what can be kept.
        RunError: If a folder is no run, a network has no finite score, or a file can't be written.
        DistillError: If an adaptation needs a teacher that can't be loaded.
        Stopped: If a signal told an adaptation to stop; `resume_search` goes on with it.
        Lost: If another process failed with an error message, or is gone.
    """
    plugins = plugins or SearchPlugins()
    _check_budget(measurements, minutes, seed)
    check_settings(settings := settings or settings_for(measurements), plugins)
    folders = [Path(run)] if isinstance(run, str | Path) else [Path(one) for one in run]

    def begin(processes: Processes) -> _Begun:
        loaded = _load_runs(folders)
        metric, asked = loaded[0].record.metric, limits or Limits()
        names = tuple(objectives) if objectives is not None else (metric.name, "macs")
        tables = _latency_tables(loaded, table, needed="latency" in names or asked.latency is not None)
        constraints = _constrain(loaded, asked, exits, resolutions, tables)
        costs = read_objectives(names, metric, constraints.table is not None, plugins.costs)
        if constraints.space.size() == 1 and len(loaded) == 1:
            raise UserError(
                f"run ({folders[0]}) has one network at these exits and resolutions, so there is nothing to search:"
                " take it with `ofav2 extract`"
            )
        if out is not None:
            check_free(Path(out))
        opened = _open_runs(loaded, processes)
        if out is not None:
            refuse_inside(opened[0].run.data.trees, Path(out), "output folder")
        return _Begun(constraints, costs, tables, opened)

    with process_group() as processes:
        constraints, costs, tables, opened = processes.on_all(lambda: begin(processes))
        if adapt is not None:
            _check_adaptation(opened, adapt, processes)
        place = processes.on_main(
            lambda: folder.take_folder(Path(out)) if out is not None else folder.new_folder(folders[0], "search")
        )
        record = SearchRecord(
            runs=tuple(
                _searched(one, wanted, place, path) for one, wanted, path in zip(opened, tables, folders, strict=True)
            ),
            data_fingerprint=opened[0].run.data.fingerprint,
            space=constraints.space,
            metric=opened[0].run.loaded.record.metric,
            costs=costs,
            limits=constraints.limits,
            measurements=measurements,
            minutes=minutes,
            seed=seed,
            settings=settings,
            search_images=len(opened[0].halves.search),
            confirmation_images=len(opened[0].halves.confirmation),
            versions=versions(ENGINE_PACKAGES),
        )
        if adapt is not None:
            # First, so that a search that can be resumed knows of it.
            processes.on_main(lambda: ask_adaptation(place, adapt))
        processes.on_main(lambda: write_record(place / RECORD, record, FORMAT))
        return adapt_found(run_search(place, record, opened, plugins), processes)


class _Begun(NamedTuple):
    """What a search begins with."""

    constraints: Constraints
    costs: tuple[str, ...]
    tables: Sequence[Path | None]
    opened: Sequence[Halved]


def _load_runs(folders: Sequence[Path]) -> list[LoadedSupernet]:
    """Read the supernets of runs, and refuse those that are no one space."""
    loaded = [load_run(path) for path in folders]
    if not loaded:
        raise UserError("RUN is missing: name a run folder")
    for one in loaded:
        require_supernet(one.net, "extract it with `ofav2 extract`")
    first = loaded[0]
    for number, other in enumerate(loaded[1:], 1):
        if other.sha256 in {one.sha256 for one in loaded[:number]}:
            raise UserError(f"run ({other.folder}) has the weights of one before it: name each run once")
        if difference := _difference(first, other):
            raise UserError(
                f"runs ({first.folder} and {other.folder}) have different {difference}: search them one by one, or"
                " train both alike"
            )
    return loaded


def _latency_tables(runs: Sequence[LoadedSupernet], table: str | Path | None, *, needed: bool) -> list[Path | None]:
    """Return the path of each run's latency table; None where latency does not count and no table is given."""
    if table and len(runs) > 1:
        raise UserError(f"latency table ({table}) is of one run: leave it out, so that each run's own is taken")
    return [Path(table) if table else one.folder / TABLE if needed else None for one in runs]


def _constrain(
    runs: Sequence[LoadedSupernet],
    limits: Limits,
    exits: str | None,
    resolutions: str | None,
    tables: Sequence[Path | None],
) -> Constraints:
    """Check that each run has networks that keep the limits, and return the constraints on the first one's."""
    found = []
    for one, table in zip(runs, tables, strict=True):
        try:
            found.append(constrain(one, limits, exits=exits, resolutions=resolutions, table=table))
        except UserError as error:
            if len(runs) == 1:
                raise
            raise UserError(f"run ({one.folder}) can't be searched with the others: {error}") from error
    if len(runs) > 1:
        _require_one_unit(runs, tables)
    return found[0]


def _require_one_unit(runs: Sequence[LoadedSupernet], tables: Sequence[Path | None]) -> None:
    """Refuse latency tables of another machine, or of other images per call: their numbers can't stand on one front."""
    units = [
        (table, load_latency_table(table, require_supernet(one.net, "extract it").architecture))
        for one, table in zip(runs, tables, strict=True)
        if table
    ]
    for path, table in units[1:]:
        first = units[0][1]
        if (table.machine, table.batch) != (first.machine, first.batch):
            raise UserError(
                f"latency tables ({units[0][0]} and {path}) are of different machines, threads or batches"
                f" ({show(to_plain(first.machine))}, batch {first.batch}; {show(to_plain(table.machine))}, batch"
                f" {table.batch}): measure both alike with `ofav2 latency RUN`"
            )


def _difference(first: LoadedSupernet, other: LoadedSupernet) -> str | None:
    """Return what keeps two runs from being searched as one space, with both values; None if nothing does."""
    recipes = [trained_recipe(run.folder, run.record) for run in (first, other)]
    facts = [
        (
            ("task", run.record.task),
            ("metrics", run.record.metric.name),
            ("data sets", run.record.data.name),
            ("classes", run.record.data.classes),
            ("numbers of images", to_plain(run.record.data.images)),
            ("seeds of the split", config.data.split_seed),
            ("data.eval_crop", config.data.eval_crop),
            ("data.shrink_to", config.data.shrink_to),
            ("evaluation.calibration_images", config.evaluation.calibration_images),
            ("evaluation.calibration_batch", config.evaluation.calibration_batch),
            ("images or splits", run.record.data.fingerprint[:12]),
            *((f"choices of {name}", getattr(run.net.space, name)) for name in DIMENSIONS),
            ("numbers of stages", run.net.space.stages),
        )
        for run, config in zip((first, other), recipes, strict=True)
    ]
    for (name, before), (_, after) in zip(*facts, strict=True):
        if before != after:
            return f"{name} ({show(before)} and {show(after)})"
    return None


def _open_runs(loaded: Sequence[LoadedSupernet], processes: Processes) -> list[Halved]:
    opened = [open_loaded(one, processes) for one in loaded]
    for one in opened[1:]:
        if one.data.fingerprint != opened[0].data.fingerprint:
            raise UserError(
                f"runs ({loaded[0].folder} and {one.loaded.folder}) find other images now: restore those that they were"
                " trained on"
            )
    return [Halved(one, halve(one.data.val, one.evaluator.seed)) for one in opened]


def _searched(one: Halved, table: Path | None, place: Path, run: Path) -> SearchedRun:
    """Return how a search that lies in a place records a run."""
    loaded = one.run.loaded
    return SearchedRun(
        run=located_from(run, place, run),
        phase=loaded.phase,
        weights=loaded.sha256,
        architecture=require_supernet(loaded.net, "extract it").architecture,
        latency_table=located_from(table, place, run) if table else None,
        latency_sha256=_digest(table) if table else None,
        measurement=measurement_key(one.run, one.halves.search),
    )


def resume_search(
    place: str | Path, *, plugins: SearchPlugins | None = None, adapt: AdaptSettings | None = None
) -> Found:
    """Go on with a search that stopped, as if it had not; of one that has finished, return what it found.

    Args:
        place: The search's folder.
        plugins: Those that it was begun with.
        adapt: How the supernet is adapted to the front at the end; None does what was asked for before.

    Returns:
        The finished search, as `search` returns it.

    Raises:
        RunError: If the folder is no search or in use, a measurement would not be now what it was when the search was
            begun, a network has no finite score, or a file can't be written.
        UserError: If a plugin is missing, a data set can't be opened, or another adaptation was asked for before.
        DistillError: If an adaptation needs a teacher that can't be loaded.
        Stopped: If a signal told an adaptation to stop; it goes on when this is called again.
        Lost: If another process failed with an error message, or is gone.
    """
    path, plugins = Path(place), plugins or SearchPlugins()
    with process_group() as processes:
        record = processes.on_all(lambda: read_search(path))
        asked = processes.on_main(lambda: read_adaptation(path))

        def open_again() -> list[Halved]:
            return _open_runs([load_run(located(one.run, path), one.phase) for one in record.runs], processes)

        if processes.on_main(lambda: os.path.exists(path / FRONT)):
            if adapt is not None:
                if asked is None:
                    _check_adaptation(processes.on_all(open_again), adapt, processes)
                processes.on_main(lambda: ask_adaptation(path, adapt))
            return adapt_found(processes.on_all(lambda: read_found(path)), processes)
        check_settings(record.settings, plugins)
        require_costs(record.costs, plugins)

        def begin() -> list[Halved]:
            opened = open_again()
            for searched, one in zip(record.runs, opened, strict=True):
                _require_same(path, record, searched, one)
            return opened

        opened = processes.on_all(begin)
        if wanted := adapt or (asked and asked.settings):
            # Also if it was asked for before: there may be another number of processes now.
            _check_adaptation(opened, wanted, processes)
        if adapt is not None:
            processes.on_main(lambda: ask_adaptation(path, adapt))
        return adapt_found(run_search(path, record, opened, plugins), processes)


def _check_adaptation(opened: Sequence[Halved], adapt: AdaptSettings, processes: Processes) -> None:
    for one in opened:
        check_adaptation(one.run, adapt, processes)


def _require_same(path: Path, record: SearchRecord, searched: SearchedRun, one: Halved) -> None:
    """Refuse to go on where a search would end otherwise than if it had not stopped."""
    opened, table = one.run, located(searched.latency_table, path) if searched.latency_table else None
    now = versions(ENGINE_PACKAGES)
    packages = sorted({*record.versions, *now}.difference(IDLE_PACKAGES))
    for what, before, after in (
        ("weights", searched.weights, opened.loaded.sha256),
        ("images", record.data_fingerprint, opened.data.fingerprint),
        ("latencies", searched.latency_sha256, _digest(table) if table else None),
        *((f"{name} ({record.versions.get(name)})", record.versions.get(name), now.get(name)) for name in packages),
        ("validation images, calibration or device", searched.measurement, measurement_key(opened, one.halves.search)),
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
