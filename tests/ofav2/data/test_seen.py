"""Images that a network was trained on are known again by their content, wherever they lie."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data.seen import seen_digests, unseen
from ofav2.errors import UserError
from tests.notes import Notes
from tests.ofav2 import tiny


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
