"""Read and write `split.json`: which images a run was trained, validated and tested with."""

import logging
from pathlib import Path

from ofav2.data import SplitRecord, read_split
from ofav2.errors import RunError
from ofav2.runs.folder import SPLIT
from ofav2.runs.records import RunRecord

logger = logging.getLogger(__name__)


def kept_split(folder: Path, record: RunRecord) -> SplitRecord | None:
    """Return a run's split; None, with a log line, where its file is lost, so that it has to be drawn again.

    Args:
        folder: The run folder.
        record: The run's record.

    Raises:
        RunError: The file is damaged, or is another run's.
    """
    path = folder / SPLIT
    if not path.exists():
        logger.warning(f"{path} is missing: it is drawn again, and has to be the same")
        return None
    split = read_split(path)
    if split.fingerprint != record.data.fingerprint:
        raise RunError(f"{path} is of other images than run.json: restore both from one copy, or train again")
    return split


def require_drawn_again(folder: Path, record: RunRecord, fingerprint: str) -> None:
    """Refuse images that were drawn in place of a lost split, unless they are those of the run.

    Raises:
        RunError: They are not.
    """
    if fingerprint != record.data.fingerprint:
        raise RunError(
            f"{folder / SPLIT} is missing, and the data set or its recipe has changed since, so which images the run"
            " was tested with is lost: restore the file from a copy, or train again"
        )
