"""Holding out: nothing lost, nothing shared, every class in its share, and the same again."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofav2.data.images import ArrayImages, file_images
from ofav2.data.splits import Split, fingerprint, hold_out, join
from ofav2.errors import UserError


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
        assert [labels[number] for number in indices(part)] == part.labels.tolist()
    for label, count in enumerate(counts):
        share = int((held.labels == label).sum())
        assert 1 <= share <= count - 1
        assert abs(share - count * fraction) <= 1
    again = draw(whole, fraction, len(counts), seed)[1]
    assert indices(again) == indices(held)


def test_shares_are_rounded_per_class() -> None:
    held = draw(numbered([0] * 20 + [1] * 10), 0.15, 2)[1]
    assert np.bincount(held.labels).tolist() == [3, 2]


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
        split.labels[0] = 1
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
        ("a", ["x", "y"], [Split("train", base.labels, pixels)]),
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
    assert whole.labels.tolist() == [*kept.labels.tolist(), *held.labels.tolist()]
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
