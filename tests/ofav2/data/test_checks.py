"""Images that cannot be used are named, and refused or left out; duplicates are reported."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data.checks import below_root
from ofav2.errors import UserError
from tests.notes import Notes


@pytest.fixture
def config(tmp_path: Path, classes: Callable[..., None]) -> DataConfig:
    """Two classes of ten images."""
    classes(tmp_path / "images", {"cat": 10, "dog": 10})
    return DataConfig("imagefolder", str(tmp_path / "images"), cache=str(tmp_path / "cache"), batch_size=4)


def root(config: DataConfig) -> Path:
    return Path(str(config.root))


def empty(config: DataConfig) -> Path:
    path = root(config) / "cat" / "003.jpg"
    path.write_bytes(b"")
    return path


def cut_off(config: DataConfig) -> Path:
    path = root(config) / "dog" / "001.jpg"
    path.write_bytes(path.read_bytes()[:-150])
    return path


def of_text(config: DataConfig) -> Path:
    path = root(config) / "cat" / "009.jpg"
    path.write_text("no image")
    return path


def dangling(config: DataConfig) -> Path:
    path = root(config) / "cat" / "link.jpg"
    path.symlink_to(root(config) / "nowhere.jpg")
    return path


def in_two_classes(config: DataConfig) -> Path:
    path = root(config) / "cat" / "dog.jpg"
    os.link(root(config) / "dog" / "004.jpg", path)
    return path


@pytest.mark.parametrize("spoil", [empty, cut_off, of_text, dangling, in_two_classes])
def test_a_bad_image_is_named_and_refused(config: DataConfig, spoil: Callable[[DataConfig], Path]) -> None:
    path = spoil(config)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            data.open_data(config)
        assert str(error.value).startswith(f"image {path}: ")
        assert "data.bad_images=skip" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [1.0, 1e-7])
@pytest.mark.parametrize("spoils", [(empty,), (cut_off, of_text), (empty, cut_off, of_text, dangling)])
def test_leaving_images_out_is_as_removing_their_files(
    config: DataConfig,
    spoils: tuple[Callable[[DataConfig], Path], ...],
    kept: float,
    notes: Notes,
) -> None:
    paths = [spoil(config) for spoil in spoils]
    skipping = replace(config, bad_images="skip", cache_gib=kept)
    opened = data.open_data(skipping)
    assert f"imagefolder: images left out: {len(paths)} (the first: image " in notes()
    relative = [path.relative_to(root(config)) for path in paths]
    assert sorted(reason.split(":")[0] for reason in opened.skipped) == sorted(f"image {path}" for path in relative)
    assert data.open_data(skipping).skipped == opened.skipped
    for path in paths:
        path.unlink()
    clean = data.open_data(replace(config, cache=None))
    assert not clean.skipped
    assert opened.fingerprint == clean.fingerprint
    assert len(opened.train) + len(opened.val) + len(opened.test) == 20 - len(
        [p for p in paths if "link" not in p.name]
    )


def test_a_file_in_two_classes_is_left_out_of_both(config: DataConfig) -> None:
    in_two_classes(config)
    opened = data.open_data(replace(config, bad_images="skip"))
    assert [reason.partition(": ")[::2] for reason in opened.skipped] == [
        (f"image {one}", f"the same file is an image of class {other!r}, too")
        for one, other in (("cat/dog.jpg", "dog"), ("dog/004.jpg", "cat"))
    ]


def test_a_class_without_a_usable_image_is_refused(config: DataConfig) -> None:
    for path in (root(config) / "dog").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 'dog': no usable image is left in train"):
        data.open_data(replace(config, bad_images="skip"))


def test_a_file_under_two_names_is_said(config: DataConfig, notes: Notes) -> None:
    data.open_data(config)
    assert "pairs of images" not in notes()
    (root(config) / "cat" / "again.jpg").symlink_to(root(config) / "cat" / "002.jpg")
    os.link(root(config) / "dog" / "002.jpg", root(config) / "dog" / "again.jpg")
    data.open_data(replace(config, cache=None))
    assert "pairs of images that are one file under two names: 2 (the first: " in notes()


def test_the_same_content_in_train_and_test_or_in_two_classes_is_said(
    tmp_path: Path, config: DataConfig, classes: Callable[..., None], notes: Notes
) -> None:
    folder = tmp_path / "split"
    classes(folder / "train", {"cat": 6, "dog": 6})
    classes(folder / "test", {"cat": 2, "dog": 2})
    apart = replace(config, root=str(folder))
    data.open_data(apart)
    before = notes()
    (folder / "test" / "cat" / "000.jpg").write_bytes((folder / "train" / "cat" / "005.jpg").read_bytes())
    (folder / "train" / "dog" / "000.jpg").write_bytes((folder / "train" / "cat" / "001.jpg").read_bytes())
    data.open_data(apart)
    log = notes()
    # The fixture's noise depends on the last three parts of a path, which train and test do not share.
    assert "same content" not in before
    assert "same content, one in train and one in val or test, which flatters accuracy: 1 (" in log
    assert "same content and different classes: 1 (" in log
    assert str(folder / "test" / "cat" / "000.jpg") in log


@pytest.mark.parametrize("change", ["class", "twice", "without line", "without image"])
def test_wrong_annotations_of_tiny_imagenet_are_left_out_on_request(
    change: str, tiny: Path, tmp_path: Path, image: Callable[..., None]
) -> None:
    annotations = tiny / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines(keepends=True)
    name, wnid = lines[0].split("\t")[:2]
    changed = {
        "class": [lines[0].replace(wnid, "n99"), *lines[1:]],
        "twice": [*lines, lines[0].replace(wnid, "n03")],
        "without line": lines[1:],
        "without image": [*lines, "val_77.JPEG\tn03\t0\t0\t1\t1\n"],
    }[change]
    annotations.write_text("".join(changed))
    config = DataConfig("tiny_imagenet", str(tiny), cache=str(tmp_path / "cache"), val_fraction=0.25)
    with pytest.raises(UserError, match=r"data\.bad_images=skip"):
        data.open_data(config)
    opened = data.open_data(replace(config, bad_images="skip"))
    assert opened.skipped
    assert len(opened.test) == len(lines) - (change != "without image")
    names = opened.test.images.names()
    assert names is not None
    assert (f"images/{name}" in names) == (change == "without image")


def test_what_was_left_out_is_said_the_same_of_a_folder_that_was_moved(config: DataConfig, tmp_path: Path) -> None:
    for spoil in (empty, of_text, in_two_classes):
        spoil(config)
    skipping = replace(config, bad_images="skip")
    before = data.open_data(skipping)
    (tmp_path / "images").rename(tmp_path / "moved")
    after = data.open_data(replace(skipping, root=str(tmp_path / "moved")))
    assert (after.skipped, after.fingerprint) == (before.skipped, before.fingerprint)
    assert str(tmp_path) not in "".join(after.skipped)


def test_a_path_is_made_relative_once() -> None:
    assert below_root("image data/xdata/1.png: is no file", Path("data")) == "image xdata/1.png: is no file"
    assert below_root("image a./b.png: is no file", Path()) == "image a./b.png: is no file"


def test_a_file_of_which_the_system_tells_nothing_now_is_refused(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refused(path: object, **how: object) -> os.stat_result:
        if str(path).endswith("003.jpg"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **how)  # type: ignore[arg-type, call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refused)
        with pytest.raises(UserError, match=r"003\.jpg: cannot be read \(Permission denied\); see that it can be"):
            data.open_data(replace(config, bad_images="skip"))
    assert data.open_data(replace(config, bad_images="skip")).skipped == ()
