"""Keep which images an extracted network was trained on, by digests of their contents."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from ofav2 import files
from ofav2.data.digests import Digests
from ofav2.data.seen import count_seen, seen_digests
from ofav2.deploy.artifact import RECORD, SubnetRecord
from ofav2.errors import RunError
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.runs.initial_images import read_initial_images

logger = logging.getLogger(__name__)

SEEN = "trained_images.bin"
"""The file in a network's folder: ascending 64-bit digests, little-endian."""


def seen_by(run: OpenedRun) -> Digests:
    """Return digests of all images that a run's weights have seen, those that it started from included.

    Test images among them are told.

    Raises:
        RunError: The list of the latter is damaged.
    """
    folder, own = run.loaded.folder, seen_digests(run.data)
    earlier = read_initial_images(folder, run.loaded.record)
    if earlier is None:
        logger.warning(
            f"which images the weights had seen that {folder} started from is not known: if they come again, they count"
            " as new ones"
        )
        return own
    if len(earlier) and (known := count_seen(run.data.test, earlier)):
        logger.warning(
            f"{known} of the {len(run.data.test)} test images were learnt by the weights that the run started from,"
            " or before its split was changed: test scores are too good"
        )
    return np.union1d(own, earlier)


def seen_sha256(digests: Digests) -> str:
    """Return the SHA-256 that the file of some digests has."""
    return hashlib.sha256(_content(digests)).hexdigest()


def write_seen(folder: Path, digests: Digests) -> None:
    """Write the file.

    Raises:
        RunError: It can't be written.
    """
    files.write_bytes(folder / SEEN, _content(digests))


def read_seen(folder: Path, record: SubnetRecord) -> Digests:
    """Read the file.

    Raises:
        RunError: It is missing, or is not the one that `subnet.json` names.
    """
    try:
        content = files.read_bytes(folder / SEEN)
    except OSError as error:
        raise RunError(
            f"{folder / SEEN} cannot be read ({error.strerror}), so images that the network was trained on can't be"
            " told from others: restore it, or extract the network again"
        ) from error
    if len(content) % 8 or hashlib.sha256(content).hexdigest() != record.seen_sha256:
        raise RunError(f"{folder / SEEN} is not the one that {RECORD} names: restore it, or extract the network again")
    return np.frombuffer(content, dtype="<u8").astype(np.uint64)


def _content(digests: Digests) -> bytes:
    return np.unique(digests).astype("<u8").tobytes()
