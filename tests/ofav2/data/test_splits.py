"""Holding out: nothing lost, nothing shared, every class in its share, and the same again."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofav2.data.images import ArrayImages, file_images
from ofav2.data.splits import (
    RGB,
    ImageData,
    Listed,
    Split,
    SplitMembers,
    SplitRecord,
    TargetSpec,
    divide,
    fingerprint,
    first_other_class,
    hold_out,
    join,
    read_split,
    restore,
    select,
    split_record,
    validation_is_test,
    write_split,
)
from ofav2.errors import RunError, UserError


def numbered(labels: list[int]) -> Split:
    """Make a split whose image i has the pixels of i's bytes, so that images can be told apart."""
    pixels = np.array([[[[i % 256, i // 256]]] * 3 for i in range(len(labels))], dtype=np.uint8)
    return Split("train", np.array(labels, dtype=np.int64), ArrayImages(pixels.reshape(-1, 3, 1, 2)))


def indices(split: Split) -> list[int]:
    return [int(split.image(i)[0, 0, 0]) + 256 * int(split.image(i)[0, 0, 1]) for i in range(len(split))]


def draw(split: Split, fraction: float, classes: int, seed: int = 0) -> tuple[Split, Split]:
    names = [str(c) for c in range(classes)]
    kept, held = hold_out(split, fraction=fraction, held="val", classes=names, seed=seed)
    return split.take("train", kept), split.take("val", held)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)
def test_a_draw_is_disjoint_exhaustive_stratified_and_stable(counts: list[int], fraction: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    np.random.default_rng(0).shuffle(labels)
    whole = numbered(labels)
    kept, held = draw(whole, fraction, len(counts), seed)
    assert (kept.name, held.name) == ("train", "val")
    assert sorted(indices(kept) + indices(held)) == list(range(len(labels)))
    for part in (kept, held):
        assert [labels[number] for number in indices(part)] == part.targets.tolist()
    for label, count in enumerate(counts):
        share = int((held.targets == label).sum())
        assert 1 <= share <= count - 1
        assert abs(share - count * fraction) <= 1
    again = draw(whole, fraction, len(counts), seed)[1]
    assert indices(again) == indices(held)


def test_shares_are_rounded_per_class() -> None:
    held = draw(numbered([0] * 20 + [1] * 10), 0.15, 2)[1]
    assert np.bincount(held.targets).tolist() == [3, 2]


def test_another_seed_draws_other_images() -> None:
    whole = numbered([0, 1] * 50)
    assert indices(draw(whole, 0.2, 2, seed=0)[1]) != indices(draw(whole, 0.2, 2, seed=1)[1])


def test_a_further_class_does_not_move_the_others() -> None:
    short, long = numbered([0] * 20 + [1] * 20), numbered([0] * 20 + [1] * 20 + [2] * 20)
    assert indices(draw(short, 0.3, 2)[1]) == [n for n in indices(draw(long, 0.3, 3)[1]) if n < 40]


def test_classes_of_one_size_do_not_draw_the_same_positions() -> None:
    held = indices(draw(numbered([0] * 40 + [1] * 40), 0.5, 2)[1])
    assert [n for n in held if n < 40] != [n - 40 for n in held if n >= 40]


def test_a_class_with_a_single_image_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"class '1' \(1 image left in train\)"):
        draw(numbered([0, 0, 1]), 0.5, 2)


def test_labels_cannot_be_written_and_images_are_copies() -> None:
    split = numbered([0, 1])
    with pytest.raises(ValueError, match="read-only"):
        split.targets[0] = 1
    split.image(1).fill_(9)
    assert indices(split) == [0, 1]


def test_a_split_can_be_pickled_for_worker_processes() -> None:
    split = pickle.loads(pickle.dumps(numbered([0, 1, 0])))
    assert indices(split) == [0, 1, 2]


def test_the_fingerprint_tells_names_classes_labels_pixels_and_splits_apart() -> None:
    base = numbered([0, 0, 1, 1])
    first, second = draw(base, 0.5, 2)
    pixels = ArrayImages(np.zeros((4, 3, 1, 2), dtype=np.uint8))
    variants = [
        ("a", ["x", "y"], [base]),
        ("b", ["x", "y"], [base]),
        ("a", ["x", "z"], [base]),
        ("a", ["x", "y"], [numbered([0, 1, 1, 1])]),
        ("a", ["x", "y"], [Split("train", base.targets, pixels)]),
        ("a", ["x", "y"], [first, second]),
        ("a", ["x", "y"], [second, first]),
    ]
    digests = [fingerprint(*variant) for variant in variants]
    assert len(set(digests)) == len(variants)
    assert digests == [fingerprint(*variant) for variant in variants]
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


def test_joined_splits_hold_the_images_of_both_in_order() -> None:
    kept, held = draw(numbered([0, 1, 0, 1, 0, 1, 1]), 0.4, 2)
    whole = join(kept, held, "train")
    assert (whole.name, len(whole)) == ("train", 7)
    assert indices(whole) == indices(kept) + indices(held)
    assert whole.targets.tolist() == [*kept.targets.tolist(), *held.targets.tolist()]
    some = whole.take("some", np.array([6, 0, 3, 0]))
    assert indices(some) == [indices(whole)[index] for index in (6, 0, 3, 0)]
    assert indices(pickle.loads(pickle.dumps(some))) == indices(some), "workers get it so"
    chosen = np.array([3, 1, 1, 2])
    looked = some.images.look(chosen).images()
    assert all(torch.equal(image, some.image(index)) for image, index in zip(looked, chosen, strict=True))
    assert (some.images.decoded, some.images.size, some.images.names()) == (True, (1, 2), None)


def test_joined_files_keep_their_names(tmp_path: Path) -> None:
    rows = [file_images(tmp_path, ["a.png", "b.png"]), file_images(tmp_path, ["c.png"])]
    first, second = (Split("train", np.zeros(len(row.names()), dtype=np.int64), row) for row in rows)
    joined = join(first, second, "train").take("some", np.array([2, 0])).images
    assert joined.names() == ["c.png", "a.png"]
    assert not joined.decoded
    assert joined.size is None


def test_joined_splits_are_told_apart() -> None:
    kept, held = draw(numbered([0, 1, 0, 1, 0, 1, 1]), 0.4, 2)
    there, back = join(kept, held, "train"), join(held, kept, "train")
    assert there.images.identity() == join(kept, held, "train").images.identity()
    assert len({split.images.identity() for split in (there, back, there.take("some", np.array([1, 2])))}) == 3


# The split that a run keeps


def listed_files(folder: Path, *names: str) -> Split:
    """A listed split of files, of which half have the label 0 and half the label 1."""
    return Split("train", np.arange(len(names)) % 2, file_images(folder, names))


def opened(listed: Listed, test_fraction: float = 0.25) -> ImageData:
    train, val, test, origins = divide(listed, val_fraction=0.25, test_fraction=test_fraction, seed=3)
    colour = (0.5, 0.5, 0.5)
    return ImageData(
        *("some", RGB, TargetSpec("classes", ("a", "b")), colour, colour, train, val, test, "ab" * 32, origins),
        skipped=("image x: empty",),
    )


NAMES = [f"{number:02d}.png" for number in range(20)]


def all_names(*splits: Split) -> list[list[str] | None]:
    return [split.images.names() for split in splits]


def test_a_run_keeps_its_split_of_files_by_name(tmp_path: Path) -> None:
    data = opened(Listed(("a", "b"), listed_files(tmp_path, *NAMES)))
    write_split(tmp_path / "split.json", split_record(data))
    record = read_split(tmp_path / "split.json")
    assert record == split_record(data)
    assert (record.fingerprint, record.classes, record.skipped) == (data.fingerprint, data.classes, data.skipped)
    assert [list(one.files or ()) for one in record.by_name.values()] == all_names(data.train, data.val, data.test)
    assert {one.listed for one in record.by_name.values()} == {"train"}


def test_images_that_a_run_does_not_know_are_left_out_and_those_it_misses_are_named(tmp_path: Path) -> None:
    data = opened(Listed(("a", "b"), listed_files(tmp_path, *NAMES)))
    record = split_record(data)
    # Labels follow the files' places here, so two images before the others change none.
    now = Listed(("a", "b"), listed_files(tmp_path, "+.png", "00+.png", *NAMES[:-2], "21.png"))
    found = select(now, record)
    assert (found.missing, found.unknown) == (("18.png", "19.png"), {"train": ("+.png", "00+.png", "21.png")})
    assert found.listed.train.images.names() == NAMES[:-2]
    parts = restore(found.listed, record)
    before = all_names(data.train, data.val, data.test)
    assert all_names(parts.train, parts.val, parts.test) == [
        [name for name in names or [] if name not in found.missing] for names in before
    ]
    assert parts.train.targets.tolist() == [NAMES.index(name) % 2 for name in parts.train.images.names() or []]


def test_without_a_test_fraction_the_validation_images_are_tested_on(tmp_path: Path) -> None:
    listed = Listed(("a", "b"), listed_files(tmp_path, *NAMES))
    data = opened(listed, test_fraction=0.0)
    train, val, test = all_names(data.train, data.val, data.test)
    assert val == test
    assert sorted([*(train or []), *(val or [])]) == NAMES
    assert data.validation_is_test
    assert not opened(listed).validation_is_test
    write_split(tmp_path / "split.json", split_record(data))
    record = read_split(tmp_path / "split.json")
    parts = restore(listed, record)
    assert all_names(*parts[:3]) == [train, val, test]
    assert validation_is_test(parts.origins)
    gone = Listed(("a", "b"), listed_files(tmp_path, *(name for name in NAMES if name != (val or [])[0])))
    assert select(gone, record).missing == ((val or [])[0],), "once"


def test_names_in_another_unicode_form_are_the_same_images(tmp_path: Path) -> None:
    composed = [f"\u00e9{name}" for name in NAMES]
    record = split_record(opened(Listed(("a", "b"), listed_files(tmp_path, *composed))))
    now = Listed(("a", "b"), listed_files(tmp_path, *(f"e\u0301{name}" for name in NAMES)))
    found = select(now, record)
    assert (found.missing, found.unknown) == ((), {})
    parts = restore(found.listed, record)
    assert [len(one) for one in parts[:3]] == [len(one.members) for one in record.by_name.values()]
    digests = np.arange(20, dtype=np.uint64)
    one, other = (file_images(tmp_path, names) for names in (composed, now.train.images.names() or []))
    assert one.identity_by(digests) == other.identity_by(digests)


def test_splits_that_a_data_set_brings_are_kept_apart_by_where_they_are_listed(tmp_path: Path) -> None:
    test = Split("test", np.array([0, 1]), file_images(tmp_path / "test", NAMES[:2]))
    data = opened(Listed(("a", "b"), listed_files(tmp_path / "train", *NAMES), test=test))
    record = split_record(data)
    assert [one.listed for one in record.by_name.values()] == ["train", "train", "test"]
    more = Split("test", np.array([0, 1, 1]), file_images(tmp_path / "test", NAMES[:3]))
    found = select(Listed(("a", "b"), listed_files(tmp_path / "train", *NAMES), test=more), record)
    assert (found.missing, found.unknown) == ((), {"test": (NAMES[2],)})
    parts = restore(found.listed, record)
    assert all_names(parts.train, parts.val, parts.test) == all_names(data.train, data.val, data.test)
    gone = select(Listed(("a", "b"), listed_files(tmp_path / "train", *NAMES)), record)
    assert gone.missing == tuple(NAMES[:2])
    with pytest.raises(UserError, match="split test: none of the run's images is left"):
        restore(gone.listed, record)


def test_a_run_keeps_its_split_of_arrays_by_place() -> None:
    listed = Listed(("a", "b"), numbered([0, 1] * 10))
    data = opened(listed)
    record = split_record(data)
    assert record.train.files is None
    found = select(listed, record)
    assert (found.missing, found.unknown) == ((), {})
    parts = restore(found.listed, record)
    assert [indices(one) for one in parts[:3]] == [indices(one) for one in (data.train, data.val, data.test)]
    assert [members.indices for members in record.by_name.values()] == [tuple(indices(one)) for one in parts[:3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["val"]["files"].append(record["test"]["files"][0]), "an image is in two splits"),
        (lambda record: record["val"]["files"].append(record["val"]["files"][0]), "val: a split must have"),
        (lambda record: record["val"].update(files=[]), "val: a split must have files or indices, each once"),
        (lambda record: record["val"].update(indices=[1]), "val: a split must have files or indices, each once"),
        (lambda record: record["val"].update(listed="../val"), "val.listed"),
        (lambda record: record["val"].update(files=[1]), "val.files"),
        (lambda record: record.pop("test"), "test is missing"),
        (lambda record: record.update(format="ofav2-split/1"), "format .* must be 'ofav2-split/3'"),
    ],
)
def test_a_damaged_split_is_refused_in_a_line(
    change: Callable[[dict[str, object]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "split.json"
    write_split(path, split_record(opened(Listed(("a", "b"), listed_files(tmp_path, *NAMES)))))
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(RunError, match=message) as error:
        read_split(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_members_are_paths_or_indices() -> None:
    part = SplitMembers("train", None, (0, 3))
    record = SplitRecord(
        "ab", ("a",), part, SplitMembers("train", None, (1,)), SplitMembers("test", None, (1,)), (), None
    )
    assert (part.members, record.by_name["test"].members) == ((0, 3), (1,))


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (("ant", "bee", "cat"), None),
        (("bee", "cat", "zebra"), 'class "ant" is missing, and class "zebra" was not there before'),
        (("ant", "cat"), 'class "bee" is missing'),
        (("ant", "bee", "cat", "dog"), 'class "dog" was not there before'),
        (("ant", "bee", "cat", "cat"), "there were 3 classes, and are 4 now"),
        (("ant", "cat", "bee"), 'class 1 was "bee", and is "cat" now'),
    ],
)
def test_the_first_other_class_is_named(now: tuple[str, ...], difference: str | None) -> None:
    assert first_other_class(("ant", "bee", "cat"), now) == difference
