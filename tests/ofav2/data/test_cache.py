"""Decoded once, images are the same as decoded anew; an entry of the cache is whole, or not there."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import Batch, ImageData, cache
from ofav2.data.cache import CheckedImages
from ofav2.errors import UserError
from ofav2.rng import Stream
from tests.notes import Notes

SIZES = ((12, 10), (5, 40), (64, 9), (1, 1), (30, 30))


@pytest.fixture
def config(tmp_path: Path, image: Callable[..., None]) -> DataConfig:
    """A folder of images of many sizes and kinds."""
    for name in ("cat", "dog"):
        for number in range(12):
            suffix = (".jpg", ".png", ".webp")[number % 3]
            image(tmp_path / "images" / name / f"{number:03d}{suffix}", SIZES[number % len(SIZES)])
    root, kept = str(tmp_path / "images"), str(tmp_path / "cache")
    return DataConfig("imagefolder", root, cache=kept, resolutions=(8, 12), batch_size=4, crop_scale=(0.3, 1.0))


def entries(config: DataConfig) -> list[Path]:
    assert config.cache is not None
    return sorted(path for path in Path(config.cache).iterdir() if not path.name.startswith("."))


def leftovers(config: DataConfig) -> list[Path]:
    assert config.cache is not None
    return [path for path in Path(config.cache).iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


def everything(opened: ImageData) -> list[torch.Tensor]:
    return [split.image(i) for split in (opened.train, opened.val, opened.test) for i in range(len(split))]


def trained_on(opened: ImageData, config: DataConfig) -> list[Batch]:
    return list(data.train_batches(opened, config, Stream(1, "full"), range(9)))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gib", [1.0, 1e-7])
def test_a_recipe_sees_the_same_samples_with_and_without_a_cache(
    config: DataConfig, workers: int, cache_gib: float
) -> None:
    config = replace(config, workers=workers, cache_gib=cache_gib)
    streamed = data.open_data(replace(config, cache=None))
    for _ in range(2):
        kept = data.open_data(config)
        assert kept.fingerprint == streamed.fingerprint
        assert kept.train.images.decoded == (cache_gib == 1.0)
        assert all(map(torch.equal, everything(kept), everything(streamed)))
        assert same(trained_on(kept, config), trained_on(streamed, replace(config, cache=None)))
        for split in ("val", "test"):
            settings = {"resolution": 9, "eval_crop": 0.875, "batch_size": 3, "workers": workers}
            ours, theirs = (list(data.eval_batches(getattr(one, split), **settings)) for one in (kept, streamed))
            assert same(ours, theirs)


def test_the_second_time_nothing_is_decoded(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = everything(data.open_data(config))

    def refuse(content: bytes) -> torch.Tensor:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode", refuse)
    assert all(map(torch.equal, everything(data.open_data(config)), first))


def test_images_from_the_cache_are_fresh(config: DataConfig) -> None:
    opened = data.open_data(config)
    before = opened.train.image(0).clone()
    opened.train.image(0).fill_(7)
    assert torch.equal(opened.train.image(0), before)
    assert torch.equal(data.open_data(config).train.image(0), before)


def test_sizes_are_known_once_decoded(config: DataConfig, tmp_path: Path, classes: Callable[..., None]) -> None:
    assert data.open_data(config).train.images.size is None
    classes(tmp_path / "equal", {"a": 4, "b": 4})
    opened = data.open_data(replace(config, root=str(tmp_path / "equal")))
    assert opened.train.images.size == (10, 12)


def test_changed_files_are_decoded_again_and_the_old_entry_goes(
    config: DataConfig, image: Callable[..., None], notes: Notes
) -> None:
    data.open_data(config)
    (old,) = entries(config)
    image(Path(str(config.root)) / "cat" / "new" / "extra.png", (9, 9))
    (Path(str(config.root)) / "cat" / "new" / "extra.png").replace(Path(str(config.root)) / "cat" / "000.jpg")
    (Path(str(config.root)) / "cat" / "new").rmdir()
    notes()
    opened = data.open_data(config)
    assert entries(config) != [old]
    assert len(entries(config)) == 1
    assert f"{old}: was made before files below" in notes()
    assert all(map(torch.equal, everything(opened), everything(data.open_data(replace(config, cache=None)))))


def test_data_sets_of_other_folders_keep_their_entries(
    config: DataConfig, tmp_path: Path, classes: Callable[..., None]
) -> None:
    data.open_data(config)
    classes(tmp_path / "other", {"a": 4, "b": 4})
    data.open_data(replace(config, root=str(tmp_path / "other")))
    assert len(entries(config)) == 2


def shorten(entry: Path) -> None:
    os.truncate(entry / cache.PIXELS, 100)


def spoil_index(entry: Path) -> None:
    content = bytearray((entry / cache.INDEX).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / cache.INDEX).write_bytes(content)


def spoil_about(entry: Path) -> None:
    about = json.loads((entry / cache.ABOUT).read_text())
    (entry / cache.ABOUT).write_text(json.dumps({**about, "key": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        spoil_index,
        spoil_about,
        lambda entry: (entry / cache.PIXELS).unlink(),
        lambda entry: (entry / cache.INDEX).unlink(),
        lambda entry: (entry / cache.ABOUT).unlink(),
        lambda entry: (entry / cache.ABOUT).write_text("[]"),
        lambda entry: (entry / cache.ABOUT).write_text("{}"),
    ],
)
def test_a_damaged_entry_is_said_and_made_again(
    config: DataConfig, damage: Callable[[Path], object], notes: Notes
) -> None:
    before = everything(data.open_data(config))
    (entry,) = entries(config)
    damage(entry)
    notes()
    assert all(map(torch.equal, everything(data.open_data(config)), before))
    assert f"cache {entry}: is damaged (" in notes()
    assert entries(config) == [entry]
    data.open_data(config)
    assert "damaged" not in notes()


def test_what_a_killed_process_left_is_said_and_removed(config: DataConfig, notes: Notes) -> None:
    data.open_data(config)
    (entry,) = entries(config)
    entry.rename(entry.with_name(f".{entry.name}-abc"))
    data.open_data(config)
    assert f"cache {entry}: was left half-written" in notes()
    assert entries(config) == [entry]
    assert not leftovers(config)


@pytest.mark.parametrize("written", [0, 300])
def test_a_full_disk_is_said_and_leaves_nothing(
    config: DataConfig, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, pixels: np.ndarray, kept: bool) -> None:
        nonlocal written
        written -= pixels.size
        if written < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(UserError, match=r"data\.cache \(.*No space left on device.*set data\.cache=null") as error:
        data.open_data(config)
    assert "\n" not in str(error.value)
    assert not entries(config)
    assert not leftovers(config)


def test_a_cache_that_cannot_be_made_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"data\.cache \(.*file/cache\): cannot be used"):
        data.open_data(replace(config, cache=str(tmp_path / "file" / "cache")))


def test_an_interrupted_pass_leaves_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = cache._looks

    def interrupted(trees: list[object]) -> Iterator[object]:
        for number, look in enumerate(looks(trees)):  # type: ignore[arg-type]
            if number == 5:
                raise KeyboardInterrupt
            yield look

    monkeypatch.setattr(cache, "_looks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.open_data(config)
    assert not entries(config)
    assert not leftovers(config)


def opened_by_a_process(config: DataConfig, barrier: object, found: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    passes = 0
    decode_all = cache._decode_all

    def counted(*arguments: object) -> object:
        nonlocal passes
        passes += 1
        return decode_all(*arguments)  # type: ignore[arg-type]

    cache._decode_all = counted  # type: ignore[assignment]
    opened = data.open_data(config)
    found.put((passes, opened.fingerprint, opened.train.images.decoded))  # type: ignore[attr-defined]


def test_of_processes_that_open_a_data_set_at_once_one_decodes_it(config: DataConfig) -> None:
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(3), context.Queue()
    crew = [context.Process(target=opened_by_a_process, args=(config, barrier, found)) for _ in range(3)]
    for process in crew:
        process.start()
    told = [found.get(timeout=60) for _ in crew]
    for process in crew:
        process.join()
    assert sorted(passes for passes, _, _ in told) == [0, 0, 1]
    assert {(fingerprint, decoded) for _, fingerprint, decoded in told} == {
        (data.open_data(replace(config, cache=None)).fingerprint, True)
    }


def test_a_set_over_the_budget_is_streamed_and_said(config: DataConfig, notes: Notes) -> None:
    opened = data.open_data(replace(config, cache_gib=1e-7))
    assert not isinstance(opened.train.images, CheckedImages)
    assert "decoded, more than data.cache_gib (" in notes()
    assert not entries(config)


def test_a_larger_budget_keeps_what_was_only_looked_at(config: DataConfig) -> None:
    looked_at = data.open_data(replace(config, cache_gib=1e-7, bad_images="skip"))
    assert isinstance(looked_at.train.images, CheckedImages)
    assert not looked_at.train.images.decoded
    (entry,) = entries(config)
    assert not (entry / cache.PIXELS).exists()
    assert data.open_data(config).train.images.decoded
    assert data.open_data(replace(config, cache_gib=1e-7)).train.images.decoded, "what is there is used"


def test_an_estimate_that_was_too_low_ends_in_looking(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_estimate", lambda trees: 0)
    opened = data.open_data(replace(config, cache_gib=1e-6))
    (entry,) = entries(config)
    assert not opened.train.images.decoded
    assert not (entry / cache.PIXELS).exists()
    assert all(map(torch.equal, everything(opened), everything(data.open_data(replace(config, cache=None)))))


def test_joined_splits_are_looked_at_as_they_are_read(config: DataConfig) -> None:
    kept, streamed = data.open_data(config), data.open_data(replace(config, cache=None))
    mixed = data.join(kept.train, streamed.val, "train")
    whole = data.join(kept.train, kept.val, "train")
    assert (mixed.images.decoded, whole.images.decoded) == (False, True)
    order = np.random.default_rng(0).permutation(len(mixed))
    for joined in (mixed, whole):
        assert joined.images.size is None
        expected = [joined.image(int(index)) for index in order]
        assert all(map(torch.equal, joined.images.look(order).images(), expected))
        names = joined.images.take(order).names()
        assert names == [(kept.train.images.names() + kept.val.images.names())[i] for i in order.tolist()]  # type: ignore[operator]
