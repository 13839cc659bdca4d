"""The tables and plots of the comparison that `benchmarks.proof` measures, from its files of results."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scipy import stats

from benchmarks.plots import Panel, Series, chart
from benchmarks.sides import mean_and_error
from ofav2.cli import console
from ofav2.errors import UserError
from ofav2.report.networks import front_of

RESULTS = Path("docs/proof")
"""Where the results of each data set have a folder."""
FRONT, PHASES = "front", "phases"
"""Names of the plots, beside the results; of rows with several seeds they show the first."""
APART = ("long", "faster")
"""Parts of the names of rows that have plots of their own, such as `front-long.svg`: other lengths, and other rates."""

ENDS = MappingProxyType({"largest": "largest network", "smallest_at_last_exit": "smallest network with the last exit"})
"""Corner networks that are followed through the phases, by their keys in the results."""

Result = Mapping[str, Any]

CLAIMS = MappingProxyType(
    {
        "OFAv2 beats OFA": ("ofav2", "ofa"),
        "a progressive teacher beats a fixed one": ("ofav2", "ofav2-fixed"),
        "teaching in place beats OFAv2's phases": ("in-place", "ofav2"),
        "it does so at higher rates": ("in-place-faster-kernel", "ofav2-faster-kernel"),
        "OFAv2 beats OFA at higher rates after the kernel phase": ("ofav2-faster", "ofa-faster"),
        "OFAv2's phases beat one elastic phase": ("ofav2", "sandwich"),
        "they do so at equal rates": ("ofav2-faster", "sandwich-faster"),
        "OFAv2 beats OFA in thirty epochs": ("ofav2-long", "ofa-long"),
        "teaching in place beats OFAv2's phases in thirty epochs": ("in-place-long", "ofav2-long"),
        "teaching in place beats OFA in thirty epochs": ("in-place-long", "ofa-long"),
        "higher rates of all elastic phases are better": ("ofav2-faster-kernel", "ofav2"),
        "higher rates after the kernel phase are better": ("ofav2-faster", "ofav2"),
        "exits weighed evenly are better, at higher rates": ("ofav2-faster-uniform", "ofav2-faster-kernel"),
        "a level phase is worth its seconds": ("level-on", "level-off"),
    }
)
"""Claims, the paper's and this project's, by the rows that are to differ: the first one is to be better."""
FIGURES: MappingProxyType[str, Callable[[Result], float | None]] = MappingProxyType(
    {
        "largest": lambda result: float(result["test"]["largest"]),
        "mean of random networks, exit 5": lambda result: statistics.mean(_by_exit(result["random"])[5]),
        "the same, exit 1": lambda result: (
            statistics.mean(top1) if (top1 := _by_exit(result["random"]).get(1)) else None
        ),
        "best under 25 % of the multiply-adds": lambda result: (
            result["chosen"]["25"] and float(result["chosen"]["25"]["top1"])
        ),
    }
)
"""What rows are compared by, over their seeds: shares in 0..1; None where nothing was found."""
SURE = 0.95
"""Share of chance that a difference must be beyond, by Student's t: with three pairs of runs 4.3 standard errors."""


def show(names: Iterable[str], results: Path) -> None:
    """Prints the tables as Markdown, and draws the plots beside the results.

    Args:
        names: The rows in the order in which they are shown; those without results are left out.
        results: Where the files of results are.

    Raises:
        UserError: If there are no results.
    """
    paths = [results / f"{name}.json" for name in names]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if not found:
        raise UserError(
            f"results ({results}) are empty: make them with `python -m benchmarks.proof measure {results.name}`"
        )
    supernets = [result for result in found if "random" in result]
    for table in (runs_table(found), phase_table(supernets), random_table(supernets), chosen_table(supernets)):
        console.show(table + "\n")
    console.show(alone_table(found) + "\n")
    console.show(seeds_table(supernets) + "\n")
    console.show(claims_table(supernets))
    for kind, shown in plotted(supernets).items():
        front, phases = (results / f"{name}{kind}.svg" for name in (FRONT, PHASES))
        front.write_text(chart([front_panel(shown)], width=7.0, height=4.6), encoding="utf-8")
        ends = [phase_panel(shown, *end) for end in ENDS.items()]
        phases.write_text(chart(ends, width=4.6, height=3.8), encoding="utf-8")
        console.say(f"made {front} and {phases}")


def plotted(found: Iterable[Result]) -> dict[str, list[Result]]:
    """The first seed of each row, by how the names of its plots end."""
    grouped: dict[str, list[Result]] = {}
    for result in found:
        if seed_of(result["name"]) == 0:
            kind = next((f"-{part}" for part in APART if part in result["name"].split("-")), "")
            grouped.setdefault(kind, []).append(result)
    return grouped


def runs_table(found: Iterable[Result]) -> str:
    """When each run began, what it took, and its corner networks on test. Code and machines change between days."""
    columns = (
        "row",
        "trained",
        "steps",
        "images drawn",
        "sub-network images",
        "minutes of steps",
        "images/s",
        "largest",
        "smallest",
        "corner mean",
    )
    rows = []
    for result in found:
        total = {key: sum(phase[key] for phase in result["phases"]) for key in ("steps", "images", "subnet_images")}
        # By each phase's median rate: the clock would count the pauses of a run that was stopped.
        seconds = sum(phase["images"] / phase["images_per_second"] for phase in result["phases"])
        test = [_percent(result["test"][name]) for name in ("largest", "smallest", "mean")]
        counts = [f"{value:,}" for value in total.values()]
        took = (f"{seconds / 60:.0f}", f"{total['images'] / seconds:.0f}")
        rows.append((result["title"], result["trained"], *counts, *took, *test))
    return _markdown(columns, rows)


def phase_table(found: Iterable[Result]) -> str:
    """Largest network, mean of the corners, and smallest network with the last exit, on validation after each phase."""
    names = _phase_names(found)
    rows = []
    for result in found:
        by_name = {phase["name"]: phase for phase in result["phases"]}
        cells = [
            " / ".join(_percent(by_name[name][key]) for key in ("largest", "mean", "smallest_at_last_exit"))
            if name in by_name
            else "–"
            for name in names
        ]
        rows.append((result["title"], *cells))
    return _markdown(("largest / corner mean / smallest with the last exit", *names), rows)


def random_table(found: Iterable[Result]) -> str:
    """Mean top-1 of the random networks by exit, and the spread over them at the last exit."""
    rows = []
    for result in found:
        top1 = _by_exit(result["random"])
        means = [_percent(statistics.mean(top1[exit])) if exit in top1 else "–" for exit in range(1, 6)]
        rows.append((result["title"], *means, f"{100 * statistics.stdev(top1[5]):.1f}", _percent(min(top1[5]))))
    columns = ("mean at exit", "1", "2", "3", "4", "5", "standard deviation at 5", "lowest at 5")
    return _markdown(columns, rows)


def chosen_table(found: Iterable[Result]) -> str:
    """The networks that were chosen under limits of multiply-adds, on test."""
    rows = []
    for result in found:
        cells = [
            f"{_percent(one['top1'])} ({one['macs'] / 1e6:.2f} M, exit {one['exit']})" if one else "–"
            for one in result["chosen"].values()
        ]
        rows.append((result["title"], *cells))
    shares = [f"at most {share} %" for share in next(iter(found))["chosen"]]
    return _markdown(("chosen on validation", *shares), rows)


def alone_table(found: Iterable[Result]) -> str:
    """The same networks out of each supernet, and trained alone, on test: mean over the seeds, and their number."""
    sizes, grouped = ("small", "middle", "large"), by_row(found)
    rows = [
        (results[0]["title"], *([result["sizes"][size]["top1"] for result in results] for size in sizes))
        for results in grouped.values()
        if "sizes" in results[0]
    ]
    alone = ([result["test"]["largest"] for result in grouped.get(f"alone-{size}", [])] for size in sizes)
    cells = [(title, *map(_with_seeds, tops)) for title, *tops in [*rows, ("trained alone", *alone)]]
    return _markdown(("network (seeds)", *sizes), cells)


def seed_of(name: str) -> int:
    """The seed that a row's name says."""
    return int(name.rpartition("-seed")[2]) if "-seed" in name else 0


def by_row(found: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of all seeds of a row, by the name of that of seed 0."""
    grouped: dict[str, list[Result]] = {}
    for result in found:
        grouped.setdefault(result["name"].partition("-seed")[0], []).append(result)
    return grouped


def seeds_table(found: Iterable[Result]) -> str:
    """Mean over a row's seeds and its standard error, where there are several seeds."""
    rows = []
    for results in by_row(found).values():
        cells = [_mean_and_error([figure(result) for result in results]) for figure in FIGURES.values()]
        rows.append((results[0]["title"], str(len(results)), *cells))
    return _markdown(("over seeds", "seeds", *FIGURES), rows)


def claims_table(found: Iterable[Result]) -> str:
    """Whether claims hold: differences of runs of one seed, which begin alike and see the same images."""
    grouped = by_row(found)
    rows = []
    for claim, names in CLAIMS.items():
        better, worse = ({seed_of(one["name"]): one for one in grouped.get(name, [])} for name in names)
        pairs = [(better[seed], worse[seed]) for seed in sorted(better.keys() & worse.keys())]
        rows.append((claim, *(_verdict([(figure(a), figure(b)) for a, b in pairs]) for figure in FIGURES.values())))
    return _markdown(("claim", *FIGURES), rows)


def _verdict(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    points = [100 * (better - worse) for better, worse in pairs if better is not None and worse is not None]
    if not points:
        return "not measured"
    mean = statistics.mean(points)
    if len(points) < 2:
        return f"{mean:+.1f}, too few seeds"
    error = statistics.stdev(points) / math.sqrt(len(points))
    sure = float(stats.t.ppf((1 + SURE) / 2, len(points) - 1))
    word = "within the error" if abs(mean) <= sure * error else "yes" if mean > 0 else "no"
    return f"{word}: {mean:+.1f} ± {error:.1f}"


def _with_seeds(values: Sequence[float]) -> str:
    return f"{_mean_and_error(values)} ({len(values)})" if values else "–"


def _mean_and_error(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    return mean_and_error(there) if there else "–"


def front_panel(found: Iterable[Result]) -> Panel:
    """Per run, the random networks that no cheaper one beats."""
    series = []
    for result in found:
        networks = result["random"]
        kept = [networks[index] for index in front_of([(one["macs"], one["top1"]) for one in networks])]
        macs, top1 = tuple(one["macs"] / 1e6 for one in kept), tuple(100 * one["top1"] for one in kept)
        series.append(Series(result["title"], macs, top1))
    return Panel("random sub-networks that no cheaper one beats", "multiply-adds, M", "test top-1, %", tuple(series))


def phase_panel(found: Iterable[Result], end: str, title: str) -> Panel:
    """One corner network on validation after each phase, per run; `end` is one of `ENDS`."""
    names = _phase_names(found)
    series = []
    for result in found:
        points = [(names.index(phase["name"]), 100 * phase[end]) for phase in result["phases"]]
        places, values = zip(*points, strict=True)
        series.append(Series(result["title"], places, values))
    return Panel(title, "after phase", "validation top-1, %", tuple(series), names)


def _phase_names(found: Iterable[Result]) -> tuple[str, ...]:
    """All phases in the order of the runs that have most of them."""
    ordered = sorted((result["phases"] for result in found), key=len, reverse=True)
    return tuple(dict.fromkeys(phase["name"] for phases in ordered for phase in phases))


def _by_exit(networks: Iterable[Mapping[str, Any]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for one in networks:
        found.setdefault(one["exit"], []).append(one["top1"])
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
