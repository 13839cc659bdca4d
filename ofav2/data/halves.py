"""Halve images at random, each class evenly, to choose on one half and to check on the other."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ofav2.data.images import Indices
from ofav2.data.patches import PatchImages
from ofav2.data.splits import Split, draw_places
from ofav2.errors import UserError
from ofav2.rng import generator


class Halves(NamedTuple):
    """Two parts of the validation images without a common image."""

    search: Split
    """What a search measures on."""
    confirmation: Split
    """What its finalists are measured on, once."""


def halve(val: Split, seed: int) -> Halves:
    """Halve a split at random, each label evenly; of patches, whole places, as those of one place are alike.

    Args:
        val: The validation images.
        seed: The data set's seed of splits, so that all searches of a run have the same halves.

    Raises:
        UserError: If there are fewer than two images, or patches of one place alone.
    """
    if len(val) < 2:
        raise UserError(
            f"validation has {len(val)} image: a search needs two at least; train again with a larger data.val_fraction"
        )
    rng = generator("search halves", seed)
    if isinstance(val.images, PatchImages):
        drawn = draw_places(val.images.places, 0.5, rng, "a search's confirmation")
        search, confirmation = np.flatnonzero(~drawn), np.flatnonzero(drawn)
    else:
        search, confirmation = halve_indices(val.targets, rng)
    return Halves(val.take("search", np.sort(search)), val.take("confirmation", np.sort(confirmation)))


def halve_indices(labels: npt.NDArray[Any], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return indices of two random halves, ordered by class; of an odd number, the first half is the larger one.

    Args:
        labels: A class per image (N,); other labels, (N, ...), are halved without regard to them.
        rng: Random numbers.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")] if labels.ndim == 1 else order
    return order[::2], order[1::2]
