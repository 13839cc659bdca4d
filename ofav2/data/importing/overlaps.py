"""Find scenes that share ground."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ofav2.data.importing.rasters import Grid

SHARED = 0.01
"""Share of the smaller scene's area that two scenes must have in common to overlap: less is a seam."""


@dataclass(frozen=True)
class Footprint:
    """Where a scene lies."""

    name: str
    """The scene."""
    place: str
    """Its place."""
    crs: str | None
    """Its coordinate reference system."""
    box: tuple[float, float, float, float]
    """Least and largest coordinate, in that system: left, bottom, right, top."""


def footprint_of(name: str, place: str, grid: Grid) -> Footprint:
    """Return where a scene lies.

    Args:
        name: The scene.
        place: Its place.
        grid: Its pixels.
    """
    corners = np.array([grid.at(row, column) for row in (0, grid.height) for column in (0, grid.width)])
    (left, bottom), (right, top) = corners.min(0).tolist(), corners.max(0).tolist()
    return Footprint(name, place, grid.crs, (left, bottom, right, top))


def overlaps(footprints: Sequence[Footprint]) -> Iterator[tuple[Footprint, Footprint]]:
    """Yield the pairs of scenes that share ground, those of one reference system alone."""
    for crs in dict.fromkeys(one.crs for one in footprints):
        own = [one for one in footprints if one.crs == crs]
        boxes = np.array([one.box for one in own])
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        for index, box in enumerate(boxes[:-1]):
            others = boxes[index + 1 :]
            sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
            shared = np.prod(np.maximum(sides, 0), axis=1)
            least = SHARED * np.minimum(areas[index], areas[index + 1 :])
            yield from ((own[index], own[index + 1 + other]) for other in np.flatnonzero(shared > least).tolist())
