"""Remember what was measured on the same weights and images, so that no later search measures it again."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from ofav2 import files
from ofav2.data import Split
from ofav2.errors import RunError
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.runs.records import versions
from supernets import SpaceError, Subnet

logger = logging.getLogger(__name__)

STORE = "measured.jsonl"
"""Name of the file in a run folder: a line per network, appended to."""


class MeasuredStore:
    """Measured values by network, in memory and in a file that only grows."""

    def __init__(self, path: Path, key: str) -> None:
        """Read what the file has under a key.

        Raises:
            RunError: If the file can't be read.
        """
        self._path = path
        self._key = key
        self.known = _read(path, key)
        """Values by network."""

    def get(self, subnet: Subnet) -> float | None:
        """Return a network's value; None if it was not measured."""
        return self.known.get(subnet)

    def put(self, subnet: Subnet, value: float) -> None:
        """Remember a value.

        Raises:
            RunError: If the file can't be written.
        """
        self.known[subnet] = value
        append_line(self._path, {"key": self._key, "subnet": subnet.to_dict(), "value": value})


def measurement_key(run: OpenedRun, images: Split) -> str:
    """Return a digest of all that a measurement depends on, but the network: weights, images, calibration, versions."""
    evaluator = run.evaluator
    digest = hashlib.sha256(images.targets.tobytes())
    facts = (
        *(run.loaded.sha256, run.data.fingerprint, images.name, evaluator.task.metrics[0].name),
        *(evaluator.config.calibration_images, evaluator.config.calibration_batch, evaluator.seed),
        *(evaluator.eval_crop, run.runtime.device.type),
    )
    digest.update(json.dumps([*facts, versions()]).encode())
    return digest.hexdigest()


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append a line of JSON to a file, and give it to the system at once.

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


def _read(path: Path, key: str) -> dict[Subnet, float]:
    try:
        lines = files.read_bytes(path).splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error
    found: dict[Subnet, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = files.parse_json(line)
            if entry["key"] == key:
                found[Subnet.from_dict(entry["subnet"])] = float(entry["value"])
        except (ValueError, KeyError, TypeError, SpaceError):
            # A killed search leaves at most its last line cut.
            logger.warning(f"{path}: line {number} can't be read and is left out: that network is measured again")
    if lines and not lines[-1].endswith(b"\n"):
        _end_line(path)
    return found


def _end_line(path: Path) -> None:
    try:
        with files.open_in_place(path, "ab+") as cut:
            cut.write(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); check its folder's permissions") from error
