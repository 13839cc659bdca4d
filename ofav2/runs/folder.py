"""Lay out, write and lock the run folder.

    recipe.yaml                     the resolved recipe
    split.json                      which images were held out for validation and test
    initial_images.bin              of which images its first weights had learnt targets (`ofav2.runs.initial_images`)
    run.json                        what the run is and how far it has come (`ofav2.runs.records`)
    metrics.jsonl                   one line per measurement (`ofav2.runs.metrics_file`)
    checkpoints/<phase>.safetensors tensors a phase left, with <phase>.json beside them (`ofav2.runs.checkpoint`)
    checkpoints/state-N.safetensors a phase in progress after N steps of the run, likewise (`ofav2.runs.state`)
    classes.json, maps.json         what the largest network got right on test, class by class, or as maps
    .lock                           held by the process that writes the folder

Files are replaced whole, so a reader sees the old or the new one and never a part.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import IO

from ofav2 import files
from ofav2.config.ranges import PHASE_NAME
from ofav2.errors import RunError
from ofav2.messages import short

RECIPE = "recipe.yaml"
SPLIT = "split.json"
INITIAL_IMAGES = "initial_images.bin"
RECORD = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
_BEFORE_RECORD = (LOCK, RECIPE, SPLIT, INITIAL_IMAGES)
"""What a run writes before `run.json`, which makes a folder a run."""

# What `replacing` writes to, with the number of the process that does.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
# Worker processes notice within seconds that the one which forked them was killed.
_ORPHANS_LEAVE_IN = 15.0


def checkpoint_path(folder: Path, phase: object) -> Path:
    """Return the path of a phase's checkpoint, without the suffixes that `ofav2.runs.checkpoint` adds.

    Raises:
        RunError: The name, which may come from a file, is no name of a phase and would lead elsewhere.
    """
    if not isinstance(phase, str) or not PHASE_NAME.fullmatch(phase):
        raise RunError(f"phase ({str(phase)[:80]!r}) is no name of a phase; restore {folder / RECORD} or train again")
    return folder / CHECKPOINTS / phase


def new_folder(parent: Path, name: str) -> Path:
    """Make an empty folder `parent/name`, or `name-2`, `name-3`, … where that one is taken.

    Args:
        parent: Folder of the run folders; made where it is missing.
        name: Preferred name, without a path in it.

    Returns:
        The first of these paths that did not exist or was an empty folder; it exists now.

    Raises:
        RunError: The name is a path or unprintable, or the folder cannot be made.
    """
    if name in ("", ".", "..") or name != Path(name).name:
        raise RunError(f"run name ({name!r}) must be a plain folder name; leave out slashes and dots alone")
    _require_printable(parent / name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return next(path for path in _candidates(parent, name) if _claim(path))
    except OSError as error:
        raise _unusable(parent / name, error) from error


def _candidates(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    for number in count(2):
        yield parent / f"{name}-{number}"


def _claim(path: Path) -> bool:
    # Of runs that start together, one makes the folder. Another may come before a file lies in it, take it for an empty
    # one, and be refused by its lock.
    try:
        path.mkdir()
    except FileExistsError:
        return path.is_dir() and next(path.iterdir(), None) is None
    return True


def take_folder(path: Path) -> Path:
    """Make the folder that a run was given, or take it if it is vacant.

    Returns:
        The folder.

    Raises:
        RunError: Something lies in it, or it cannot be made.
    """
    _require_printable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    require_vacant(path)
    return path


def require_vacant(path: Path) -> None:
    """Refuse a run folder that something lies in, before work is put into what shall lie there.

    It is vacant if it does not exist, is empty, or holds only what a run left that was killed before it began.

    Raises:
        RunError: Something lies in it, or it is no folder.
    """
    try:
        lying = [entry.name for entry in path.iterdir()] if path.exists() else []
    except OSError as error:
        raise _unusable(path, error) from error
    foreign = [name for name in lying if name not in _BEFORE_RECORD and not _TEMPORARY.fullmatch(name)]
    if RECORD in foreign:
        raise RunError(f"run folder ({path}) holds a run: go on with it by --resume {path}, or give a new folder")
    if foreign:
        raise RunError(
            f"run folder ({path}) is not empty ({short(min(foreign))}) and holds no run: give a new or empty folder"
        )


def _unusable(path: Path, error: OSError) -> RunError:
    return RunError(f"run folder ({path}) cannot be made ({error.strerror}); give a folder that you may write to")


def _require_printable(path: Path) -> None:
    # Facts, messages and pages name the folder.
    if not str(path).isprintable():
        raise RunError(f"run folder ({str(path)!r}) must be printable text; leave out line breaks and the like")


@dataclass(frozen=True)
class Lock:
    """A run folder's lock, held by this process."""

    folder: Path
    """The folder."""
    handle: IO[str]
    """The locked file."""

    def require(self) -> None:
        """Check that the locked file is still the folder's, as another process could lock a new one.

        Raises:
            RunError: It was removed or replaced.
        """
        try:
            found = os.stat(self.folder / LOCK, follow_symlinks=False)
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self.handle.fileno())):
            raise RunError(
                f"run folder ({self.folder}) lost its {LOCK} while it was written, so another process may write there:"
                " leave the file alone, and go on with --resume"
            )


@contextmanager
def lock(folder: Path) -> Iterator[Lock]:
    """Keep other processes from writing the folder while the body runs.

    The system frees the lock when the process ends, however it ends. A forked child holds it too for as long as it
    lives; the children of an owner that was killed are waited for. What killed writers left half-written is removed.

    Yields:
        The lock, to be checked before anything is written.

    Raises:
        RunError: The folder is in use, missing, or cannot be locked.
    """
    if (folder / CHECKPOINTS).is_symlink():
        raise RunError(
            f"run folder ({folder}): {CHECKPOINTS} is a link, and what it leads to would be changed; make it a folder"
        )
    try:
        handle = TextIOWrapper(files.open_in_place(folder / LOCK, "ab+"), encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(
            f"run folder ({folder}) cannot be locked ({error.strerror}); give an existing folder that you may write to"
        ) from error
    with handle:
        _acquire(handle, folder)
        try:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            _sweep(folder)
        except OSError as error:
            raise RunError(
                f"run folder ({folder}) cannot be written ({error.strerror}); check the disk's free space"
            ) from error
        yield Lock(folder, handle)


def _acquire(handle: IO[str], folder: Path) -> None:
    patience = time.monotonic() + _ORPHANS_LEAVE_IN
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            # Empty for the instant in which another process has the lock and has not yet written its number.
            owner = handle.read().strip()
            if not owner.isdecimal() or _lives(int(owner)) or time.monotonic() > patience:
                raise RunError(
                    f"run folder ({folder}) is in use by process {owner or '(unknown)'};"
                    " wait for it or give another folder"
                ) from error
        except OSError as error:
            raise RunError(
                f"run folder ({folder}) cannot be locked ({error.strerror}); give a folder on a file system with locks"
            ) from error
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove temporary files whose writer was killed; states are large, and a run may be killed often."""
    for path in [*folder.glob(".*.tmp"), *(folder / CHECKPOINTS).glob(".*.tmp")]:
        named = _TEMPORARY.fullmatch(path.name)
        # A container may give every process that it starts the same number.
        if named and (int(named[1]) == os.getpid() or not _lives(int(named[1]))):
            path.unlink(missing_ok=True)
