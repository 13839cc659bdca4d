"""Data sets by name, the digits, and settings that are refused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, Split
from ofav2.errors import UserError
from ofav2.messages import show
from tests.ofav2.data.conftest import write_image

DIGITS = DataConfig(name="digits", resolutions=(16,))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return data.open_data(DIGITS)


def contents(*splits: Split) -> Counter[tuple[int, bytes]]:
    return Counter(
        (int(split.targets[i]), split.image(i).numpy().tobytes()) for split in splits for i in range(len(split))
    )


def test_names_are_those_of_the_recipes() -> None:
    assert data.names() == ("digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "imagefolder", "patches")


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar", "did you mean cifar10?"), ("tinyimagenet", "did you mean tiny_imagenet?"), ("", "own")]
)
def test_an_unknown_name_lists_what_there_is(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        data.open_data(replace(DIGITS, name=name))
    message = str(caught.value)
    assert message.startswith(f"data.name ({name})")
    assert all(known in message for known in data.names())
    assert hint in message


def test_digits_are_scaled_exactly_and_repeated_to_three_channels(digits: ImageData) -> None:
    bunch = load_digits()
    expected: Counter[tuple[int, bytes]] = Counter()
    for grey, label in zip(bunch.images, bunch.target, strict=True):
        rows = [[round(int(value) * 255 / 16) for value in row] for row in grey]
        expected[int(label), np.array([rows] * 3, dtype=np.uint8).tobytes()] += 1
    assert contents(digits.train, digits.val, digits.test) == expected
    first = digits.train.image(0)
    assert (first.dtype, tuple(first.shape)) == (torch.uint8, (3, 8, 8))


def test_digits_hold_out_test_and_then_validation_by_class(digits: ImageData) -> None:
    totals = np.bincount(load_digits().target)
    test = np.floor(totals * 0.2 + 0.5)
    assert np.bincount(digits.test.targets).tolist() == test.tolist()
    assert np.bincount(digits.val.targets).tolist() == np.floor((totals - test) * 0.15 + 0.5).tolist()
    assert (digits.train.name, digits.val.name, digits.test.name) == ("train", "val", "test")
    assert digits.train.targets.dtype == np.int64


def test_digits_describe_themselves(digits: ImageData) -> None:
    assert (digits.name, digits.channels, digits.classes) == ("digits", 3, tuple("0123456789"))
    pixels = np.round(load_digits().images * 255 / 16) / 255
    assert digits.mean == pytest.approx((pixels.mean(),) * 3, abs=1e-4)
    assert digits.std == pytest.approx((pixels.std(),) * 3, abs=1e-4)


def test_the_test_split_depends_on_neither_the_validation_share_nor_training_settings(digits: ImageData) -> None:
    other = data.open_data(replace(DIGITS, val_fraction=0.4, batch_size=32, resolutions=(24,)))
    assert contents(other.test) == contents(digits.test)
    assert other.fingerprint != digits.fingerprint
    assert data.open_data(replace(DIGITS, batch_size=32, resolutions=(24,))).fingerprint == digits.fingerprint


def test_the_split_follows_its_seed(digits: ImageData) -> None:
    other = data.open_data(replace(DIGITS, split_seed=1))
    assert contents(other.test) != contents(digits.test)
    assert contents(other.val) != contents(digits.val)
    assert other.fingerprint != digits.fingerprint


def test_given_colours_replace_the_data_sets_own() -> None:
    opened = data.open_data(replace(DIGITS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert (opened.mean, opened.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resolutions", ()),
        ("resolutions", (16, 0)),
        ("resolutions", (16, 24, 16)),
        ("batch_size", 1),
        ("workers", -1),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("test_fraction", 1.2),
        ("split_seed", -1),
        ("crop_scale", (0.9, 0.8)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.1)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (1.0, float("inf"))),
        ("cache_gib", 0.0),
        ("cache_gib", float("inf")),
        ("jitter", (3.0, 0.0, 0.0, 0.0)),
        ("randaugment", (17, 9)),
        ("mixup", 0.001),
        ("jitter", (0.0, 0.0, 0.0, 0.6)),
        ("jitter", (-0.1, 0.0, 0.0, 0.0)),
        ("randaugment", (2, 31)),
        ("randaugment", (-1, 9)),
        ("mixup", -0.1),
        ("cutmix", float("nan")),
        ("eval_crop", 0.0),
        ("eval_crop", 1.01),
        ("mean", (123.7, 116.3, 103.5)),
        ("std", (0.2, 0.0, 0.2)),
    ],
)
def test_an_impossible_setting_is_refused_by_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        data.open_data(replace(DIGITS, **{key: value}))
    assert str(caught.value).startswith(f"data.{key} ({show(value)}): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "refused"),
    [("images", True), ("images/runs/a", True), ("images/.runs/a", False), ("elsewhere", False), ("images2", False)],
)
def test_nothing_is_written_to_where_images_are_looked_for(inside: str, refused: bool, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_image(tmp_path / "images" / name / "0.png")
        write_image(tmp_path / "images" / name / "1.png")
        write_image(tmp_path / "images" / name / "2.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    config = replace(DIGITS, name="imagefolder", root=str(tmp_path / "link"), batch_size=2)
    opened = data.open_data(config)
    kept = replace(config, cache=str(tmp_path / inside))
    if refused:
        with pytest.raises(UserError, match=r"^data\.cache .*: lies in .*images, where it would be taken for images"):
            data.open_data(kept)
        with pytest.raises(UserError, match=r"^run folder .*give a folder outside of it"):
            data.refuse_inside(opened.trees, tmp_path / inside, "run folder")
        assert not (tmp_path / inside / "imagefolder").exists()
    for _ in range(0 if refused else 2):
        assert data.open_data(kept).fingerprint == opened.fingerprint
    assert data.open_data(config).fingerprint == opened.fingerprint


def test_settings_without_effect_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"data\.root .*set data\.root=null"):
        data.open_data(replace(DIGITS, root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.download \(true\).*cifar10, cifar100"):
        data.open_data(replace(DIGITS, name="imagefolder", root=str(tmp_path), download=True))
    with pytest.raises(UserError, match=r"data\.cache .*digits is no folder of images; set data\.cache=null"):
        data.open_data(replace(DIGITS, cache=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.bad_images \(skip\).*set data\.bad_images=refuse"):
        data.open_data(replace(DIGITS, bad_images="skip"))
    with pytest.raises(UserError, match=r"data\.bad_images \(skip\).*set data\.cache=FOLDER"):
        data.open_data(replace(DIGITS, name="imagefolder", root=str(tmp_path), bad_images="skip"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet", "imagenet", "imagefolder"])
def test_a_data_set_of_files_needs_a_folder_that_exists(name: str, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.root \(null\): {name} .*set data\.root=FOLDER"):
        data.open_data(replace(DIGITS, name=name))
    missing = tmp_path / "missing"
    with pytest.raises(UserError) as caught:
        data.open_data(replace(DIGITS, name=name, root=str(missing)))
    assert str(missing) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not missing.exists()
