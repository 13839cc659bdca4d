"""Training, validation and test images: what they are, how they are held apart, and what identifies them."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofav2.data.images import Images, Indices, JoinedImages
from ofav2.draws import generator
from ofav2.errors import UserError

Colour = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: `labels` int64 (N,), the images themselves read on demand."""

    name: str
    labels: npt.NDArray[np.int64]
    images: Images

    def __post_init__(self) -> None:
        """Make the labels read-only, as the dataclass is frozen."""
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """Give image `index` (from 0) as a fresh uint8 tensor (3, H, W); images of a split may differ in size."""
        return self.images.read(index)

    def take(self, name: str, indices: Indices) -> "Split":
        """Give the images at `indices`, in that order, as a split of their own."""
        return Split(name, self.labels[indices], self.images.take(indices))


class Parts(NamedTuple):
    """What reading a data set gives: the names of its classes, by label, and its splits."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with what training needs to know of it.

    `mean` and `std` are those to normalise with, per channel, in 0..1. `fingerprint` is a hexadecimal digest of the
    images, the labels and the split: equal fingerprints mean that runs saw and were judged on the same images.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    mean: Colour
    std: Colour
    train: Split
    val: Split
    test: Split
    fingerprint: str


def hold_out(split: Split, *, fraction: float, held: str, classes: Sequence[str], seed: int) -> tuple[Split, Split]:
    """Draw a share of every class out of a split.

    A class gives `fraction` of its images, rounded to whole ones, at least one, and keeps at least one. Each class has
    a draw of its own, so the images of one class do not move those of another.

    Args:
        split: What to draw from.
        fraction: Share in 0..1, both excluded.
        held: Name of the split that is drawn out.
        classes: Names of the classes, by label.
        seed: Seed of the split.

    Returns:
        What stays, under its old name, and what was drawn, both in the order they had.

    Raises:
        UserError: A class has a single image.
    """
    drawn = np.zeros(len(split), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(split.labels == label)
        if len(members) < 2:
            raise UserError(
                f"class {name!r} ({len(members)} image left in {split.name}): a class needs one image to keep and one "
                f"to hold out for {held}; add images or remove the class"
            )
        count = min(max(math.floor(len(members) * fraction + 0.5), 1), len(members) - 1)
        drawn[generator(f"hold out {held}", seed, label).permutation(members)[:count]] = True
    return split.take(split.name, np.flatnonzero(~drawn)), split.take(held, np.flatnonzero(drawn))


def join(first: Split, second: Split, name: str) -> Split:
    """Put two splits' images one after the other into one split; they are still read on demand."""
    labels = np.concatenate((first.labels, second.labels))
    images = JoinedImages(first.images, len(first), second.images, np.arange(len(labels), dtype=np.int64))
    return Split(name, labels, images)


def fingerprint(name: str, classes: Sequence[str], splits: Sequence[Split]) -> str:
    """Digest a data set and its splits to 64 hexadecimal digits, see `ImageData`."""
    digest = hashlib.sha256(json.dumps([name, list(classes)]).encode())
    for split in splits:
        digest.update(json.dumps([split.name, len(split)]).encode())
        digest.update(split.labels.astype("<i8").tobytes())
        digest.update(split.images.identity())
    return digest.hexdigest()
