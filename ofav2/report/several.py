"""Runs side by side: `ofav2 compare`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ofav2.errors import UserError
from ofav2.messages import duration
from ofav2.report.curves import phase_seconds
from ofav2.report.networks import Table, cheapest_near_best, front, tables
from ofav2.report.page import count, write_page
from ofav2.runs.snapshot import RunSnapshot, read_snapshot
from ofav2.tasks.base import Metric
from supernets.backbone import Backbone

COMPARISON = "compare.html"
RESULT_COLUMNS = (
    "run",
    "state",
    "supernet",
    "parameters",
    "largest",
    "smallest",
    "corner mean",
    "cheapest near the best",
    "time",
)
"""Columns of `Comparison.results`; scores are of the test split."""


@dataclass(frozen=True)
class Comparison:
    """What several runs have in common, and what not."""

    names: tuple[str, ...]
    """The runs, each under a name of its own."""
    metric: Metric
    """What the scores of all of them are."""
    settings: tuple[tuple[str, ...], ...]
    """Settings that differ: the key, then a value per run."""
    results: tuple[tuple[str, ...], ...]
    """Key results, a row per run in the columns `RESULT_COLUMNS`; a dash for what there is not yet."""
    warnings: tuple[str, ...]
    """What keeps the runs from being compared fairly, a sentence each."""
    page: Path
    """The page that was written."""


def compare_runs(runs: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """Compare runs: settings that differ, key results, and a page with their fronts on one plot.

    Args:
        runs: Two run folders or more.
        out: The page to write, replaced if it is there; None is `compare.html` in the working folder.

    Raises:
        RunError: If a folder is no run, or damaged.
        UserError: If there are fewer than two different runs, or the page can't be written there.
    """
    different = {Path(run).resolve(): run for run in runs}
    if len(different) < 2:
        raise UserError(f"runs ({', '.join(map(str, runs))}): comparing takes two different run folders or more")
    snapshots = [read_snapshot(run) for run in different.values()]
    names, measured = _names(snapshots), [tables(run) for run in snapshots]
    metric = _same_metric(names, snapshots)
    comparison = Comparison(
        names=names,
        metric=metric,
        settings=_settings(snapshots),
        results=tuple(_results(name, run, own) for name, run, own in zip(names, snapshots, measured, strict=True)),
        warnings=tuple(_warnings(names, snapshots)),
        page=Path(COMPARISON if out is None else out),
    )
    values = {
        "title": f"{' · '.join(names)} · ofav2",
        "comparison": comparison,
        "columns": RESULT_COLUMNS,
        "metric": metric,
        "folders": [run.folder for run in snapshots],
        "now": datetime.now(UTC).isoformat(timespec="minutes"),
        "payload": {
            "metric": asdict(metric),
            "fronts": [_front(name, own, metric) for name, own in zip(names, measured, strict=True) if own],
        },
    }
    write_page(comparison.page, "compare.html", values)
    return comparison


def _names(runs: Sequence[RunSnapshot]) -> tuple[str, ...]:
    """Return the folders' names, as given on the command line; the whole path if two are equal."""
    taken = Counter(run.folder.resolve().name for run in runs)
    return tuple(
        run.folder.resolve().name if taken[run.folder.resolve().name] == 1 else str(run.folder) for run in runs
    )


def _same_metric(names: Sequence[str], runs: Sequence[RunSnapshot]) -> Metric:
    metrics = dict.fromkeys(run.record.metric for run in runs)
    if len(metrics) > 1:
        seen = ", ".join(f"{name}: {run.record.metric.name}" for name, run in zip(names, runs, strict=True))
        raise UserError(f"runs have different metrics ({seen}), which no plot can hold: compare runs of one task")
    return next(iter(metrics))


def _settings(runs: Sequence[RunSnapshot]) -> tuple[tuple[str, ...], ...]:
    flat = [dict(_flat(asdict(run.config), "")) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = ((key, *(settings.get(key, "–") for settings in flat)) for key in keys)
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", _written(value)


def _written(value: object) -> str:
    """Return a setting as a recipe has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _results(name: str, run: RunSnapshot, measured: Sequence[Table]) -> tuple[str, ...]:
    test, arch, metric = run.record.test, run.record.architecture, run.record.metric
    at_the_end = next((table.networks for table in measured if table.split == "test"), ())
    close = cheapest_near_best(at_the_end, metric)
    largest = max((network.cost.params for network in at_the_end), default=None)
    return (
        name,
        run.state,
        arch.name if isinstance(arch, Backbone) else f"{arch.variant} w{arch.width_mult:g}",
        "–" if largest is None else f"{largest:,}",
        *(
            metric.show(score, 1)
            for score in ((test.largest, test.smallest, test.mean) if test else (None, None, None))
        ),
        "–" if close is None else f"{count(close.cost.macs)} at {metric.show(close.score, 1)}",
        duration(sum(phase_seconds(run).values())) if run.metrics else "–",
    )


def _warnings(names: Sequence[str], runs: Sequence[RunSnapshot]) -> Iterator[str]:
    if len({run.record.data.fingerprint for run in runs}) > 1:
        seen = ", ".join(f"{name}: {_data(run)}" for name, run in zip(names, runs, strict=True))
        yield f"The runs were trained and evaluated on different data ({seen}), so their scores are not comparable."
    for name, run in zip(names, runs, strict=True):
        if run.state != "finished":
            yield f"{name} is not finished ({run.state}): its front is of validation after its last finished phase."


def _data(run: RunSnapshot) -> str:
    data = run.record.data
    return f"{data.name}, {data.images.total:,} images, split seed {run.config.data.split_seed}"


def _front(name: str, measured: Sequence[Table], metric: Metric) -> dict[str, Any]:
    table = measured[-1]
    chosen = [table.networks[index] for index in front(table.networks, metric)]
    return {
        "run": name,
        "table": table.title,
        "networks": [str(network.subnet) for network in chosen],
        "macs": [network.cost.macs for network in chosen],
        "params": [network.cost.params for network in chosen],
        "score": [network.score for network in chosen],
    }
