"""Names of places, and their directions."""

import numpy as np
import pytest

from ofav2.data.importing.places import cell_of, directions


@pytest.mark.parametrize(
    ("latitude", "longitude", "cell"),
    [
        # Middles of published patches, whose files are named by their cells.
        (-25.3159446, -48.10604546, "282D_485L"),
        (-3.40135544, 34.06603097, "38D_378R"),
        (-38.83085293, -72.47879287, "433D_629L"),
        (54.78002937, -83.95224007, "609U_541L"),
        (57.22687773, 9.84490534, "637U_59R"),
        (0.01, 0.01, "0U_0R"),
        (-0.01, -0.01, "1D_1L"),
        (90.0, 0.0, "1001U_0R"),
        (-90.0, 0.0, "1002D_0R"),
    ],
)
def test_a_place_is_a_cell_of_the_majortom_grid(latitude: float, longitude: float, cell: str) -> None:
    assert cell_of(latitude, longitude) == cell


def test_poles_differ_and_longitude_has_no_seam() -> None:
    found = directions(np.array([[90.0, 0], [-90, 0], [0, 180], [0, -180], [0, 90]]))
    expected = [[0, 0, 1], [0, 0, -1], [-1, 0, 0], [-1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
