"""Ranks of right classes are those that sorting gives, ties included."""

import math

import numpy as np
import pytest
import torch

from ofav2.tasks.base import Metric
from ofav2.tasks.classification import Classification, predict, ranks


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [2, 5, 10**6], ids=["many ties", "some ties", "no ties"])
def test_ranks_are_places_in_a_stable_sort(levels: int, dtype: type) -> None:
    rng = np.random.default_rng(levels)
    logits = rng.integers(0, levels, (40, 7)).astype(dtype)
    targets = rng.integers(0, 7, 40)
    expected = [[*np.argsort(-row, kind="stable")].index(target) for row, target in zip(logits, targets, strict=True)]
    assert ranks(np.ascontiguousarray(logits.T), targets).tolist() == expected
    assert (predict(torch.from_numpy(logits)).numpy() == targets).tolist() == [rank == 0 for rank in expected]


def test_there_may_be_more_classes_than_a_byte_counts() -> None:
    logits = np.arange(1000, dtype=np.float32)[:, None]
    assert ranks(logits, np.array([0])).tolist() == [999]


def test_an_accuracy_is_shown_with_its_standard_error_and_what_one_image_is() -> None:
    top1 = Metric("top-1", "%", higher_is_better=True)
    assert top1.show_from(0.9, 100) == "90.0 ± 3.1 %"
    assert top1.show_from(1.0, 15) == "100.0 ± 6.1 %", "all of 15 images is no certainty"
    assert top1.show_from(None, 100) == "–"
    assert Metric("error", "m", higher_is_better=False).show_from(2.0, 100) == "2 m"
    assert Metric("mIoU", "%", higher_is_better=True).show_from(0.9, 100) == "90.0 %", "a share of areas"
    assert top1.grain(216, "validation") == "One of the 216 validation images is 0.46 points."
    assert top1.grain(334, "validation") is None


def test_rare_classes_weigh_more_where_asked_however_images_are_batched() -> None:
    logits, targets = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.0, 0.5]]), torch.tensor([0, 1, 1])
    task = Classification(2, 0.0, (0.5, 3.0))
    chances = logits.log_softmax(1)
    expected = -(0.5 * chances[0, 0] + 3 * chances[1, 1] + 3 * chances[2, 1]) / 3
    torch.testing.assert_close(task.loss(logits, targets), expected)
    parts = task.loss(logits[:1], targets[:1]) + 2 * task.loss(logits[1:], targets[1:])
    torch.testing.assert_close(parts / 3, expected)


def test_logits_that_are_nan_are_no_accuracy() -> None:
    """`argmax` takes NaN for the first class, which would be right here."""
    task = Classification(3)
    logits = torch.full((4, 3), torch.nan)
    first = torch.zeros(4, dtype=torch.int64)
    assert math.isnan(task.read(task.tally(logits, first))["top-1"])
    sound = torch.eye(3)[[0, 0, 1, 2]]
    assert task.read(task.tally(sound, first))["top-1"] == 0.5
    both = task.tally(sound, first) + task.tally(torch.cat([sound[:3], logits[:1]]), first)
    assert math.isnan(task.read(both)["top-1"]), "also where one image of many is so"
