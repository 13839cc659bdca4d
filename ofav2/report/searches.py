"""Searches side by side: `ofav2 compare`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofav2.errors import UserError
from ofav2.nas.found import SearchRecord, latency_table
from ofav2.nas.search_snapshot import SearchSnapshot
from ofav2.nas.search_volumes import common_volumes
from ofav2.report.comparison import Comparison, differing, folder_names
from ofav2.report.page import write_page
from ofav2.report.search import cost_axes
from ofav2.tasks.base import Metric
from ofav2.typed_json import to_plain

RESULT_COLUMNS = (
    "search",
    "state",
    "run",
    "measured",
    "networks",
    "front",
    "best confirmed",
    "optimism",
    "hypervolume",
)
"""Columns of `Comparison.results`; hypervolumes are of all that was measured, up to a reference that all share."""
_SETTINGS = ("space", "costs", "limits", "measurements", "minutes", "seed", "settings", "versions")
_OF_RUNS = ("phase", "weights", "measurement", "latency_sha256")


def compare_searches(searches: Sequence[SearchSnapshot], out: Path) -> Comparison:
    """Compare searches: what differs, key results, and a page with their fronts on one plot.

    Args:
        searches: Two searches or more.
        out: The page to write, replaced if it is there.

    Raises:
        UserError: If their objectives differ, or the page can't be written there.
    """
    names = folder_names([search.folder for search in searches])
    metric, costs = _same_objectives(names, searches)
    volumes = common_volumes(searches)
    comparison = Comparison(
        names=names,
        metric=metric,
        title=f"{metric.name} of searches, confirmed",
        columns=RESULT_COLUMNS,
        settings=differing([_settings(one.record) for one in searches]),
        results=tuple(
            _results(name, search, volume[-1][1] if volume else None)
            for name, search, volume in zip(names, searches, volumes, strict=True)
        ),
        warnings=tuple(_warnings(names, searches)),
        page=out,
    )
    values = {
        "title": f"{' · '.join(names)} · ofav2",
        "comparison": comparison,
        "metric": metric,
        "costs": cost_axes(costs),
        "folders": [search.folder for search in searches],
        "payload": {
            "metric": asdict(metric),
            "costs": cost_axes(costs),
            "fronts": [_front(name, search) for name, search in zip(names, searches, strict=True)],
            "volumes": [
                {"search": name, "measured": [at for at, _ in volume], "hypervolume": [value for _, value in volume]}
                for name, volume in zip(names, volumes, strict=True)
            ],
        },
    }
    write_page(comparison.page, "searches.html", values)
    return comparison


def _settings(record: SearchRecord) -> dict[str, Any]:
    runs = {key: ", ".join(str(getattr(one, key)) for one in record.runs) for key in _OF_RUNS}
    return {**runs, **{key: to_plain(getattr(record, key)) for key in _SETTINGS}}


def _same_objectives(names: Sequence[str], searches: Sequence[SearchSnapshot]) -> tuple[Metric, tuple[str, ...]]:
    kinds = dict.fromkeys((search.record.metric, search.record.costs) for search in searches)
    if len(kinds) > 1:
        seen = ", ".join(
            f"{name}: {', '.join((search.record.metric.name, *search.record.costs))}"
            for name, search in zip(names, searches, strict=True)
        )
        raise UserError(f"searches have different objectives ({seen}): compare searches of the same")
    return next(iter(kinds))


def _results(name: str, search: SearchSnapshot, volume: float | None) -> tuple[str, ...]:
    record, front, show = search.record, search.final, search.record.metric.show
    best = record.metric.best(*(one.confirmed for one in front.finalists)) if front else None
    return (
        name,
        search.state,
        ", ".join(map(str, search.runs)),
        f"{search.measured:,}",
        f"{len(search.networks):,}",
        f"{len(search.best()):,}",
        show(best),
        show(front.optimism if front else None),
        "–" if volume is None else f"{volume:.4f}",
    )


def _warnings(names: Sequence[str], searches: Sequence[SearchSnapshot]) -> Iterator[str]:
    if len({search.record.data_fingerprint for search in searches}) > 1:
        yield "The searches are of different data, so their values are not comparable."
    elif len({(search.record.search_images, search.record.confirmation_images) for search in searches}) > 1:
        yield "The searches measured on different images, so small differences of values are chance."
    measured = {(one.weights, one.measurement) for search in searches for one in search.record.runs}
    if len(measured) > len({weights for weights, _ in measured}):
        yield (
            "The searches measured the same weights in different ways (evaluation settings, device or versions), so"
            " small differences of values are no gain."
        )
    if "latency" in searches[0].record.costs and len({unit for search in searches for unit in _units(search)}) > 1:
        yield "Latencies are of different machines, threads or batches, so fronts and hypervolumes are not comparable."
    for name, search in zip(names, searches, strict=True):
        if search.state != "finished":
            yield f"{name} is not finished ({search.state}): its front is as measured, and nothing confirms it yet."


def _units(search: SearchSnapshot) -> Iterator[str]:
    """Yield what the latency tables of a search are of, as far as they are still there."""
    for one in search.record.runs:
        if table := latency_table(search.folder, one):
            yield f"{table.machine}, batch {table.batch}"


def _front(name: str, search: SearchSnapshot) -> Mapping[str, Any]:
    networks = [search.networks[index] for index in search.best()]
    values = [one.confirmed for one in search.final.finalists] if search.final else [one.value for one in networks]
    return {
        "search": name,
        "networks": [
            {"name": str(one.subnet), "costs": dict(one.costs), "value": value}
            for one, value in zip(networks, values, strict=True)
        ],
    }
