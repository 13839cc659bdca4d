"""Remember what was measured on the same weights and images, so that no later search measures it again."""

import hashlib
import json
import logging
from pathlib import Path

from ofav2 import files
from ofav2.data import Split
from ofav2.data.patches import PatchImages
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines
from ofav2.runs.records import versions
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from supernets import SpaceError, Subnet

logger = logging.getLogger(__name__)

IDLE_PACKAGES = ("omegaconf", "wandb")
"""Packages that versions are recorded of, and that no measured value depends on."""
STORE = "measured.jsonl"
"""Name of the file in a run folder: a line per network, appended to."""


class MeasuredValues:
    """Measured values by network, in memory."""

    def __init__(self) -> None:
        """Begin without any."""
        self.known: dict[Subnet, float] = {}
        """Values by network."""

    def get(self, subnet: Subnet) -> float | None:
        """Return a network's value; None if it was not measured."""
        return self.known.get(subnet)

    def put(self, subnet: Subnet, value: float) -> None:
        """Remember a value."""
        self.known[subnet] = value


class MeasuredStore(MeasuredValues):
    """Measured values by network, in memory and in a file that only grows."""

    def __init__(self, path: Path, key: str, processes: Processes = SINGLE_PROCESS) -> None:
        """Read what the file has under a key; of several processes, the first one reads and writes.

        Raises:
            RunError: If the file can't be read.
        """
        super().__init__()
        self._path = path
        self._key = key
        self._writes = processes.rank == 0
        self.known.update(processes.on_main(lambda: _read(path, key)))

    def put(self, subnet: Subnet, value: float) -> None:
        """Remember a value.

        Raises:
            RunError: If the file can't be written.
        """
        super().put(subnet, value)
        if self._writes:
            append_line(self._path, {"key": self._key, "subnet": subnet.to_dict(), "value": value})


def measurement_key(run: OpenedRun, images: Split) -> str:
    """Return a digest of all that a measurement depends on, but the network: weights, images, calibration, versions."""
    evaluator = run.evaluator
    digest = hashlib.sha256(images.targets.tobytes())
    if isinstance(images.images, PatchImages):
        # Targets may be planes, which are no labels: these rows say which patches they are.
        digest.update(images.images.rows.tobytes())
    facts = (
        *(run.loaded.sha256, run.data.fingerprint, images.name, evaluator.task.metrics[0].name),
        *(evaluator.config.calibration_images, evaluator.config.calibration_batch, evaluator.seed),
        *(evaluator.eval_crop, run.runtime.device.type),
    )
    packages = {name: one for name, one in versions().items() if name not in IDLE_PACKAGES}
    digest.update(json.dumps([*facts, packages]).encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[Subnet, float]:
    cut_unfinished_line(path)
    found: dict[Subnet, float] = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            entry = files.parse_json(line)
            if entry["key"] == key:
                found[Subnet.from_dict(entry["subnet"])] = float(entry["value"])
        except (ValueError, KeyError, TypeError, SpaceError):
            logger.warning(f"{path}: line {number} can't be read and is left out: that network is measured again")
    return found
