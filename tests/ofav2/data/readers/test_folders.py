"""Data sets in folders: the layouts that are read, and the folders that are refused."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, Split
from ofav2.data.cache import CheckedImages
from ofav2.data.headers import count_turned
from ofav2.data.readers.folders import pictures_below
from ofav2.errors import UserError
from tests.notes import Notes

WNIDS = ("n01", "n02", "n03")


def open_at(name: str, root: Path, **changes: Any) -> ImageData:
    settings: dict[str, Any] = {"val_fraction": 0.25, "test_fraction": 0.2}
    return data.open_data(DataConfig(name=name, root=str(root), **(settings | changes)))


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


def only(folder: Path, name: str) -> None:
    emptied(folder)
    (folder / name).write_bytes(b"picture")


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
        assert np.bincount(split.targets).tolist() == [count] * 3
        assert [Path(file).parts[-3] for file in files(split)] == [WNIDS[label] for label in split.targets]


def test_tiny_imagenets_labelled_val_images_are_the_test_split(tiny: Path) -> None:
    test = open_at("tiny_imagenet", tiny).test
    annotated = dict(line.split("\t")[:2] for line in (tiny / "val/val_annotations.txt").read_text().splitlines())
    assert {Path(file).name: WNIDS[label] for file, label in zip(files(test), test.targets, strict=True)} == annotated
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
    assert opened.test.targets.tolist() == [0, 1, 1]
    assert np.bincount(opened.val.targets).tolist() == [1, 2]
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
    assert [np.bincount(split.targets).tolist() for split in (opened.train, opened.val, opened.test)] == [
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
        assert np.bincount(split.targets).tolist() == ([3, 3] if name in given else [share, share])
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


def deepened(folder: Path) -> None:
    """Move the images of all class folders one folder down."""
    for name in ("a", "b"):
        (folder / name).rename(folder / "moved")
        (folder / name).mkdir()
        (folder / "moved").rename(folder / name / "deep")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty class": (lambda root: (root / "train/c").mkdir(), "train/c: no image in it"),
    "picture of another format": (lambda root: (root / "train/a/x.gif").write_bytes(b"GIF89a"), "x.gif: GIF is not"),
    "class of other pictures": (lambda root: only(root / "train/a", "x.heic"), "x.heic: HEIC is not read"),
    "picture beside classes": (
        lambda root: shutil.copy(root / "val/a/000.jpg", root / "val"),
        "val/000.jpg: lies beside",
    ),
    "picture beside splits": (
        lambda root: shutil.copy(root / "val/a/000.jpg", root),
        "000.jpg: lies beside the folders",
    ),
    "classes in folders": (
        lambda root: deepened(root / "train"),
        "train/a: it holds no image, and the folder 'deep' like",
    ),
    "split in capitals": (lambda root: (root / "val").rename(root / "Val"), "Val: holds folders, as a split does"),
    "training in capitals": (
        lambda root: ((root / "train").rename(root / "Train"), (root / "val").rename(root / "VAL")),
        "splits are called train, val and test; rename it to ",
    ),
    "split under two names": (
        lambda root: shutil.copytree(root / "val", root / "valid"),
        "val and valid are one split",
    ),
    "class missing from val": (lambda root: shutil.rmtree(root / "val/b"), "val: class 'b' of train is missing"),
    "class missing from train": (lambda root: shutil.rmtree(root / "train/b"), "'a'"),
    "class only in test": (lambda root: shutil.copytree(root / "test/a", root / "test/z"), "'z' is not in train"),
    "empty class in test": (
        lambda root: emptied(root / "test/a"),
        "test/a: no image in it",
    ),
    "empty test": (lambda root: emptied(root / "test"), "test: beside train"),
    "split of another name": (lambda root: (root / "val").rename(root / "dev"), "dev: beside train"),
    "no train": (lambda root: shutil.rmtree(root / "train"), "set data.root to the folder whose folders are train"),
    "root is a file": (lambda root: replaced_by_a_file(root), "cannot be read (Not a directory)"),
    "root is empty": (lambda root: emptied(root), "two or more class folders are needed"),
}


def test_a_class_may_be_called_as_a_split_beside_other_classes(tmp_path: Path, classes: Callable[..., None]) -> None:
    for name, folders in {"Car": ("a", "b"), "Train": ("steam", "diesel")}.items():
        classes(tmp_path / name, dict.fromkeys(folders, 8))
    found = data.open_data(DataConfig("imagefolder", str(tmp_path), resolutions=(8,), val_fraction=0.25))
    assert found.classes == ("Car", "Train")


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


def names(opened: ImageData) -> list[str]:
    listed = [split.images.names() or [] for split in (opened.train, opened.val, opened.test)]
    return sorted(Path(file).name for part in listed for file in part)


def test_images_of_any_suffix_are_found(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {"a": 8, "b": 8})
    renamed = ["0.jfif", "1.jpe", "2", "3.JPG", "4.bak", "5.png", "6.x y", "7.jpg_large"]
    for number, name in enumerate(renamed):
        (tmp_path / "a" / f"{number:03d}.jpg").rename(tmp_path / "a" / name)
    opened = open_at("imagefolder", tmp_path)
    assert names(opened) == sorted(renamed + [f"{number:03d}.jpg" for number in range(8)])
    assert all(opened.train.image(index).shape == (3, 10, 12) for index in range(len(opened.train)))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".TIFF"])
def test_bmp_and_tiff_are_read(suffix: str, tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {"a": 4, "b": 4}, suffix)
    train = open_at("imagefolder", tmp_path).train
    with Image.open(files(train)[0]) as reference:
        assert np.array_equal(train.image(0).permute(1, 2, 0).numpy(), np.asarray(reference))


def test_images_in_folders_inside_a_class_count_for_it(
    tmp_path: Path, classes: Callable[..., None], notes: Notes
) -> None:
    classes(tmp_path, {"a": 4, "b": 2})
    classes(tmp_path / "b", {"2019": 3})
    classes(tmp_path / "b" / "2019", {"may": 1, "__MACOSX": 1})
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    opened = open_at("imagefolder", tmp_path)
    assert opened.classes == ("a", "b")
    labels = np.concatenate([split.targets for split in (opened.train, opened.val, opened.test)])
    assert np.bincount(labels).tolist() == [4, 6]
    assert f"count for the class: 4 (the first: {tmp_path / 'b/2019/000.jpg'})" in notes()


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_a_validation_split_may_have_its_long_name(name: str, tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path / "train", {"a": 6, "b": 6})
    classes(tmp_path / name, {"a": 2, "b": 2})
    opened = open_at("imagefolder", tmp_path)
    assert files(opened.val) == [str(tmp_path / name / label / f"00{i}.jpg") for label in "ab" for i in range(2)]


HARMLESS = ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.jpg", "readme.txt", "labels.csv", "a.xmp", ".hidden")


def test_what_is_harmless_is_passed_over_in_silence(tmp_path: Path, classes: Callable[..., None], notes: Notes) -> None:
    classes(tmp_path, {"a": 4, "b": 4})
    for folder in (tmp_path, tmp_path / "a"):
        for name in HARMLESS:
            (folder / name).write_bytes(b"x")
        for name in ("__MACOSX", "@eaDir", ".git"):
            (folder / name).mkdir()
    assert len(names(open_at("imagefolder", tmp_path))) == 8
    assert notes() == ""


def test_what_is_no_picture_is_counted_aloud(tmp_path: Path, classes: Callable[..., None], notes: Notes) -> None:
    classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "notes.docx").write_bytes(b"PK")
    (tmp_path / "a" / "\x1b[2J").write_bytes(b"x")
    (tmp_path / "images.zip").write_bytes(b"PK")
    (tmp_path / "b" / ".hidden.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "b" / "pipe")
    assert len(names(open_at("imagefolder", tmp_path))) == 8
    said = notes()
    assert "imagefolder: files that are no pictures, left out: 5 (the first: " in said
    assert "\x1b" not in said


def test_folders_beside_splits_are_counted_aloud(tmp_path: Path, classes: Callable[..., None], notes: Notes) -> None:
    classes(tmp_path / "train", {"a": 6, "b": 6})
    classes(tmp_path, {"extra": 3})
    open_at("imagefolder", tmp_path)
    assert f"folders beside train that are not read: 1 (the first: {tmp_path / 'extra'})" in notes()
    classes(tmp_path / "val", {"a": 2, "b": 2})
    open_at("imagenet", tmp_path)
    assert f"folders beside train that are not read: 1 (the first: {tmp_path / 'extra'})" in notes()


def test_pictures_that_cannot_be_used_are_left_out_on_request(
    tmp_path: Path, classes: Callable[..., None], notes: Notes
) -> None:
    root = tmp_path / "images"
    classes(root, {"a": 6, "b": 6})
    (root / "a" / "x.gif").write_bytes(b"GIF89a")
    (root / "a" / "z.gif").write_bytes(b"GIF89a")
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "b" / "y").write_bytes(b"\0\0\0\x1cftypavif" + bytes(9))
    (root / "b" / "photo.nef").write_bytes(b"II*\0")
    shutil.copy(root / "a" / "000.jpg", root)
    told = refusal("imagefolder", root)
    assert told.startswith(f"image {root / '000.jpg'}: lies beside the folders of classes; ")
    assert told.endswith("(and 5 more such images), or leave such images out by data.bad_images=skip")
    table = notes()
    assert f"     2  GIF is not read                     {root / 'a' / 'x.gif'}" in table
    assert f"     1  cannot be read                      {root / 'a' / 'gone.jpg'}" in table, (
        "found later, shown with it"
    )
    opened = open_at("imagefolder", root, bad_images="skip", cache=str(tmp_path / "cache"))
    assert len(names(opened)) == 12
    assert sorted(reason.split(": ")[1].split(";")[0] for reason in opened.skipped) == [
        "AVIF is not read",
        "GIF is not read",
        "GIF is not read",
        "camera raw is not read",
        "cannot be read (No such file or directory)",
        "lies beside the folders of classes",
    ]


def test_all_pictures_below_a_folder_are_found(tmp_path: Path, classes: Callable[..., None], notes: Notes) -> None:
    classes(tmp_path, {"a": 2, ".hidden": 2, "__MACOSX": 2})
    classes(tmp_path / "a" / "deep", {"b": 1})
    (tmp_path / "a" / "000.jpg").rename(tmp_path / "a" / "photo")
    for name in ("x.gif", "readme.txt", "movie.mp4"):
        (tmp_path / name).write_bytes(b"x")
    found = pictures_below(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/001.jpg", "a/deep/b/000.jpg", "a/photo", "x.gif"]
    assert f"{tmp_path}: files that are no pictures, left out: 1 (the first: {tmp_path / 'movie.mp4'})" in notes()


def test_a_picture_that_is_a_pipe_does_not_hang(tmp_path: Path, classes: Callable[..., None]) -> None:
    root = tmp_path / "images"
    classes(root, {"a": 6, "b": 6})
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "b" / "zero.jpg").symlink_to("/dev/zero")
    assert "pipe.jpg: is no file (and 1 more such images)" in refusal("imagefolder", root)
    opened = open_at("imagefolder", root, bad_images="skip", cache=str(tmp_path / "cache"))
    assert (len(names(opened)), len(opened.skipped)) == (12, 2)


# Texts and names


def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_it(tiny: Path) -> None:
    before = open_at("tiny_imagenet", tiny)
    for name in ("words.txt", "wnids.txt", "val/val_annotations.txt"):
        (tiny / name).write_bytes(b"\xef\xbb\xbf" + (tiny / name).read_bytes())
    after = open_at("tiny_imagenet", tiny)
    assert after.classes == before.classes
    assert after.fingerprint == before.fingerprint


def test_the_first_class_of_a_marked_text_keeps_its_name(tiny: Path) -> None:
    (tiny / "words.txt").write_bytes("\ufeffn01\tgoldfish\n".encode())
    assert open_at("tiny_imagenet", tiny).classes == ("goldfish", "n02", "n03")


def test_class_names_that_look_equal_are_equal(tmp_path: Path, classes: Callable[..., None]) -> None:
    composed, apart = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    assert composed != apart
    classes(tmp_path / "train", {composed: 4, "b": 4})
    classes(tmp_path / "val", {apart: 3, "b": 3})
    classes(tmp_path / "test", {apart: 2, "b": 2})
    opened = open_at("imagefolder", tmp_path)
    assert opened.classes == ("b", composed)
    assert [np.bincount(split.targets).tolist() for split in (opened.train, opened.val, opened.test)] == [
        [4, 4],
        [3, 3],
        [2, 2],
    ]
    assert opened.test.image(3).shape == (3, 10, 12)


def test_a_class_in_two_unicode_forms_is_refused(tmp_path: Path, classes: Callable[..., None]) -> None:
    classes(tmp_path, {unicodedata.normalize(form, "été"): 4 for form in ("NFC", "NFD")} | {"b": 4})
    assert "class 'été' is there in two Unicode forms; merge the two folders" in refusal("imagefolder", tmp_path)


# Orientation


def test_photos_are_turned_upright_unless_told_otherwise(tmp_path: Path, classes: Callable[..., None]) -> None:
    root = tmp_path / "images"
    classes(root, {"a": 6, "b": 6})
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted((root / "a").iterdir())[:3]:
        with Image.open(path) as image:
            image.save(path, exif=exif)
    for cache in (None, str(tmp_path / "cache")):
        upright = open_at("imagefolder", root, cache=cache)
        stored = open_at("imagefolder", root, cache=cache, exif_orientation=False)
        for opened, count in ((upright, 3), (stored, 0)):
            splits = (opened.train, opened.val, opened.test)
            shapes = [tuple(split.image(index).shape) for split in splits for index in range(len(split))]
            assert shapes.count((3, 12, 10)) == count
            assert shapes.count((3, 10, 12)) == 12 - count
        assert upright.fingerprint != stored.fingerprint
        assert count_turned(upright) == count_turned(stored) == (3, 12)
    with pytest.raises(UserError, match=r"data\.exif_orientation \(false\): digits is no folder of images"):
        data.open_data(DataConfig("digits", exif_orientation=False))


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
