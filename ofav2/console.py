"""What the command line shows: notes and progress on stderr, results on stdout, plain text wherever nobody watches."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Says that one more unit of work is done, and which values to show beside the bar from now on."""

    def __call__(self, **shown: object) -> None:
        """Advance by one."""


def say(text: str) -> None:
    """Write a note for the person who watches (stderr)."""
    _write_line(sys.stderr, text)


def show(text: str) -> None:
    """Write a result that may be piped on (stdout)."""
    _write_line(sys.stdout, text)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table in plain text: aligned, whole, without colours.

    Args:
        title: Line above the table; an empty one is left out.
        columns: Column headings.
        rows: Cells, as many per row as there are columns. Floats are shown with four significant digits, None as a
            dash; columns of numbers, given as text or not, are aligned to the right.

    Returns:
        The lines without a final newline, for `show` or `say`.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(cell_len(text) for text in (heading, *(row[index] for row in cells)))
        for index, heading in enumerate(columns)
    ]
    rights = [all(_is_number(row[index]) for row in cells) for index in range(len(columns))]
    body = [columns, ["-" * width for width in widths], *cells]
    lines = [_aligned(row, widths, rights) for row in body]
    return "\n".join([title, *lines] if title else lines)


def duration(seconds: float) -> str:
    """A span of time as a person says it: `3.2 s`, `4 min 05 s`, `2 h 03 min`.

    Args:
        seconds: Its length in seconds.
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


@contextmanager
def progress(description: str, total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Show the progress of the body: a bar on a terminal, a line about every tenth elsewhere.

    Args:
        description: What is being done.
        total: Units of work.
        stream: Where to; None is stderr.

    Yields:
        A function to call after each unit, with values to show: `advance(loss=0.7)`.
    """
    target = sys.stderr if stream is None else stream
    shown = _bar(description, total, target) if _is_watched(target) else _lines(description, total, target)
    with shown as advance:
        yield advance


def _is_watched(stream: TextIO) -> bool:
    # rich alone would also take FORCE_COLOR, which build servers set, for a terminal.
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextmanager
def _bar(description: str, total: int, stream: TextIO) -> Iterator[Advance]:
    progress_bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        console=Console(file=stream),
        # A result that is piped must not be drawn into by the bar.
        redirect_stdout=sys.stdout.isatty(),
    )
    with progress_bar:
        task = progress_bar.add_task(description, total=total, rate="", shown="")
        start = time.monotonic()

        def advance(**shown: object) -> None:
            done = progress_bar.tasks[0].completed + 1
            rate = _rate(done, time.monotonic() - start)
            progress_bar.update(task, advance=1, rate=rate, shown=_named(shown))

        yield advance


@contextmanager
def _lines(description: str, total: int, stream: TextIO) -> Iterator[Advance]:
    done = 0
    last: dict[str, object] = {}
    start = time.monotonic()

    def advance(**shown: object) -> None:
        nonlocal done, last
        done, last = done + 1, shown
        # The last tenth is told by the closing line.
        if done < total and done * 10 // total > (done - 1) * 10 // total:
            _write_line(stream, _running_line(description, done, total, time.monotonic() - start, last))

    _write_line(stream, f"{description}: 0 of {total}")
    verb = "stopped at"
    try:
        yield advance
        verb = "did"
    finally:
        _write_line(stream, _closing_line(description, verb, done, total, time.monotonic() - start, last))


def _running_line(description: str, done: int, total: int, elapsed: float, shown: dict[str, object]) -> str:
    left = duration(elapsed / done * (total - done))
    parts = [f"{done} of {total} ({100 * done // total} %)", _rate(done, elapsed), f"{left} left", _named(shown)]
    return f"{description}: {', '.join(part for part in parts if part)}"


def _closing_line(description: str, verb: str, done: int, total: int, elapsed: float, shown: dict[str, object]) -> str:
    parts = [f"{verb} {done} of {total} in {duration(elapsed)}", _rate(done, elapsed), _named(shown)]
    return f"{description}: {', '.join(part for part in parts if part)}"


def _rate(done: float, elapsed: float) -> str:
    return f"{_number(done / elapsed)}/s" if done and elapsed > 0 else ""


def _named(shown: dict[str, object]) -> str:
    return ", ".join(f"{name} {_cell(value)}" for name, value in shown.items())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return _number(value) if isinstance(value, float) else " ".join(str(value).splitlines())


def _number(value: float) -> str:
    # Past four digits "g" would turn to an exponent, which nobody reads in a table.
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        return text == "-"
    return True


def _aligned(row: Sequence[str], widths: Sequence[int], rights: Sequence[bool]) -> str:
    padded = [
        " " * (width - cell_len(text)) + text if right else text + " " * (width - cell_len(text))
        for text, width, right in zip(row, widths, rights, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _write_line(stream: TextIO, text: str) -> None:
    # Names of files may hold what the stream's encoding has no place for.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
