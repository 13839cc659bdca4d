"""The patches of the water set: which are of one place, and what is written."""

from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from benchmarks import water_set
from benchmarks.water_set import BANDS, LARGE, RUN, SHARED, TEST, VALIDATION, find_places, split_by_place
from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.data.readers.patches import read_description
from ofav2.errors import UserError

SIDE = 48
"""Pixels of a patch's side in these tests."""


def hills(rng: np.random.Generator, count: int) -> water_set.Planes:
    """Elevation of different places."""
    return rng.integers(0, 2000, (count, SIDE, SIDE)).astype(np.int16)


def runs_in_common(first: water_set.Planes, second: water_set.Planes) -> int:
    """Different runs that two patches share, one compared with each other."""
    found = [
        {tuple(row[at : at + RUN]) for row in patch.tolist() for at in range(SIDE - RUN + 1)}
        for patch in (first, second)
    ]
    steep = {run for run in found[0] if max(run) - min(run) >= 12 and len(set(run)) >= 10}
    return len(steep & found[1])


def test_patches_that_share_ground_are_of_one_place() -> None:
    rng = np.random.default_rng(3)
    elevation = hills(rng, 9)
    cover = rng.integers(1, 9, elevation.shape).astype(np.int16)
    elevation[3, 10:13, 5 : 5 + RUN] = elevation[1, 20:23, 9 : 9 + RUN]
    elevation[5, 0, : RUN + 2] = elevation[3, 40, -RUN - 2 :]
    elevation[6, :2, :RUN] = elevation[0, :2, :RUN]
    elevation[7, :30] = elevation[2, :30] = 17
    cover[8] = cover[4]
    shared = {pair: runs_in_common(elevation[pair[0]], elevation[pair[1]]) for pair in combinations(range(9), 2)}
    assert {pair for pair, count in shared.items() if count >= SHARED} == {(1, 3), (3, 5)}
    assert shared[0, 6] == 2, "two runs may be chance"
    assert find_places(elevation, cover).tolist() == [0, 1, 2, 1, 4, 1, 6, 7, 4]


def test_no_place_is_in_two_splits_and_large_ones_train() -> None:
    sizes = np.random.default_rng(5).integers(1, 14, 60)
    places = np.random.default_rng(6).permutation(np.repeat(np.arange(60), sizes))
    splits = split_by_place(places, 0)
    found = {name: set(places[patches].tolist()) for name, patches in splits.items()}
    assert sorted(chain(*splits.values())) == list(range(len(places)))
    assert sum(map(len, found.values())) == 60
    assert set(np.flatnonzero(sizes >= LARGE).tolist()) <= found["train"]
    assert TEST <= len(splits["test"]) < TEST + LARGE
    assert VALIDATION <= len(splits["val"]) < VALIDATION + LARGE
    assert splits == split_by_place(places, 0)
    assert splits != split_by_place(places, 1)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of the water set: 16 patches; the first three are of one large place, and two others of one."""
    for name, value in {"LARGE": 3, "TEST": 4, "VALIDATION": 3}.items():
        monkeypatch.setattr(water_set, name, value)
    rng = np.random.default_rng(11)
    for name in ("images", "masks"):
        (tmp_path / "checkout" / "data" / name).mkdir(parents=True)
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": len(BANDS), "dtype": "int16"}
    planes = rng.integers(-40, 4000, (16, len(BANDS), SIDE, SIDE)).astype(np.int16)
    planes[:, BANDS.index("worldcover")] = rng.choice((10, 40, 80), (16, SIDE, SIDE))
    planes[:, BANDS.index("jrc_occurrence")] = rng.integers(0, 112, (16, SIDE, SIDE))
    planes[(1, 2, 9), BANDS.index("elevation"), :4] = planes[(0, 0, 5), BANDS.index("elevation"), :4]
    for number, scene in enumerate(planes):
        with (
            pytest.warns(NotGeoreferencedWarning),
            rasterio.open(tmp_path / f"checkout/data/images/{number}.tif", "w", **profile) as file,
        ):
            file.write(scene)
        mask = (scene[4] < 500) * (number >= 4)
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"checkout/data/masks/{number}.png")
    return tmp_path / "checkout"


@pytest.mark.parametrize("split", ["places", "published"])
def test_what_is_written_opens_with_its_targets(
    checkout: Path, tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "patches"
    water_set.main([str(checkout), str(out), "--split", split])
    said = capsys.readouterr().out
    planes, masks = water_set.read_scenes(checkout)
    expected = {
        "water": masks,
        "landcover": planes[..., 10],
        "occurrence": planes[..., 11].clip(0, 100),
        "elevation": planes[..., 9],
    }
    found: dict[str, list[int]] = {}
    for name in ("train", "test") if split == "published" else ("train", "val", "test"):
        images = np.load(out / f"{name}.npy")
        found[name] = [next(number for number in range(16) if (planes[number] == image).all()) for image in images]
        assert f"{name}: {len(images)} patches in " in said
        for target, values in expected.items():
            np.testing.assert_array_equal(np.load(out / f"{name}_{target}.npy"), values[found[name]])
    assert sorted(chain(*found.values())) == list(range(16))
    if split == "published":
        wet = [np.load(out / f"{name}_water.npy").any((1, 2)).mean() for name in found]
        assert wet == [0.75, 0.75], "as many patches without water in both"
    else:
        assert {0, 1, 2} <= set(found["train"])
        assert len({name for name, patches in found.items() for number in (5, 9) if number in patches}) == 1
    assert read_description(out).bands == BANDS
    config = DataConfig("patches", str(out), target="water", resolutions=(16,), eval_crop=1.0)
    data = open_data(config)
    assert len(data.test) == len(found["test"])
    assert len(data.train) + len(data.val) == 16 - len(data.test)


def test_what_does_not_fit_is_refused(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        water_set.main([str(checkout), str(tmp_path / "out"), "--split", "published", "--seed", "1"])
    with pytest.raises(UserError, match=r"^CHECKOUT \(.*\): has no file data/images/0.tif"):
        water_set.main([str(tmp_path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
