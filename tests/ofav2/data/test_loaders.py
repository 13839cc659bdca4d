"""Batches are functions of seed, phase and step: with any workers, from any start, and beside any other rng."""

import itertools
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import Batch, ImageData, Request
from ofav2.data.loaders import _finished, _Loaded, _sent_ahead, balanced_order, one_ahead, steps_per_epoch
from ofav2.data.views import draw_views, evaluation_view
from ofav2.errors import UserError
from ofav2.rng import Stream
from tests.ofav2.data.plainly import plain_cut, plain_view

CONFIG = DataConfig(name="digits", resolutions=(12, 16, 20), batch_size=100, crop_scale=(0.4, 1.0))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return data.open_data(CONFIG)


def load(
    digits: ImageData,
    config: DataConfig = CONFIG,
    *,
    seed: int = 3,
    phase: str = "full",
    steps: int = 15,
    start: int = 0,
) -> list[Batch]:
    return list(data.train_batches(digits, config, Stream(seed, phase), range(start, steps)))


def requests(
    digits: ImageData, *, seed: int = 3, phase: str = "full", steps: int = 24, start: int = 0
) -> list[Request]:
    return list(data.train_batches(digits, CONFIG, Stream(seed, phase), range(start, steps)).schedule)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_is_what_its_promise_says(digits: ImageData) -> None:
    """Build every batch in the plainest way, from seed, phase and step alone."""
    phase = zlib.crc32(b"kernel")
    batches = load(digits, seed=5, phase="kernel")
    for step, batch in enumerate(batches):
        epoch, within = divmod(step, len(digits.train) // 100)
        order = np.random.default_rng([zlib.crc32(b"order"), 5, phase, epoch]).permutation(len(digits.train))
        side = (12, 16, 20)[np.random.default_rng([zlib.crc32(b"resolution"), 5, phase, step]).integers(3)]
        assert batch.images.dtype == torch.uint8
        assert tuple(batch.images.shape) == (100, 3, side, side)
        assert batch.targets.dtype == torch.int64
        rng = draw_views(100, np.random.default_rng([zlib.crc32(b"augment"), 5, phase, step]))
        for position, index in enumerate(order[100 * within : 100 * (within + 1)]):
            image, own = digits.train.image(int(index)), rng.at(np.array([position]))
            crop = plain_view(tuple(image.shape[1:]), own, scale=CONFIG.crop_scale, ratio=CONFIG.crop_ratio)
            assert torch.equal(batch.images[position], plain_cut(image, crop, side, own.mirrors[0] < 0.5))
            assert batch.targets[position] == digits.train.targets[index]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(digits: ImageData, workers: int) -> None:
    assert same(load(digits), load(digits, replace(CONFIG, workers=workers)))


@pytest.mark.parametrize("start", [1, 11, 12, 14, 15])
def test_a_resumed_phase_continues_where_the_whole_one_would_be(digits: ImageData, start: int) -> None:
    assert same(load(digits, start=start), load(digits)[start:])


def test_a_resumed_phase_with_workers_continues_too(digits: ImageData) -> None:
    assert same(load(digits, replace(CONFIG, workers=2), start=13), load(digits)[13:])


def test_batches_may_be_iterated_again(digits: ImageData) -> None:
    loader = data.train_batches(digits, CONFIG, Stream(0, "full"), range(3))
    assert len(loader) == 3
    assert same(list(loader), list(loader))


def test_seeds_and_phases_have_draws_of_their_own(digits: ImageData) -> None:
    first = load(digits, steps=2)
    assert not same(first, load(digits, steps=2, seed=4))
    assert not same(first, load(digits, steps=2, phase="kernel"))


def test_an_epoch_sees_no_image_twice_and_each_has_its_own_order(digits: ImageData) -> None:
    per_epoch = data.steps_per_epoch(len(digits.train), CONFIG.batch_size)
    assert per_epoch == 12
    steps = requests(digits)
    epochs = [
        [index for step in steps[start : start + per_epoch] for index in step.indices.tolist()]
        for start in (0, per_epoch)
    ]
    for epoch in epochs:
        assert len(epoch) == per_epoch * CONFIG.batch_size
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(len(digits.train)))
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) != set(epochs[1])  # what the incomplete last batch leaves out changes


def test_balanced_classes_come_equally_often() -> None:
    labels = np.repeat([4, 0, 7], [70, 9, 21])
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    assert sorted(np.bincount(labels[order])[[4, 0, 7]]) == [33, 33, 34]
    for label in (4, 0, 7):
        times = np.bincount(order, minlength=100)[labels == label]
        assert times.max() - times.min() <= 1, "an image comes again only after all of its class did"
    other = balanced_order(labels, np.random.default_rng(1))
    assert np.array_equal(order, balanced_order(labels, np.random.default_rng(0)))
    assert not np.array_equal(order, other)
    assert set(order[:50].tolist()) & set(np.flatnonzero(labels == 0)), "classes are mixed, not one after the other"


def test_balanced_training_continues_where_the_whole_one_would_be(digits: ImageData) -> None:
    few = np.concatenate([np.flatnonzero(digits.train.targets == 3)[:7], np.flatnonzero(digits.train.targets != 3)])
    uneven = replace(digits, train=digits.train.take("train", few))
    config = replace(CONFIG, batch_size=64, balance="classes")
    epoch = steps_per_epoch(len(few), 64)
    whole = load(uneven, config, steps=2 * epoch)
    assert same(whole[epoch + 3 :], load(uneven, config, steps=2 * epoch, start=epoch + 3))
    counts = torch.bincount(torch.cat([batch.targets for batch in whole[:epoch]]))
    assert counts.max() - counts.min() <= 64, "all classes are equal, but for the last batch, which is dropped"
    assert counts[3] > 10 * 7


def test_a_batch_has_one_resolution_and_a_phase_has_all(digits: ImageData) -> None:
    steps = requests(digits, steps=300)
    drawn = [step.resolution for step in steps]
    assert drawn == [data.batch_resolution((12, 16, 20), Stream(3, "full"), step) for step in range(300)]
    counts = [drawn.count(side) for side in (12, 16, 20)]
    assert sum(counts) == 300
    assert min(counts) > 60  # each is expected 100 times, with a deviation of 8


def test_no_two_images_of_a_phase_share_the_seed_of_their_augmentation(digits: ImageData) -> None:
    keys = [step.key for step in requests(digits, steps=40)]
    assert len(set(keys)) == len(keys)
    assert all(step.positions.tolist() == list(range(100)) for step in requests(digits, steps=2))
    areas = draw_views(100, np.random.default_rng(0)).areas
    assert len(np.unique(areas)) == areas.size


def test_no_global_random_state_is_used(digits: ImageData) -> None:
    def states() -> list[bytes]:
        numpy_state = repr(np.random.get_state()).encode()
        return [torch.get_rng_state().numpy().tobytes(), numpy_state, repr(random.getstate()).encode()]

    before = states()
    first = load(digits, steps=2)
    list(data.eval_batches(digits.val, resolution=12, eval_crop=0.875, batch_size=50))
    data.calibration_batches(digits, resolution=12, eval_crop=1.0, images=10, batch_size=5, seed=0)
    data.open_data(CONFIG)
    assert states() == before
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert same(first, load(digits, steps=2))


def test_a_training_split_smaller_than_a_batch_is_refused(digits: ImageData) -> None:
    images = len(digits.train)
    assert data.steps_per_epoch(images, images) == 1
    with pytest.raises(UserError, match=rf"data\.batch_size \({images + 1}\).*has {images} images"):
        load(digits, replace(CONFIG, batch_size=images + 1))


def test_a_negative_seed_is_refused(digits: ImageData) -> None:
    with pytest.raises(UserError, match=r"seed \(-1\)"):
        load(digits, seed=-1)


# Loading ahead


def test_one_ahead_gives_the_items_in_their_order_and_takes_one_more_at_most() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    ahead = one_ahead(items())
    assert not taken, "nothing is loaded before the first one is requested"
    for number, item in enumerate(ahead):
        assert item == number
        assert len(taken) <= number + 2
    assert taken == list(range(5))
    assert list(one_ahead([])) == []


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made, used = threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        yield "first"
        made.set()
        assert used.wait(60), "the first item is still in use while the second one is made"
        yield "second"

    ahead = one_ahead(items())
    assert next(ahead) == "first"
    assert made.wait(60), "it is made without a request"
    used.set()
    assert list(ahead) == ["second"]


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ZeroDivisionError

    ahead = one_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_who_gives_up_early_leaves_no_thread() -> None:
    ahead = one_ahead(itertools.count())
    assert next(ahead) == 0
    assert any(thread.name.startswith("one-ahead") for thread in threading.enumerate())
    ahead.close()
    assert not any(thread.name.startswith("one-ahead") for thread in threading.enumerate())


class FakeStream:
    """Stands for a CUDA stream, and notes what it is told."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told, self.events = name, told, 0

    def record_event(self) -> int:
        self.events += 1
        self.told.append(f"{self.name} records {self.events}")
        return self.events

    def wait_event(self, event: int) -> None:
        self.told.append(f"{self.name} waits for {event}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What CUDA's streams are told: there is no card, and the device is the CPU."""
    notes: list[str] = []
    side, main = FakeStream("side", notes), FakeStream("main", notes)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: notes.append(f"{stream.name} reads"))
    return notes


def ahead(digits: ImageData, config: DataConfig, steps: range) -> list[Batch]:
    """The batches as they come on CUDA, but for the device of the tensors."""
    batches = data.train_batches(digits, config, Stream(3, "full"), steps)
    sent = _sent_ahead(batches.loader, torch.device("cpu"))
    return [_finished(loaded, batches.settings) for loaded in sent]


@pytest.mark.parametrize(
    ("changes", "start"),
    [({}, 0), ({}, 11), ({}, 15), ({"workers": 2}, 11), ({"jitter": (0.4, 0.4, 0.4, 0.1), "mixup": 0.2}, 13)],
)
def test_loaded_ahead_batches_are_the_same_from_any_start(
    digits: ImageData, told: list[str], changes: dict[str, Any], start: int
) -> None:
    config = replace(CONFIG, **changes)
    assert same(ahead(digits, config, range(start, 15)), load(digits, config, start=start))


def test_each_batch_is_waited_for_and_kept_until_it_was_read(digits: ImageData, told: list[str]) -> None:
    ahead(digits, CONFIG, range(3))
    assert [note for note in told if note.startswith("side")] == ["side records 1", "side records 2", "side records 3"]
    read = ["main reads", "main reads"]
    assert [note for note in told if note.startswith("main")] == [
        line for event in (1, 2, 3) for line in (f"main waits for {event}", *read)
    ]
    assert all(told.index(f"side records {event}") < told.index(f"main waits for {event}") for event in (1, 2, 3))


def test_loading_ahead_leaves_torchs_random_state_to_the_step(digits: ImageData, told: list[str]) -> None:
    config = replace(CONFIG, jitter=(0.4, 0.4, 0.4, 0.1), cutmix=1.0)
    batches = data.train_batches(digits, config, Stream(3, "full"), range(2))
    before = torch.get_rng_state()
    for _ in _sent_ahead(batches.loader, torch.device("cpu")):
        assert torch.equal(torch.get_rng_state(), before)


def test_batches_on_cuda_are_loaded_ahead(digits: ImageData, told: list[str]) -> None:
    batches = data.train_batches(digits, CONFIG, Stream(3, "full"), range(4))
    on_cuda = replace(batches, device=torch.device("cuda"))
    plain, loaded = list(batches), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loaded, "on", lambda sent, device: loaded.append(device) or sent)
        assert same(list(on_cuda), plain)
    assert loaded == [torch.device("cuda")] * 4
    assert "main waits for 4" in told


def test_files_of_many_shapes_share_a_batch(
    tmp_path: Path, image: Callable[..., None], classes: Callable[..., None]
) -> None:
    classes(tmp_path, {"a": 8, "b": 8})
    for number, size in enumerate([(5, 40), (64, 9), (1, 1), (100, 100)]):
        image(tmp_path / "b" / f"{number:03d}.jpg", size)
    config = DataConfig(name="imagefolder", root=str(tmp_path), batch_size=5, resolutions=(16,), workers=2)
    opened = data.open_data(config)
    batches = load(opened, config, steps=4)
    assert all(tuple(batch.images.shape) == (5, 3, 16, 16) for batch in batches)
    assert same(batches, load(opened, replace(config, workers=0), steps=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_the_split_in_order_to_its_end(digits: ImageData, workers: int) -> None:
    loader = data.eval_batches(digits.val, resolution=14, eval_crop=0.875, batch_size=64, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.targets) for batch in batches] == [64] * 3 + [len(digits.val) - 192]
        assert torch.cat([batch.targets for batch in batches]).tolist() == digits.val.targets.tolist()
        images = torch.cat([batch.images for batch in batches])
        expected = torch.stack([evaluation_view(digits.val.image(i), 14, 0.875) for i in range(len(digits.val))])
        assert torch.equal(images, expected)


def calibrate(digits: ImageData, images: int, batch_size: int, seed: int = 0) -> list[Batch]:
    return data.calibration_batches(
        digits, resolution=8, eval_crop=1.0, images=images, batch_size=batch_size, seed=seed
    )


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_calibration_takes_a_fixed_part_of_the_training_split(digits: ImageData) -> None:
    batches = calibrate(digits, 250, 100)
    assert [len(batch.targets) for batch in batches] == [100, 100, 50]
    label_of = {digits.train.image(i).numpy().tobytes(): digits.train.targets[i] for i in range(len(digits.train))}
    drawn = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.targets for batch in batches])
    # at 8 pixels uncropped, digits are seen as they are
    assert [label_of[row] for row in rows(drawn)] == labels.tolist()
    assert len(set(rows(drawn))) == 250
    assert same(batches, calibrate(digits, 250, 100))
    assert not same(batches, calibrate(digits, 250, 100, seed=1))
    assert all(len(set(batch.targets.tolist())) == 10 for batch in batches)


def test_calibration_takes_all_of_a_smaller_split(digits: ImageData) -> None:
    batches = calibrate(digits, 5000, 100)
    drawn = rows(torch.cat([batch.images for batch in batches]))
    assert sorted(drawn) == sorted(digits.train.image(i).numpy().tobytes() for i in range(len(digits.train)))


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"), [(201, 100, [100, 101]), (101, 100, [101]), (5, 2, [2, 3]), (2, 100, [2])]
)
def test_no_calibration_batch_has_a_single_image(
    digits: ImageData, images: int, batch_size: int, sizes: list[int]
) -> None:
    assert [len(batch.targets) for batch in calibrate(digits, images, batch_size)] == sizes


def test_calibration_on_single_images_is_refused(digits: ImageData) -> None:
    with pytest.raises(UserError, match=r"evaluation\.calibration_images \(1\)"):
        calibrate(digits, 1, 100)
    with pytest.raises(UserError, match=r"evaluation\.calibration_batch \(1\)"):
        calibrate(digits, 100, 1)
