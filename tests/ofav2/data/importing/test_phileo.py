"""PhilEO Bench's files open as they are; what its released code got wrong is right here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofav2.config.schema import DataConfig
from ofav2.data import eval_batches, open_data
from ofav2.data.importing.phileo import Choice, Described, describe_phileo, find_tiles
from ofav2.data.importing.phileo_lists import draw
from ofav2.data.patches import PatchImages
from ofav2.data.splits import ImageData
from ofav2.errors import UserError
from tests.ofav2.data.importing.scenes import described, noise

SIDE = 8
COUNTS = {"train": 6, "val": 2, "test": 3}
TILES = ("japan_1", "japan_2", "japan_10", "europe_0", "denmark-1_4", "isreal-1_7", "israel-2_3")
TEST = ("japan_5", "europe_9")


def write_bench(root: Path, highest: float = 1.0) -> Path:
    """Tiles of four buckets; the label's mean grows with the patch's number."""
    root.mkdir(parents=True)
    for seed, tile in enumerate((*TILES, *TEST)):
        for split in ("test",) if tile in TEST else ("train", "val"):
            count = COUNTS[split]
            stem = root / f"{tile}_{split}"
            np.save(f"{stem}_s2.npy", noise(count, SIDE, SIDE, 10, seed=seed))
            share = np.linspace(0, highest, count * SIDE**2).reshape(count, SIDE, SIDE, 1).astype(np.float32)
            if tile != "europe_0":
                np.save(f"{stem}_label_roads.npy", share)
            cover = np.random.default_rng(seed).choice([0, 10, 50, 95, 100], (count, SIDE, SIDE, 1))
            np.save(f"{stem}_label_lc.npy", cover.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bench(tmp_path_factory.mktemp("bench") / "np")


def opened(folder: Path) -> ImageData:
    return open_data(
        DataConfig(name="patches", root=str(folder), resolutions=(SIDE,), batch_size=2, eval_crop=1.0, val_fraction=0.3)
    )


def names(data: ImageData, split: str) -> list[str]:
    images = getattr(data, split).images
    assert isinstance(images, PatchImages)
    return images.names()


def refusal(bench: Path, out: Path, **choice: Any) -> str:
    with pytest.raises(UserError) as raised:
        describe_phileo(bench, Choice(**choice), out)
    assert not out.exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_tiles_come_region_by_region_and_in_the_plain_order_of_their_names(bench: Path) -> None:
    tiles, unlabelled = find_tiles(bench, "lc")
    # As a string, 10 is before 1_ and 2; both spellings of Israel are one.
    expected = ["europe_0", "denmark-1_4", "israel-1_7", "israel-2_3", "japan_10", "japan_1", "japan_2"]
    assert [tile.place for tile in tiles["train"]] == [tile.place for tile in tiles["val"]] == expected
    assert [tile.place for tile in tiles["test"]] == ["europe_9", "japan_5"]
    assert unlabelled == 0
    assert find_tiles(bench, "roads")[1] == 2


def test_all_patches_open_and_whole_tiles_are_held_out(bench: Path, tmp_path: Path) -> None:
    told = describe_phileo(bench, Choice("lc"), tmp_path / "out")
    assert told == Described({"train": 56, "val": 0, "test": 6}, 9, 0, None)
    data = opened(tmp_path / "out")
    assert data.bands == ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
    assert (len(data.train) + len(data.val), len(data.test), len(data.classes)) == (56, 6, 11)
    assert isinstance(data.train.images, PatchImages)
    assert isinstance(data.val.images, PatchImages)
    assert not set(data.train.images.places) & set(data.val.images.places)
    (batch,) = eval_batches(data.test, resolution=SIDE, eval_crop=1.0, batch_size=6)
    stored = np.load(bench / "europe_9_test_label_lc.npy")[..., 0]
    # The released mapping ends with an error at code 0, no data.
    expected = np.select([stored == code for code in (10, 50, 95, 100)], [0, 4, 9, 10], -100)
    np.testing.assert_array_equal(batch.targets[:3].numpy(), expected)


def test_nothing_but_a_description_is_written(bench: Path, tmp_path: Path) -> None:
    describe_phileo(bench, Choice("lc"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"patches.yaml", "files"}
    assert (tmp_path / "out" / "files").readlink() == bench.resolve()


@pytest.mark.parametrize("highest", [1.0, 100.0])
def test_labels_are_shares_whatever_a_folder_holds(tmp_path: Path, highest: float) -> None:
    root = write_bench(tmp_path / "np", highest)
    told = describe_phileo(root, Choice("roads"), tmp_path / "out")
    assert (told.highest, told.unlabelled) == (int(highest), 2)
    (batch,) = eval_batches(opened(tmp_path / "out").test, resolution=SIDE, eval_crop=1.0, batch_size=6)
    expected = np.linspace(0, 1, 3 * SIDE**2).reshape(3, 1, SIDE, SIDE)
    np.testing.assert_allclose(batch.targets[:3].numpy(), expected, rtol=1e-6)


def test_a_folder_that_mixes_shares_and_percent_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_bench(tmp_path / "np")
    label = root / "japan_5_test_label_roads.npy"
    np.save(label, 100 * np.load(label))
    assert describe_phileo(root, Choice("roads"), tmp_path / "out").highest == 100
    assert "the folder mixes both" in caplog.text
    assert describe_phileo(root, Choice("roads", highest=1), tmp_path / "said").highest == 1
    for wrong in (-1, 2):
        np.save(label, np.full_like(np.load(label), 90 * wrong))
        assert "neither shares (0 to 1) nor percent (0 to 100)" in refusal(root, tmp_path / "no", target="roads")


def index_of(bench: Path, target: str, split: str, bucket: tuple[str, ...]) -> list[str]:
    """What a bucket's indices mean: its arrays one after the other."""
    tiles, _ = find_tiles(bench, target)  # type: ignore[arg-type]
    own = [tile for tile in tiles[split] if tile.place.split("_")[0] in bucket]  # type: ignore[index]
    return [f"files/{tile.name}:{number}" for tile in own for number in range(tile.patches)]


JAPAN = ("japan",)


def test_few_shots_are_drawn_as_the_bench_draws_them(
    bench: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = describe_phileo(bench, Choice("lc", shots=5), tmp_path / "out")
    # Three buckets of 5 and 1 patches; all test patches.
    assert told.patches == {"train": 15, "val": 3, "test": 6}
    assert "lie on the tiles that training patches come from" in caplog.text
    data, drawn = opened(tmp_path / "out"), draw(5, 18, 6)
    for split, indices in (("train", drawn.train), ("val", drawn.val)):
        every = index_of(bench, "lc", split, JAPAN)
        found = [name for name in names(data, split) if "japan" in name]
        assert sorted(found) == sorted(every[index] for index in indices)
    assert "on the ground of training" in described(tmp_path / "out")["about"]


def test_few_shots_of_roads_look_at_labels_as_shares(tmp_path: Path) -> None:
    found = []
    for highest in (1.0, 100.0):
        root = write_bench(tmp_path / f"np{highest}", highest)
        for tile in ("japan_1", "japan_10"):
            label = root / f"{tile}_train_label_roads.npy"
            np.save(label, np.load(label) * 0.004)
        describe_phileo(root, Choice("roads", shots=5, highest=1 if highest == 1 else 100), tmp_path / f"out{highest}")
        found.append(names(opened(tmp_path / f"out{highest}"), "train"))
        every = index_of(root, "roads", "train", JAPAN)
        labels = {
            tile: np.load(root / f"{tile}_train_label_roads.npy") / highest
            for tile in ("japan_10", "japan_1", "japan_2")
        }
        means = np.concatenate([labels[tile].mean((1, 2, 3)) for tile in ("japan_10", "japan_1", "japan_2")])
        drawn = draw(5, 18, 6, (lambda index, means=means: float(means[index]), lambda index: 1.0))  # type: ignore[misc]
        assert sorted(name for name in found[-1] if "japan" in name) == sorted(every[index] for index in drawn.train)
    assert found[0] == found[1]


def test_a_released_list_is_taken(bench: Path, tmp_path: Path) -> None:
    lengths = {"europe": (12, 4), "northwest-africa": (12, 4), "japan": (18, 6)}
    lists = {
        bucket: {
            "train_indices": [train - 1, 0],
            "val_indices": [val - 1],
            "length_multi_array_train": train,
            "length_multi_array_val": val,
        }
        for bucket, (train, val) in lengths.items()
    }
    (tmp_path / "list.json").write_text(json.dumps(lists))
    told = describe_phileo(bench, Choice("lc", indices=tmp_path / "list.json"), tmp_path / "out")
    assert told.patches == {"train": 6, "val": 3, "test": 6}
    data = opened(tmp_path / "out")
    # The released wrapper never shows the last patch of a list.
    assert "files/japan_2_train_s2.npy:5" in names(data, "train")
    assert "files/japan_10_train_s2.npy:0" in names(data, "train")
    lists["japan"]["length_multi_array_train"] = 17
    (tmp_path / "list.json").write_text(json.dumps(lists))
    message = refusal(bench, tmp_path / "no", target="lc", indices=tmp_path / "list.json")
    assert "was made for 17 train patches of bucket japan, and there are 18" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "must hold an object"),
        ("{", "is no JSON"),
        (None, "cannot be read"),
        ("few", "chooses no training patch"),
    ],
)
def test_a_list_that_is_none_says_what_to_give(content: str | None, says: str, bench: Path, tmp_path: Path) -> None:
    path, none = tmp_path / "list.json", {"train_indices": [], "val_indices": [0]}
    lengths = {"europe": (12, 4), "northwest-africa": (12, 4), "japan": (18, 6)}
    if content == "few":
        content = json.dumps(
            {
                name: none | {"length_multi_array_train": train, "length_multi_array_val": val}
                for name, (train, val) in lengths.items()
            }
        )
    if content is not None:
        path.write_text(content)
    message = refusal(bench, tmp_path / "no", target="lc", indices=path)
    assert says in message
    assert f"list ({path})" in message
    assert not (tmp_path / "no").exists()


def test_published_validation_lies_on_training_ground_and_is_said(
    bench: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = describe_phileo(bench, Choice("lc", published_validation=True), tmp_path / "out")
    assert told.patches == {"train": 42, "val": 14, "test": 6}
    assert "flatter early stopping" in caplog.text
    assert len(opened(tmp_path / "out").val) == 14


BROKEN: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda root: (root / "atlantis_1_train_s2.npy").write_bytes(b""), "region atlantis is none of europe, denmark-1"),
    (lambda root: (root / "japan_1_train_s2.npy").write_bytes(b"x"), "is no .npy array that can be read"),
    (lambda root: [path.unlink() for path in root.glob("*_train_*")], "has no file REGION_TILE_train_s2.npy"),
)


@pytest.mark.parametrize(("spoil", "says"), BROKEN)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    root = write_bench(tmp_path / "np")
    spoil(root)
    assert says in refusal(root, tmp_path / "out", target="lc")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refusal(tmp_path / "none", tmp_path / "out", target="lc")
