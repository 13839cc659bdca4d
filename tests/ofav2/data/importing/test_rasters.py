"""Bands on one grid, beside a plain reference; what does not fit is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ofav2.data.importing.rasters import BandFile, Planes, SceneError, coordinates, lies_on, planes_of, refuse_empty
from tests.ofav2.data.importing.scenes import CORNER, finer, noise, tif


def one(name: str, *given: Any, **named: Any) -> BandFile:
    """A file of one band."""
    return BandFile(f"{name}.tif", tif(*given, **named), (name,))


def fault(files: Sequence[BandFile], *given: Any, nodata: float | None = None) -> SceneError:
    with pytest.raises(SceneError) as raised:
        refuse_empty(planes_of(files, *given, nodata=nodata))
    assert "\n" not in raised.value.detail
    return raised.value


@pytest.mark.parametrize("profile", [{}, {"compress": "deflate"}, {"compress": "lzw", "tiled": True}])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_file_of_many_bands_is_read_as_it_is_stored(dtype: str, profile: dict[str, Any]) -> None:
    values = noise(3, 32, 48, dtype=dtype, high=200)
    options = profile | ({"blockxsize": 16, "blockysize": 16} if profile.get("tiled") else {})
    found = planes_of([BandFile("a.tif", tif(values, names=("red", "green", "blue"), **options))], ["blue", "red"])
    assert (found.names, found.values.dtype, found.factor) == (("blue", "red"), dtype, 1)
    np.testing.assert_array_equal(found.values, values[[2, 0]].transpose(1, 2, 0))


@pytest.mark.parametrize("names", [(), ("bands", "bands", "bands")])
def test_bands_that_names_do_not_tell_apart_are_numbered(names: tuple[str, ...]) -> None:
    assert planes_of([BandFile("a.tif", tif(noise(3, 4, 4), names=names))]).names == ("1", "2", "3")


@pytest.mark.parametrize("placed", [True, False])
def test_bands_of_10_20_and_60_m_lie_on_the_finest_grid(placed: bool) -> None:
    fine, half, sixth = noise(24, 24), noise(12, 12, seed=1), noise(4, 4, seed=2)
    crs = {} if placed else {"crs": None}
    files = [one("B05", half, pixel=20, **crs), one("B02", fine, **crs), one("B01", sixth, pixel=60, **crs)]
    found = planes_of(files, ["B02", "B05", "B01"])
    assert (found.values.shape, found.values.dtype, found.factor) == ((24, 24, 3), np.uint16, 6)
    np.testing.assert_array_equal(found.values[..., 0], fine)
    np.testing.assert_array_equal(found.values[..., 1], np.rint(finer(half, 2)))
    assert np.abs(found.values[..., 2] - finer(sixth, 6)).max() <= 0.5 + 1e-9


def test_a_doubled_band_takes_nothing_from_pixels_without_data() -> None:
    half = noise(6, 6, seed=1, low=1000, high=1010)
    half[2, 3] = half[0, 0] = 0
    fine = noise(12, 12)
    found = planes_of([one("a", fine, nodata=0), one("b", half, pixel=20, nodata=0)]).values[..., 1]
    missing = (half == 0).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(found == 0, missing)
    assert found[~missing].min() >= half[half > 0].min()
    far = np.s_[8:, 8:]
    np.testing.assert_array_equal(found[far], np.rint(finer(half, 2))[far])


def test_a_value_that_stands_for_no_data_is_one_in_all_bands() -> None:
    first, second = noise(8, 8), noise(8, 8, seed=1)
    first[0, 0], second[1, 1] = 0, 65535
    found = planes_of([one("a", first, nodata=0), one("b", second, nodata=65535)], nodata=0)
    assert (found.nodata, found.values[0, 0, 0], found.values[1, 1, 1]) == (0, 0, 0)
    both = [one("a", first, nodata=0), one("b", second, nodata=65535)]
    assert fault(both).fault == "other nodata"
    second[2, 2] = 0
    assert (
        "band b states nodata 65535, and has pixels of value 0"
        in fault([both[0], one("b", second, nodata=65535)], nodata=0).detail
    )
    assert "nodata -1 is no number of type uint16" in fault([one("b", second, nodata=65535)], nodata=-1).detail


def test_doubles_become_floats_and_nan_is_never_data() -> None:
    values = np.random.default_rng(0).normal(size=(2, 6, 6))
    values[0, 1, 1] = np.nan
    found = planes_of([BandFile("a.tif", tif(values, nodata=float("nan")))])
    assert (found.values.dtype, found.nodata) == (np.float32, None)
    np.testing.assert_array_equal(found.values, values.transpose(1, 2, 0).astype(np.float32))


FINE = noise(12, 12)
WHOLE = tif(noise(2, 64, 64))
BAD: tuple[tuple[list[BandFile], str, str], ...] = (
    ([BandFile("a.tif", WHOLE[: len(WHOLE) // 2])], "unreadable file", "a.tif can't be decoded"),
    ([BandFile("a.tif", b"")], "unreadable file", "a.tif is neither TIFF nor PNG"),
    ([BandFile("a.tif", b"no image at all")], "unreadable file", "a.tif is neither TIFF nor PNG"),
    (
        [BandFile("a.tif", b"<VRTDataset rasterXSize='1' rasterYSize='1'/>")],
        "unreadable file",
        "a.tif is neither TIFF nor PNG",
    ),
    ([BandFile("a.tif", WHOLE, ("red",))], "other bands", "a.tif has 2 bands, and 1 are named"),
    ([one("a", FINE), one("a", FINE)], "other bands", "band a is there twice: a.tif"),
    ([one("a", FINE), one("b", FINE, crs="EPSG:32737")], "other reference system", "band b has EPSG:32737, and a has"),
    ([one("a", FINE), one("b", FINE, crs=None)], "other reference system", "band b has none, and a has EPSG:32736"),
    ([one("a", FINE), one("b", FINE[:6, :6], pixel=10)], "unaligned bands", "band b (6 x 6 pixels) does not lie"),
    ([one("a", FINE), one("b", FINE, corner=(CORNER[0] + 5, CORNER[1]))], "unaligned bands", "band b (12 x 12 pixels)"),
    ([one("a", FINE), one("b", FINE[:5, :5], pixel=24)], "unaligned bands", "band b (5 x 5 pixels)"),
    ([one("a", FINE), one("b", FINE[:6, :4], pixel=20)], "unaligned bands", "band b (6 x 4 pixels)"),
    ([one("a", FINE), one("b", 0 * FINE)], "empty band", "band b holds nothing but 0 or no data"),
    ([one("a", FINE), one("b", 0 * FINE + 7, nodata=7)], "empty band", "band b holds nothing"),
    ([one("a", FINE.astype(np.int32))], "other type", "have type int32, and patches uint8, int16"),
    ([one("a", FINE), one("b", FINE.astype(np.int16))], "other type", "have type int32"),
    ([], "missing band", "there is no band"),
)


@pytest.mark.parametrize(("files", "kind", "says"), BAD)
def test_what_does_not_fit_is_named(files: list[BandFile], kind: str, says: str) -> None:
    found = fault(files)
    assert found.fault == kind
    assert says in found.detail


def test_a_band_that_is_not_there_is_named() -> None:
    found = fault([one("a", FINE)], ["a", "c"])
    assert (found.fault, found.detail) == ("missing band", "band c is missing of a (a.tif)")


def placed(**named: Any) -> Planes:
    return planes_of([one("a", FINE, **named)])


def test_a_mask_has_the_pixels_of_its_scene() -> None:
    grid = placed().grid
    assert lies_on(placed().grid, grid) is None
    assert lies_on(placed(crs=None).grid, grid) is None
    assert lies_on(placed(crs="EPSG:32737").grid, grid) == "has reference system EPSG:32737, not EPSG:32736"
    assert lies_on(placed(corner=(CORNER[0], CORNER[1] + 10)).grid, grid) == "lies elsewhere"
    assert lies_on(placed(pixel=20).grid, grid) == "lies elsewhere"
    assert lies_on(planes_of([one("a", FINE[:6])]).grid, grid) == "has 6 x 12 pixels, not 12 x 12"


def test_points_of_a_grid_have_latitude_and_longitude() -> None:
    grid = placed(crs="EPSG:4326", corner=(10.0, 50.0), pixel=0.5).grid
    np.testing.assert_allclose(coordinates(grid, [0, 4], [0, 2]), [[50, 10], [48, 11]])
    with pytest.raises(SceneError, match="lie nowhere on Earth"):
        coordinates(placed(crs="EPSG:4326", corner=(300.0, 50.0), pixel=0.5).grid, [0], [0])
