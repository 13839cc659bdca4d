"""Count photos that their EXIF orientation turns."""

from pathlib import Path
from typing import NamedTuple

from ofav2 import files
from ofav2.data.cache import CheckedImages
from ofav2.data.decoding import read_header
from ofav2.data.digests import located
from ofav2.data.images import FileImages
from ofav2.data.splits import ImageData, Split

MOST = 2000
"""Images that are looked at; of a larger data set, so many that lie evenly in it."""


class Turned(NamedTuple):
    """How many images are not stored upright."""

    turned: int
    """Images whose EXIF orientation turns or mirrors them."""
    of: int
    """Images that were looked at."""


def count_turned(data: ImageData) -> Turned:
    """Count images whose EXIF orientation turns or mirrors them; their headers alone are read."""
    chosen = sample_paths(data)
    return Turned(sum(map(_is_turned, chosen)), len(chosen))


def sample_paths(data: ImageData) -> list[Path]:
    """Return files of a data set, at most `MOST` of them that lie evenly in it; none where images are no files."""
    trees = [tree for split in (data.train, data.val, data.test) if (tree := _files(split)) is not None]
    count = sum(len(tree.paths) for tree in trees)
    # A path per image would take longer than all headers that are read.
    return [path for path, _ in located(trees, range(0, count, -(-count // MOST) or 1))]


def _files(split: Split) -> FileImages | None:
    images = split.images.files if isinstance(split.images, CheckedImages) else split.images
    return images if isinstance(images, FileImages) else None


def _is_turned(path: Path) -> bool:
    try:
        with files.open_to_read(path) as file:
            return read_header(file).orientation > 1
    except (OSError, ValueError):
        # Whoever decodes it says what is wrong with it.
        return False
