"""Read the file of a run's measurements, `metrics.jsonl`, append to it, and cut it where a run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from ofav2 import files
from ofav2.errors import RunError
from ofav2.json_lines import cut_unfinished_line
from ofav2.runs import folder as run_folder
from ofav2.typed_json import Count, MisfitError, fit


def flushed_bytes(folder: Path) -> int:
    """Wait until a run folder's `metrics.jsonl` is on the disk, and return its length in bytes.

    Raises:
        RunError: The system can't write it.
    """
    path = folder / run_folder.METRICS
    try:
        files.flush_to_disk(path)
        return path.stat().st_size
    except OSError as error:
        raise unwritten(error) from error


def cut_metrics(folder: Path, length: int) -> None:
    """Cut a run folder's `metrics.jsonl` to its first `length` bytes, for a run that goes on from there.

    Raises:
        RunError: The file is shorter, or cannot be written.
    """
    path = folder / run_folder.METRICS
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise RunError(f"{path} has {size} bytes, but the run had written {length}; restore the file")
        if size > length:
            with files.open_in_place(path, "rb+") as lines:
                lines.truncate(length)
    except OSError as error:
        raise RunError(f"{path} cannot be cut ({error.strerror}); check its permissions") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read a run folder's `metrics.jsonl`.

    A last line without its newline is what a crash left of it, and is ignored.

    Returns:
        One dictionary per line, in the order written.

    Raises:
        RunError: The file is missing or cannot be read, or a line is no JSON object.
    """
    path = folder / run_folder.METRICS
    try:
        data = files.read_bytes(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); give a folder that `ofav2 train` made") from error
    return [_parse_line(path, number, line) for number, line in enumerate(data.split(b"\n")[:-1], start=1)]


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = files.parse_json(line)
    except ValueError as error:
        raise RunError(f"{path}, line {number}, is no JSON ({error}); restore or delete that line") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}, line {number}, must be a JSON object; restore or delete that line")
    try:
        _check_line(value)
    except MisfitError as error:
        raise RunError(f"{path}, line {number}: {error}; restore or delete that line") from error
    return value


def _check_line(line: dict[str, Any]) -> None:
    """Refuse a line that `Tracker` does not write, so that readers can rely on its keys and types."""
    if fit(str, line.get("kind"), "kind") in ("table", "scatter"):
        fit(_TableLine, {key: line.get(key) for key in ("name", "time", "columns", "rows")})
        return
    fit(_Line, {key: line.get(key) for key in ("phase", "global_step", "time")})
    fit(tuple[str, ...], line.get("nonfinite", []), "nonfinite")
    for key, value in line.items():
        if key not in _OWN_KEYS:
            fit(float | bool | None, value, key)


_OWN_KEYS = frozenset({"kind", "phase", "global_step", "time", "nonfinite"})


@dataclass(frozen=True)
class _Line:
    """What every line of numbers has."""

    phase: str
    global_step: Count
    time: float


@dataclass(frozen=True)
class _TableLine:
    """A table, or a plot of one."""

    name: str
    time: float
    columns: tuple[str, ...]
    rows: tuple[tuple[float | bool | str | None, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("rows must have a cell for every column")


@contextmanager
def open_metrics(folder: Path) -> Iterator[TextIO]:
    """Open a run folder's `metrics.jsonl` to append lines; what a crash left of an unfinished last line is cut off.

    Yields:
        The file; closing it tries once more to write what could not be written before.

    Raises:
        RunError: It cannot be written.
    """
    lines = _open_lines(folder / run_folder.METRICS)
    try:
        yield lines
    finally:
        try:
            lines.close()
        except OSError as error:
            raise unwritten(error) from error


def _open_lines(path: Path) -> TextIO:
    try:
        cut_unfinished_line(path)
        return TextIOWrapper(files.open_in_place(path, "ab+"), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); check its folder's permissions") from error


def unwritten(error: OSError) -> RunError:
    """Return the error of measurements that can't be written."""
    return RunError(
        f"{run_folder.METRICS} cannot be written ({error.strerror}); check its folder and the disk's free space, and"
        " then go on with --resume"
    )
