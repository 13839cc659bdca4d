"""Measure how long a search has run, over all its stops."""

import time
from pathlib import Path

from ofav2 import files
from ofav2.errors import RunError
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines

SECONDS = "seconds.jsonl"
"""Name of the file in a search folder: a line per line that is added to the archive, with the seconds until then."""


class SearchClock:
    """The seconds that a search has run, not counting the times between a stop and going on."""

    def __init__(self, folder: Path) -> None:
        """Go on from what a search's folder says.

        Raises:
            RunError: If its file can't be read.
        """
        self._path = folder / SECONDS
        self._before = _last(self._path)
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self._before + time.monotonic() - self._start

    def note(self) -> None:
        """Write the seconds until now.

        Raises:
            RunError: If the file can't be written.
        """
        append_line(self._path, {"seconds": round(self.seconds, 3)})


def _last(path: Path) -> float:
    cut_unfinished_line(path)
    lines = whole_lines(path)
    try:
        return float(files.parse_json(lines[-1])["seconds"]) if lines else 0.0
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: the last line is no time of a search: remove that line") from error
