"""The offset of Sentinel-2: never guessed, and no pixel with data becomes one without."""

import numpy as np
import pytest

from ofav2.data.importing.offsets import offset_of, without_offset
from ofav2.data.importing.rasters import Grid, Planes, SceneError, Unit

L2A = "S2A_MSIL2A_20220920T102641_{}_R108_T32UMV_20220920T150000"


@pytest.mark.parametrize(("baseline", "offset"), [("N0209", 0), ("N0301", 0), ("N0400", 1000), ("N0510", 1000)])
def test_a_product_tells_its_offset_when_it_is_asked(baseline: str, offset: int) -> None:
    assert offset_of(L2A.format(baseline), "product_id") == offset
    assert offset_of(L2A.format(baseline), 0) == 0
    assert offset_of(L2A.format(baseline), 7) == 7


@pytest.mark.parametrize("product", [None, "38D_378R_2_3", L2A.format("R108"), L2A.format("N9999"), L2A.format("N04")])
def test_a_product_that_does_not_tell_is_not_guessed(product: str | None) -> None:
    with pytest.raises(SceneError, match="names no processing baseline"):
        offset_of(product, "product_id")
    assert offset_of(product, 0) == 0


def planes(values: list[float], dtype: str, nodata: float | None) -> Planes:
    grid = Grid(1, len(values), None, ())
    return Planes(np.array(values, dtype).reshape(1, -1, 1), ("B02",), nodata, (Unit(1.0, 0.0),), grid, 1)


@pytest.mark.parametrize(
    ("dtype", "nodata", "before", "after"),
    [
        ("uint16", 0, [0, 1, 999, 1000, 1001, 65535], [0, 1, 1, 1, 1, 64535]),
        ("uint16", None, [0, 999, 1000, 1001], [0, 0, 0, 1]),
        ("int16", 0, [0, 1, 1000, 1001], [0, -999, 1, 1]),
        ("int16", -9999, [-9999, -32768, 1000], [-9999, -32768, 0]),
        ("float32", None, [0.5, 1000.0], [-999.5, 0.0]),
    ],
)
def test_an_offset_is_subtracted_from_pixels_with_data(
    dtype: str, nodata: float | None, before: list[float], after: list[float]
) -> None:
    found = without_offset(planes(before, dtype, nodata), 1000).values
    assert found.dtype == dtype
    assert found.ravel().tolist() == after


@pytest.mark.parametrize(
    ("dtype", "nodata", "before", "after"),
    [
        ("uint8", None, [100, 155, 200], [200, 255, 255]),
        ("uint8", 255, [100, 200, 255], [200, 254, 255]),
        ("uint8", 200, [100, 200, 255], [201, 200, 255]),
        ("int16", 32767, [32760, 32767], [32766, 32767]),
    ],
)
def test_a_negative_offset_stays_in_the_types_range(
    dtype: str, nodata: float | None, before: list[float], after: list[float]
) -> None:
    assert without_offset(planes(before, dtype, nodata), -100).values.ravel().tolist() == after
