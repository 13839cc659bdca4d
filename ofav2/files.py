"""Open files that are files, write them whole or not at all, and read strict JSON.

What users give may be a pipe, a socket or a device: reading one waits for ever, or never ends. All of the project opens
files here, so regular files are all that is read and written. What a run writes in place is never a link.
"""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

from ofav2.errors import RunError

MAX_BYTES = 2**30
"""Largest file that is read into memory as a whole, unless its reader sets another bound."""
MAX_JSON_BYTES = 2**28
"""Largest JSON file that is read: its values take several times as much memory as its text."""

# Without these, opening a pipe waits for its other end, and opening a terminal may take it over.
_CAREFULLY = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_IN_PLACE = MappingProxyType({"rb+": os.O_RDWR, "ab+": os.O_RDWR | os.O_CREAT | os.O_APPEND})


def open_to_read(path: Path) -> BufferedReader:
    """Open a regular file; links to one are followed.

    Raises:
        OSError: The system can't, or the path leads to something else; `strerror` says why.
    """
    return os.fdopen(_descriptor(path, os.O_RDONLY), "rb")


def open_in_place(path: Path, mode: Literal["rb+", "ab+"]) -> IO[bytes]:
    """Open a regular file to change it where it lies; a link is refused, since it may lead anywhere.

    Args:
        path: The file; `ab+` makes it where it is missing, and writes at its end.
        mode: As `open` has it.

    Raises:
        OSError: The system can't, or it is a link or no file; `strerror` says why.
    """
    try:
        return os.fdopen(_descriptor(path, _IN_PLACE[mode] | os.O_NOFOLLOW), mode)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "is a link, and may lead anywhere", str(path)) from error
        raise


def _descriptor(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | _CAREFULLY, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"is {_kind(mode)}, not a file", str(path))
    return descriptor


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"))
    return next((said for is_kind, said in kinds if is_kind(mode)), "something else")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: The system can't, it is no file, or it is larger; `strerror` says why.
    """
    with open_to_read(path) as file:
        large = os.fstat(file.fileno()).st_size > most
        content = b"" if large else file.read()
    if large or len(content) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
    return content


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: the body writes the yielded temporary file, which then takes the name `path`.

    A link is replaced, not what it leads to. The temporary file lies in the same folder. It is flushed to the disk
    before it is renamed, and the folder after; when anything fails it is removed and `path` stays as it was.

    Raises:
        RunError: The system refuses to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _refuse_special(path)
        # Something may lie there that an earlier process of this number left, or a link to another file.
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_to_disk(path.parent)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); check its folder's permissions and the disk's free space"
        ) from error


def sha256(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal.

    Raises:
        RunError: The file can't be read.
    """
    try:
        with open_to_read(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error


def _refuse_special(path: Path) -> None:
    """Refuse to put a file where a device, a pipe or a folder is, or a link to one, such as /dev/stdout."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"is {_kind(mode)}, not a file", str(path))


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: The system cannot.
    """
    descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is missing, cannot be read, is no JSON, or holds something other than an object.
    """
    try:
        value = parse_json(read_bytes(path, MAX_JSON_BYTES))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; give a complete run folder") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}); restore it from a copy or train again") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{path} holds a JSON {type(value).__name__} and must hold an object; restore it from a copy or train again"
        )
    return value


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, and no NaN or infinity, which JSON does not have, nor numbers that become one.

    Raises:
        ValueError: The bytes are no such JSON.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
