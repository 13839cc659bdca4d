"""Ranks of right classes are those that sorting gives, ties included."""

import numpy as np
import pytest
import torch

from ofav2.tasks.classification import predict, ranks


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
