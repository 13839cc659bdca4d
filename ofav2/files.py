"""Write files and folders whole or not at all, and read strict JSON."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ofav2.errors import RunError, UserError


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Make a folder with everything in it, or nothing: the body fills the yielded folder, which then becomes `path`.

    The yielded folder lies beside `path` under a hidden name; when anything fails it is removed.

    Args:
        path: The folder to make; it must not exist, or be empty.

    Raises:
        UserError: The system refuses to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"output folder ({path}) cannot be made ({error.strerror}): give one that you may write to"
        ) from error
    try:
        # Temporary folders are made for their owner alone.
        staging.chmod(0o755)
        yield staging
        staging.rename(path)
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be written ({error.strerror}): give a new one") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: the body writes the yielded temporary file, which then takes the name `path`.

    The temporary file lies in the same folder. It is flushed to the disk before it is renamed, and the folder after;
    when anything fails it is removed and `path` stays as it was.

    Raises:
        RunError: The system refuses to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: The system cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
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
        value = parse_json(path.read_bytes())
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
