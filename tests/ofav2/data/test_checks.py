"""Images that cannot be used are named, and refused or left out; duplicates are reported."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ofav2 import data
from ofav2.config.schema import DataConfig, OptimConfig
from ofav2.data import statistics
from ofav2.data.checks import below_root
from ofav2.data.patches import PatchImages
from ofav2.data.splits import SplitRecord
from ofav2.errors import UserError
from ofav2.tasks import registry
from ofav2.tasks.classification import Classification
from ofav2.tasks.registry import make_task, measuring_task, require_targets
from tests.notes import Notes
from tests.ofav2.patches import CODES, write_patches
from tests.ofav2.tiny import tiny_data


def checked(name: str, given: data.ImageData) -> None:
    """As a training begins."""
    require_targets(make_task(name, given, OptimConfig()), given)


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


def patches(root: Path, target: str, split: SplitRecord | None = None, **settings: Any) -> data.ImageData:
    config = DataConfig("patches", str(root), target=target, resolutions=(6,), batch_size=2, eval_crop=1.0)
    return data.open_data(replace(config, **settings), split)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("task", "target", "fill", "told"),
    [
        (
            "segment",
            "cover",
            7,
            "counts (codes 10, 20, 40; the first patch has 7); correct the target's codes in patches.yaml, or give ",
        ),
        ("regress", "height", 255, "counts (the first patch has 255); correct the target's nodata in patches.yaml"),
    ],
)
def test_targets_of_which_no_pixel_counts_are_refused(
    tmp_path: Path, split: str, task: str, target: str, fill: int, told: str
) -> None:
    write_patches(tmp_path)
    checked(task, patches(tmp_path, target))
    path = tmp_path / f"{split}_{target}.npy"
    np.save(path, np.full_like(np.load(path), fill))
    with pytest.raises(UserError, match="no pixel of") as raised:
        checked(task, patches(tmp_path, target))
    names = "tree, grass, crop" if target == "cover" else "mean, top"
    count = 6 if split == "train" else 3
    kind = "classes" if target == "cover" else "planes"
    assert str(raised.value).startswith(f"target of {kind} {names}: no pixel of {split} ({count} patches) counts (")
    assert told in str(raised.value)
    checked("reconstruct", patches(tmp_path, target))


def test_targets_that_lie_where_there_are_no_data_are_none(tmp_path: Path) -> None:
    stored = write_patches(tmp_path)["val"]
    labelled = np.isin(stored["cover"], CODES)
    images = stored["images"].copy()
    images[labelled] = -1
    np.save(tmp_path / "val.npy", images)
    with pytest.raises(UserError, match="no pixel of val "):
        checked("segment", patches(tmp_path, "cover"))
    images[2, 5, 5] = 8
    np.save(tmp_path / "val.npy", images)
    cover = stored["cover"].copy()
    cover[2, 5, 5] = 40
    np.save(tmp_path / "val_cover.npy", cover)
    checked("segment", patches(tmp_path, "cover"))


def test_classes_and_planes_that_training_lacks_are_said(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = write_patches(tmp_path)["train"]
    checked("segment", patches(tmp_path, "cover"))
    checked("regress", patches(tmp_path, "height"))
    assert "has no pixel of" not in notes()
    cover, height = stored["cover"].copy(), stored["height"].copy()
    cover[cover == 20] = 99
    height[..., 1] = 255
    np.save(tmp_path / "train_cover.npy", cover)
    np.save(tmp_path / "train_height.npy", height)
    checked("segment", patches(tmp_path, "cover"))
    checked("regress", patches(tmp_path, "height"))
    said = notes()
    assert (
        "train: has no pixel of grass (1 of 3 classes), so they are not learnt; leave them out by data.classes" in said
    )
    assert "train: has no pixel of top (1 of 2 planes), so they are not learnt; hold other places out" in said
    monkeypatch.setattr(statistics, "MOST", 2)
    checked("segment", patches(tmp_path, "cover"))
    assert "of grass (1 of 3 classes) in the 2 patches that were looked at, so they are not" in notes()


def write_heights(root: Path, scale: float, offset: float, top: float = 1.0) -> None:
    """Heights of 1500 ± 400 as a target of two planes, the second one `top` times as high."""
    stored = write_patches(root)
    heights = np.random.default_rng(0).normal(1500, 400, stored["train"]["height"].shape).astype(np.float32)
    np.save(root / "train_height.npy", heights * np.array([1, top], np.float32))
    text = yaml.safe_load((root / "patches.yaml").read_text())
    text["targets"]["height"] |= {"scale": scale, "offset": offset}
    (root / "patches.yaml").write_text(yaml.safe_dump(text))


@pytest.mark.parametrize("task", ["regress", "reconstruct"])
def test_numbers_far_from_one_are_refused_and_what_is_advised_is_taken(tmp_path: Path, task: str) -> None:
    write_heights(tmp_path, 1.0, 0.0)
    with pytest.raises(UserError) as raised:
        checked(task, patches(tmp_path, "height"))
    found = re.fullmatch(
        r"target mean: its training numbers are 1\d\d\d ± (?:39\d|4\d\d)(?:\.\d)?, and networks learn numbers of about"
        r" 0 ± 1; write scale: (\S+) and offset: (\S+) for it in patches\.yaml, which R2 does not depend on",
        str(raised.value),
    )
    assert found, raised.value
    write_heights(tmp_path, *map(float, found.groups()))
    data = patches(tmp_path, "height")
    checked(task, data)
    assert isinstance(data.train.images, PatchImages)
    for moments in statistics.plane_moments(data.train.images, 2):
        assert moments.mean[0] == pytest.approx(0, abs=0.1)
        assert moments.std[0] == pytest.approx(1, rel=0.1)


def test_numbers_that_hardly_differ_are_said(tmp_path: Path, notes: Notes) -> None:
    write_heights(tmp_path, 1e-6, 0.0)
    checked("regress", patches(tmp_path, "height"))
    assert "target mean: its training numbers are 0.001" in notes()


def test_planes_that_no_scale_brings_together_are_said(tmp_path: Path) -> None:
    write_heights(tmp_path, 1.0, 0.0, top=1e6)
    with pytest.raises(UserError, match="bring its planes to one size, or write each as a target of its own"):
        checked("regress", patches(tmp_path, "height"))


def test_messages_about_a_runs_patches_are_about_patches(tmp_path: Path, notes: Notes) -> None:
    write_patches(tmp_path)
    record = data.split_record(patches(tmp_path, "cover", shots=2))
    notes()
    again = patches(tmp_path, "cover", split=record, shots=2)
    assert len(again.train) == 2
    assert notes() == "", "patches beyond the shots are no new ones"
    whole = data.split_record(patches(tmp_path, "cover"))
    text = (tmp_path / "patches.yaml").read_text()
    described = yaml.safe_load(text)
    described["parts"][0]["patches"] = [0, 1, 2, 3]
    (tmp_path / "patches.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(UserError) as raised:
        patches(tmp_path, "cover", split=whole)
    assert str(raised.value) == (
        "data set (patches): patches that the run was trained with are missing: 2 (the first: train.npy:4);"
        " put them back"
    )
    fewer = data.split_record(patches(tmp_path, "cover"))
    (tmp_path / "patches.yaml").write_text(text)
    notes()
    patches(tmp_path, "cover", split=fewer)
    assert "patches: patches that the run was not trained with, left out: 2 (the first: train.npy:4)" in notes()


def test_measuring_counts_no_classes_for_weights_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    data, optim = tiny_data(), OptimConfig(class_weights="log")
    trained = make_task("classification", data, optim)
    assert isinstance(trained, Classification)
    assert trained.weights is not None
    monkeypatch.setattr(registry, "class_shares", None)
    assert measuring_task("classification", data, optim) == replace(trained, weights=None)
    with pytest.raises(TypeError):
        make_task("classification", data, optim)
