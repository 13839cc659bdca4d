"""Edits of a run folder's files, for tests that damage them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def flip_a_bit(file: Path, position: int = -100) -> None:
    """Damages a file by one bit, as a failing disk does."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
