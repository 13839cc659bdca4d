"""Name the places of the Earth: cells of the MajorTOM grid, and directions of points."""

import math

import numpy as np
import numpy.typing as npt

RADIUS = 6378.137
"""Radius of the Earth in km that the grid is made with."""
CELL = 10.0
"""Side of a cell in km."""


def cell_of(latitude: float, longitude: float) -> str:
    """Return the name of the 10 km cell that a point lies in, such as `38D_378R`.

    Rows are counted up (U) and down (D) from the equator, columns right (R) and left (L) from the prime meridian; a row
    has as many columns as fit around the Earth at its lower edge.

    Args:
        latitude: Degrees, -90 to 90.
        longitude: Degrees, -180 to 180.

    Source: Francis and Czerkawski, Major TOM: expandable datasets for Earth observation, 2024, section 3.1.
    """
    rows = math.ceil(math.pi * RADIUS / CELL)
    # The last row ends at the pole.
    row = min(math.floor(latitude / (180 / rows)), rows // 2 - 1)
    columns = max(1, math.ceil(2 * math.pi * RADIUS * math.cos(math.radians(row * 180 / rows)) / CELL))
    column = math.floor(longitude / (360 / columns))
    vertical = f"{row}U" if row >= 0 else f"{-row}D"
    return f"{vertical}_{column}R" if column >= 0 else f"{vertical}_{-column}L"


def directions(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return unit vectors x, y, z (N, 3) from the Earth's centre to points of latitude and longitude (N, 2).

    Unlike angles they have no seam, and the poles differ.
    """
    latitudes, longitudes = np.radians(points).T
    level = np.cos(latitudes)
    found = np.stack([level * np.cos(longitudes), level * np.sin(longitudes), np.sin(latitudes)], 1)
    return found.astype(np.float32)
