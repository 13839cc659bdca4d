"""Append lines of JSON to a file and read them back: a crash leaves at most its last line without an end."""

import json
from pathlib import Path
from typing import Any

from ofav2 import files
from ofav2.errors import RunError


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append a value as a line, and give it to the system at once.

    Raises:
        RunError: If the file can't be written.
    """
    try:
        with files.open_in_place(path, "ab+") as lines:
            lines.write(json.dumps(value, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); check its folder's permissions and the disk's free space"
        ) from error


def whole_lines(path: Path) -> list[bytes]:
    """Return a file's lines without a last one that has no end; no lines of a missing file.

    Raises:
        RunError: If the file can't be read.
    """
    try:
        return files.read_bytes(path).split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error


def cut_unfinished_line(path: Path) -> None:
    """Remove a last line without an end, so that the next one does not continue it; a missing file stays missing.

    Raises:
        RunError: If the file can't be changed.
    """
    try:
        if path.exists():
            with files.open_in_place(path, "rb+") as lines:
                # Read from the file that is cut: another process may append meanwhile.
                content = lines.read()
                if content and not content.endswith(b"\n"):
                    lines.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be cut ({error.strerror}); check that it is a file you may change") from error
