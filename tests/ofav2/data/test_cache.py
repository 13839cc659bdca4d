"""Decoded once, images are the same as decoded anew; an entry of the cache is whole, or not there."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import Batch, ImageData, cache, digests, turns
from ofav2.errors import RunError, UserError
from ofav2.rng import Stream
from tests.notes import Notes
from tests.ofav2.changes import flip_a_bit

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
    kept = (".lock", ".digests")
    return [path for path in Path(config.cache).iterdir() if path.name.startswith(".") and path.suffix not in kept]


def everything(opened: ImageData) -> list[torch.Tensor]:
    return [split.image(i) for split in (opened.train, opened.val, opened.test) for i in range(len(split))]


def trained_on(opened: ImageData, config: DataConfig) -> list[Batch]:
    return list(data.train_batches(opened, config, Stream(1, "full"), range(9)))


def refuse_to_decode(*given: object) -> torch.Tensor:
    raise AssertionError("decoded again")


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("cache_gib", "shrink_to"), [(1.0, 0), (1.0, 12), (1e-7, 12)])
def test_a_recipe_sees_the_same_samples_with_and_without_a_cache(
    config: DataConfig, workers: int, cache_gib: float, shrink_to: int
) -> None:
    config = replace(config, workers=workers, cache_gib=cache_gib, shrink_to=shrink_to)
    streamed = data.open_data(replace(config, cache=None))
    for _ in range(2):
        kept = data.open_data(config)
        assert kept.fingerprint == streamed.fingerprint
        assert kept.train.images.decoded == (cache_gib == 1.0)
        assert all(map(torch.equal, everything(kept), everything(streamed)))
        assert (max(min(image.shape[1:]) for image in everything(kept)) <= 12) == (shrink_to == 12)
        assert same(trained_on(kept, config), trained_on(streamed, replace(config, cache=None)))
        for split in ("val", "test"):
            settings = {"resolution": 9, "eval_crop": 0.875, "batch_size": 3, "workers": workers}
            ours, theirs = (list(data.eval_batches(getattr(one, split), **settings)) for one in (kept, streamed))
            assert same(ours, theirs)


def test_the_second_time_nothing_is_decoded(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = everything(data.open_data(config))

    monkeypatch.setattr(cache, "decode", refuse_to_decode)
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


def about_with(**changed: object) -> Callable[[Path], None]:
    def spoil(entry: Path) -> None:
        about = json.loads((entry / cache.ABOUT).read_text())
        (entry / cache.ABOUT).write_text(json.dumps({**about, **changed}))

    return spoil


def index_with(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Change the index as someone would who knows of the checksum."""

    def spoil(entry: Path) -> None:
        with np.load(entry / cache.INDEX) as kept:
            index = {name: kept[name].copy() for name in kept}
        change(index)
        np.savez(entry / cache.INDEX, **index)  # type: ignore[arg-type]
        about_with(index_sha256=hashlib.sha256((entry / cache.INDEX).read_bytes()).hexdigest())(entry)

    return spoil


def test_an_image_above_the_bound_of_what_is_sampled_is_sampled(
    config: DataConfig, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHECKED", 1)
    data.open_data(config)
    (pixels,) = Path(config.cache or "").rglob(cache.PIXELS)
    pixels.write_bytes(bytes(byte ^ 1 for byte in pixels.read_bytes()))
    notes()
    data.open_data(config)
    assert "has changed" in notes()


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        spoil_index,
        about_with(key="0" * 64),
        about_with(bad=[1]),
        about_with(bad={"x": "y"}),
        about_with(bytes="many"),
        about_with(kept="yes"),
        about_with(format="ofav2-images/1"),
        about_with(decoders=None),
        index_with(lambda index: index["offsets"].__setitem__(3, 10**9)),
        index_with(lambda index: index["offsets"].__setitem__(3, -(10**9))),
        index_with(lambda index: index["shapes"].__setitem__(3, 10**4)),
        index_with(lambda index: index["shapes"].__setitem__(3, 2**32)),
        index_with(lambda index: index["digests"].__setitem__(3, 7)),
        index_with(lambda index: index.pop("checks")),
        index_with(lambda index: index.update(offsets=index["offsets"][:-1])),
        index_with(lambda index: index.update(shapes=index["shapes"].astype(np.float64))),
        lambda entry: flip_a_bit(entry / cache.PIXELS, 1000),
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


def test_an_entry_of_other_decoders_is_used_and_both_versions_are_said(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    before = everything(data.open_data(config))
    (entry,) = entries(config)
    data.open_data(config)
    assert "other versions" not in notes()
    about_with(decoders={"torchvision": "0.1", "pillow": version("pillow")})(entry)
    monkeypatch.setattr(cache, "decode", refuse_to_decode)
    assert all(map(torch.equal, everything(data.open_data(config)), before))
    now = version("torchvision").partition("+")[0]
    assert f"cache {entry}: was decoded by other versions (torchvision 0.1, now {now}" in notes()


def test_what_a_killed_process_left_is_said_and_removed(config: DataConfig, notes: Notes) -> None:
    data.open_data(config)
    (entry,) = entries(config)
    left = entry.rename(entry.with_name(f".{entry.name}-abc"))
    data.open_data(config)
    assert f"cache {left}: was left half-written; removed" in notes()
    assert entries(config) == [entry]
    assert not leftovers(config)


def test_what_killed_processes_left_of_other_images_is_removed_unless_it_is_being_made(
    config: DataConfig, image: Callable[..., None], notes: Notes
) -> None:
    data.open_data(config)
    (entry,) = entries(config)
    left, made = (entry.with_name(f".imagefolder-{digit * 16}-abcd_123") for digit in "56")
    other = entry.with_name(".of-someone-else")
    for folder in (left, made, other):
        folder.mkdir()
        (folder / cache.PIXELS).write_bytes(b"x")
    image(Path(str(config.root)) / "cat" / "extra.png", (9, 9))
    # Of one the lock can't be opened, as of another user's; another entry is removed while it is looked at.
    unheld = entry.with_name(f".imagefolder-{'7' * 16}-abcd_123")
    unheld.mkdir()
    entry.with_name(f".imagefolder-{'7' * 16}.lock").mkdir()
    entry.with_name(f"imagefolder-{'8' * 16}").symlink_to("removed")
    with turns.turn(entry.parent, made.name[1:].rpartition("-")[0]):
        data.open_data(config)
    assert f"cache {left}: was left half-written; removed" in notes()
    assert sorted(leftovers(config)) == sorted([made, unheld, other])


def test_a_complete_cache_on_a_read_only_disk_is_used(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data.open_data(config)
    # The same files elsewhere: nothing is remembered of their folder, and nothing can be.
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    monkeypatch.setattr(turns, "_lock_file", lambda cache, name: Path("/proc/self/no/lock"))
    monkeypatch.setattr(cache, "decode", refuse_to_decode)
    for root in ("images", "copy"):
        opened = data.open_data(replace(config, root=str(tmp_path / root)))
        assert all(map(torch.equal, everything(opened), everything(before)))
    with pytest.raises(UserError, match=r"data\.cache \(.*cannot be used"):
        data.open_data(replace(config, cache=str(tmp_path / "empty")))


def test_pixels_that_are_cut_off_in_use_end_the_run_with_a_line(config: DataConfig) -> None:
    opened = data.open_data(config)
    (entry,) = entries(config)
    opened.train.image(0)
    shorten(entry)
    with pytest.raises(RunError, match=r"^data\.cache: pixels\.bin was cut off to 100 bytes of \d+ while in use"):
        opened.train.image(0)


def test_an_entry_that_is_removed_or_made_again_in_use_stays_readable(config: DataConfig) -> None:
    opened = data.open_data(config)
    before = everything(opened)
    (entry,) = entries(config)
    shutil.rmtree(entry)
    assert all(map(torch.equal, everything(opened), before))
    data.open_data(config)
    assert all(map(torch.equal, everything(opened), before))


def test_beside_the_newest_entry_of_a_folder_one_with_fewer_or_more_images_stays(
    config: DataConfig, image: Callable[..., None]
) -> None:
    cat = Path(str(config.root)) / "cat"
    data.open_data(config)
    counts = []
    for number in range(3):
        image(cat / f"extra{number}.png", (9, 9 + number))
        data.open_data(config)
        counts.append(len(entries(config)))
    (cat / "extra2.png").unlink()
    data.open_data(config)
    assert counts == [2, 2, 2], "the one before, as a run may have begun with it"
    assert len(entries(config)) == 2
    image(cat / "extra1.png", (5, 5))
    data.open_data(config)
    assert len(entries(config)) == 1, "those with an image that is gone are of no use"


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


def test_of_a_set_over_the_budget_nothing_is_decoded_and_its_exact_need_is_said(
    config: DataConfig, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = data.open_data(config)
    need = 3 * sum(image[0].numel() for image in everything(kept))
    shutil.rmtree(str(config.cache))
    notes()
    monkeypatch.setattr(cache, "decode", refuse_to_decode)
    opened = data.open_data(replace(config, cache_gib=1e-7))
    assert not opened.train.images.decoded
    assert not entries(config)
    said = notes()
    assert f"24 images need about {need / 2**30:.3g} GiB decoded, more than data.cache_gib (" in said
    assert "with data.shrink_to=24 they would need" in said


def test_what_images_need_is_estimated_split_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many headers are read of a split of few large images as of one of many small ones."""
    sides = {"small": 64, "large": 1000}
    counts = {"small": 100_000, "large": 5_000}
    trees: Any = [SimpleNamespace(paths=range(counts[name]), shrink_to=0, name=name) for name in sides]
    monkeypatch.setattr(cache, "_pixel_bytes", lambda tree, index, side: 3 * sides[tree.name] ** 2)
    assert cache._needed(trees) == sum(3 * sides[name] ** 2 * counts[name] for name in sides)


def test_images_that_are_shrunk_otherwise_have_an_entry_of_their_own(config: DataConfig) -> None:
    whole, small = data.open_data(config), data.open_data(replace(config, shrink_to=12))
    assert len(entries(config)) == 2
    assert whole.fingerprint == small.fingerprint


def test_a_larger_budget_keeps_what_was_only_looked_at(config: DataConfig) -> None:
    looked_at = data.open_data(replace(config, cache_gib=1e-7, bad_images="skip"))
    assert not looked_at.train.images.decoded
    (entry,) = entries(config)
    assert not (entry / cache.PIXELS).exists()
    assert data.open_data(config).train.images.decoded
    assert data.open_data(replace(config, cache_gib=1e-7)).train.images.decoded, "what is there is used"


def test_an_estimate_that_was_too_high_keeps_all(
    tmp_path: Path, image: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAMPLE", 64)
    # Every second image is looked at in advance, and those are the large ones.
    for name in ("cat", "dog"):
        for number in range(cache.SAMPLE):
            image(tmp_path / "images" / name / f"{number:03d}.bmp", (2, 2) if number % 2 else (16, 16))
    size = cache.SAMPLE * 3 * (16 * 16 + 2 * 2)
    settings = {"cache": str(tmp_path / "cache"), "cache_gib": 1.1 * size / 2**30, "bad_images": "skip"}
    config = DataConfig("imagefolder", str(tmp_path / "images"), **settings)
    assert all(data.open_data(config).train.images.decoded for _ in range(2))


def test_an_estimate_that_was_too_low_ends_in_looking(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_needed", lambda trees, shrink_to=None: 0)
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


def test_entries_of_one_folder_with_other_settings_stay(config: DataConfig, tmp_path: Path, notes: Notes) -> None:
    root = Path(str(config.root))
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    for name, some in (("first", paths[:16]), ("last", paths[8:])):
        rows = "".join(f"{path},{'odd' if n % 2 else 'even'}\n" for n, path in enumerate(some))
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{rows}")
    one, other = (replace(config, labels=str(tmp_path / f"{name}.csv")) for name in ("first", "last"))
    settings = [one, other, *(replace(config, shrink_to=side) for side in (0, 12, 24))]
    settings.append(replace(config, exif_orientation=False))
    for given in settings:
        data.open_data(given)
    before = entries(config)
    assert len(before) == len(settings)
    for given in settings:
        data.open_data(given)
    assert entries(config) == before
    assert "removed" not in notes()


def test_an_entry_that_does_not_say_its_settings_is_left_alone(
    config: DataConfig, image: Callable[..., None], notes: Notes
) -> None:
    data.open_data(config)
    (entry,) = entries(config)
    about = json.loads((entry / cache.ABOUT).read_text())
    (entry / cache.ABOUT).write_text(json.dumps({**about, "root": digests.root_key(Path(str(config.root)))}))
    assert "removed" not in notes()
    before = everything(data.open_data(config))
    image(Path(str(config.root)) / "cat" / "001.png", (5, 5))
    assert len(before) == 24
    data.open_data(config)
    assert len(entries(config)) == 2
    assert "removed" not in notes()
