"""Runs in every state that a page has to show."""

import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Change = Callable[[dict[str, Any]], object]


def change_facts(run: Path, change: Change) -> None:
    """Edits a run's `run.json`."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(facts)
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")


def change_lines(run: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Edits a run's `metrics.jsonl`."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def half_run(run_copy: Path) -> Path:
    """A run in its third phase, cut in the middle of a line; nobody holds its lock."""

    def cut(facts: dict[str, Any]) -> None:
        del facts["phases"][2:], facts["test"]
        facts["status"] = "training"

    change_facts(run_copy, cut)
    lines = (run_copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    third = next(index for index, line in enumerate(lines) if '"phase": "level"' in line)
    (run_copy / "metrics.jsonl").write_text("".join(lines[: third + 1]) + '{"kind": "trai', encoding="utf-8")
    return run_copy


@pytest.fixture
def training_run(half_run: Path) -> Iterator[Path]:
    """The same while a process holds its lock."""
    with (half_run / ".lock").open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield half_run
