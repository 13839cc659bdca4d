"""Compare runs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from ofav2.errors import UserError
from ofav2.evaluation.corners import usable_mean
from ofav2.messages import duration
from ofav2.report.comparison import Comparison, differing, folder_names
from ofav2.report.curves import phase_seconds
from ofav2.report.networks import Table, cheapest_near_best, front, tables, to_choose_from
from ofav2.report.page import count, write_page
from ofav2.runs.snapshot import RunSnapshot
from ofav2.tasks.base import Metric
from supernets.backbone import Backbone

RESULT_COLUMNS = (
    "run",
    "state",
    "supernet",
    "parameters",
    "largest",
    "smallest",
    "corner mean",
    "cheapest near the best",
    "largest on test",
    "time",
)
"""Columns of `Comparison.results`; scores are of validation where the column does not say test."""


def compare_snapshots(snapshots: Sequence[RunSnapshot], out: Path) -> Comparison:
    """Compare runs: settings that differ, key results, and a page with their fronts on one plot.

    Args:
        snapshots: Two runs or more.
        out: The page to write, replaced if it is there.

    Raises:
        UserError: If their metrics differ, or the page can't be written there.
    """
    names, measured = folder_names([run.folder for run in snapshots]), [tables(run) for run in snapshots]
    metric = _same_metric(names, snapshots)
    comparison = Comparison(
        names=names,
        metric=metric,
        title=f"{metric.name} on validation, ± one standard error",
        columns=RESULT_COLUMNS,
        settings=differing([asdict(run.config) for run in snapshots]),
        results=tuple(_results(name, run, own) for name, run, own in zip(names, snapshots, measured, strict=True)),
        warnings=tuple(_warnings(names, snapshots, measured)),
        page=out,
    )
    values = {
        "title": f"{' · '.join(names)} · ofav2",
        "comparison": comparison,
        "metric": metric,
        "folders": [run.folder for run in snapshots],
        "payload": {
            "metric": asdict(metric),
            "fronts": [_front(name, own, metric) for name, own in zip(names, measured, strict=True) if own],
        },
    }
    write_page(comparison.page, "compare.html", values)
    return comparison


def _same_metric(names: Sequence[str], runs: Sequence[RunSnapshot]) -> Metric:
    metrics = dict.fromkeys(run.record.metric for run in runs)
    if len(metrics) > 1:
        seen = ", ".join(f"{name}: {run.record.metric.name}" for name, run in zip(names, runs, strict=True))
        raise UserError(f"runs have different metrics ({seen}), which no plot can hold: compare runs of one task")
    return next(iter(metrics))


def _results(name: str, run: RunSnapshot, measured: Sequence[Table]) -> tuple[str, ...]:
    test, arch, metric, images = run.record.test, run.record.architecture, run.record.metric, run.record.data.images
    validation = _of_validation(measured)
    networks = validation.networks if validation else ()
    close = cheapest_near_best(networks, metric)
    scores = {network.subnet: network.score for network in networks}
    # Of a run that trained a part of its supernet, as its own page.
    trained = run.record.phases[-1].space if run.record.phases else run.record.space
    ends = (trained.largest(), trained.smallest())
    return (
        name,
        run.state,
        arch.name if isinstance(arch, Backbone) else f"{arch.variant} w{arch.width_mult:g}",
        f"{max(network.cost.params for network in networks):,}" if networks else "–",
        *(metric.show_from(scores.get(end), images.val) for end in ends),
        metric.show(usable_mean(scores), 1) if scores else "–",
        "–" if close is None else f"{count(close.cost.macs)} at {metric.show(close.score, 1)}",
        metric.show_from(test.largest, images.test) if test else "–",
        duration(sum(phase_seconds(run).values())) if run.metrics else "–",
    )


def _of_validation(measured: Sequence[Table]) -> Table | None:
    """Return the newest table of validation; None without any."""
    found = to_choose_from(measured)
    return None if found is None or found.split == "test" else found


def _warnings(names: Sequence[str], runs: Sequence[RunSnapshot], measured: Sequence[Sequence[Table]]) -> Iterator[str]:
    if len({run.record.data.fingerprint for run in runs}) > 1:
        seen = ", ".join(f"{name}: {_data(run)}" for name, run in zip(names, runs, strict=True))
        yield f"The runs were trained and evaluated on different data ({seen}), so their scores are not comparable."
    corners = {run.config.evaluation.corners: name for name, run in zip(names, runs, strict=True)}
    if len(corners) > 1:
        seen = ", ".join(f"{name}: {which}" for which, name in corners.items())
        yield f"evaluation.corners differs ({seen}), so the mean of corners is of other networks."
    for key, values in _evaluation(runs).items():
        if len(set(values)) > 1:
            seen = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
            yield f"{key} differs ({seen}), so the runs were evaluated in different ways."
    for name, run, own in zip(names, runs, measured, strict=True):
        if run.record.test and not run.config.data.test_fraction:
            yield (
                f"{name}: test images are the validation images that chose its epochs (data.test_fraction=0), so its"
                " test scores flatter."
            )
        if own and _of_validation(own) is None:
            yield f"{name} measured no sub-networks on validation: its front is of test, other columns are empty."
        if run.state != "finished" and own:
            yield f"{name} is not finished ({run.state}): its front is of validation after its last finished phase."


def _evaluation(runs: Sequence[RunSnapshot]) -> dict[str, list[float]]:
    """Return the settings that scores depend on, by their key: the value of each run."""
    keys = ["data.eval_crop", "data.shrink_to"]
    if not all(isinstance(run.record.architecture, Backbone) for run in runs):
        # Only sub-networks of a supernet are recalibrated.
        keys += ["evaluation.calibration_images", "evaluation.calibration_batch"]
    return {key: [attrgetter(key)(run.config) for run in runs] for key in keys}


def _data(run: RunSnapshot) -> str:
    data = run.record.data
    return f"{data.name}, {data.images.total:,} images, split seed {run.config.data.split_seed}"


def _front(name: str, measured: Sequence[Table], metric: Metric) -> dict[str, Any]:
    table = to_choose_from(measured)
    assert table, "a run that has measured something"
    chosen = [table.networks[index] for index in front(table.networks, metric)]
    return {
        "run": name,
        "table": table.title,
        "networks": [str(network.subnet) for network in chosen],
        "macs": [network.cost.macs for network in chosen],
        "params": [network.cost.params for network in chosen],
        "score": [network.score for network in chosen],
    }
