"""Read and write `initial_images.bin`: what a run's weights have learnt the targets of beside its own images.

A run's own images are in `split.json`. Those of the runs that it started from, and those of its own split before that
was changed, may be gone when a network is extracted, and are still no images to test it on. The file holds the SHA-256
of the rest, then ascending 64-bit digests, little-endian.
"""

import hashlib
from pathlib import Path

import numpy as np

from ofav2 import files
from ofav2.data.digests import Digests
from ofav2.errors import RunError
from ofav2.runs.folder import INITIAL_IMAGES
from ofav2.runs.records import RunRecord


def write_initial_images(folder: Path, digests: Digests) -> None:
    """Write the file of a run folder.

    Raises:
        RunError: It can't be written.
    """
    content = np.unique(digests).astype("<u8").tobytes()
    files.write_bytes(folder / INITIAL_IMAGES, hashlib.sha256(content).digest() + content)


def read_initial_images(folder: Path, record: RunRecord) -> Digests | None:
    """Return digests of further images whose targets a run's weights have learnt, ascending; None where nobody knows.

    Args:
        folder: The run folder.
        record: The run's record; without the file, there are none where it began with fresh weights.

    Raises:
        RunError: The file is damaged.
    """
    path = folder / INITIAL_IMAGES
    if not path.exists():
        return np.empty(0, np.uint64) if record.initial is None else None
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); see that it can be") from error
    if len(content) % 8 or content[:32] != hashlib.sha256(content[32:]).digest():
        raise RunError(f"{path} is damaged: restore it from a copy, or train again")
    return np.frombuffer(content[32:], dtype="<u8").astype(np.uint64)
