"""Log the progress of long work; the command line shows it as lines or a bar."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from ofav2.messages import cell, duration, number

logger = logging.getLogger(__name__)

QUIET = 5.0
"""Seconds at least between two lines on the way."""


@dataclass(frozen=True)
class Status:
    """How far some work is: the message of a log record, whose text is one line."""

    description: str
    """What is being done."""
    done: int
    """Units of work done so far."""
    total: int
    """Units of work in all."""
    seconds: float
    """Time since the start."""
    shown: Mapping[str, object]
    """Values of the last unit."""
    state: Literal["started", "running", "finished", "stopped"]
    """Whether this is the first record, one on the way, or the last one (stopped: the work raised or left early)."""

    def __str__(self) -> str:
        """Return the line: `full: 30 of 120 (25 %), 1.5/s, 1 min 00 s left, loss 0.12`."""
        if self.state == "started":
            return f"{self.description}: 0 of {self.total}"
        if self.state == "running":
            left = duration(self.seconds / self.done * (self.total - self.done))
            parts = [f"{self.done} of {self.total} ({100 * self.done // self.total} %)", self.rate, f"{left} left"]
        else:
            verb = "did" if self.state == "finished" else "stopped at"
            parts = [f"{verb} {self.done} of {self.total} in {duration(self.seconds)}", self.rate]
        return f"{self.description}: {', '.join(part for part in (*parts, self.values) if part)}"

    @property
    def rate(self) -> str:
        """Units per second; empty at the start."""
        return f"{number(self.done / self.seconds)}/s" if self.done and self.seconds > 0 else ""

    @property
    def values(self) -> str:
        """The last unit's values by name."""
        return ", ".join(f"{name} {cell(value)}" for name, value in self.shown.items())


class Advance(Protocol):
    """Says that one more unit of work is done, and which values to show from now on."""

    def __call__(self, **shown: object) -> None:
        """Advance by one."""


@contextmanager
def log_progress(description: str, total: int) -> Iterator[Advance]:
    """Log the progress of the body.

    Start and end are logged as INFO, and so is about every tenth where seconds lie between; every other unit as DEBUG.
    A record's message is a `Status`.

    Args:
        description: What is being done.
        total: Units of work.

    Yields:
        A function to call after each unit, with values to show: `advance(loss=0.7)`.
    """
    done = 0
    last: Mapping[str, object] = {}
    start = told = time.monotonic()

    def log(level: int, state: Literal["started", "running", "finished", "stopped"]) -> None:
        if logger.isEnabledFor(level):
            logger.log(level, Status(description, done, total, time.monotonic() - start, last, state))

    def advance(**shown: object) -> None:
        nonlocal done, last, told
        done, last = done + 1, shown
        # The last tenth is told by the closing line.
        is_tenth = done < total and done * 10 // total > (done - 1) * 10 // total
        due = is_tenth and time.monotonic() - told >= QUIET
        told = time.monotonic() if due else told
        log(logging.INFO if due else logging.DEBUG, "running")

    log(logging.INFO, "started")
    state: Literal["finished", "stopped"] = "stopped"
    try:
        yield advance
        state = "finished"
    finally:
        log(logging.INFO, state)
