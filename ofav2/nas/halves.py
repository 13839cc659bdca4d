"""Halve validation images: a search looks at one half, what it finds is confirmed on the other."""

from typing import NamedTuple

import numpy as np

from ofav2.data import Split
from ofav2.errors import UserError
from ofav2.rng import generator


class Halves(NamedTuple):
    """Two parts of the validation images without a common image."""

    search: Split
    """What a search measures on."""
    confirmation: Split
    """What its finalists are measured on, once."""


def halve(val: Split, seed: int) -> Halves:
    """Halve a split at random, each label evenly.

    Args:
        val: The validation images.
        seed: The data set's seed of splits, so that all searches of a run have the same halves.

    Raises:
        UserError: If there are fewer than two images.
    """
    if len(val) < 2:
        raise UserError(f"validation has {len(val)} image: a search needs two at least; raise data.val_fraction")
    order = generator("search halves", seed).permutation(len(val))
    # By label, and at random within it: every other one.
    order = order[np.argsort(val.targets[order], kind="stable")] if val.targets.ndim == 1 else order
    return Halves(val.take("search", np.sort(order[::2])), val.take("confirmation", np.sort(order[1::2])))
