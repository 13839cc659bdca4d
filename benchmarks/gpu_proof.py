"""The proof on CIFAR-10 at full length (benchmarks/proof.py), in pieces of eight minutes.

python -m benchmarks.gpu_proof DATA_ROOT --out DIR            CIFAR-10 as folders of images: train/CLASS, test/CLASS
python -m benchmarks.gpu_proof DATA_ROOT --out DIR --quick    every phase two steps long, to see that it works

Each call trains, measures and goes on where the last one stopped. It exits with 0 when all rows are measured, and with
75 when another call is needed. DIR/proof.json and DIR/proof.md say how far each row is; results are in DIR/results.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import proof
from benchmarks.proof import CIFAR10, Row
from benchmarks.sides import command_line, machine
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.files import write_json, write_text
from ofav2.runs import folder
from ofav2.runs.records import read_run
from ofav2.runtime.signals import Stopped

MINUTES = 8.0
"""Time after which training stops, with its state saved."""
AGAIN = 75
"""Exit code when another call is needed."""


@contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """Ask the body to stop after a time, as whoever runs jobs does: a training saves its state and exits."""

    def stop(number: int, frame: object) -> None:
        raise Stopped("time is over before the first step")

    # A training has a handler of its own, from its first step on.
    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGTERM, before)


def run(
    rows: Sequence[Row],
    data: str,
    out: Path,
    minutes: float = MINUTES,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Train and measure rows until all are done or the time is over.

    Args:
        rows: What to train.
        data: The folder of images.
        out: Folder of runs and results; made where it is missing.
        minutes: How long.
        clock: Returns seconds.

    Returns:
        Whether all rows are measured.
    """
    deadline = clock() + 60 * minutes
    runs, results = out / "runs", out / "results"
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        remaining = deadline - clock()
        if remaining <= 0 or (results / f"{row.name}.json").exists():
            continue
        try:
            with stopping_after(remaining):
                proof.train([row], data, runs)
        except Stopped as stopped:
            console.say(f"{row.name}: {stopped}; the same command goes on")
            break
        if clock() < deadline:
            proof.measure([row], runs, results)
    states = [_state(row, runs, results) for row in rows]
    write_json(out / "proof.json", {"machine": machine(), "rows": states})
    write_text(out / "proof.md", markdown(states))
    return all(state["measured"] for state in states)


def _state(row: Row, runs: Path, results: Path) -> dict[str, Any]:
    path = runs / row.name
    begun = (path / folder.RECORD).exists()
    record = read_run(path) if begun else None
    return {
        "name": row.name,
        "title": row.title,
        "status": record.status if record else "not begun",
        "phases": len(record.phases) if record else 0,
        "test": asdict(record.test) if record and record.test else None,
        "measured": (results / f"{row.name}.json").exists(),
    }


def markdown(states: Sequence[dict[str, Any]]) -> str:
    """Return how far all rows are as Markdown."""
    lines = [
        "| row | status | phases | test, largest | test, mean of corners | measured |",
        "|---|---|---|---|---|---|",
    ]
    for state in states:
        test = state["test"] or {}
        shown = [f"{100 * test[name]:.2f} %" if test.get(name) is not None else "–" for name in ("largest", "mean")]
        measured = "yes" if state["measured"] else "no"
        lines.append(f"| {state['title']} | {state['status']} | {state['phases']} | {' | '.join(shown)} | {measured} |")
    return "\n".join(lines) + "\n"


def quick(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return rows whose phases are two steps long, on the CPU, with narrow networks."""
    return tuple(replace(row, settings=(*row.settings, *_quick_settings(row))) for row in rows)


def _quick_settings(row: Row) -> tuple[str, ...]:
    phases = recipe.load(row.recipe, ["data.root=x", *row.settings]).phases
    return (
        *("run.device=cpu", "supernet.width_mult=0.05", "data.batch_size=8", "data.val_fraction=0.2"),
        *("evaluation.every_epochs=0", "evaluation.calibration_images=8", "evaluation.calibration_batch=8"),
        *(f"phases.{name}.epochs=0.001" for name in phases),
        *(f"phases.{name}.warmup_epochs=0" for name in phases),
    )


@console.show_logs()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA_ROOT", help="CIFAR-10 as folders of images: train/CLASS, test/CLASS")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs and results go")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long this call trains ({MINUTES:g})")
    names = [row.name for row in CIFAR10]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="every phase is a step or two long")
    chosen = parser.parse_args(arguments)
    rows = tuple(row for row in CIFAR10 if row.name in chosen.rows)
    done = run(quick(rows) if chosen.quick else rows, chosen.data, chosen.out, chosen.minutes)
    console.say(f"made {chosen.out / 'proof.md'}")
    return 0 if done else AGAIN


if __name__ == "__main__":
    command_line(main)
