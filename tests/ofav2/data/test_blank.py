"""Images that are imagined are split as real ones would be, and take no memory."""

from dataclasses import replace

import numpy as np
import pytest

from ofav2.config.schema import DataConfig
from ofav2.data.blank import blank_data
from ofav2.errors import UserError

CONFIG = DataConfig(name="imagefolder", resolutions=(16, 24), val_fraction=0.15, test_fraction=0.2)


def test_classes_are_equal_and_splits_are_the_recipes() -> None:
    data = blank_data(CONFIG, images=1_000, classes=4)
    assert [len(split) for split in (data.train, data.val, data.test)] == [680, 120, 200]
    assert np.bincount(data.test.targets).tolist() == [50] * 4
    assert data.train.images.size == (24, 24)
    assert data.train.image(3).sum() == 0
    assert [image.shape for image in data.val.images.look(np.array([5, 0, 5])).images()] == [(3, 24, 24)] * 3


def test_shots_are_the_recipes() -> None:
    data = blank_data(replace(CONFIG, shots=20), images=1_000, classes=4)
    assert [len(split) for split in (data.train, data.val, data.test)] == [80, 120, 200]


def test_a_million_images_take_no_memory() -> None:
    data = blank_data(DataConfig(name="imagefolder", resolutions=(512,)), images=1_000_000, classes=10)
    assert len(data.train.images.identity()) < 100


@pytest.mark.parametrize(("images", "classes", "words"), [(9, 4, "need 12 at least"), (9, 1, "must be 2 or more")])
def test_too_few_are_refused(images: int, classes: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        blank_data(CONFIG, images=images, classes=classes)
