"""Make the folder that a command was given to write: whole or not at all, by one process, and tried before the work."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ofav2.errors import RunError, UserError

STAGING = ".ofav2-staging"
"""Name of the folder that is filled first, or its end after `.NAME`."""
LOCK = ".ofav2-lock"
"""Name of the file that the process holds which fills it, likewise."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What the system says of a disk that takes no more, where it names no file."""


def check_free(path: Path) -> None:
    """Refuse an output folder that something lies in, before work is put into what shall lie there.

    Raises:
        UserError: It is a file, a link to nothing, or a folder that is not empty.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise UserError(f"output folder ({path}) is a link to nothing: give another one with --out")
        taken = path.exists() and (
            not path.is_dir() or any(entry.name not in (STAGING, LOCK) for entry in path.iterdir())
        )
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be read ({error.strerror}): give another one") from error
    if taken:
        raise UserError(f"output folder ({path}) is not empty: give a new one with --out")


@contextmanager
def making(path: Path, last: str) -> Iterator[Path]:
    """Make a folder with everything in it, or nothing: the body fills the yielded folder, and `path` then holds that.

    A folder that exists, which may be a mount or a link, is filled when the body is done; without its last file it is
    nothing yet. One that does not exist is made beside its place and renamed. What killed processes left of either is
    removed.

    Args:
        path: The folder; it must not exist, or be empty.
        last: The file that makes it what it is, such as `subnet.json`.

    Raises:
        UserError: Something lies in the folder, another process is making it, or the system refuses to write.
    """
    check_free(path)
    parent, own = (path, "") if path.exists() else (path.parent, f".{path.name}")
    missing = [above for above in (parent, *parent.parents) if not above.exists()]
    foreign: OSError | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _held(parent / f"{own}{LOCK}", path):
            # Whoever held the lock may have been ready only now.
            check_free(path)
            _sweep(parent)
            staging = parent / f"{own}{STAGING}"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                try:
                    yield staging
                except OSError as error:
                    foreign = None if _is_of_writing(error, staging) else error
                    raise
                if own:
                    staging.rename(path)
                else:
                    _move_into(path, staging, last)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error is foreign:
            raise
        raise UserError(
            f"output folder ({path}) cannot be written ({error.strerror}): give one that you may write to"
        ) from error
    finally:
        # Those that hold something by now, such as the folder, stay.
        for above in missing:
            with suppress(OSError):
                above.rmdir()


def _is_of_writing(error: OSError, staging: Path) -> bool:
    """Return whether the work failed on its output, and not on something that it read."""
    if isinstance(error.filename, str | bytes):
        return Path(os.fsdecode(error.filename)).is_relative_to(staging)
    return error.errno in _FULL


def check_writable(path: Path) -> None:
    """Refuse a file that can't be written, before work is put into its content.

    Raises:
        RunError: The system refuses to make a file in its folder, or a folder has its name.
    """
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        try:
            trial.touch()
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); give a file that you may write") from error


@contextmanager
def _held(lock: Path, path: Path) -> Iterator[None]:
    """Hold a lock file, and remove it in the end.

    Raises:
        UserError: Another process holds it.
    """
    handle = _acquired(lock)
    if handle is None:
        raise UserError(f"output folder ({path}) is being made by another process: wait for it, or give another one")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _acquired(lock: Path) -> int | None:
    """Return an open lock file that this process holds alone; None if another one does."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed it since it was opened, and its name may be another file's by now.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock, follow_symlinks=False)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left of other folders that were to be made here."""
    for staging in parent.glob(f".*{STAGING}"):
        lock = staging.with_name(f"{staging.name.removesuffix(STAGING)}{LOCK}")
        # Another user's can't be opened.
        with suppress(OSError):
            handle = _acquired(lock)
            if handle is not None:
                shutil.rmtree(staging, ignore_errors=True)
                lock.unlink(missing_ok=True)
                os.close(handle)


def _move_into(path: Path, staging: Path, last: str) -> None:
    """Move the files of a folder into another one that is empty, or none of them."""
    moved: list[Path] = []
    try:
        for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == last):
            moved.append(entry.rename(path / entry.name))
    except BaseException:
        for entry in moved:
            with suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise
