"""Bands on one grid, beside a plain reference; what does not fit is named."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from ofav2.data.importing.rasters import BandFile, Planes, SceneError, coordinates, lies_on, planes_of, refuse_empty
from tests.ofav2.data.importing.scenes import CORNER, finer, noise, tif, write


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
    (
        [BandFile("a.tif", tif(noise(4, 8, 8, dtype="uint8")), ("red",))],
        "other bands",
        "a.tif has 4 bands, and 1 are named",
    ),
    ([one("a", FINE), one("a", FINE)], "other bands", "band a is there twice: a.tif"),
    ([one("a", FINE), one("b", FINE, crs="EPSG:32737")], "other reference system", "band b has EPSG:32737, and a has"),
    ([one("a", FINE), one("b", FINE, crs=None)], "other reference system", "band b has none, and a has EPSG:32736"),
    ([one("a", FINE), one("b", FINE[:6, :6], pixel=10)], "unaligned bands", "band b (6 x 6 pixels) does not lie"),
    ([one("a", FINE), one("b", FINE, corner=(CORNER[0] + 5, CORNER[1]))], "unaligned bands", "band b (12 x 12 pixels)"),
    ([one("a", FINE), one("b", FINE[:5, :5], pixel=24)], "unaligned bands", "band b (5 x 5 pixels)"),
    ([one("a", FINE), one("b", FINE[:6, :4], pixel=20)], "unaligned bands", "band b (6 x 4 pixels)"),
    ([one("a", FINE), one("b", 0 * FINE)], "empty band", "band b holds nothing but 0 or no data"),
    ([one("a", FINE), one("b", 0 * FINE + 7, nodata=7)], "empty band", "band b holds nothing"),
    ([one("a", FINE.astype(np.int32))], "other type", "has type int32, and patches uint8, int16"),
    ([one("a", FINE), one("b", FINE.astype(np.int16))], "other type", "has type int32"),
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


@pytest.mark.parametrize("names", [("red", "green", "blue", "alpha"), ()])
def test_pixels_that_only_a_mask_or_alpha_band_hides_are_refused(names: tuple[str, ...]) -> None:
    values, there = noise(3, 8, 8, dtype="uint8", high=200), np.ones((8, 8), bool)
    there[:2] = False
    hidden = r"the (mask|alpha band) of a.tif hides 16 pixels .* write it with a nodata value"
    alpha = np.concatenate([values, 255 * there[None].astype(np.uint8)])
    for content in (
        tif(values, mask=there),
        tif(alpha, names=names, photometric="RGB", alpha="YES"),
        tif(alpha[[0, 3]], names=names[-2:], photometric="MINISBLACK", alpha="YES"),
    ):
        found = fault([BandFile("a.tif", content)])
        assert found.fault == "unstated nodata"
        assert re.match(hidden, found.detail)


def test_an_alpha_band_with_another_name_is_a_band() -> None:
    """GDAL writes the fourth of four 8-bit bands so."""
    values = noise(4, 8, 8, dtype="uint8", low=0, high=3)
    names = ("red", "green", "blue", "nir")
    assert "if band 4 is no alpha band, name all with --band-names" in fault([BandFile("a.tif", tif(values))]).detail
    for found in (
        planes_of([BandFile("a.tif", tif(values), names)]),
        planes_of([BandFile("a", tif(values, names=names))]),
    ):
        np.testing.assert_array_equal(found.values, values.transpose(1, 2, 0))


def test_a_mask_that_hides_nothing_or_what_has_a_value_of_its_own_is_no_fault() -> None:
    values, there = noise(3, 8, 8), np.ones((8, 8), bool)
    every = planes_of([BandFile("a.tif", tif(values, mask=there))])
    np.testing.assert_array_equal(every.values, values.transpose(1, 2, 0))
    there[:2] = False
    values[:, :2] = 0
    given = planes_of([BandFile("a.tif", tif(values, mask=there))], nodata=0)
    assert (given.nodata, (given.values == 0).sum()) == (0, 3 * 16)
    assert planes_of([BandFile("a.tif", tif(values, mask=there, nodata=0))]).nodata == 0
    assert fault([BandFile("a.tif", tif(values, mask=there, nodata=9))]).fault == "unstated nodata"
    assert fault([BandFile("a.tif", tif(values, mask=there))], nodata=9).fault == "unstated nodata"


def test_a_file_of_several_images_is_refused_and_one_with_overviews_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(noise(8, 8, seed=seed, dtype="uint8", high=200)) for seed in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    found = fault([BandFile("pages.tif", (tmp_path / "pages.tif").read_bytes())])
    assert found.fault == "several images"
    assert found.detail.startswith("pages.tif holds 3 images, of which one would be read; write each to a file")
    write(tmp_path / "a.tif", tif(noise(2, 64, 64)))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4])
    assert planes_of([BandFile("a.tif", (tmp_path / "a.tif").read_bytes())]).values.shape == (64, 64, 2)


def test_nodata_is_a_number_of_the_bands_type() -> None:
    lowest = float(np.finfo(np.float32).min)
    singles, doubles = noise(1, 6, 6, dtype="float32"), noise(1, 6, 6, dtype="float64")
    singles[0, 0, 0] = lowest
    assert planes_of([BandFile("a.tif", tif(singles, nodata=lowest))]).nodata == lowest
    given = fault([BandFile("a.tif", tif(doubles, nodata=float(np.finfo(np.float64).min)))])
    assert given.fault == "other nodata"
    assert given.detail.startswith("nodata -1.79769e+308 is no number of type float32 (a.tif); write the file with one")
    assert "nodata 0.5 is no number of type uint16" in fault([one("a", FINE)], nodata=0.5).detail
    for none in (float("nan"), float("-inf")):
        assert planes_of([one("a", FINE)], nodata=none).nodata is None
        assert planes_of([BandFile("a.tif", tif(singles, nodata=none))]).nodata is None


def test_a_number_that_floats_round_is_the_same_in_all_scenes() -> None:
    values = noise(1, 6, 6, dtype="float32")
    values[0, 0, 0] = -3.4e38
    first = planes_of([BandFile("a.tif", tif(values, nodata=-3.4e38))])
    assert first.nodata == float(np.float32(-3.4e38))
    assert planes_of([BandFile("b.tif", tif(values, nodata=-3.4e38))], nodata=first.nodata).nodata == first.nodata
