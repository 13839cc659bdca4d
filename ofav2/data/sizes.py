"""Tell the sizes of a data set's images."""

from typing import NamedTuple

from ofav2 import files
from ofav2.data.decoding import read_size
from ofav2.data.images import Size
from ofav2.data.orientation import sample_paths
from ofav2.data.splits import ImageData


class Sizes(NamedTuple):
    """Sizes of images as they are stored: heights and widths in pixels."""

    smallest: Size
    """The image of the fewest pixels."""
    median: Size
    """The one in the middle."""
    largest: Size
    """The image of the most pixels."""


def image_sizes(data: ImageData) -> Sizes | None:
    """Return sizes of a data set's images, of files from their headers; None where none can be read."""
    found: list[Size] = [] if data.train.images.size is None else [data.train.images.size]
    paths = sample_paths(data)
    if paths:
        found = []
    for path in paths:
        try:
            with files.open_to_read(path) as file:
                found.append(read_size(file))
        except (OSError, ValueError):
            # Whoever decodes it says what is wrong with it.
            continue
    ordered = sorted(found, key=lambda size: size[0] * size[1])
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None
