"""Patches: what is cut out of their bands and targets, how it is turned, and what is measured of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofav2.config.schema import DataConfig, OptimConfig
from ofav2.data import (
    Batch,
    ImageData,
    calibration_batches,
    count_views,
    eval_batches,
    join,
    normalise,
    open_data,
    read_split,
    split_record,
    train_batches,
    view_bytes,
    write_split,
)
from ofav2.data.halves import halve
from ofav2.data.patches import PatchImages, turned
from ofav2.data.splits import hold_out
from ofav2.data.statistics import class_shares
from ofav2.errors import UserError
from ofav2.rng import Stream
from ofav2.runtime.share import Share
from ofav2.tasks.registry import make_task
from tests.notes import Notes
from tests.ofav2.patches import BANDS, CODES, COUNTS, SIDE, described, write_patches


def config(root: Path, **settings: Any) -> DataConfig:
    given = {"target": "cover", "resolutions": (6,), "batch_size": 3, "eval_crop": 1.0, **settings}
    return DataConfig(name="patches", root=str(root), **given)


def joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])


def evaluated(data: ImageData, side: int, batch_size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return joined(list(eval_batches(data.val, resolution=side, eval_crop=1.0, batch_size=batch_size)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_evaluation_sees_each_pixel_of_all_planes_once(tmp_path: Path, dtype: str) -> None:
    stored = write_patches(tmp_path, dtype=dtype)["val"]
    data = open_data(config(tmp_path))
    images, targets = evaluated(data, 6)
    assert (str(images.dtype), images.shape, targets.shape) == (f"torch.{dtype}", (12, 4, 6, 6), (12, 6, 6))
    code_of = {code: label for label, code in enumerate(CODES)}
    number = 0
    for patch in range(COUNTS["val"]):
        for top in (0, 6):
            for left in (0, 6):
                window = np.s_[patch, top : top + 6, left : left + 6]
                np.testing.assert_array_equal(images[number].permute(1, 2, 0).numpy(), stored["images"][window])
                wanted = [[code_of.get(code, -100) for code in row] for row in stored["cover"][window].tolist()]
                assert targets[number].tolist() == wanted
                number += 1
    assert number == len(images) == count_views(data.val, 6)
    assert number * view_bytes(data.val, 6) == images.nbytes + targets.nbytes
    parts = [
        list(eval_batches(data.val, resolution=6, eval_crop=1.0, batch_size=5, share=Share(part, 2))) for part in (0, 1)
    ]
    assert torch.equal(torch.cat([parts[0][0].images, parts[1][0].images, parts[0][1].images]), images)


def test_numbers_are_scaled_and_missing_ones_are_nan(tmp_path: Path) -> None:
    stored = write_patches(tmp_path)["val"]
    data = open_data(config(tmp_path, target="height"))
    assert (data.target.kind, data.target.names) == ("numbers", ("mean", "top"))
    _, targets = evaluated(data, 12)
    wanted = stored["height"].astype(np.float32).transpose(0, 3, 1, 2) * np.float32(0.5)
    wanted[0, 0, 0, 0] = np.nan
    np.testing.assert_array_equal(targets.numpy(), wanted)


def test_an_offset_is_added_to_scaled_numbers(tmp_path: Path) -> None:
    targets = described()["targets"] | {
        "height": {"kind": "numbers", "names": ["mean", "top"], "scale": 0.25, "offset": -20.0, "nodata": 255}
    }
    stored = write_patches(tmp_path, described(targets=targets))["val"]
    _, found = evaluated(open_data(config(tmp_path, target="height")), 12)
    wanted = stored["height"].astype(np.float32).transpose(0, 3, 1, 2) * 0.25 - 20
    wanted[0, 0, 0, 0] = np.nan
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_none_takes_patches_without_their_targets(tmp_path: Path) -> None:
    write_patches(tmp_path)
    data = open_data(config(tmp_path, target="none"))
    assert (data.target.kind, data.target.names, len(data.train)) == ("numbers", (), COUNTS["train"])
    with pytest.raises(UserError, match=r"task \(segment\): patches has no targets, or data.target chooses none"):
        make_task("segment", data, OptimConfig())
    targets = described()["targets"]
    write_patches(tmp_path, described(targets=targets | {"none": {**targets["kind"], "names": ["a", "b"]}}))
    with pytest.raises(UserError, match="a target may not be called none"):
        open_data(config(tmp_path, target="none"))


@pytest.mark.parametrize("factor", [1e-13, 1e12])
def test_bands_of_numbers_that_records_do_not_hold_are_refused(tmp_path: Path, factor: float) -> None:
    stored = write_patches(tmp_path, dtype="float32")["train"]["images"]
    stored[..., 1] *= factor
    np.save(tmp_path / "train.npy", stored)
    with pytest.raises(UserError, match=r"band 'green': has standard deviation .* must be from 1e-09 to 1e"):
        open_data(config(tmp_path))


def test_a_training_window_is_an_exact_turn_of_all_planes(tmp_path: Path) -> None:
    """Each pixel's bands are made of its own place, and so is its target: no view can part them."""
    write_patches(tmp_path, described(targets={"place": {"kind": "numbers", "names": ["place"]}}, nodata=None))
    values = described(targets={"place": {"kind": "numbers", "names": ["place"]}}, nodata=None)
    for part in values["parts"]:
        name = part["split"]
        part["targets"] = {"place": f"{name}_place.npy"}
        place = np.arange(COUNTS[name] * SIDE * SIDE, dtype=np.float32).reshape(-1, SIDE, SIDE)
        np.save(tmp_path / f"{name}.npy", np.stack([place * factor for factor in (1, 2, 3, 4)], -1))
        np.save(tmp_path / f"{name}_place.npy", place)
    write_yaml(tmp_path, values)
    settings = config(tmp_path, target=None)
    data = open_data(settings)
    seen = set()
    for images, targets in train_batches(data, settings, Stream(0, "full"), range(60)):
        assert torch.equal(images, targets * torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1))
        for window in targets[:, 0].numpy():
            first = window.min()
            steps = (window - first).astype(np.int64)
            original = np.arange(6)[:, None] * SIDE + np.arange(6)
            (turn,) = [turn for turn in range(8) if (turned(original[..., None], turn)[..., 0] == steps).all()]
            seen.add((turn, int(first) % SIDE, int(first) // SIDE % SIDE))
    assert {turn for turn, _, _ in seen} == set(range(8))
    assert {left for _, left, _ in seen} == {top for _, _, top in seen} == set(range(7))
    still = replace(settings, flip=False)
    for _, targets in train_batches(data, still, Stream(0, "full"), range(3)):
        assert (targets[:, 0, 0, 1] - targets[:, 0, 0, 0] == 1).all()


def write_yaml(root: Path, values: dict[str, Any]) -> None:
    import yaml

    (root / "patches.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def test_the_eight_symmetries_are_all_there_and_differ() -> None:
    plane = np.arange(9).reshape(3, 3, 1)
    found = {turned(plane, turn).tobytes() for turn in range(8)}
    assert len(found) == 8
    assert turned(plane, 0).tobytes() == plane.tobytes()


def test_batches_depend_on_seed_phase_and_step_alone(tmp_path: Path) -> None:
    write_patches(tmp_path)
    settings = config(tmp_path)
    data = open_data(settings)
    whole = list(train_batches(data, settings, Stream(3, "full"), range(4)))
    late = list(train_batches(data, settings, Stream(3, "full"), range(2, 4)))
    thirds = [
        list(train_batches(data, settings, Stream(3, "full"), range(4), share=Share(part, 3))) for part in range(3)
    ]
    for number, batch in enumerate(whole):
        for index in (0, 1):
            assert torch.equal(torch.cat([part[number][index] for part in thirds]), batch[index])
    for before, after in zip(whole[2:], late, strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.targets, after.targets)


def test_bands_are_chosen_by_name_and_take_their_own_statistics(tmp_path: Path) -> None:
    stored = write_patches(tmp_path)
    train = stored["train"]["images"].reshape(-1, 4).astype(np.float64)
    data = open_data(config(tmp_path, bands=("nir", "blue")))
    assert data.bands == ("nir", "blue")
    np.testing.assert_allclose(data.mean, train.mean(0)[[3, 0]], rtol=1e-6)
    np.testing.assert_allclose(data.std, train.std(0)[[3, 0]], rtol=1e-6)
    every = open_data(config(tmp_path))
    chosen, _ = evaluated(data, 12)
    whole, _ = evaluated(every, 12)
    assert torch.equal(chosen, whole[:, [3, 0]])
    assert torch.equal(data.normalise(chosen), every.normalise(whole)[:, [3, 0]])
    assert data.fingerprint != every.fingerprint


def test_a_network_sees_the_same_whatever_the_order_of_bands_in_files(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    write_patches(tmp_path / "one")
    write_patches(tmp_path / "two", described(bands=[described()["bands"][index] for index in order]))
    for split in ("train", "val", "test"):
        file = tmp_path / "two" / f"{split}.npy"
        np.save(file, np.load(file)[..., order])
    bands = ("nir", "red", "blue")
    one, two = (open_data(config(tmp_path / name, bands=bands)) for name in ("one", "two"))
    assert (one.mean, one.std) == (two.mean, two.std)
    assert torch.equal(*(data.normalise(evaluated(data, 12)[0]) for data in (one, two)))


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -1), ("uint16", 7), ("float32", None), ("float32", -1)])
def test_pixels_without_data_count_nowhere(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    write_patches(tmp_path, described(nodata=nodata), dtype)
    rng = np.random.default_rng(1)
    stored = rng.integers(10, 200, (6, SIDE, SIDE, 4)).astype(dtype)
    missing = rng.random((6, SIDE, SIDE)) < 0.2
    stored[..., 2][missing] = np.nan if nodata is None else nodata
    for name, count in COUNTS.items():
        np.save(tmp_path / f"{name}.npy", stored[:count])
    data = open_data(config(tmp_path))
    kept = stored[~missing].astype(np.float64)
    np.testing.assert_allclose(data.mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.std, kept.std(0), rtol=1e-6)
    images, targets = evaluated(data, 12)
    hidden = torch.from_numpy(missing[:3])
    assert (targets[hidden] == -100).all()
    assert (targets[~hidden] >= 0).any()
    seen = data.normalise(images)
    assert (seen.permute(0, 2, 3, 1)[hidden] == 0).all()
    plain = (images.double() - torch.tensor(data.mean).view(1, 4, 1, 1)) / torch.tensor(data.std).view(1, 4, 1, 1)
    torch.testing.assert_close(seen.permute(0, 2, 3, 1)[~hidden], plain.float().permute(0, 2, 3, 1)[~hidden])
    numbers = open_data(config(tmp_path, target="height"))
    _, heights = evaluated(numbers, 12)
    assert heights.permute(0, 2, 3, 1)[hidden].isnan().all()


def test_pictures_are_normalised_as_before() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    scale = torch.tensor([1 / (255 * value) for value in std]).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
    assert torch.equal(normalise(images, mean, std), torch.addcmul(shift, images.float(), scale))


def test_a_run_keeps_its_split_and_its_statistics(tmp_path: Path) -> None:
    write_patches(tmp_path / "data")
    settings = config(tmp_path / "data")
    data = open_data(settings)
    write_split(tmp_path / "split.json", split_record(data))
    record = read_split(tmp_path / "split.json")
    again = open_data(settings, record)
    assert (again.mean, again.std, again.fingerprint) == (data.mean, data.std, data.fingerprint)
    assert [split.images.names() for split in (again.train, again.val)] == [
        split.images.names() for split in (data.train, data.val)
    ]
    assert record.train.files is not None
    assert record.train.files[:2] == ("train.npy:0", "train.npy:1")
    statistics = record.statistics
    assert statistics is not None
    assert statistics.keys() == set(BANDS)
    shifted = replace(record, statistics={name: replace(one, mean=1.0) for name, one in statistics.items()})
    assert open_data(settings, shifted).mean == (1.0,) * 4, "the run's own are taken, not measured again"


def test_places_are_held_out_whole(tmp_path: Path) -> None:
    values = described()
    for part in values["parts"]:
        del part["split"]
    write_patches(tmp_path, values)
    (tmp_path / "val.txt").write_text("train 0\ntrain 0\nelsewhere\n")
    data = open_data(config(tmp_path, val_fraction=0.3, test_fraction=0.3))
    places = []
    for split in (data.train, data.val, data.test):
        assert isinstance(split.images, PatchImages)
        places.append(set(split.images.places.tolist()))
    assert all(places)
    assert sum(map(len, places)) == len(set.union(*places)) == 6
    again = open_data(config(tmp_path, val_fraction=0.3, test_fraction=0.3))
    assert again.fingerprint == data.fingerprint
    assert len({open_data(config(tmp_path, split_seed=seed)).fingerprint for seed in range(6)}) > 1


def test_classes_that_a_split_lacks_are_said(tmp_path: Path, notes: Notes) -> None:
    values = described()
    for part in values["parts"]:
        del part["split"]
    write_patches(tmp_path, values)
    for name, count in COUNTS.items():
        tame = np.array([name == "train" and number < 2 for number in range(count)])
        np.save(tmp_path / f"{name}_kind.npy", tame.astype(np.int32))
    for seed in range(3):
        data = open_data(config(tmp_path, target="kind", val_fraction=0.3, test_fraction=0.3, split_seed=seed))
        said = notes()
        for split in (data.train, data.val, data.test):
            lacks = f"{split.name}: has no patch or window of tame (1 of 2 classes)"
            assert (lacks in said) == (1 not in split.targets)
        assert "of wild" not in said


def test_as_many_places_are_held_out_as_come_closest(tmp_path: Path) -> None:
    write_patches(tmp_path)
    images = open_data(config(tmp_path)).train.images
    assert isinstance(images, PatchImages)
    split = open_data(config(tmp_path)).train
    for fraction, count in ((0.01, 2), (0.3, 2), (0.6, 4), (0.99, 4)):
        kept, held = hold_out(split, fraction=fraction, held="val", classes=(), seed=0)
        assert (len(kept), len(held)) == (6 - count, count)


def test_few_shots_are_nested_and_kept_by_the_run(tmp_path: Path) -> None:
    write_patches(tmp_path)
    shots = [open_data(config(tmp_path, shots=count)) for count in (1, 2, 4, 100)]
    names = [set(data.train.images.names() or ()) for data in shots]
    assert [len(some) for some in names] == [1, 2, 4, 6]
    assert names[0] < names[1] < names[2] < names[3]
    assert shots[0].val.images.names() == shots[3].val.images.names()
    again = open_data(config(tmp_path, shots=2), split_record(shots[1]))
    assert again.fingerprint == shots[1].fingerprint
    kinds = open_data(config(tmp_path, target="kind", shots=2, split_seed=3))
    assert np.bincount(kinds.train.targets).tolist() == [2, 2]


def test_calibration_takes_windows_of_training_patches(tmp_path: Path) -> None:
    write_patches(tmp_path)
    data = open_data(config(tmp_path))
    images, _ = joined(calibration_batches(data, resolution=6, eval_crop=1.0, images=20, batch_size=7, seed=2))
    every, _ = joined(list(eval_batches(data.train, resolution=6, eval_crop=1.0, batch_size=64)))
    known = {window.numpy().tobytes() for window in every}
    assert len({window.numpy().tobytes() for window in images} & known) == 20


def test_joined_splits_and_single_patches_are_read(tmp_path: Path) -> None:
    write_patches(tmp_path)
    data = open_data(config(tmp_path))
    both = join(data.train, data.val, "train")
    assert both.images.names() == [*(data.train.images.names() or ()), *(data.val.images.names() or ())]
    found, _ = joined(list(eval_batches(both, resolution=12, eval_crop=1.0, batch_size=64)))
    for index in range(len(both)):
        assert torch.equal(found[index], both.image(index))
    looked = both.images.look(np.array([7, 0])).images()
    assert torch.equal(torch.stack(looked), found[[7, 0]])


def test_windows_are_classified_by_the_class_that_most_of_their_pixels_have(tmp_path: Path, notes: Notes) -> None:
    stored = write_patches(tmp_path)
    for name, count in COUNTS.items():
        cover = np.full((count, SIDE, SIDE), 10, np.uint8)
        cover[:, :6, 6:] = 20
        cover[:, :3, 6:] = 40  # half and half: no class is clear
        cover[:, 6:, :6] = 99  # no class at all
        cover[:, 6:, 6:] = 40
        cover[:, 6:8, 6:] = 10  # a third
        np.save(tmp_path / f"{name}_cover.npy", cover)
    data = open_data(config(tmp_path, window=6, classes=("crop", "tree")))
    assert (data.target.kind, data.classes, data.train.images.size) == ("classes", ("crop", "tree"), (6, 6))
    assert data.val.targets.tolist() == [1, 0] * 3
    assert data.val.images.names() == [f"val.npy:{patch}+{top}+{top}" for patch in range(3) for top in (0, 6)]
    images, targets = evaluated(data, 6)
    assert targets.tolist() == data.val.targets.tolist()
    np.testing.assert_array_equal(images[3].permute(1, 2, 0), stored["val"]["images"][1, 6:, 6:])
    with pytest.raises(UserError, match="class 'grass' of target cover: train has no patch or window of it"):
        open_data(config(tmp_path, window=6))
    assert "val: windows without a clear class (data.window_share), left out: 6 of 12" in notes()
    strict = config(tmp_path, window=6, classes=("crop", "tree"), window_share=0.7)
    with pytest.raises(UserError, match="class 'crop'"):
        open_data(strict)


def test_shares_of_classes_are_those_of_pixels_that_count_or_of_images(tmp_path: Path) -> None:
    arrays = write_patches(tmp_path)["train"]
    train = open_data(config(tmp_path, target="cover")).train
    counted = np.isin(arrays["cover"], CODES) & (arrays["images"] != -1).all(-1)
    codes = arrays["cover"][counted]
    assert class_shares(train, len(CODES)) == tuple((codes == code).mean() for code in CODES)
    kinds = open_data(config(tmp_path, target="kind")).train
    assert class_shares(kinds, 2) == (0.5, 0.5)


def test_a_search_confirms_on_places_that_it_never_saw(tmp_path: Path) -> None:
    """Patches of one place are alike."""
    write_patches(tmp_path)
    val = open_data(config(tmp_path)).val
    halves = halve(val, 3)
    places = [{str(place) for place in half.images.places} for half in halves]
    assert all(places)
    assert not places[0] & places[1]
    assert len(halves.search) + len(halves.confirmation) == len(val)
    with pytest.raises(UserError, match=r"is the only one of .* needs one of its own"):
        halve(halves.confirmation, 3)
