"""Training, validation and test images: what they are, how they are held apart, and what identifies them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofav2.data.images import Images, Indices, JoinedImages
from ofav2.data.views import normalise
from ofav2.errors import UserError
from ofav2.rng import generator

Colour = tuple[float, float, float]

SPLIT_FORMAT = "ofav2-split/1"
"""Format version of what `split_record` gives."""


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
        """Return image `index` (from 0) as a fresh uint8 tensor (3, H, W); images of a split may differ in size."""
        return self.images.read(index)

    def take(self, name: str, indices: Indices) -> "Split":
        """Return the images at `indices`, in that order, as a split of their own."""
        return Split(name, self.labels[indices], self.images.take(indices))


class Listed(NamedTuple):
    """What reading a data set's list gives: the names of its classes, by label, and the splits that it brings itself.

    `mislabelled` says, of each image that is left out of the splits, why its label cannot be right.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: Split | None = None
    mislabelled: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)


class Parts(NamedTuple):
    """A data set's three splits, and which images of the training images, as listed, were drawn out for a split."""

    train: Split
    val: Split
    test: Split
    drawn: Mapping[str, Indices]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with what training needs to know of it.

    `mean` and `std` are those to normalise with, per channel, in 0..1. `fingerprint` is a hexadecimal digest of the
    images, the labels and the split: equal fingerprints mean that runs saw and were evaluated on the same images.
    `drawn` has, by split, the indices of the listed training images that were held out for it; a split that the data
    set brings itself is not there. `skipped` says which images were left out, and why.
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
    drawn: Mapping[str, Indices] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W), uint8 or floats in 0..255, as a network's normalised input."""
        return normalise(images, self.mean, self.std)


def divide(listed: Listed, *, val_fraction: float, test_fraction: float, seed: int) -> Parts:
    """Hold the splits that a data set does not bring itself out of its training images: test first, then validation.

    Args:
        listed: The data set as it was listed.
        val_fraction: Share held out for validation, in 0..1, both excluded.
        test_fraction: Share held out for the test, likewise.
        seed: Seed of the split.

    Raises:
        UserError: A class has too few images, see `hold_out`.
    """
    train, test, val = listed.train, listed.test, listed.val
    indices = np.arange(len(train))
    drawn = {}
    if test is None:
        kept, held = hold_out(train, fraction=test_fraction, held="test", classes=listed.classes, seed=seed)
        drawn["test"] = indices[held]
        train, test, indices = train.take("train", kept), train.take("test", held), indices[kept]
    if val is None:
        kept, held = hold_out(train, fraction=val_fraction, held="val", classes=listed.classes, seed=seed)
        drawn["val"] = indices[held]
        train, val = train.take("train", kept), train.take("val", held)
    return Parts(train, val, test, drawn)


def hold_out(split: Split, *, fraction: float, held: str, classes: Sequence[str], seed: int) -> tuple[Indices, Indices]:
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
        Indices of the images that stay, and of those that were drawn, both ascending.

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
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def split_record(data: ImageData) -> dict[str, Any]:
    """Return what a run keeps of its split, as plain values.

    `drawn` has, by split, the indices of the images held out for it, as the data set lists its training images, and
    where they are files `files` has their paths below the data set's folder of training images.
    """
    held = {"val": data.val, "test": data.test}
    record: dict[str, Any] = {"format": SPLIT_FORMAT, "fingerprint": data.fingerprint}
    for name, indices in data.drawn.items():
        record[name] = {"indices": indices.tolist()}
        paths = held[name].images.names()
        if paths is not None:
            record[name]["files"] = paths
    return record


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
