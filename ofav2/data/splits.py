"""Training, validation and test images: what they are, how they are held apart, and what identifies them."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofav2.data.images import Images, Indices, JoinedImages, composed
from ofav2.data.patches import PatchImages
from ofav2.data.views import normalise
from ofav2.errors import UserError
from ofav2.messages import show
from ofav2.rng import generator
from ofav2.typed_json import Count, Deviation, Form, read_record, write_record

RGB = ("red", "green", "blue")
"""Bands of pictures."""
Kind = Literal["classes", "codes", "numbers"]
SplitName = Annotated[str, Form("train|val|test", "train, val or test")]

SPLIT_FORMAT = "ofav2-split/3"
"""Format version of `split.json`."""


@dataclass(frozen=True)
class TargetSpec:
    """What the targets of a data set are."""

    kind: Kind
    """`classes`, one per image; `codes`, a plane of classes; `numbers`, planes of numbers."""
    names: tuple[str, ...]
    """Names of the classes, or of the planes of numbers."""


@dataclass(frozen=True)
class BandStatistics:
    """What was measured of a band."""

    mean: float
    """Its mean."""
    std: Deviation
    """Its standard deviation."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their targets, read on demand.

    `targets` are classes, int64 (N,). Of targets that are planes it is (N, 0): they are cut together with the images.
    """

    name: str
    targets: npt.NDArray[np.int64]
    images: Images

    def __post_init__(self) -> None:
        """Make the targets read-only, as the dataclass is frozen."""
        self.targets.setflags(write=False)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.targets)

    def image(self, index: int) -> Tensor:
        """Return image `index` (from 0) as a fresh uint8 tensor (3, H, W); images of a split may differ in size."""
        return self.images.read(index)

    def take(self, name: str, indices: Indices) -> "Split":
        """Return the images at `indices`, in that order, as a split of their own."""
        return Split(name, self.targets[indices], self.images.take(indices))


class Listed(NamedTuple):
    """What reading a data set's list gives: the names of its classes, by label, and the splits that it brings itself.

    `mislabelled` says, of each image that is left out of the splits, why its label cannot be right. Where `kind` is
    `numbers`, `classes` are the names of the target's planes. `nodata` is the value of a pixel without data.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: Split | None = None
    mislabelled: tuple[str, ...] = ()
    kind: Kind = "classes"
    bands: tuple[str, ...] = RGB
    nodata: float | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)

    def with_splits(self, splits: Sequence[Split]) -> "Listed":
        """Return the same with other splits."""
        named = {split.name: split for split in splits}
        return self._replace(train=named["train"], val=named.get("val"), test=named.get("test"))


class Origin(NamedTuple):
    """Where a split's images stand in the data set as it was listed."""

    listed: SplitName
    """The listed split that they are taken from."""
    indices: Indices
    """Their indices there (N,)."""


def validation_is_test(origins: Mapping[str, Origin]) -> bool:
    """Return whether test images are the validation images, from where the images of each split were listed."""
    val, test = origins.get("val"), origins.get("test")
    if val is None or test is None:
        return False
    return val.listed == test.listed and np.array_equal(val.indices, test.indices)


class Parts(NamedTuple):
    """A data set's three splits, and by name, where their images were listed."""

    train: Split
    val: Split
    test: Split
    origins: Mapping[str, Origin]


@dataclass(frozen=True)
class SplitMembers:
    """The images of a split."""

    listed: SplitName
    """The split of the data set, as it was listed, that they are taken from."""
    files: tuple[str, ...] | None
    """Their paths below that split's folder; None where images are no files."""
    indices: tuple[Count, ...] | None
    """Their indices in that split; None where images are files."""

    def __post_init__(self) -> None:
        """Refuse a split without images, or with one twice."""
        members = self.members
        if (self.files is None) == (self.indices is None) or not members or len(set(members)) != len(members):
            raise ValueError("a split must have files or indices, each once")

    @property
    def members(self) -> tuple[str, ...] | tuple[int, ...]:
        """What names the images: paths or indices."""
        return self.files or self.indices or ()


@dataclass(frozen=True)
class SplitRecord:
    """Which images a run was trained, validated and tested with: what `split.json` holds."""

    fingerprint: str
    """Digest of images, labels and splits."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    train: SplitMembers
    """The training images."""
    val: SplitMembers
    """The validation images."""
    test: SplitMembers
    """The test images."""
    skipped: tuple[str, ...]
    """Images that were left out because they could not be used, and why."""
    statistics: Mapping[str, BandStatistics] | None
    """What was measured of each band of the training images; None where nothing had to be."""

    def __post_init__(self) -> None:
        """Refuse an image in two splits; but all validation images may be the test images, too."""
        splits = (self.train, self.val) if self.test == self.val else (self.train, self.val, self.test)
        named = [(members.listed, member) for members in splits for member in members.members]
        if len(set(named)) != len(named):
            raise ValueError("an image is in two splits")

    @property
    def by_name(self) -> Mapping[str, SplitMembers]:
        """The splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with what training needs to know of it.

    `mean` and `std` are those to normalise with, per band, in units of `white`. `measured` says that they were measured
    on the training images. `nodata` is the value of a pixel without data. `fingerprint` is a hexadecimal digest of the
    images, the labels and the split: equal fingerprints mean that runs saw and were evaluated on the same images.
    `origins` says where the images of each split were listed; a split that is not there is one that was listed so.
    `skipped` says which images were left out, and why. `trees` are folders in which everything is taken for images.
    """

    name: str
    bands: tuple[str, ...]
    target: TargetSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    origins: Mapping[str, Origin] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    trees: tuple[Path, ...] = ()
    white: float = 255.0
    nodata: float | None = None
    measured: bool = False

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.bands)

    @property
    def validation_is_test(self) -> bool:
        """Whether the test images are the validation images (`data.test_fraction=0`)."""
        return validation_is_test(self.origins)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or of the target's planes."""
        return self.target.names

    def held_out(self, split: str) -> Split:
        """Return the images of `val` or `test`.

        Raises:
            UserError: It is neither.
        """
        check_split(split)
        return self.val if split == "val" else self.test

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) as they are in batches as a network's normalised input."""
        return normalise(images, self.mean, self.std, white=self.white, nodata=self.nodata)


def check_split(split: str) -> None:
    """Refuse a split that is neither `val` nor `test`.

    Raises:
        UserError: It is neither.
    """
    if split not in ("val", "test"):
        raise UserError(f"split ({show(split)}) must be val or test")


def divide(listed: Listed, *, val_fraction: float, test_fraction: float, seed: int) -> Parts:
    """Hold the splits that a data set does not bring itself out of its training images: test first, then validation.

    Args:
        listed: The data set as it was listed.
        val_fraction: Share held out for validation, in 0..1, both excluded.
        test_fraction: Share held out for the test, likewise; at 0 the validation images are the test images, too.
        seed: Seed of the split.

    Raises:
        UserError: A class has too few images, see `hold_out`.
    """
    train, test, val = listed.train, listed.test, listed.val
    indices = np.arange(len(train))
    origins = {split.name: Origin(split.name, np.arange(len(split))) for split in listed.splits}
    if test is None and test_fraction:
        kept, held = hold_out(train, fraction=test_fraction, held="test", classes=listed.classes, seed=seed)
        origins["test"] = Origin("train", indices[held])
        train, test, indices = train.take("train", kept), train.take("test", held), indices[kept]
    if val is None:
        kept, held = hold_out(train, fraction=val_fraction, held="val", classes=listed.classes, seed=seed)
        origins["val"] = Origin("train", indices[held])
        train, val, indices = train.take("train", kept), train.take("val", held), indices[kept]
    if test is None:
        test = val.take("test", np.arange(len(val)))
        origins["test"] = origins["val"]
    return Parts(train, val, test, origins | {"train": Origin("train", indices)})


class Selected(NamedTuple):
    """The images of a data set that a run knows."""

    listed: Listed
    """The data set without all others."""
    missing: tuple[str, ...]
    """Images that the run knows and that are not there: paths, or indices in a list."""
    unknown: Mapping[str, tuple[str, ...]]
    """Images that are there, and that the run does not know, by the split that they are listed in."""


def _none(split: Split, name: str) -> bool:
    return False


def select(listed: Listed, record: SplitRecord, left_out: Callable[[Split, str], bool] = _none) -> Selected:
    """Leave all images out that a run does not know.

    Args:
        listed: The data set as it was listed.
        record: The run's split.
        left_out: Says of a file whether the run knew it and could not use it. It is kept, to be checked again, as the
            cache holds all that were looked at.
    """
    splits: list[Split] = []
    missing: list[str] = []
    unknown: dict[str, tuple[str, ...]] = {}
    for name in ("train", "val", "test"):
        split = next((split for split in listed.splits if split.name == name), None)
        # Validation images may be the test images, too.
        known = dict.fromkeys(
            one for members in record.by_name.values() if members.listed == name for one in members.members
        )
        index_of = _find(split, tuple(known)) if split else {}
        missing += [str(one) for one in known if one not in index_of]
        if split:
            found = set(index_of.values())
            others = [(index, one) for index, one in enumerate(_members_of(split)) if index not in found]
            again = {index for index, one in others if isinstance(one, str) and left_out(split, one)}
            if new := sorted(str(one) for index, one in others if index not in again):
                unknown[name] = tuple(new)
            splits.append(split.take(name, np.array(sorted(found | again), np.int64)))
    # Of images that are no files, the order in a package names them: all of them have to stay.
    chosen = listed if record.train.files is None else listed.with_splits(splits)
    return Selected(chosen, tuple(sorted(missing)), unknown)


def restore(listed: Listed, record: SplitRecord) -> Parts:
    """Split a data set as a run did; images that are not there any more are left out.

    Raises:
        UserError: Of a split no image is left.
    """
    splits = {split.name: split for split in listed.splits}
    parts: dict[str, Split] = {}
    origins: dict[str, Origin] = {}
    for name, members in record.by_name.items():
        there = _find(splits[members.listed], members.members) if members.listed in splits else {}
        indices = np.array([there[one] for one in members.members if one in there], dtype=np.int64)
        if not len(indices):
            raise UserError(f"split {name}: none of the run's images is left; put them back, or train again")
        parts[name] = splits[members.listed].take(name, indices)
        origins[name] = Origin(members.listed, indices)
    return Parts(parts["train"], parts["val"], parts["test"], origins)


def _members_of(split: Split) -> Sequence[str | int]:
    """Return what names each image: its path, or the index itself."""
    names = split.images.names()
    return range(len(split)) if names is None else names


def _find(split: Split, members: Sequence[str | int]) -> Mapping[str | int, int]:
    """Return the indices of those images that are there.

    A copy may hold a name's accented letters in another Unicode form, so names that are not found are compared in one.
    """
    index_of = {one: index for index, one in enumerate(_members_of(split))}
    found = {one: index_of[one] for one in members if one in index_of}
    missing = [one for one in members if one not in found]
    if missing:
        names = [one for one in index_of if isinstance(one, str) and one not in found]
        others = {composed(name): index_of[name] for name in names}
        found |= {one: others[composed(one)] for one in missing if isinstance(one, str) and composed(one) in others}
    return found


def hold_out(split: Split, *, fraction: float, held: str, classes: Sequence[str], seed: int) -> tuple[Indices, Indices]:
    """Draw a share of every class out of a split, or of patches, a share of all in whole places.

    A class gives `fraction` of its images, rounded to whole ones, at least one, and keeps at least one. Each class has
    a draw of its own, so the images of one class do not move those of another. Places are taken in a random order, as
    many as come closest to `fraction` of the patches, at least one, and at least one stays: patches of one place are
    too alike to be in two splits.

    Args:
        split: What to draw from.
        fraction: Share in 0..1, both excluded.
        held: Name of the split that is drawn out.
        classes: Names of the classes, by label.
        seed: Seed of the split.

    Returns:
        Indices of the images that stay, and of those that were drawn, both ascending.

    Raises:
        UserError: A class has a single image, or all patches lie in one place.
    """
    if isinstance(split.images, PatchImages):
        drawn = draw_places(split.images.places, fraction, generator(f"hold out {held}", seed), held)
        return np.flatnonzero(~drawn), np.flatnonzero(drawn)
    drawn = np.zeros(len(split), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(split.targets == label)
        if len(members) < 2:
            raise UserError(
                f"class {name!r} ({len(members)} image left in {split.name}): a class needs one image to keep and one "
                f"to hold out for {held}; add images or remove the class"
            )
        count = min(max(math.floor(len(members) * fraction + 0.5), 1), len(members) - 1)
        drawn[generator(f"hold out {held}", seed, label).permutation(members)[:count]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def draw_places(
    places: npt.NDArray[np.str_], fraction: float, rng: np.random.Generator, held: str
) -> npt.NDArray[np.bool_]:
    """Say which patches are drawn, all or none of a place (N,)."""
    names, of, counts = np.unique(places, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UserError(
            f"place {str(names[0])!r}: is the only one of {len(places)} patches, and {held} needs one of its own; give"
            " patches of more places, or splits of your own"
        )
    order = rng.permutation(len(names))
    taken = np.cumsum(counts[order])[:-1]
    drawn = np.zeros(len(names), dtype=bool)
    drawn[order[: int(np.abs(taken - fraction * len(places)).argmin()) + 1]] = True
    return drawn[of]


def few_shots(split: Split, shots: int, *, classes: int, seed: int) -> Indices:
    """Draw some images of every class, or of all patches where targets are planes; more shots include fewer ones.

    Args:
        split: What to draw from.
        shots: Images per class, or patches; a class with fewer gives all.
        classes: How many classes there are.
        seed: Seed of the split.

    Returns:
        Indices, ascending.
    """
    if split.targets.ndim != 1:
        return np.sort(generator("shots", seed).permutation(len(split))[:shots])
    groups = [np.flatnonzero(split.targets == label) for label in range(classes)]
    drawn = [generator("shots", seed, label).permutation(group)[:shots] for label, group in enumerate(groups)]
    return np.sort(np.concatenate(drawn))


def split_record(data: ImageData) -> SplitRecord:
    """Return what a run keeps of its split."""
    train, val, test = (_members(data, split) for split in (data.train, data.val, data.test))
    measured = map(BandStatistics, data.mean, data.std)
    statistics = dict(zip(data.bands, measured, strict=True)) if data.measured else None
    return SplitRecord(data.fingerprint, tuple(data.classes), train, val, test, data.skipped, statistics)


def _members(data: ImageData, split: Split) -> SplitMembers:
    origin = data.origins.get(split.name) or Origin(split.name, np.arange(len(split)))
    files = split.images.names()
    if files is None:
        return SplitMembers(origin.listed, None, tuple(origin.indices.tolist()))
    return SplitMembers(origin.listed, tuple(files), None)


def read_split(path: Path) -> SplitRecord:
    """Read a run's `split.json`.

    Raises:
        RunError: The file is missing, damaged, or of another format version.
    """
    return read_record(path, SplitRecord, SPLIT_FORMAT, "restore the file from a copy, or train again")


def write_split(path: Path, record: SplitRecord) -> None:
    """Write a run's `split.json`.

    Raises:
        RunError: The file can't be written.
    """
    write_record(path, record, SPLIT_FORMAT)


def first_other_class(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Return the first difference of two lists of classes, as the end of a sentence; None for none."""
    if tuple(before) == tuple(now):
        return None
    known, found = {*before}, {*now}
    gone, new = [show(name) for name in before if name not in found], [show(name) for name in now if name not in known]
    if gone or new:
        parts = (f"class {gone[0]} is missing" if gone else "", f"class {new[0]} was not there before" if new else "")
        return ", and ".join(part for part in parts if part)
    if len(before) != len(now):
        return f"there were {len(before)} classes, and are {len(now)} now"
    pairs = enumerate(zip(before, now, strict=True))
    label, (old, name) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
    return f"class {label} was {show(old)}, and is {show(name)} now"


def with_test(data: ImageData, test: Split) -> ImageData:
    """Return a data set with some of its test images alone; one with all of them is the same."""
    if test is data.test:
        return data
    whole = fingerprint(data.name, data.classes, (data.train, data.val, test))
    return replace(data, test=test, fingerprint=whole)


def join(first: Split, second: Split, name: str) -> Split:
    """Put two splits' images one after the other into one split; they are still read on demand."""
    targets = np.concatenate((first.targets, second.targets))
    if isinstance(first.images, PatchImages) and isinstance(second.images, PatchImages):
        return Split(name, targets, first.images.joined(second.images))
    images = JoinedImages(first.images, len(first), second.images, np.arange(len(targets), dtype=np.int64))
    return Split(name, targets, images)


def fingerprint(name: str, classes: Sequence[str], splits: Sequence[Split]) -> str:
    """Digest a data set and its splits to 64 hexadecimal digits, see `ImageData`."""
    digest = hashlib.sha256(json.dumps([name, list(classes)]).encode())
    for split in splits:
        digest.update(json.dumps([split.name, len(split)]).encode())
        digest.update(split.targets.astype("<i8").tobytes())
        digest.update(split.images.identity())
    return digest.hexdigest()
