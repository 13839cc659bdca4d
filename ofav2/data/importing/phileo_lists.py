"""Choose the few patches that PhilEO Bench trains with: read its lists, or draw them as it does.

A list names patches by their index in a bucket: some regions, whose files follow each other.

Source: Fibaek et al., PhilEO Bench, 2024, and its released lists.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Lists were drawn with Python's own generator; a seeded one of its own has no global state.
from random import Random
from typing import Any, TypeGuard

from ofav2.errors import UserError

SEED = 12345
"""Seed of the order in which patches are drawn."""
KEEPING_SEED = 156
"""Seed of which patches with almost nothing on them are kept."""
KEPT_ABOVE = 0.75
"""Numbers in [0, 1) above which such a patch is kept."""
VALIDATION = 0.2
"""Validation patches per training patch."""
SPARSE = 0.005, 0.01
"""Means of a label, in training and in validation, up to which a patch has almost nothing on it."""

Mean = Callable[[int], float]
"""Index of a patch in its bucket -> mean of its label, of numbers in 0..1."""


@dataclass(frozen=True)
class Chosen:
    """Patches of a bucket, by index."""

    train: tuple[int, ...]
    val: tuple[int, ...]


def draw(shots: int, train: int, val: int, means: tuple[Mean, Mean] | None = None) -> Chosen:
    """Draw a bucket's patches, as the bench does: lists of more shots need not include those of fewer.

    Args:
        shots: Training patches; a fifth as many are for validation.
        train: Training patches of the bucket.
        val: Its validation patches.
        means: Of roads and buildings, the means of training and of validation labels: of patches with almost nothing on
            them a quarter is kept. None: all patches are alike, as for land cover.
    """
    wanted = min(shots, train), min(math.ceil(VALIDATION * shots), val)
    if means is None:
        return Chosen(*(tuple(Random(SEED).sample(range(n), k)) for n, k in zip((train, val), wanted, strict=True)))
    # One generator for both, in this order.
    keeping = Random(KEEPING_SEED)
    found = []
    for count, most, mean, sparse in zip((train, val), wanted, means, SPARSE, strict=True):
        kept = _representative(count, mean, sparse, keeping)
        found.append(tuple(index for index, _ in zip(kept, range(most), strict=False)))
    return Chosen(*found)


def _representative(count: int, mean: Mean, sparse: float, keeping: Random) -> Iterator[int]:
    for index in Random(SEED).sample(range(count), count):
        if mean(index) > sparse or keeping.random() > KEPT_ABOVE:
            yield index


def listed(values: Any, bucket: str, train: int, val: int, where: str) -> Chosen:
    """Return the patches that a released list names of a bucket.

    Args:
        values: What the list says of the bucket.
        bucket: Its name.
        train: Training patches that the bucket has here.
        val: Its validation patches.
        where: What messages call the list.

    Raises:
        UserError: It is malformed, or was made for other files.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: says nothing of bucket {bucket}; give a list of PhilEO Bench")
    found = []
    for name, count in (("train", train), ("val", val)):
        length, indices = values.get(f"length_multi_array_{name}"), values.get(f"{name}_indices")
        if length != count:
            raise UserError(
                f"{where}: was made for {length} {name} patches of bucket {bucket}, and there are {count}; complete the"
                " folder, or take the list of this one"
            )
        if not _are_positions(indices, count):
            raise UserError(
                f"{where}: {name}_indices of bucket {bucket} must be different whole numbers below {count}; give a list"
                " of PhilEO Bench"
            )
        found.append(tuple(indices))
    return Chosen(*found)


def _are_positions(indices: Any, count: int) -> TypeGuard[list[int]]:
    """Say whether values are different whole numbers below a number of patches."""
    whole = isinstance(indices, list) and all(type(one) is int and 0 <= one < count for one in indices)
    return whole and len(set(indices)) == len(indices)
