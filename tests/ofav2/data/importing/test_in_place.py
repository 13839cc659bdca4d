"""Samples that stay in MajorTOM's tables are the patches that a copy of them has, to the bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, calibration_batches, eval_batches, open_data, train_batches
from ofav2.data.importing import in_place
from ofav2.data.importing.majortom import CLOUDS, import_majortom
from ofav2.data.importing.scenes import Form, Imported
from ofav2.data.patches import PatchImages
from ofav2.data.seen import seen_digests
from ofav2.errors import UserError
from ofav2.rng import Stream
from tests.ofav2.data.importing.scenes import noise, tif

BANDS = ("B02", "B05")
SAMPLES = 6


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of samples of 28 pixels, each in a cell of its own; one table has two samples in a row group."""
    root = tmp_path_factory.mktemp("tables")
    rows = [
        {
            "product_id": f"S2A_MSIL2A_20220223T033739_N0400_R061_T48TUP_{number}",
            "grid_cell": f"{number}D_378R",
            "B02": tif(noise(28, 28, seed=number, low=900), nodata=0),
            "B05": tif(noise(14, 14, seed=10 + number, low=900), pixel=20, nodata=0),
            CLOUDS: tif(noise(28, 28, seed=20 + number, dtype="uint8", low=0, high=4)),
        }
        for number in range(SAMPLES)
    ]
    (root / "north").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:4]), root / "north" / "a.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist(rows[4:]), root / "b.parquet", row_group_size=1)
    return root


def imported(root: Path, out: Path, **named: Any) -> Imported:
    given = {"side": 24, "bands": BANDS, "offset": "product_id", **named}
    return import_majortom(root, Form(**given), out, clouds=True)


def opened(root: Path, **settings: Any) -> ImageData:
    given = {"target": CLOUDS, "resolutions": (8, 12), "batch_size": 2, "eval_crop": 1.0, "val_fraction": 0.3}
    return open_data(DataConfig(name="patches", root=str(root), test_fraction=0.2, **(given | settings)))


def trained_on(data: ImageData, **settings: Any) -> list[torch.Tensor]:
    config = DataConfig(name="patches", resolutions=(8, 12), batch_size=2, **settings)
    return [part for batch in train_batches(data, config, Stream(0, "full"), range(4)) for part in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_evaluation_see_what_a_copy_shows(tables: Path, tmp_path: Path, workers: int) -> None:
    copied, listed = imported(tables, tmp_path / "a"), imported(tables, tmp_path / "b", in_place=True)
    assert listed == copied
    assert listed.patches == {"train": SAMPLES}
    assert not (tmp_path / "b" / "patches.npy").exists()
    ours, theirs = opened(tmp_path / "b"), opened(tmp_path / "a")
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
    assert (theirs.train.images.decoded, ours.train.images.decoded) == (True, False)
    found, wanted = (trained_on(data, workers=workers) for data in (ours, theirs))
    assert all(map(torch.equal, found, wanted))
    assert len(found) == len(wanted) == 8
    calibrations = [
        calibration_batches(data, resolution=8, eval_crop=1.0, images=9, batch_size=4, seed=0)
        for data in (ours, theirs)
    ]
    evaluations = [
        list(eval_batches(data.test, resolution=8, eval_crop=1.0, batch_size=4, workers=workers))
        for data in (ours, theirs)
    ]
    for some, others in (calibrations, evaluations):
        assert all(torch.equal(one.images, other.images) for one, other in zip(some, others, strict=True))
        assert all(torch.equal(one.targets, other.targets) for one, other in zip(some, others, strict=True))


def test_a_batch_decodes_each_sample_once(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(tables, tmp_path / "a", in_place=True)
    images = opened(tmp_path / "a").train.images
    assert isinstance(images, PatchImages)
    read = []
    real = in_place.read_sample
    monkeypatch.setattr(in_place, "read_sample", lambda table, at, bands: read.append(at) or real(table, at, bands))
    in_place._decoded.cache_clear()
    indices = np.array([1, 0, 1, 0, 1])
    images.cut(indices, np.zeros((5, 2), np.int64), (8, 8), np.zeros(5, np.int64))
    assert len(read) == 2


def test_a_table_that_changed_is_refused_and_a_missing_one_is_named(tables: Path, tmp_path: Path) -> None:
    shutil.copytree(tables, tmp_path / "tables")
    imported(tmp_path / "tables", tmp_path / "a", in_place=True)
    before = opened(tmp_path / "a")
    assert np.array_equal(seen_digests(before), seen_digests(opened(tmp_path / "a")))
    assert len(seen_digests(before)) == len(before.train) + len(before.val)

    table = pq.read_table(tmp_path / "tables" / "north" / "a.parquet")
    other = pa.array([tif(noise(28, 28, seed=99, low=900), nodata=0)] * 4)
    pq.write_table(table.set_column(2, "B02", other), tmp_path / "tables" / "north" / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match=r"north/a\.parquet: has other content than when it was listed; restore it, or"):
        opened(tmp_path / "a")
    whole = (tmp_path / "tables" / "north" / "a.parquet").read_bytes()
    (tmp_path / "tables" / "north" / "a.parquet").write_bytes(whole[:-200])
    with pytest.raises(
        UserError, match=r"sample \d\.\d of .*can't be read .*; restore the table, or import the tables"
    ):
        before.train.images.look(np.arange(len(before.train)))
    (tmp_path / "tables" / "north" / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"north/a\.parquet"):
        opened(tmp_path / "a")


def test_what_can_not_be_read_in_place_is_refused(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"side \(8\): a sample of 28 x 28 pixels has 9 patches of that side"):
        imported(tables, tmp_path / "a", side=8, in_place=True)
    (tmp_path / "unpacked" / "0D" / "0D_378R" / "p").mkdir(parents=True)
    (tmp_path / "unpacked" / "0D" / "0D_378R" / "p" / "B02.tif").write_bytes(tif(noise(8, 8)))
    with pytest.raises(UserError, match=r"has no \.parquet, which alone is read in place; leave out --in-place"):
        imported(tmp_path / "unpacked", tmp_path / "a", in_place=True)
    imported(tables, tmp_path / "b", in_place=True)
    listed = tmp_path / "b" / "patches.json"
    text = listed.read_text("utf-8")
    for wrong, message in (
        (text.replace("b.parquet", "../b.parquet"), r"table '\.\./b\.parquet' must be a path below source"),
        (text.replace("ofav2-samples/1", "ofav2-samples/0"), "format"),
        (text.replace('"group": 1', '"group": 7'), r"has no row 0 in group 7"),
        (text.replace('"B05"', '"B06"'), r"has bands B02, B06 and nodata 0\.0, and patches\.yaml has B02, B05"),
        (text[:-40], "JSON"),
    ):
        assert wrong != text
        listed.write_text(wrong, "utf-8")
        with pytest.raises(UserError, match=message):
            opened(tmp_path / "b")
