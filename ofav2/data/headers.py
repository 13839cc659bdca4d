"""What the headers of a data set's image files say: sizes, and photos that their EXIF orientation turns."""

from pathlib import Path
from typing import NamedTuple

from ofav2 import files
from ofav2.data.cache import CheckedImages
from ofav2.data.decoding import read_header, read_size
from ofav2.data.digests import located
from ofav2.data.images import FileImages, Size
from ofav2.data.splits import ImageData, Split

MOST = 2000
"""Images that are looked at; of a larger data set, so many that lie evenly in it."""


class Sizes(NamedTuple):
    """Sizes of images as they are stored: heights and widths in pixels."""

    smallest: Size
    """The image of the fewest pixels."""
    median: Size
    """The one in the middle."""
    largest: Size
    """The image of the most pixels."""


class Turned(NamedTuple):
    """How many images are not stored upright."""

    turned: int
    """Images whose EXIF orientation turns or mirrors them."""
    of: int
    """Images that were looked at."""


def image_sizes(data: ImageData) -> Sizes | None:
    """Return sizes of a data set's images, of files from their headers; None where none can be read."""
    if paths := _sample_paths(data):
        found = [size for path in paths if (size := _size(path)) is not None]
    else:
        found = [size for size in (data.train.images.size,) if size is not None]
    ordered = sorted(found, key=lambda size: size[0] * size[1])
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None


def count_turned(data: ImageData) -> Turned:
    """Count images whose EXIF orientation turns or mirrors them."""
    paths = _sample_paths(data)
    return Turned(sum(map(_is_turned, paths)), len(paths))


def _sample_paths(data: ImageData) -> list[Path]:
    """Return files of a data set, at most `MOST` of them that lie evenly in it; none where images are no files."""
    trees = [tree for split in (data.train, data.val, data.test) if (tree := _files(split)) is not None]
    count = sum(len(tree.paths) for tree in trees)
    # A path per image would take longer than all headers that are read.
    return [path for path, _ in located(trees, range(0, count, -(-count // MOST) or 1))]


def _files(split: Split) -> FileImages | None:
    images = split.images.files if isinstance(split.images, CheckedImages) else split.images
    return images if isinstance(images, FileImages) else None


def _size(path: Path) -> Size | None:
    try:
        with files.open_to_read(path) as file:
            return read_size(file)
    except (OSError, ValueError):
        # Whoever decodes it says what is wrong with it.
        return None


def _is_turned(path: Path) -> bool:
    try:
        with files.open_to_read(path) as file:
            return read_header(file).orientation > 1
    except (OSError, ValueError):
        # Whoever decodes it says what is wrong with it.
        return False
