"""Read a whole run folder, in any state: training, finished, or broken off."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ofav2 import files
from ofav2.config.schema import Config
from ofav2.errors import RunError, UserError
from ofav2.runs import folder as run_folder
from ofav2.runs.kept_recipe import trained_recipe
from ofav2.runs.metrics_file import read_metrics
from ofav2.runs.records import RunRecord, read_run

RunStatus = Literal["finished", "training", "stopped"]


@dataclass(frozen=True)
class RunSnapshot:
    """Everything that a run has written about itself until now, checked."""

    folder: Path
    """The run folder."""
    record: RunRecord
    """What the run is, and how far it has come."""
    state: RunStatus
    """Whether it is finished, still written, or broken off."""
    config: Config
    """The resolved recipe."""
    recipe: str
    """The same as text, as `run.json` holds it."""
    metrics: tuple[Mapping[str, Any], ...]
    """The lines of `metrics.jsonl`, oldest first; an unfinished last line is left out."""


def read_snapshot(run: str | Path) -> RunSnapshot:
    """Read a run folder.

    Args:
        run: A run folder; it may be written to meanwhile.

    Raises:
        RunError: If the folder is no run, or a file in it is damaged.
        UserError: If its recipe can't be read.
    """
    path = Path(run)
    record = read_run(path)
    return RunSnapshot(
        folder=path,
        record=record,
        state=_state(path, record.status),
        config=trained_recipe(path, record),
        recipe=record.recipe,
        # A run that has only just begun has not opened the file yet.
        metrics=tuple(read_metrics(path)) if os.path.lexists(path / run_folder.METRICS) else (),
    )


@contextmanager
def checked(path: Path) -> Iterator[None]:
    """Turn what missing or foreign values raise in the body into one line that names the file.

    Raises:
        RunError: If a value is missing, of another kind, or impossible.
    """
    try:
        yield
    except KeyError as error:
        raise RunError(f"{path} lacks {error}: restore the file from a copy, or train again") from error
    except UserError:
        raise
    except (TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        raise RunError(
            f"{path} holds a value that can't be ({error}): restore the file from a copy, or train again"
        ) from error


def _state(path: Path, status: str) -> RunStatus:
    if status == "finished":
        return "finished"
    # A run that was killed could no longer say so, but the system has freed its lock.
    return "training" if status == "training" and is_locked(path) else "stopped"


def is_locked(path: Path) -> bool:
    """Return whether a process writes into a folder that a lock keeps, a run's or a search's.

    Raises:
        RunError: If that can't be found out.
    """
    try:
        with files.open_to_read(path / run_folder.LOCK) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        lock = path / run_folder.LOCK
        raise RunError(f"{lock} cannot be read ({error.strerror}): remove it if no process uses it") from error
    return False
