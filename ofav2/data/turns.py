"""Take turns at the cache: of several processes that need the same thing made, one makes it and the others wait."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ofav2 import files
from ofav2.errors import UserError

logger = logging.getLogger(__name__)


class CacheError(UserError):
    """The cache can't be written to."""


def unusable(cache: Path, error: OSError) -> CacheError:
    """Return the error that says why the cache can't be written to."""
    return CacheError(
        f"data.cache ({cache}): cannot be used ({error.strerror}); give a folder that you may write to, on a disk with "
        "space, or set data.cache=null"
    )


@contextmanager
def turn(cache: Path, name: str) -> Iterator[None]:
    """Wait until no other process is at the thing of this name; the system ends the turn of one that is killed.

    Raises:
        CacheError: The cache can't be written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = files.open_in_place(_lock_file(cache, name), "ab+")
    except OSError as error:
        raise unusable(cache, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"cache {cache / name}: another process is at it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise unusable(cache, error) from error
        yield


@contextmanager
def free_turn(cache: Path, name: str) -> Iterator[bool]:
    """Take a turn without waiting; yield whether it was free, and may be taken by this user."""
    try:
        lock = files.open_in_place(_lock_file(cache, name), "ab+")
    except OSError:
        yield False
        return
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _lock_file(cache: Path, name: str) -> Path:
    return cache / f".{name}.lock"
