"""MajorTOM: parquet, unpacked folders and plain GeoTIFFs of the same scenes give the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofav2.data.importing.geotiffs import Layout, import_geotiffs
from ofav2.data.importing.majortom import BANDS, CLOUDS, import_majortom
from ofav2.data.importing.scenes import Form, Imported
from ofav2.errors import UserError
from tests.ofav2.data.importing.scenes import described, finer, noise, stored, tif, write

FINE = ("B02", "B03", "B04", "B08")
CELLS = ("38D_378R", "609U_541L", "637U_59R")
PRODUCT = "S2B_MSIL2A_20220223T033739_N0400_R061_T48TUP_{}"


def samples() -> list[dict[str, npt.NDArray[Any]]]:
    """Bands of three samples: 10 m and 20 m, and a cloud mask."""
    found = []
    for number in range(len(CELLS)):
        sides = {name: 24 if name in FINE else 12 for name in BANDS}
        bands = {name: noise(side, side, seed=10 * number + k) for k, (name, side) in enumerate(sides.items())}
        found.append({**bands, CLOUDS: noise(24, 24, seed=number, dtype="uint8", low=0, high=3)})
    return found


def cells(sample: dict[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    return {
        name: tif(values, pixel=240 / len(values), nodata=None if name == CLOUDS else 0)
        for name, values in sample.items()
    }


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a parquet file with a sample per row group, and the index, which holds no images."""
    root = tmp_path_factory.mktemp("images")
    rows = [
        {"product_id": PRODUCT.format(number), "grid_cell": cell, "thumbnail": b"", **cells(sample)}
        for number, (cell, sample) in enumerate(zip(CELLS, samples(), strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "part_00001.parquet", row_group_size=1)
    pq.write_table(pa.table({"grid_cell": list(CELLS)}), root / "metadata.parquet")
    return root


def imported(root: Path, out: Path, *, bands: tuple[str, ...] = BANDS, side: int = 8, **named: Any) -> Imported:
    given = {key: named.pop(key) for key in ("clouds", "limit") if key in named}
    return import_majortom(root, Form(side=side, bands=bands, **named), out, **given)


def test_nodata_that_cells_do_not_state_may_be_given(parquet: Path, tmp_path: Path) -> None:
    for in_place in (False, True):
        out = tmp_path / str(in_place)
        imported(parquet, out, side=24, nodata=0, in_place=in_place)
        assert described(out)["nodata"] == 0
    with pytest.raises(UserError, match="states nodata 0, and has pixels of value 7"):
        imported(parquet, tmp_path / "other", nodata=7)


def test_all_forms_of_the_same_scenes_give_the_same_bytes(parquet: Path, tmp_path: Path) -> None:
    for number, (cell, sample) in enumerate(zip(CELLS, samples(), strict=True)):
        folder = tmp_path / "unpacked" / cell.split("_")[0] / cell / PRODUCT.format(number)
        for name, content in cells(sample).items():
            write(folder / f"{name}.tif", content)
        planes = [sample[name] if name in FINE else np.rint(finer(sample[name], 2)) for name in BANDS]
        write(tmp_path / "tifs" / cell / "0.tif", tif(np.stack(planes).astype(np.uint16), nodata=0, names=BANDS))
    told = imported(parquet, tmp_path / "a", clouds=True)
    imported(tmp_path / "unpacked", tmp_path / "b", clouds=True)
    import_geotiffs(tmp_path / "tifs", Layout(places="folder"), Form(side=8), tmp_path / "c")
    assert (told.patches, told.scenes, told.places) == ({"train": 27}, 3, 3)
    for name in ("patches.npy", "patches.txt"):
        first, *others = [(tmp_path / folder / name).read_bytes() for folder in "abc"]
        assert all(other == first for other in others)
    clouds = stored(tmp_path / "a", f"patches_{CLOUDS}")
    np.testing.assert_array_equal(clouds, stored(tmp_path / "b", f"patches_{CLOUDS}"))
    # The released code divides the mask by 10,000, so that classes 1 to 3 never occur.
    expected = [np.bincount(sample[CLOUDS].ravel(), minlength=4) for sample in samples()]
    np.testing.assert_array_equal(np.bincount(clouds.ravel(), minlength=4), np.sum(expected, 0))
    assert described(tmp_path / "a")["targets"][CLOUDS]["codes"] == [0, 1, 2, 3]


def test_some_bands_of_some_samples_with_the_offset_that_products_tell(parquet: Path, tmp_path: Path) -> None:
    imported(parquet, tmp_path / "a", bands=("B8A", "B02"), side=24, limit=2, offset="product_id")
    found = stored(tmp_path / "a")
    assert found.shape == (2, 24, 24, 2)
    expected = np.maximum(samples()[1]["B02"].astype(int) - 1000, 1)
    np.testing.assert_array_equal(found[1, ..., 1], expected)
    assert described(tmp_path / "a")["about"] == "MajorTOM; by product_id: 1000 subtracted from 2 scenes"


def refusal(root: Path, out: Path, **named: Any) -> str:
    with pytest.raises(UserError) as raised:
        imported(root, out, **named)
    assert not out.exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_truncated_table_is_refused_or_left_out(parquet: Path, tmp_path: Path) -> None:
    whole = (parquet / "part_00001.parquet").read_bytes()
    write(tmp_path / "in" / "a.parquet", whole)
    write(tmp_path / "in" / "b.parquet", whole[: len(whole) // 2])
    message = refusal(tmp_path / "in", tmp_path / "out")
    assert "b.parquet can't be read (Parquet magic bytes not found" in message
    told = imported(tmp_path / "in", tmp_path / "out", broken="skip")
    assert (told.patches, told.left_out) == ({"train": 27}, {"unreadable table": 1})


def test_damaged_images_in_a_table_are_left_out_row_by_row(tmp_path: Path) -> None:
    rows = [
        {"product_id": "p", "grid_cell": cell, **cells(sample)} for cell, sample in zip(CELLS, samples(), strict=True)
    ]
    rows[0]["B05"] = rows[0]["B05"][:200]
    rows[1]["B11"] = None
    write(tmp_path / "in" / "none", b"")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet", row_group_size=2)
    assert "a.parquet:B05 can't be decoded" in refusal(tmp_path / "in", tmp_path / "out")
    told = imported(tmp_path / "in", tmp_path / "out", broken="skip")
    assert (told.scenes, told.left_out) == (1, {"unreadable file": 2})
    assert (tmp_path / "out" / "patches.txt").read_text() == f"{CELLS[2]}\n" * 9
    message = refusal(tmp_path / "in", tmp_path / "none", offset="product_id", broken="skip")
    assert "none can be used (unknown baseline 1, unreadable file 2)" in message


def test_sources_that_do_not_fit_are_refused(parquet: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet and no folder of .tif" in refusal(tmp_path / "empty", tmp_path / "out")
    assert "cannot be read (No such file" in refusal(tmp_path / "none", tmp_path / "out")
    assert "column B10 is missing of product_id" in refusal(parquet, tmp_path / "out", bands=("B02", "B10"))
    write(tmp_path / "in" / "38D" / "38D_378R" / "p" / "B02.tif", tif(noise(8, 8)))
    assert "p/B03.tif is missing" in refusal(tmp_path / "in", tmp_path / "out")
    assert "side (7): the coarsest band" in refusal(parquet, tmp_path / "out", side=7)
