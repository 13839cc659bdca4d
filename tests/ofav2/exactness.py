"""What it means that a run which was interrupted ends as one which was not: equal to the last bit and line."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofav2.runs import folder
from ofav2.runs.records import RunRecord, read_run

# How long things took differs between any two runs, and so does the length of the lines that say so.
CLOCK = ("time", "images_per_second")


def assert_same_run(run: Path, straight: Path) -> None:
    """Two finished runs have the same weights after every phase, the same measurements, and the same records."""
    assert timeless(run) == timeless(straight)
    for phase in read_run(straight).phases:
        for suffix in (".safetensors", ".json"):
            name = f"{folder.CHECKPOINTS}/{phase.name}{suffix}"
            assert (run / name).read_bytes() == (straight / name).read_bytes(), f"{name} differs"
    lines, expected = metrics_of(run), metrics_of(straight)
    for number, (line, other) in enumerate(zip(lines, expected, strict=False), start=1):
        assert line == other, f"metrics.jsonl differs in line {number}"
    assert len(lines) == len(expected), "metrics.jsonl has other lines"


def timeless(run: Path) -> RunRecord:
    """What `run.json` says, without the run's name, time of birth, settings, states, and lengths of files."""
    record = read_run(run)
    phases = tuple(replace(phase, metrics_bytes=0) for phase in record.phases)
    return replace(record, name="", created="2026-01-01", recipe="", states={}, phases=phases)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, each complete, without what a clock measured."""
    text = (run / folder.METRICS).read_text(encoding="utf-8")
    assert text.endswith("\n"), "metrics.jsonl ends in the middle of a line"
    return [without(json.loads(line), *CLOCK) for line in text.splitlines()]


def without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping without some keys."""
    return {key: value for key, value in values.items() if key not in keys}
