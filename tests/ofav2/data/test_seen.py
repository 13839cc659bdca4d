"""Images that a network was trained on are known again by their content, wherever they lie."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data.seen import count_leaked, seen_digests, unseen
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


def test_windows_of_patches_are_known_by_the_patch_in_any_bands(tmp_path: Path) -> None:
    root = str(dense.write_patches(tmp_path / "patches"))
    whole = data.open_data(DataConfig("patches", root, target="cover", resolutions=(16,), eval_crop=1.0))
    windows = data.open_data(
        DataConfig("patches", root, target="cover", resolutions=(8,), eval_crop=1.0, window=8, bands=("red", "nir"))
    )
    assert count_leaked(windows.train, whole.train, windows.test) == len(windows.train) > len(whole.train)
    assert count_leaked(windows.test, whole.train, windows.train) == 0
    assert count_leaked(whole.test, windows.test, whole.train) == len(whole.test)


def test_copies_among_a_data_sets_own_splits_are_its_own_matter() -> None:
    noise = tiny.tiny_data()
    assert count_leaked(noise.test, noise.train, noise.train) == 0
    assert count_leaked(noise.train, noise.train, noise.test) == len(noise.train)
    assert count_leaked(noise.train, noise.train, noise.train) == 0
