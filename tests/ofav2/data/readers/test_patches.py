"""Folders of patches: what is wrong with one is said in one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.data.patches import PatchImages
from ofav2.errors import UserError
from tests.ofav2.patches import SIDE, described, write_patches

Change = Callable[[dict[str, Any]], object]


def config(root: Path, **settings: Any) -> DataConfig:
    given = {"target": "cover", "resolutions": (6,), "batch_size": 3, "eval_crop": 1.0, **settings}
    return DataConfig(name="patches", root=str(root), **given)


def refusal(settings: DataConfig) -> str:
    with pytest.raises(UserError) as raised:
        open_data(settings)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(format="ofav2-patches/0"), 'format ("ofav2-patches/0") must be ofav2-patches/1'),
        (lambda v: v.pop("format"), "format (null) must be"),
        (lambda v: v.pop("bands"), "bands is missing"),
        (lambda v: v.update(bands="red"), 'bands ("red") must be a list'),
        (lambda v: v.update(bands=["a", "b", "c"]), "it must be (patches, height, width, 3)"),
        (lambda v: v.update(bands=["a", "b", "c", "c"]), "names must be 1 to 4096 different ones"),
        (lambda v: v.update(bands=["a", "b", "c", "d\n"]), "can't be printed"),
        (lambda v: v.update(bands=[]), "names must be 1 to 4096 different ones"),
        (lambda v: v.update(nodata="none"), 'nodata ("none") must be a number'),
        (lambda v: v.update(colour=1), "colour is not a key of this file"),
        (lambda v: v.update(parts=[]), "parts must name one file or more"),
        (lambda v: v.update(parts=[1]), "parts[0] (1) must be a mapping"),
        (lambda v: v.update(targets=[1]), "targets ([1]) must be a mapping"),
        (lambda v: v["targets"].update(cover=1), "targets.cover (1) must be a mapping"),
        (lambda v: v["parts"][0].pop("places"), "parts[0]: a part has either places, a file, or place, a name"),
        (lambda v: v["parts"][0].update(place="x"), "parts[0]: a part has either places, a file, or place, a name"),
        (lambda v: (v["parts"][0].pop("places"), v["parts"][0].update(place=" ")), "place ' ' can't be printed"),
        (lambda v: v["parts"][0].update(patches=[0, 6]), "part train.npy names patch 6, and has 6, from 0"),
        (lambda v: v["parts"][0].update(patches=[1, 0]), "patches must be positions from 0, ascending"),
        (lambda v: v["parts"][0].update(patches=[-1, 0]), "patches must be positions from 0, ascending"),
        (lambda v: v["parts"][0].update(patches=[]), "patches must be positions from 0, ascending"),
        (lambda v: v["parts"][0].update(images="../train.npy"), "must be a path below its folder"),
        (lambda v: v["parts"][0].update(images="/train.npy"), "must be a path below its folder"),
        (lambda v: v["parts"][0].update(images="none.npy"), "none.npy: cannot be read (No such file"),
        (lambda v: v["parts"][0].update(images="train.txt"), "train.txt: is no .npy array that can be read"),
        (lambda v: v["parts"][1].update(images="train.npy"), "train.npy is in two parts"),
        (lambda v: v["parts"][0].update(split="all"), "parts[0].split (\"all\") must be 'train' or 'val' or 'test'"),
        (lambda v: v["parts"][0].update(split="val"), "no part has the split train"),
        (lambda v: v["parts"][0]["targets"].pop("cover"), "part train.npy has no file of target 'cover'"),
        (lambda v: v["parts"][0]["targets"].update(more="x"), "target 'more' is not described in targets"),
        (lambda v: v["parts"][0]["targets"].update(cover="train_kind.npy"), "has shape (6,); target cover (codes)"),
        (lambda v: v["parts"][0]["targets"].update(cover="train.npy"), "has shape (6, 12, 12, 4); target cover"),
        (lambda v: v["targets"]["cover"].update(codes=[1, 2]), "codes must be 3 different whole numbers"),
        (lambda v: v["targets"]["cover"].update(codes=[1, 2, 2]), "codes must be 3 different whole numbers"),
        (lambda v: v["targets"]["cover"].update(codes=[1, 2, 0.5]), "must be a whole number"),
        (lambda v: v["targets"]["cover"].update(kind="masks"), "must be 'classes' or 'codes' or 'numbers'"),
        (lambda v: v["targets"]["cover"].update(names=["one"], codes=None), "names must be two classes or more"),
        (lambda v: v["targets"]["cover"].update(scale=2.0), "nodata, scale and offset are for numbers"),
        (lambda v: v["targets"]["height"].update(codes=[1, 2]), "numbers have no codes"),
        (lambda v: v["targets"]["height"].update(scale=0.0), "scale (0) would make all numbers 0"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: Change, says: str) -> None:
    values = described()
    change(values)
    write_patches(tmp_path, values)
    assert says in refusal(config(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("a: [", "patches.yaml"),
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("a: &x 1", "anchor"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    write_patches(tmp_path)
    (tmp_path / "patches.yaml").write_bytes(os.fsencode(text))
    assert says in refusal(config(tmp_path))


def test_a_folder_without_description_is_refused(tmp_path: Path) -> None:
    assert "patches.yaml: cannot be read (No such file" in refusal(config(tmp_path))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def huge(path: Path) -> None:
    """Promise more bytes than any machine has."""
    head = b"{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999, 99999999999, 9, 4), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"00")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shorten, "bytes of data, and its head promises"),
        (lengthen, "bytes of data, and its head promises"),
        (huge, "bytes of data, and its head promises"),
        (objects, "holds no plain array in C's order"),
        (lambda path: path.write_bytes(b""), "is no .npy array that can be read"),
        (lambda path: np.save(path, np.asfortranarray(np.zeros((6, 12, 12, 4), np.int16))), "in C's order"),
        (lambda path: np.save(path, np.zeros((0, 12, 12, 4), np.int16)), "holds no plain array"),
        (lambda path: np.save(path, np.zeros((6, 12, 12, 4))), "has type float64; bands are uint8, int16"),
        (lambda path: np.save(path, np.zeros((6, 12, 12, 4), ">i2")), "has type >i2; bands are"),
        (lambda path: np.save(path, np.zeros((6, 12, 12), np.int16)), "has shape (6, 12, 12); it must be"),
        (lambda path: np.save(path, np.zeros((6, 12, 8, 4), np.int16)), "all must be alike"),
        (
            lambda path: np.save(path, np.zeros((5, 12, 12, 4), np.int16)),
            "target cover (codes) must have (5, 12, 12, 1)",
        ),
        (lambda path: np.save(path, np.zeros((6, 12, 12, 4), np.uint8)), "all must be alike"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot be read (is a pipe"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    write_patches(tmp_path)
    if "target cover" not in says:
        for name in ("cover",):
            np.save(tmp_path / f"train_{name}.npy", np.zeros((6, 12, 8 if "12, 8" in says else 12), np.uint8))
    spoil(tmp_path / "train.npy")
    if says == "all must be alike":
        images = np.load(tmp_path / "train.npy")
        np.save(tmp_path / "train_cover.npy", np.zeros(images.shape[:3], np.uint8))
    assert says in refusal(config(tmp_path))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("a\n" * 5, "has 5 lines for 6 patches"),
        ("a\n" * 5 + " \n", "line 6"),
        ("a\n" * 5 + "b\x07\n", "must be the printable name of a place"),
    ],
)
def test_places_that_do_not_fit_are_refused(tmp_path: Path, lines: str, says: str) -> None:
    write_patches(tmp_path)
    (tmp_path / "train.txt").write_text(lines)
    assert says in refusal(config(tmp_path))


def test_a_place_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_patches(tmp_path)
    (tmp_path / "val.txt").write_text("val 0\ntrain 2\nval 1\n")
    assert "place 'train 2': has patches in train and in val, which flatters the results" in refusal(config(tmp_path))


def test_patches_of_one_place_cannot_be_held_apart(tmp_path: Path) -> None:
    values = described()
    values["parts"] = values["parts"][:1]
    write_patches(tmp_path, values)
    (tmp_path / "train.txt").write_text("here\n" * 6)
    assert "place 'here': is the only one of 6 patches, and test needs one of its own" in refusal(config(tmp_path))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target": None}, "data.target (null): targets are cover, height, kind; name the one to learn"),
        ({"target": "roads"}, "data.target (roads): targets are cover, height, kind"),
        ({"bands": ("swir",)}, "data.bands (swir): bands are blue, green, red, nir"),
        ({"bands": ("red", "red")}, "data.bands"),
        ({"classes": ("tree", "snow")}, "data.classes (snow): classes of cover are tree, grass, crop"),
        ({"target": "height", "classes": ("mean", "top")}, "data.classes"),
        ({"target": "height", "window": 6}, "data.window (6): needs a target of codes, and height has numbers"),
        ({"window": 13}, "data.window (13): patches have 12 x 12 pixels"),
        ({"window_share": 0.5}, "data.window_share (0.5): must be above 0.5"),
        ({"resolutions": (5,)}, "data.resolutions (5): patches have 12 x 12 pixels"),
        ({"resolutions": (24,)}, "data.resolutions (24): patches have 12 x 12 pixels"),
        ({"window": 6, "resolutions": (4,)}, "data.resolutions (4): windows have 6 x 6 pixels"),
        ({"mean": (1.0,) * 4}, "data.mean and data.std: of patches both are given, or both measured"),
        ({"mean": (1.0,) * 3, "std": (1.0,) * 3}, "data.mean (3 numbers): there are 4 bands (blue, green, red, nir)"),
        ({"std": (1.0, 1.0, 1.0, 0.0), "mean": (0.0,) * 4}, "data.std"),
        ({"eval_crop": 0.875}, "data.eval_crop (0.875): patches are evaluated whole, window by window"),
        ({"jitter": (0.4, 0.4, 0.4, 0.1)}, "data.jitter"),
        ({"randaugment": (2, 9)}, "data.randaugment ([2, 9]): patches are never recoloured, mixed or resized"),
        ({"mixup": 0.2}, "data.mixup (0.2): patches are never"),
        ({"cutmix": 1.0}, "data.cutmix (1.0): patches are never"),
        ({"crop_scale": (0.5, 1.0)}, "data.crop_scale ([0.5, 1.0]): patches are never"),
        ({"bad_images": "skip"}, "data.bad_images (skip): patches is no folder of images"),
        ({"download": True}, "data.download (true)"),
        ({"shots": 0}, "data.shots (0): must be 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    write_patches(tmp_path)
    assert says in refusal(config(tmp_path, **settings))


@pytest.mark.parametrize(
    "settings", [{"bands": ("red",)}, {"target": "x"}, {"classes": ("a", "b")}, {"window": 4}, {"window_share": 0.7}]
)
def test_pictures_take_no_settings_of_patches(settings: dict[str, Any]) -> None:
    (key,) = settings
    assert f"data.{key} (" in (said := refusal(DataConfig(name="digits", **settings)))
    assert "is for data.name=patches" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mean": (0.5, 0.5, 1.5)}, "data.mean ([0.5, 0.5, 1.5]): must be three numbers from 0 to 1"),
        ({"std": (0.5, 0.5, 1.5)}, "data.std ([0.5, 0.5, 1.5]): must be three numbers above 0 to 1"),
        ({"mean": (0.5,) * 4}, "data.mean ([0.5, 0.5, 0.5, 0.5]): must be three numbers"),
    ],
)
def test_pictures_have_three_numbers_in_a_share(settings: dict[str, Any], says: str) -> None:
    assert says in refusal(DataConfig(name="digits", **settings))


def test_a_band_that_tells_nothing_is_named(tmp_path: Path) -> None:
    write_patches(tmp_path)
    images = np.load(tmp_path / "train.npy")
    images[..., 1] = 0
    np.save(tmp_path / "train.npy", images)
    assert "band 'green': is 0 in all 864 pixels of the training patches" in refusal(config(tmp_path))
    assert open_data(config(tmp_path, bands=("red", "nir"))).bands == ("red", "nir")
    images[..., 1] = -1
    np.save(tmp_path / "train.npy", images)
    assert "no pixel of the 6 training patches has data in all of blue, green, red, nir" in refusal(config(tmp_path))


def test_patches_without_targets_are_opened(tmp_path: Path) -> None:
    values = described(targets={})
    for part in values["parts"]:
        del part["targets"]
    write_patches(tmp_path, values)
    data = open_data(config(tmp_path, target=None))
    assert (data.target.kind, data.target.names) == ("numbers", ())


def test_a_class_of_patches_may_be_left_out(tmp_path: Path) -> None:
    write_patches(tmp_path, dtype="uint8")
    for name, count in (("train", 6), ("val", 3), ("test", 3)):
        np.save(tmp_path / f"{name}_kind.npy", np.arange(count) % 3)
    values = described()
    values["targets"]["kind"]["names"] = ["wild", "tame", "rare"]
    (tmp_path / "patches.yaml").write_text(yaml.safe_dump(values))
    every = open_data(config(tmp_path, target="kind"))
    assert every.train.targets.tolist() == [0, 1, 2, 0, 1, 2]
    some = open_data(config(tmp_path, target="kind", classes=("rare", "wild")))
    assert some.train.targets.tolist() == [1, 0, 1, 0]
    assert some.train.images.names() == [f"train.npy:{number}" for number in (0, 2, 3, 5)]


@pytest.mark.parametrize("target", ["cover", "kind"])
def test_a_part_may_take_some_patches_of_one_place(tmp_path: Path, target: str) -> None:
    values = described()
    values["parts"][0].update(patches=[1, 4, 5], place="here", places=None)
    stored = write_patches(tmp_path, values)
    data = open_data(config(tmp_path, target=target))
    assert isinstance(data.train.images, PatchImages)
    assert set(data.train.images.places) == {"here"}
    found = np.stack([data.train.image(index).permute(1, 2, 0).numpy() for index in range(3)])
    np.testing.assert_array_equal(found, stored["train"]["images"][[1, 4, 5]])
    if target == "kind":
        assert data.train.targets.tolist() == stored["train"]["kind"][[1, 4, 5]].tolist()


def test_numbers_of_whole_patches_hold_at_each_pixel(tmp_path: Path) -> None:
    write_patches(tmp_path)
    for name, count in (("train", 6), ("val", 3), ("test", 3)):
        np.save(tmp_path / f"{name}_height.npy", np.arange(count * 2, dtype=np.float32).reshape(count, 2))
    images = open_data(config(tmp_path, target="height")).val.images
    from ofav2.data.patches import PatchImages

    assert isinstance(images, PatchImages)
    target = images.whole(np.array([2])).target
    assert target is not None
    assert target.shape == (1, 2, SIDE, SIDE)
    assert (target[0, 0] == 2.0).all()
    assert (target[0, 1] == 2.5).all()


def test_the_fingerprint_follows_content_and_not_the_folder(tmp_path: Path) -> None:
    write_patches(tmp_path / "one")
    write_patches(tmp_path / "two")
    first, second = (open_data(config(tmp_path / name)).fingerprint for name in ("one", "two"))
    cached = open_data(config(tmp_path / "one", cache=str(tmp_path / "cache")))
    assert first == second == cached.fingerprint
    for name in ("val.npy", "val_cover.npy"):
        stored = np.load(tmp_path / "two" / name)
        stored.reshape(-1)[0] += 1
        np.save(tmp_path / "two" / name, stored)
        changed = open_data(config(tmp_path / "two")).fingerprint
        assert changed not in (first, second)
        second = changed


def test_the_example_of_the_docs_opens_with_the_settings_of_its_table(tmp_path: Path) -> None:
    text = (Path(__file__).parents[4] / "docs" / "earth_observation.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "patches.yaml").write_text(example)
    rng = np.random.default_rng(0)
    for part in ("north", "south"):
        np.save(tmp_path / f"{part}.npy", rng.integers(1, 99, (4, 64, 64, 4)).astype(np.uint16))
        cover = np.full((4, 64, 64), 10, np.uint8)
        cover[::2, :40] = 80
        np.save(tmp_path / f"{part}_cover.npy", cover)
        np.save(tmp_path / f"{part}_height.npy", rng.integers(0, 255, (4, 64, 64)).astype(np.uint8))
        (tmp_path / f"{part}.txt").write_text("".join(f"{part} {number}\n" for number in range(4)))
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `data.")]
    given = {key.removeprefix("data."): yaml.safe_load(value) for key, value in (row.split("=") for row in rows)}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    data = open_data(config(tmp_path, **settings, resolutions=(64,), val_fraction=0.3))
    assert (data.bands, data.classes, len(data.test)) == (("B04", "B03", "B02"), ("tree", "water"), 4)


@pytest.mark.parametrize(("one", "other"), [("here", "here "), ("here", "\there"), ("caf\u00e9", "cafe\u0301")])
@pytest.mark.parametrize("single", [False, True])
def test_places_that_look_alike_are_one(tmp_path: Path, one: str, other: str, single: bool) -> None:
    values = described()
    if single:
        values["parts"][1].update(place=other.replace("\t", " "), places=None)
    write_patches(tmp_path, values)
    (tmp_path / "train.txt").write_text(f"{one}\n" * 6)
    (tmp_path / "val.txt").write_text(f"{other}\n" * 3)
    assert f"place '{one}': has patches in train and in val" in refusal(config(tmp_path))
