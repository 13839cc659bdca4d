"""Collect what the page of one run shows."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ofav2.evaluation.corners import keeps_mbconv, usable, usable_mean
from ofav2.evaluation.maps import read_maps
from ofav2.exits.exit_agreement import read_exits
from ofav2.report.classes import class_page
from ofav2.report.curves import PhaseSpan, curves, phase_seconds, phase_spans, unusable_steps
from ofav2.report.networks import (
    Table,
    cheapest_near_best,
    drawn_supernet,
    front,
    part_costs,
    part_names,
    tables,
    to_choose_from,
)
from ofav2.report.page import count
from ofav2.runs.folder import RECIPE
from ofav2.runs.snapshot import RunSnapshot
from ofav2.tasks.base import Metric
from supernets import DIMENSIONS, Subnet
from supernets.backbone import Backbone


def run_page(run: RunSnapshot) -> dict[str, Any]:
    """Return what the page of a run shows: what was trained, how it went, what came out."""
    planned, measured, agreement = phase_spans(run), tables(run), read_exits(run.folder, run.record)
    by_class, maps = class_page(run), read_maps(run.folder, run.record)
    opened = to_choose_from(measured)
    return {
        "title": f"{run.record.name} · ofav2",
        "run": run,
        "folder": shlex.quote(str(run.folder)),
        "backbone": isinstance(run.record.architecture, Backbone),
        "resolutions": _over_resolutions(run),
        "metric": run.record.metric,
        "state": _state(run, planned),
        "summary": _summary(run),
        "keys": _key_metrics(run, measured),
        "commands": _commands(run),
        "phases": [_phase_row(run, span, measured) for span in planned],
        "unusable": unusable_steps(run),
        "fall": _fall(run, measured),
        "grains": _grains(run),
        "opened": measured.index(opened) if opened else None,
        "tables": measured,
        "agreement": agreement,
        "maps": maps,
        "by_class": by_class,
        "payload": {
            "metric": asdict(run.record.metric),
            "phases": [asdict(span) | {"teacher": _teacher(run, span.name)} for span in planned],
            "train": [asdict(curve) for curve in curves(run, "train", ("loss", "lr"))],
            "validation": [asdict(curve) for curve in curves(run, "validation", _validated(run))],
            "validated": _validated(run),
            "exits": None if agreement is None else asdict(agreement),
            "confusion": None if by_class is None else by_class.confusion,
            "opened": measured.index(opened) if opened else None,
            **networks_payload(run, measured),
        },
    }


def _validated(run: RunSnapshot) -> tuple[str, ...]:
    """Return what is validated during training, by its name in the metrics."""
    arch = run.record.architecture
    if isinstance(arch, Backbone):
        return ("ensemble", *(f"exit_{exit}" for exit in arch.exits))
    return ("largest", "smallest")


def networks_payload(run: RunSnapshot, measured: Sequence[Table]) -> dict[str, Any]:
    """Tables of networks as the page's scripts read them; a network that several tables name is described once."""
    arch = run.record.architecture
    positions: dict[Subnet, int] = {}
    for table in measured:
        for network in table.networks:
            positions.setdefault(network.subnet, len(positions))
    return {
        "parts": part_names(arch),
        "supernet": drawn_supernet(arch, run.record.space),
        "networks": [_described(run, subnet) for subnet in positions],
        "tables": [_drawn(table, positions, run.record.metric) for table in measured],
    }


def _drawn(table: Table, positions: Mapping[Subnet, int], metric: Metric) -> dict[str, Any]:
    """Return a table for the page: its networks, the front, and which network is selected at first."""
    near = cheapest_near_best(table.networks, metric)
    return {
        "name": table.name,
        "title": table.title,
        "networks": [positions[network.subnet] for network in table.networks],
        "score": [network.score for network in table.networks],
        "front": front(table.networks, metric),
        "first": None if near is None else table.networks.index(near),
    }


def _described(run: RunSnapshot, subnet: Subnet) -> dict[str, Any]:
    parts = part_costs(run.record.architecture, subnet)
    return subnet.to_dict() | {
        "name": str(subnet),
        "mbconv": keeps_mbconv(subnet),
        "params": sum(part.params for part in parts),
        "macs": sum(part.macs for part in parts),
        "parts": [[part.macs, part.params] for part in parts],
    }


def _state(run: RunSnapshot, planned: Sequence[PhaseSpan]) -> dict[str, str]:
    step, steps = _last_step(run), planned[-1].end if planned else 0
    progress = f"step {step:,} of {steps:,}"
    if run.state == "finished":
        return {"word": "finished", "text": ""}
    if run.state == "training":
        return {"word": "training", "text": f"Still training: {progress}. Make the page again to see more."}
    reasons = {"training": "its process ended without a word", "stopped": "it was told to stop"}
    reason = reasons.get(run.record.status, f"it {run.record.status}")
    return {"word": "stopped", "text": f"Broken off at {progress}; {reason}. All below is what it had written by then."}


def _last_step(run: RunSnapshot) -> int:
    measured = [line["global_step"] for line in run.metrics if "global_step" in line]
    # A run that was told to stop has saved its last step, which need not be one that is measured.
    saved = [int(name[-9:]) for name in run.record.states if re.fullmatch(r"state-\d{9}", name, re.ASCII)]
    return max((*measured, *saved), default=0)


def _fall(run: RunSnapshot, measured: Sequence[Table]) -> str | None:
    """Say why the largest network got worse after the first phase; None where it did not."""
    metric = run.record.metric
    together = {phase.name: phase.ensemble_score for phase in run.record.phases if phase.ensemble_score is not None}
    if len(together) < 2 or not metric.counts_images:
        return None
    (first, best), (last, now) = next(iter(together.items())), list(together.items())[-1]
    own = [_corner_scores(measured, phase).get(run.record.space.largest()) for phase in (first, last)]
    if own[0] is not None and own[1] is not None:
        what, best, now = "The largest network", own[0], own[1]
    else:
        what = "The largest network, all exits together,"
    if metric.rank(now) > metric.rank(best) - 0.01:
        return None
    return (
        f"{what} fell from {metric.show(best, 1)} after {first} to {metric.show(now, 1)} after {last}: it"
        " shares its weights with all networks that later phases train. More epochs in those phases win some of it"
        f" back. If only the largest is wanted, ofav2 extract {shlex.quote(str(run.folder))} --phase"
        f" {shlex.quote(first)} --largest --out DIR takes it as {first} left it; ofav2 finetune trains any extracted"
        " one on."
    )


def _corner_scores(measured: Sequence[Table], phase: str) -> dict[Subnet, float]:
    """Return the validation scores of the corners that were measured after a phase."""
    corners = next((table.networks for table in measured if table.name == f"{phase}/corners"), ())
    return {network.subnet: network.score for network in corners}


def _grains(run: RunSnapshot) -> list[str]:
    """Return sentences on how much one image is, where that is much, and on test images that are no others."""
    images, metric = run.record.data.images, run.record.metric
    found = (metric.grain(images.val, "validation"), metric.grain(images.test, "test"))
    same = "Test images are the validation images (data.test_fraction=0), so test scores flatter."
    return [*([] if run.config.data.test_fraction else [same]), *(sentence for sentence in found if sentence)]


def _summary(run: RunSnapshot) -> str:
    arch, data = run.record.architecture, run.record.data
    targets = f", {run.record.targets}" if run.record.targets else ""
    seconds = sum(phase_seconds(run).values())
    hours = f" in {seconds / 60:.0f} minutes" if seconds < 7200 else f" in {seconds / 3600:.1f} hours"
    took = f", trained{hours} by the clock, pauses included" if run.state == "finished" and seconds else ""
    if isinstance(arch, Backbone):
        what = f"{arch.name} with {len(arch.exits)} exits"
    else:
        what = f"{arch.variant.upper()} supernet, width {arch.width_mult:g}"
    return f"{what}, on {data.name}: {data.images.train:,} training images{targets}{took}."


def _key_metrics(run: RunSnapshot, measured: Sequence[Table]) -> list[tuple[str, str, str]]:
    """Return value, name and remark of the key results."""
    record, metric = run.record, run.record.metric
    images, opened = record.data.images, to_choose_from(measured)
    keys = [(count(record.space.size()), "sub-networks", "in the whole space")]
    if record.phases and record.phases[-1].ensemble_score is not None:
        best = metric.show(record.phases[-1].ensemble_score, 1)
        keys.append((best, "largest, all exits", f"validation {metric.name}{_over_resolutions(run)}"))
    if record.test:
        keys.append((metric.show_from(record.test.largest, images.test), "largest", f"test {metric.name}"))
        keys.append((metric.show_from(record.test.smallest, images.test), "smallest", f"test {metric.name}"))
    close = cheapest_near_best(opened.networks, metric) if opened else None
    if opened and close:
        remark = f"reach {metric.show(close.score, 1)} {opened.title}, {metric.nearly} of the best"
        keys.append((count(close.cost.macs), "multiply-adds", remark))
    return keys


def _over_resolutions(run: RunSnapshot) -> str:
    """Say what a teacher's score is a mean over."""
    sides = len(run.record.space.resolution)
    return f", mean over {sides} resolutions" if sides > 1 else ""


def _commands(run: RunSnapshot) -> list[tuple[str, str]]:
    path = shlex.quote(str(run.folder))
    kept = shlex.quote(str(run.folder / RECIPE))
    going_on = [("Go on with it", f"ofav2 train --resume {path}")] if run.state == "stopped" else []
    largest = shlex.quote(f"{run.folder.resolve().name}-largest")
    # Before the first phase has ended there are no weights to work with.
    with_weights = [
        ("Measure its corner sub-networks", f"ofav2 evaluate {path} --split val"),
        ("Take the largest one out", f"ofav2 extract {path} --largest --out {largest}"),
    ]
    return [
        *going_on,
        ("Train it again", f"ofav2 train {kept}"),
        *(with_weights if run.record.phases else []),
    ]


def _teacher(run: RunSnapshot, phase: str) -> Mapping[str, Any] | None:
    teacher = next((record.teacher for record in run.record.phases if record.name == phase), None)
    if teacher is None or teacher.name is None:
        return None
    of_run = teacher.phase is not None
    return {"name": teacher.name, "score": teacher.score, "reason": teacher.reason or "", "exits": of_run}


def _phase_row(run: RunSnapshot, span: PhaseSpan, measured: Sequence[Table]) -> dict[str, Any]:
    record = next((record for record in run.record.phases if record.name == span.name), None)
    scores = _corner_scores(measured, span.name)
    return {
        "name": span.name,
        # With patience a phase may have taken fewer steps than planned.
        "steps": record.steps if record else span.end - span.first,
        "record": record,
        "seconds": phase_seconds(run).get(span.name),
        "begun": any(line.get("phase") == span.name for line in run.metrics),
        "unlocks": _unlocks(run, span.name),
        "teacher": _teacher(run, span.name),
        "largest": scores.get(record.space.largest()) if record else None,
        "smallest": scores.get(record.space.smallest()) if record else None,
        "mean": usable_mean(scores) if scores else None,
        "worst": run.record.metric.worst(*(scores[subnet] for subnet in usable(scores))) if scores else None,
        "corners": len(scores),
    }


def _unlocks(run: RunSnapshot, phase: str) -> str:
    config = run.config.phases.get(phase)
    # What the supernet has no choice of was left out of the plan.
    elastic = [name for name in DIMENSIONS if len(getattr(run.record.space, name)) > 1]
    chosen = {name: getattr(config.unlock, name, ()) for name in elastic} if config else {}
    parts = (f"{name} {', '.join(map(str, choices))}" for name, choices in chosen.items() if choices)
    alone = config is None or not config.networks
    return "; ".join(parts) or ("the largest network alone" if alone else "nothing more")
