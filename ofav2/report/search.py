"""Collect what the page of a search shows."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from ofav2.nas.effects import Effects, choice_effects
from ofav2.nas.found import Adapted, Finalist, FrontRecord, SearchRecord, describe_adaptation, run_names
from ofav2.nas.limits import UNITS, show
from ofav2.nas.search_snapshot import SearchedNetwork, SearchSnapshot
from ofav2.report.networks import drawn_supernet
from ofav2.report.page import count

COST_NAMES = MappingProxyType(
    {"params": "parameters", "macs": "multiply-adds", "memory": "memory", "latency": "latency"}
)
_SURE = 1.96
"""Standard errors on either side of a share within which the true one is in 95 of 100 cases."""
_SHOWN_FACTORS = 16


def search_page(search: SearchSnapshot) -> dict[str, Any]:
    """Return what the page of a search shows: what it measured, what it learned, what it found."""
    record, final, adapted = search.record, search.final, search.adapted
    effects = _effects(search)
    return {
        "title": f"{search.folder.resolve().name} · ofav2",
        "search": search,
        "metric": record.metric,
        "name": search.folder.resolve().name,
        "state": _state(search),
        "summary": _summary(search),
        "keys": _keys(search),
        "optimism": _optimism(record, final) if final else None,
        "costs": cost_axes(record.costs),
        "finalists": _rows(search, final) if final else [],
        "band": _has_band(record),
        "adaptation": describe_adaptation(record, adapted) if adapted else None,
        "adapted": _adapted_rows(search, search.front, adapted) if search.front and adapted else [],
        "effects": effects,
        "shown_factors": _SHOWN_FACTORS,
        "commands": _commands(search),
        "payload": {
            "metric": asdict(record.metric),
            "costs": cost_axes(record.costs),
            # Supernets of one space are drawn alike.
            "supernet": drawn_supernet(record.runs[0].architecture, record.space),
            "networks": [_network(search, one) for one in search.networks],
            "front": search.best(),
            "finalists": [_confirmed(record, one) for one in final.finalists] if final else None,
            "before": [one.confirmed for one in search.front.finalists] if search.front and adapted else None,
            "adapted": [one.confirmed for one in adapted.front.finalists] if adapted else None,
            "rounds": [asdict(one) for one in search.rounds],
            "effects": [asdict(factor) for factor in effects.factors[:_SHOWN_FACTORS]] if effects else [],
        },
    }


def cost_axes(costs: Sequence[str]) -> list[dict[str, str]]:
    """Return the names of costs in records, and what a reader calls them."""
    return [{"name": name, "title": COST_NAMES.get(name, name)} for name in costs]


def _effects(search: SearchSnapshot) -> Effects | None:
    networks, names = search.networks, run_names(search.runs)
    runs = [names[one.run] for one in networks] if len(names) > 1 else []
    subnets, values = [one.subnet for one in networks], [one.value for one in networks]
    bodies = [(one.round, one.body) for one in networks]
    return choice_effects(search.record.space, subnets, values, bodies, runs)


def _state(search: SearchSnapshot) -> dict[str, str]:
    progress = f"{search.measured:,} of {search.record.measurements:,} measurements"
    if search.front:
        progress = f"all of the search, and a part of the adaptation to its front, after {progress}"
    return {
        "finished": {"word": "finished", "text": ""},
        "searching": {
            "word": "searching",
            "text": f"Still searching: {progress}. Make the page again to see more.",
        },
        "stopped": {
            "word": "stopped",
            "text": f"Broken off after {progress}. All below is what it had written by then.",
        },
    }[search.state]


def _summary(search: SearchSnapshot) -> str:
    record = search.record
    names = ", ".join(COST_NAMES.get(name, name) for name in record.costs)
    runs = " and ".join(
        f"run {path} after phase {one.phase}" for path, one in zip(search.runs, record.runs, strict=True)
    )
    size = len(record.runs) * record.space.size()
    return f"{record.metric.title} against {names}, among {count(size)} sub-networks of {runs}; {record.limits}."


def _keys(search: SearchSnapshot) -> list[tuple[str, str, str]]:
    """Return value, name and remark of the key results."""
    record, front = search.record, search.final
    name, of = ("finalists", "the front of the search") if front else ("on the front", "as measured until now")
    keys = [
        (f"{search.measured:,}", "measurements", f"of {record.measurements:,}, all exits of a body in each"),
        (f"{len(search.networks):,}", "networks measured", f"on {record.search_images:,} validation images"),
        (f"{len(search.best()):,}", name, of),
    ]
    if front:
        best = record.metric.best(*(one.confirmed for one in front.finalists))
        remark = f"{record.metric.name} on {record.confirmation_images:,} other images"
        keys.append((record.metric.show(best, 1), "best confirmed", remark))
    return keys


def _optimism(record: SearchRecord, front: FrontRecord) -> str:
    metric = record.metric
    error = "" if front.optimism_error is None else f" ± {metric.show(front.optimism_error)}"
    return (
        f"{metric.show(front.optimism)}{error}: by so much, on average, {metric.name} of the finalists is better on the"
        f" {record.search_images:,} images that guided the search than on {record.confirmation_images:,} others."
    )


def _has_band(record: SearchRecord) -> bool:
    return record.metric.counts_images


def _band(record: SearchRecord, confirmed: float) -> tuple[float, float] | None:
    """Return where the true share is likely to be, by the number of images alone (Wilson's interval, 95 %)."""
    if not _has_band(record):
        return None
    images = record.confirmation_images
    weight = _SURE**2 / images
    centre = confirmed + weight / 2
    half = _SURE * math.sqrt((confirmed * (1 - confirmed) + weight / 4) / images)
    return (centre - half) / (1 + weight), (centre + half) / (1 + weight)


def _rows(search: SearchSnapshot, front: FrontRecord) -> list[tuple[str, ...]]:
    """Return a row per finalist: number, costs, both values, band and network."""
    costs = [search.networks[index].costs for index in search.best()]
    pairs = zip(front.finalists, costs, strict=True)
    return [_row(search, number, one, own) for number, (one, own) in enumerate(pairs, 1)]


def _row(search: SearchSnapshot, number: int, one: Finalist, own: Mapping[str, float]) -> tuple[str, ...]:
    record = search.record
    costs = [_shown_cost(name, own[name]) for name in record.costs]
    band = _band(record, one.confirmed)
    between = [f"{record.metric.show(band[0], 1)} to {record.metric.show(band[1], 1)}"] if band else []
    values = record.metric.show(one.searched), record.metric.show(one.confirmed)
    return (str(number), *costs, *values, *between, _name(search, one))


def _adapted_rows(search: SearchSnapshot, front: FrontRecord, adapted: Adapted) -> list[tuple[str, ...]]:
    """Return a row per finalist: number, costs, confirmed values before and after, their difference, and network."""
    names, metric = search.record.costs, search.record.metric
    costs = [search.networks[index].costs for index in search.best()]
    return [
        (
            str(number),
            *(_shown_cost(name, own[name]) for name in names),
            metric.show(before.confirmed),
            metric.show(after.confirmed),
            metric.show(metric.rank(after.confirmed) - metric.rank(before.confirmed)),
            _name(search, before),
        )
        for number, (before, after, own) in enumerate(
            zip(front.finalists, adapted.front.finalists, costs, strict=True), 1
        )
    ]


def _shown_cost(name: str, value: float) -> str:
    return show(name, int(value)) if name in ("memory", "latency") else f"{value:,}"


def _name(search: SearchSnapshot, one: SearchedNetwork | Finalist) -> str:
    """Return what a network is called: with its run, where several were searched."""
    names = run_names(search.runs)
    return str(one.subnet) if len(names) == 1 else f"{names[one.run]}: {one.subnet}"


def _network(search: SearchSnapshot, one: SearchedNetwork) -> dict[str, Any]:
    return one.subnet.to_dict() | {
        "name": _name(search, one),
        "round": one.round,
        "why": one.why,
        "value": one.value,
        "predicted": one.predicted,
        "costs": dict(one.costs),
    }


def _confirmed(record: SearchRecord, one: Finalist) -> Mapping[str, Any]:
    return {"searched": one.searched, "confirmed": one.confirmed, "band": _band(record, one.confirmed)}


def _commands(search: SearchSnapshot) -> Sequence[tuple[str, str]]:
    folder = shlex.quote(str(search.folder))
    if search.state != "finished":
        return [("Go on with it", f"ofav2 search --resume {folder}")] if search.state == "stopped" else []
    extract = f"ofav2 extract --from-search {folder}"
    return [
        ("Take number 1 out", f"{extract} --number 1 --out network-1"),
        ("Take the best compromise out", f"{extract} --knee --out knee"),
        *(("Take the best one within a limit", f"{extract} {limit} --out small") for limit in _limit(search)),
    ]


def _limit(search: SearchSnapshot) -> list[str]:
    """Return the option of a limit that the cheaper half of the front keeps, in the first cost that has an option."""
    name = next((name for name in search.record.costs if name in UNITS), None)
    if name is None:
        return []
    costs = sorted(search.networks[index].costs[name] for index in search.best())
    return [f"--max-{name} {show(name, int(costs[(len(costs) - 1) // 2]))}"]
