"""Data sets in folders: the layouts that are read, and the folders that are refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, Split
from ofav2.data.cache import CheckedImages
from ofav2.errors import UserError

WNIDS = ("n01", "n02", "n03")


def open_at(name: str, root: Path, val_fraction: float = 0.25, test_fraction: float = 0.2) -> ImageData:
    return data.open_data(DataConfig(name=name, root=str(root), val_fraction=val_fraction, test_fraction=test_fraction))


def files(split: Split) -> list[str]:
    assert isinstance(split.images, CheckedImages)
    return [str(split.images.files.path(i)) for i in range(len(split))]


def refusal(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_at(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


# Tiny ImageNet


def test_tiny_imagenet_is_read_from_its_original_layout(tiny: Path) -> None:
    opened = open_at("tiny_imagenet", tiny)
    assert opened.classes == ("goldfish, Carassius auratus", "salamander", "n03")
    assert sorted(files(opened.train) + files(opened.val)) == sorted(
        str(tiny / "train" / wnid / "images" / f"{wnid}_{number}.JPEG") for wnid in WNIDS for number in range(8)
    )
    for split, count in ((opened.train, 6), (opened.val, 2)):
        assert np.bincount(split.labels).tolist() == [count] * 3
        assert [Path(file).parts[-3] for file in files(split)] == [WNIDS[label] for label in split.labels]


def test_tiny_imagenets_labelled_val_images_are_the_test_split(tiny: Path) -> None:
    test = open_at("tiny_imagenet", tiny).test
    annotated = dict(line.split("\t")[:2] for line in (tiny / "val/val_annotations.txt").read_text().splitlines())
    assert {Path(file).name: WNIDS[label] for file, label in zip(files(test), test.labels, strict=True)} == annotated
    with Image.open(files(test)[3]) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(test.image(3).numpy().astype(int) - expected).max() <= 1  # decoders may round differently


def test_tiny_imagenet_needs_no_words(tiny: Path) -> None:
    (tiny / "words.txt").unlink()
    assert open_at("tiny_imagenet", tiny).classes == WNIDS


def test_a_root_above_tiny_imagenet_is_told_where_to_go(tiny: Path) -> None:
    assert f"set data.root={tiny}" in refusal("tiny_imagenet", tiny.parent)


def damage_annotation_of_unknown_class(root: Path) -> None:
    text = (root / "val/val_annotations.txt").read_text()
    (root / "val/val_annotations.txt").write_text(text.replace("n03", "n99", 1))


def damage_annotation_without_class(root: Path) -> None:
    with (root / "val/val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\n")


def damage_annotation_twice(root: Path) -> None:
    with (root / "val/val_annotations.txt").open("a") as file:
        file.write("val_2.JPEG\tn03\t0\t0\t1\t1\n")


def damage_class_without_annotation(root: Path) -> None:
    lines = (root / "val/val_annotations.txt").read_text().splitlines(keepends=True)
    gone = [line for line in lines if "\tn03\t" in line]
    (root / "val/val_annotations.txt").write_text("".join(line for line in lines if line not in gone))
    for line in gone:
        (root / "val/images" / line.split("\t")[0]).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "wnids.txt is missing"),
        (lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe"), "wnids.txt: cannot be read"),
        (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt: cannot be read"),
        (
            lambda root: (root / "val/images/val_2.JPEG").unlink(),
            "image 'val_2.JPEG' of val_annotations.txt is missing",
        ),
        (lambda root: (root / "val/images/val_2.JPEG").rename(root / "val/images/x.jpg"), "'val_2.JPEG'"),
        (lambda root: shutil.copy(root / "val/images/val_2.JPEG", root / "val/images/x.JPEG"), "'x.JPEG' is not in"),
        (lambda root: shutil.rmtree(root / "train/n02"), "class 'n02' of wnids.txt is missing"),
        (lambda root: shutil.copytree(root / "train/n02", root / "train/n04"), "class 'n04' is not in wnids.txt"),
        (lambda root: shutil.rmtree(root / "train/n02/images"), "n02/images: cannot be read (No such file"),
        (lambda root: emptied(root / "train/n02/images"), "n02/images: no image in it"),
        (damage_annotation_of_unknown_class, "val_annotations.txt, line 5"),
        (damage_annotation_without_class, "val_annotations.txt, line 7 ('val_9.JPEG')"),
        (damage_annotation_twice, "val_annotations.txt, line 7"),
        (damage_class_without_annotation, "class 'n03' has no image"),
    ],
)
def test_a_damaged_tiny_imagenet_is_refused(tiny: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(tiny)
    assert told in refusal("tiny_imagenet", tiny)


# ImageNet


def test_imagenet_tests_on_its_val_folder(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path / "train", {"n02": 8, "n01": 4}, ".JPEG")
    classes(tmp_path / "val", {"n01": 1, "n02": 2}, ".JPEG")
    opened = open_at("imagenet", tmp_path)
    assert opened.classes == ("n01", "n02")
    assert [Path(file).parts[-3:] for file in files(opened.test)] == [
        ("val", "n01", "000.JPEG"),
        ("val", "n02", "000.JPEG"),
        ("val", "n02", "001.JPEG"),
    ]
    assert opened.test.labels.tolist() == [0, 1, 1]
    assert np.bincount(opened.val.labels).tolist() == [1, 2]
    assert not set(files(opened.train)) & set(files(opened.val))
    assert (len(opened.train), len(opened.val)) == (9, 3)


def test_imagenet_with_unsorted_validation_images_is_refused(
    tmp_path: Path, classes: Callable[..., None], image: Callable[..., None]
) -> None:
    classes(tmp_path / "train", {"n01": 4, "n02": 4})
    image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert f"folder {tmp_path / 'val'}: class 'n01' of train is missing" in refusal("imagenet", tmp_path)


# Folders of classes


def test_a_flat_folder_of_classes_is_split_in_three(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {"dog": 10, "Cat": 20, "train": 10}, ".png")  # a class may well be called train
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    opened = open_at("imagefolder", tmp_path)
    assert opened.classes == ("Cat", "dog", "train")
    assert [np.bincount(split.labels).tolist() for split in (opened.train, opened.val, opened.test)] == [
        [12, 6, 6],
        [4, 2, 2],
        [4, 2, 2],
    ]
    everything = files(opened.train) + files(opened.val) + files(opened.test)
    assert sorted(everything) == sorted(str(file) for file in tmp_path.glob("*/*.png"))


@pytest.mark.parametrize("given", [(), ("val",), ("test",), ("val", "test")])
def test_splits_that_are_there_are_kept_and_others_are_drawn_from_train(
    given: tuple[str, ...], tmp_path: Path, classes: Callable[..., None]
) -> None:
    classes(tmp_path / "train", {"a": 20, "b": 20})
    for name in given:
        classes(tmp_path / name, {"a": 3, "b": 3})
    opened = open_at("imagefolder", tmp_path)
    taken = 0
    for name, split, share in (("test", opened.test, 4), ("val", opened.val, 5 if "test" in given else 4)):
        folder = {Path(file).parts[-3] for file in files(split)}
        assert folder == ({name} if name in given else {"train"})
        assert np.bincount(split.labels).tolist() == ([3, 3] if name in given else [share, share])
        taken += 0 if name in given else 2 * share
    assert len(opened.train) == 40 - taken
    everything = [file for split in (opened.train, opened.val, opened.test) for file in files(split)]
    assert sorted(everything) == sorted(str(file) for file in tmp_path.glob("*/*/*.jpg"))


def test_names_beyond_ascii_and_links_are_followed(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path / "elsewhere", {"été": 4})
    classes(tmp_path / "root", {"höhe": 4, "b c": 4})
    (tmp_path / "root" / "été").symlink_to(tmp_path / "elsewhere" / "été")
    opened = open_at("imagefolder", tmp_path / "root")
    assert opened.classes == ("b c", "höhe", "été")
    assert tuple(opened.train.image(len(opened.train) - 1).shape) == (3, 10, 12)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (".png", "L"),
        (".png", "LA"),
        (".png", "1"),
        (".png", "P"),
        (".png", "RGBA"),
        (".jpg", "L"),
        (".jpeg", "CMYK"),
        (".webp", "RGBA"),
        (".PNG", "RGB"),
    ],
)
def test_other_kinds_of_images_become_rgb(
    suffix: str, mode: str, tmp_path: Path, classes: Callable[..., None], image: Callable[..., None]
) -> None:
    classes(tmp_path, {"a": 4, "b": 4})
    for number in range(4):
        (tmp_path / "a" / f"{number:03d}.jpg").unlink()
        image(tmp_path / "a" / f"{number}{suffix}", mode=mode)
    train = open_at("imagefolder", tmp_path).train
    decoded = train.image(0)
    assert (decoded.dtype, tuple(decoded.shape)) == (torch.uint8, (3, 10, 12))
    with Image.open(files(train)[0]) as reference:
        expected = np.asarray(reference.convert("RGB")).transpose(2, 0, 1).astype(int)
    assert np.abs(decoded.numpy() - expected).max() <= 1


def test_16_bit_images_keep_their_upper_half(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {"a": 4, "b": 4}, ".png")
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    for number in range(4):
        Image.fromarray(values).save(tmp_path / "a" / f"{number:03d}.png")
    decoded = open_at("imagefolder", tmp_path).train.image(0)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, torch.from_numpy((values // 256).astype(np.uint8)).expand(3, 8, 8))


def test_the_fingerprint_notices_changed_added_and_moved_images(tmp_path: Path, classes: Callable[..., None]) -> None:
    root = tmp_path / "here"
    classes(root, {"a": 6, "b": 6})
    first = open_at("imagefolder", root).fingerprint
    root.rename(tmp_path / "there")
    root = tmp_path / "there"
    assert open_at("imagefolder", root).fingerprint == first
    os.utime(root / "a/000.jpg")
    assert open_at("imagefolder", root).fingerprint == first, "times say nothing about images"
    content = bytearray((root / "a/000.jpg").read_bytes())
    content[-20] ^= 1
    (root / "a/000.jpg").write_bytes(content)
    second = open_at("imagefolder", root).fingerprint
    shutil.copy(root / "a/000.jpg", root / "a/007.jpg")
    third = open_at("imagefolder", root).fingerprint
    (root / "a/007.jpg").rename(root / "b/007.jpg")
    fourth = open_at("imagefolder", root).fingerprint
    assert len({first, second, third, fourth}) == 4


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty class": (lambda root: (root / "train/c").mkdir(), "train/c: no image in it"),
    "class of other files": (lambda root: (root / "train/a/x.bmp").write_bytes(b"BM"), "x.bmp: read are .jpg"),
    "class with folders": (lambda root: (root / "train/a/deep").mkdir(), "train/a: images lie directly in"),
    "class missing from val": (lambda root: shutil.rmtree(root / "val/b"), "val: class 'b' of train is missing"),
    "class missing from train": (lambda root: shutil.rmtree(root / "train/b"), "'a'"),
    "class only in test": (lambda root: shutil.copytree(root / "test/a", root / "test/z"), "'z' is not in train"),
    "empty class in test": (
        lambda root: emptied(root / "test/a"),
        "test/a: no image in it",
    ),
    "empty test": (lambda root: emptied(root / "test"), "test: beside train"),
    "split of another name": (lambda root: (root / "val").rename(root / "valid"), "valid: beside train"),
    "no train": (lambda root: shutil.rmtree(root / "train"), "images lie directly in a class folder"),
    "root is a file": (lambda root: replaced_by_a_file(root), "cannot be read (Not a directory)"),
    "root is empty": (lambda root: emptied(root), "two or more class folders are needed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused(case: str, tmp_path: Path, classes: Callable[..., None]) -> None:
    root = tmp_path / "root"
    for split in ("train", "val", "test"):
        classes(root / split, {"a": 4, "b": 4})
    damage, told = HOSTILE[case]
    damage(root)
    message = refusal("imagefolder", root)
    assert told in message
    assert str(root) in message


def test_a_class_with_too_few_images_to_split_is_refused(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {"a": 9, "b": 2})
    assert "class 'b' (1 image left in train)" in refusal("imagefolder", tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_damaged_image_is_named(
    content: bytes | str, suffix: str, tmp_path: Path, classes: Callable[..., None]
) -> None:
    classes(tmp_path, {"a": 4, "b": 4}, suffix)
    train = open_at("imagefolder", tmp_path).train
    file = Path(files(train)[0])
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        train.image(0)
    assert str(caught.value).startswith(f"image {file}: cannot be decoded")
    assert "\n" not in str(caught.value)
