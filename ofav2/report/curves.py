"""Collect a run's measurements over its steps, with the borders of its phases."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ofav2.data import steps_per_epoch
from ofav2.runs.folder import METRICS
from ofav2.runs.snapshot import RunSnapshot, checked
from ofav2.training.phases import make_plan


@dataclass(frozen=True)
class PhaseSpan:
    """A phase and its first and last training step."""

    name: str
    """Its name."""
    first: int
    """Training steps that are planned before it."""
    end: int
    """Training steps that are planned up to its end."""
    finished: bool
    """Whether the run has finished it."""


@dataclass(frozen=True)
class MetricCurve:
    """One phase's metrics over training steps."""

    phase: str
    """The phase they belong to."""
    steps: tuple[int, ...]
    """Training steps of the run, ascending."""
    values: Mapping[str, tuple[float | None, ...]]
    """By name, a number per step; None where it was not finite or not measured."""


def phase_spans(run: RunSnapshot) -> tuple[PhaseSpan, ...]:
    """Return the run's phases in order; while it is not finished, those to come as the recipe plans them."""
    phases = run.record.phases
    # With patience a phase may take fewer steps than are planned up to its end.
    starts = [0, *(phase.end for phase in phases)]
    done = tuple(PhaseSpan(phase.name, first, phase.end, True) for first, phase in zip(starts, phases, strict=False))
    if run.state == "finished":
        return done
    per_epoch = steps_per_epoch(run.record.data.images.train, run.config.data.batch_size)
    plan = make_plan(run.config.phases, run.config.teacher, run.record.space, per_epoch)
    names = {span.name for span in done}
    return done + tuple(
        PhaseSpan(phase.name, phase.first_step, phase.first_step + phase.steps, False)
        for phase in plan.phases
        if phase.name not in names
    )


def curves(run: RunSnapshot, kind: str, names: Sequence[str]) -> tuple[MetricCurve, ...]:
    """Return the metrics of one kind of measurement, a curve per phase; a step measured twice counts as last measured.

    Args:
        run: The run.
        kind: `train` or `validation`.
        names: The metrics' names.

    Raises:
        RunError: If a line of the metrics lacks a step or a phase.
    """
    by_phase: dict[str, dict[int, Mapping[str, Any]]] = {}
    with checked(run.folder / METRICS):
        for line in _of_kind(run, kind):
            by_phase.setdefault(line["phase"], {})[line["global_step"]] = line
        return tuple(_curve(phase, lines, names) for phase, lines in by_phase.items())


def unusable_steps(run: RunSnapshot) -> tuple[int, ...]:
    """Training steps whose loss was not a finite number, or whose batch was skipped.

    Raises:
        RunError: If a line of the metrics lacks its step.
    """
    with checked(run.folder / METRICS):
        nonfinite = (line["global_step"] for line in _of_kind(run, "train") if "loss" in line.get("nonfinite", ()))
        skipped = (line["global_step"] for line in _of_kind(run, "skipped"))
        return tuple(sorted({*nonfinite, *skipped}))


def phase_seconds(run: RunSnapshot) -> dict[str, float]:
    """Return the seconds on the clock between phases' last measurements; pauses of a stopped run count, too.

    Raises:
        RunError: If a line of the metrics lacks its time.
    """
    with checked(run.folder / METRICS):
        ends = {line["phase"]: float(line["time"]) for line in run.metrics if line.get("kind") in ("train", "corners")}
        begun = datetime.fromisoformat(run.record.created).timestamp()
    starts = [begun, *ends.values()]
    return {phase: max(0.0, end - start) for (phase, end), start in zip(ends.items(), starts, strict=False)}


def _of_kind(run: RunSnapshot, kind: str) -> Iterable[Mapping[str, Any]]:
    return (line for line in run.metrics if line.get("kind") == kind)


def _curve(phase: str, lines: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> MetricCurve:
    steps = tuple(sorted(lines))
    return MetricCurve(phase, steps, {name: tuple(lines[step].get(name) for step in steps) for name in names})
