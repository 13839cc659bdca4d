"""Images that a network was trained on are known again by their content, wherever they lie."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data.seen import count_known, count_seen, digests_of, seen_digests, unseen
from ofav2.errors import UserError
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense


def test_files_are_known_under_other_names(tmp_path: Path, classes: Callable[..., None], notes: Notes) -> None:
    classes(tmp_path / "images", {"cat": 10, "dog": 10})
    before = data.open_data(DataConfig("imagefolder", str(tmp_path / "images"), batch_size=4))
    seen = seen_digests(before)
    assert unseen(before.test, seen) is before.test
    shutil.copytree(tmp_path / "images" / "cat", tmp_path / "others" / "lion")
    classes(tmp_path / "others", {"wolf": 10})
    after = data.open_data(DataConfig("imagefolder", str(tmp_path / "others"), batch_size=4, test_fraction=0.8))
    kept = unseen(after.test, seen)
    assert "test images that the network was trained on, left out: " in notes()
    never = {name.removeprefix("cat/") for name in before.test.images.names() or [] if name.startswith("cat")}
    lions = {name.removeprefix("lion/") for name in kept.images.names() or [] if name.startswith("lion")}
    assert lions <= never
    assert np.bincount(kept.targets)[1] == 8, "images of wolves are all new"


def test_arrays_are_known_by_their_pixels_and_a_split_of_known_ones_is_refused() -> None:
    noise = tiny.tiny_data()
    assert unseen(noise.test, seen_digests(noise)) is noise.test
    with pytest.raises(UserError, match="split val holds 23 images, and the network was trained on all of them"):
        unseen(noise.val, seen_digests(noise))


def test_windows_of_patches_are_known_by_the_patch(tmp_path: Path) -> None:
    root = str(dense.write_patches(tmp_path / "patches"))
    config = DataConfig("patches", root, target="cover", resolutions=(16,), eval_crop=1.0, bands=("red", "nir"))
    whole, windows = data.open_data(config), data.open_data(replace(config, resolutions=(8,), window=8))
    assert len(windows.train) > len(whole.train)
    assert count_known((windows.train, windows.val), whole.train, windows.test) == (len(windows.train), 0)
    assert count_known((windows.test,), whole.train, windows.train) == (0,)
    assert count_known((whole.test,), windows.test, whole.train) == (len(whole.test),)


def test_patches_are_known_in_the_bands_that_are_learnt_and_not_where_there_are_no_data(tmp_path: Path) -> None:
    root = dense.write_patches(tmp_path / "patches")
    for name in ("train", "test"):
        images = np.load(root / f"{name}_images.npy")
        images[2] = -9999
        np.save(root / f"{name}_images.npy", images)
    config = DataConfig("patches", str(root), target="cover", resolutions=(16,), eval_crop=1.0, bands=("red", "nir"))
    opened = data.open_data(config)
    assert unseen(opened.test, seen_digests(opened)) is opened.test, "patches without data are known to none"
    assert count_known((opened.test,), opened.train, opened.val) == (0,), "all patches without data look alike"
    others = shutil.copytree(root, tmp_path / "others")
    for name in ("train", "val", "test"):
        np.save(others / f"{name}_images.npy", np.load(root / f"{name}_images.npy")[..., 1:])
    text = (others / "patches.yaml").read_text()
    (others / "patches.yaml").write_text(text.replace("- blue\n", ""))
    two = data.open_data(replace(config, root=str(others)))
    assert count_known((two.test,), opened.test, opened.train) == (len(opened.test) - 1,)


def test_copies_among_a_data_sets_own_splits_are_its_own_matter(tmp_path: Path, classes: Callable[..., None]) -> None:
    noise = tiny.tiny_data()
    assert count_known((noise.test,), noise.train, noise.train) == (0,)
    assert count_known((noise.train,), noise.train, noise.test) == (len(noise.train),)
    assert count_known((noise.train,), noise.train, noise.train) == (0,)
    classes(tmp_path / "images", {"cat": 10, "dog": 10})
    files = data.open_data(DataConfig("imagefolder", str(tmp_path / "images"), batch_size=4))
    assert count_known((noise.test,), files.train, noise.train) is None, "pixels are not compared with files"


def test_patches_that_lack_a_band_are_known_by_their_others(tmp_path: Path) -> None:
    root = dense.write_patches(tmp_path / "patches")
    for name in ("train", "val", "test"):
        images = np.load(root / f"{name}_images.npy").astype(np.float32)
        images[..., 0] = np.nan if name == "test" else images[..., 0]
        np.save(root / f"{name}_images.npy", images)
    config = DataConfig("patches", str(root), target="cover", resolutions=(16,), eval_crop=1.0)
    opened = data.open_data(config)
    digests = digests_of(opened.test)
    assert (digests != 0).all()
    assert count_seen(opened.test, digests) == len(opened.test)


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_patches_without_any_data_are_known_to_none(tmp_path: Path, fill: float) -> None:
    root = dense.write_patches(tmp_path / "patches")
    for name in ("train", "val", "test"):
        images = np.load(root / f"{name}_images.npy").astype(np.float32)
        images[2] = fill
        images[2, 0, 0, 0] = 5
        np.save(root / f"{name}_images.npy", images)
    config = DataConfig("patches", str(root), target="cover", resolutions=(16,), eval_crop=1.0, bands=("blue", "nir"))
    opened = data.open_data(config)
    assert count_known((opened.test,), opened.train, opened.val) == (0,)
    assert unseen(opened.test, seen_digests(opened)) is opened.test
