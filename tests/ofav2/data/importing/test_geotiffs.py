"""Folders of GeoTIFFs: how they are laid out."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.data.importing.geotiffs import Layout, import_geotiffs, list_scenes
from ofav2.data.importing.scenes import Form
from ofav2.errors import UserError
from tests.ofav2.data.importing.scenes import described, noise, stored, tif, write


def refusal(root: Path, **layout: Any) -> str:
    with pytest.raises(UserError) as raised:
        list_scenes(root, Layout(**layout))
    return str(raised.value)


def test_scenes_come_in_the_order_of_their_paths_with_splits_classes_and_places(tmp_path: Path) -> None:
    for name in (
        "train/wood/b.tif",
        "train/wood/a.TIFF",
        "test/field/c.v2.tif",
        ".hidden/d.tif",
        "train/wood/note.txt",
    ):
        write(tmp_path / name, tif(noise(1, 8, 8)))
    found = list_scenes(tmp_path, Layout(classes=True, places="file"))
    assert [(scene.name, scene.split, scene.label, scene.place) for scene in found] == [
        ("test/field/c.v2", "test", "field", "test/field/c.v2"),
        ("train/wood/a", "train", "wood", "train/wood/a"),
        ("train/wood/b", "train", "wood", "train/wood/b"),
    ]
    assert [scene.place for scene in list_scenes(tmp_path, Layout(places="folder"))] == ["field", "wood", "wood"]
    assert list_scenes(tmp_path, Layout())[0].place is None


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.tif", tif(noise(1, 8, 8)))
    write(tmp_path / "in" / "a.tif", tif(noise(1, 8, 8)))
    write(tmp_path / "in" / "own" / "c.tif", tif(noise(1, 8, 8)))
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "in" / "own"
    for name, target in (("linked", elsewhere), ("twice", elsewhere), ("loop", tmp_path / "in"), ("again", own)):
        (tmp_path / "in" / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    assert [scene.name for scene in list_scenes(tmp_path / "in", Layout())] == ["a", "linked/b", "own/c"]


def test_masks_are_found_by_the_path_of_their_scene(tmp_path: Path) -> None:
    values, mask = noise(2, 8, 8), noise(8, 8, dtype="uint8", high=5)
    write(tmp_path / "images" / "x" / "1.tif", tif(values, names=("red", "nir")))
    (tmp_path / "images" / "masks" / "x").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "images" / "masks" / "x" / "1.png")
    write(tmp_path / "images" / "masks" / "other.tif", tif(mask))
    layout = Layout(masks={"cover": tmp_path / "images" / "masks"})
    import_geotiffs(tmp_path / "images", layout, Form(masks={"cover": "codes"}), tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], values.transpose(1, 2, 0))
    np.testing.assert_array_equal(stored(tmp_path / "out", "patches_cover")[0, ..., 0], mask)
    assert described(tmp_path / "out")["bands"] == ["red", "nir"]


def test_a_folder_of_one_band_files_is_a_scene(tmp_path: Path) -> None:
    bands = {"B02": noise(8, 8), "B8A": noise(4, 4, seed=1), "B04": noise(8, 8, seed=2)}
    for name, values in bands.items():
        write(tmp_path / "in" / "S2_36_85" / f"S2_36_85_{name}.tif", tif(values, pixel=80 / len(values)))
    import_geotiffs(
        tmp_path / "in", Layout(single_bands=True, places="folder"), Form(bands=("B04", "B8A")), tmp_path / "out"
    )
    assert described(tmp_path / "out")["bands"] == ["B04", "B8A"]
    np.testing.assert_array_equal(stored(tmp_path / "out")[0, ..., 0], bands["B04"])


def test_bands_are_named_by_their_order_if_files_do_not(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", tif(noise(3, 8, 8)))
    layout, form = Layout(band_names=("red", "green", "blue")), Form(bands=("blue", "red"))
    import_geotiffs(tmp_path / "in", layout, form, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], noise(3, 8, 8)[[2, 0]].transpose(1, 2, 0))


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"folder ({tmp_path}): holds no file .tif or .tiff; correct the path"
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "none")
    write(tmp_path / "a.tif", tif(noise(1, 8, 8)))
    assert "lies in no folder that names its class" in refusal(tmp_path, classes=True)
    assert f"masks of cover ({tmp_path / 'none'}): is no folder" in refusal(
        tmp_path, masks={"cover": tmp_path / "none"}
    )
    write(tmp_path / "a.tiff", tif(noise(1, 8, 8)))
    assert "a.tif and a.tiff are one scene by their name" in refusal(tmp_path)


@pytest.mark.parametrize("places", ["file", "folder"])
def test_splits_whose_files_have_the_same_names_are_kept_apart(
    tmp_path: Path, places: Literal["file", "folder"]
) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write(tmp_path / "in" / split / "000.tif", tif(noise(1, 8, 8, seed=seed)))
    import_geotiffs(tmp_path / "in", Layout(places=places), Form(), tmp_path / "out")
    config = DataConfig("patches", str(tmp_path / "out"), resolutions=(8,), batch_size=2, eval_crop=1.0)
    data = open_data(config)
    assert [len(split) for split in (data.train, data.val, data.test)] == [1, 1, 1]


def test_a_site_in_two_splits_is_one_place(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write(tmp_path / "in" / split / f"site{seed % 2}" / f"{seed}.tif", tif(noise(1, 8, 8, seed=seed)))
    assert [scene.place for scene in list_scenes(tmp_path / "in", Layout(places="folder"))] == [
        "site0",
        "site0",
        "site1",
    ]
    import_geotiffs(tmp_path / "in", Layout(places="folder"), Form(), tmp_path / "out")
    with pytest.raises(UserError, match=r"site0.*put all patches of a place into one split"):
        open_data(DataConfig("patches", str(tmp_path / "out"), resolutions=(8,), batch_size=2, eval_crop=1.0))


def test_splits_may_have_the_names_that_they_have_elsewhere(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/a", "validation/b", "test/c", "other/d")):
        write(tmp_path / "in" / f"{name}.tif", tif(noise(1, 8, 8, seed=seed)))
    found = import_geotiffs(tmp_path / "in", Layout(places="file"), Form(), tmp_path / "out")
    assert found.patches == {"train": 2, "val": 1, "test": 1}
    assert [scene.split for scene in list_scenes(tmp_path / "in", Layout())] == [None, "test", "train", "val"]
    write(tmp_path / "in" / "Test" / "e.tif", tif(noise(1, 8, 8)))
    with pytest.raises(UserError, match=r"Test: splits are called train, val and test; rename it to test"):
        list_scenes(tmp_path / "in", Layout())


def test_a_file_called_test_is_a_scene(tmp_path: Path) -> None:
    write(tmp_path / "test.tif", tif(noise(1, 8, 8)))
    (found,) = list_scenes(tmp_path, Layout(places="file"))
    assert (found.name, found.split, found.place) == ("test", None, "test")
    (found,) = list_scenes(tmp_path, Layout(places="folder"))
    assert found.place == tmp_path.name


@pytest.mark.parametrize("suffix", [".TIF", ".Tif", ".TIFF", ".tiff"])
def test_masks_are_found_whatever_the_case_of_their_suffix(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "in" / f"a{suffix}", tif(noise(1, 8, 8)))
    mask = noise(8, 8, dtype="uint8", high=5)
    write(tmp_path / "masks" / f"a{suffix}", tif(mask))
    layout = Layout(masks={"cover": tmp_path / "masks"})
    import_geotiffs(tmp_path / "in", layout, Form(masks={"cover": "codes"}), tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out", "patches_cover")[0, ..., 0], mask)
