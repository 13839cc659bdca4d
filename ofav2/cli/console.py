"""Print for the command line: notes and progress on stderr, results on stdout, plain text without a terminal.

Nobody has to read notes: where stderr is closed, full or without a reader, work goes on without them. A reader of
results may leave, as `head` does; where they can't be written for another reason, the command fails.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ofav2.messages import lines, one_line
from ofav2.progress import Status

LOGGERS = ("ofav2", "supernets", "distill")
"""What the packages below log under."""


class UnwrittenError(Exception):
    """A result can't be written to stdout; the message says why."""


def say(text: str) -> None:
    """Write a note for the person who watches (stderr), if there is one."""
    _write_note(sys.stderr, text)


def show(text: str) -> None:
    """Write a result that may be piped on (stdout).

    Raises:
        UnwrittenError: stdout is closed, or can't be written to. A reader that has left is none of this.
    """
    _write_result(lines(text))


def show_data(text: str) -> None:
    """Write data for programs (stdout): as they are, but on a terminal without what it would obey, as `ls` does.

    Raises:
        UnwrittenError: As for `show`.
    """
    _write_result(lines(text) if sys.stdout is not None and sys.stdout.isatty() else text)


def _write_result(text: str) -> None:
    if sys.stdout is None:
        raise UnwrittenError("it is closed")
    try:
        _write_plainly(sys.stdout, text)
    except BrokenPipeError:
        _lead_nowhere(sys.stdout)
    except OSError as error:
        raise UnwrittenError(error.strerror or type(error).__name__) from error


def occupy_standard_files() -> None:
    """Open those of stdin, stdout and stderr that are closed as files that hold nothing.

    The next file that is opened, such as a run's `metrics.jsonl`, would else be stderr to every library that writes
    there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def let_go() -> None:
    """Give up what can't be written of stdout and stderr, which Python would try once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _lead_nowhere(stream)


@contextmanager
def show_logs(stream: TextIO | None = None) -> Iterator[None]:
    """Show what the packages log in the body: notes as plain lines, progress as a bar on a terminal, else as lines.

    Args:
        stream: Where to; None is stderr.
    """
    watched = _is_watched(sys.stderr if stream is None else stream)
    handler = _Bars(stream) if watched else _Lines(stream)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        # A bar moves with every unit, lines tell tenths alone.
        logger.setLevel(logging.DEBUG if watched else logging.INFO)
        # Another library may have given the root logger a handler of its own, which would tell everything again.
        logger.propagate = False
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            # Whether an image can be used is said by whoever decodes it, and by name.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _Lines(logging.Handler):
    """Writes each record as a plain line."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(logging.INFO)
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        # stderr is looked up now, as a bar has it replaced while it is drawn.
        _write_note(sys.stderr if self.stream is None else self.stream, record.getMessage())


class _Bars(logging.Handler):
    """Draws progress as a bar per work that is under way, and writes all else as plain lines above them."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(logging.DEBUG)
        self.lines = _Lines(stream)
        self.drawn: dict[str, tuple[Progress, TaskID]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Status):
            # A terminal may be gone.
            with suppress(OSError):
                self._draw(record.msg)
        elif record.levelno >= self.lines.level:
            self.lines.emit(record)

    def _draw(self, status: Status) -> None:
        if status.state == "started":
            self.drawn[status.description] = _started_bar(status, self.lines.stream)
        progress, task = self.drawn[status.description]
        progress.update(task, completed=status.done, rate=status.rate, shown=one_line(status.values))
        if status.state in ("finished", "stopped"):
            progress.stop()
            del self.drawn[status.description]


def _started_bar(status: Status, stream: TextIO | None) -> tuple[Progress, TaskID]:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        console=Console(file=sys.stderr if stream is None else stream),
        # A result that is piped must not be drawn into by the bar.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    progress.start()
    return progress, progress.add_task(one_line(status.description), total=status.total, rate="", shown="")


def _is_watched(stream: TextIO | None) -> bool:
    # rich alone would also take FORCE_COLOR, which build servers set, for a terminal.
    return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _write_note(stream: TextIO | None, text: str) -> None:
    """Write a line that nobody has to read."""
    if stream is None:
        return
    try:
        _write_line(stream, text)
    except BrokenPipeError:
        _lead_nowhere(stream)
    except OSError:
        # A full disk may have room for the next note.
        return


def _lead_nowhere(stream: TextIO) -> None:
    """Have a stream without a reader written to nowhere, what is left in its buffer included."""
    # A test's stream has no file.
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _write_line(stream: TextIO, text: str) -> None:
    # Names of files, and texts from files, may hold what a terminal obeys.
    _write_plainly(stream, lines(text))


def _write_plainly(stream: TextIO, text: str) -> None:
    # Names of files may hold what the stream's encoding can't write.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
