"""Find bad images of a data set: broken, mislabelled, duplicated, or in more than one split."""

import errno
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ofav2.config.schema import DataConfig
from ofav2.data.cache import CheckedImages, Store, open_store
from ofav2.data.digests import UnreadableError, content_digests, located
from ofav2.data.images import FileImages, Indices
from ofav2.data.patches import Array, Codes, Numbers, PatchImages
from ofav2.data.splits import ImageData, Listed, Parts, Split, validation_is_test
from ofav2.data.statistics import Moments, absent_planes, plane_moments
from ofav2.errors import UserError
from ofav2.tables import table

logger = logging.getLogger(__name__)

MOST_LISTED = 8
"""Values that a message lists, at most."""

LARGEST = 100.0
"""Mean and standard deviation that numbers to be learnt may have, at most: outputs begin at about 0 and 1."""
SMALLEST = 1e-3
"""Standard deviation that they should have, at least, unless they are all equal."""

Reasons = dict[tuple[int, int], str]
"""Why an image cannot be used, by the number of its split and its own."""


def checked_files(listed: Listed, config: DataConfig, root: Path) -> tuple[Listed, tuple[str, ...]]:
    """Return a data set of files without those that cannot be used, from the cache where the recipe names one.

    Leaving an image out gives what removing its file would: order, splits and fingerprint are the same.

    Args:
        listed: The data set as it was listed.
        config: The recipe's data part.
        root: The data set's folder.

    Returns:
        The data set, and what was left out and why; paths are relative to the data set's folder, which may be moved.

    Raises:
        UserError: An image cannot be used and `data.bad_images` is `refuse`; a split lost all images of a class; or the
            system refuses to read an image.
    """
    listed, doubtful = _without(listed, _without_file(listed) | _with_two_labels(listed))
    listed, broken = _without(*_looked_at(listed, config, root))
    skipped = listed.mislabelled + doubtful + broken
    if skipped and config.bad_images == "refuse":
        _refuse(skipped)
    if skipped:
        logger.warning(f"{config.name}: images left out: {len(skipped)} (the first: {skipped[0]})")
        _require_classes(listed)
    return listed, tuple(below_root(reason, root) for reason in skipped)


def below_root(reason: str, root: Path) -> str:
    """Return why an image can't be used, as `image PATH: why`, with a path relative to the data set's folder."""
    kind, _, rest = reason.partition(" ")
    return f"{kind} {rest.removeprefix(f'{root}{os.sep}')}"


def log_duplicates(parts: Parts) -> None:
    """Log which images are there twice, where that may be an accident."""
    # Test images that are the validation images are there twice on purpose.
    tested = () if validation_is_test(parts.origins) else (parts.test,)
    splits = (parts.train, parts.val, *tested)
    files = [_checked(split).files for split in splits]
    nodes = np.concatenate([tree.nodes for tree in files])
    same_file = np.unique(nodes, axis=0, return_inverse=True)[1].reshape(-1)
    _log_pair(_first_pair(same_file), files, "are one file under two names")
    digests = np.concatenate([_checked(split).digests for split in splits])
    same_bytes = np.unique(digests, return_inverse=True)[1]
    in_train = np.repeat([True, False, False][: len(splits)], [len(split) for split in splits])
    _log_pair(
        _first_pair(same_bytes, in_train),
        files,
        "have the same content, one in train and one in val or test, which flatters accuracy",
    )
    labels = np.concatenate([split.targets for split in splits])
    _log_pair(_first_pair(same_bytes, labels), files, "have the same content and different classes")


def log_absent_classes(parts: Parts, classes: Sequence[str]) -> None:
    """Log classes that a split lacks: patches are held out by place, whatever their classes are."""
    tested = () if validation_is_test(parts.origins) else (parts.test,)
    for split in (parts.train, parts.val, *tested):
        there = {*np.unique(split.targets).tolist()}
        absent = [name for label, name in enumerate(classes) if label not in there]
        if absent:
            logger.warning(
                f"{split.name}: has no patch or window of {', '.join(absent)}"
                f" ({len(absent)} of {len(classes)} classes); another data.split_seed holds other places out, or give"
                " splits of your own"
            )


def require_planes(data: ImageData) -> None:
    """Refuse splits in which no pixel's target counts, and log classes or planes that training lacks.

    A loss of no pixel is 0, so a training would end as if all were well. Patches are looked at until one counts.

    Args:
        data: Patches whose targets are planes.

    Raises:
        UserError: A split has no pixel that counts.
    """
    coded = data.target.kind == "codes"
    for split in (data.train, data.val) if data.validation_is_test else (data.train, data.val, data.test):
        images = split.images
        assert isinstance(images, PatchImages), "targets that are planes"
        if not any(_has_labels(images, index) for index in range(len(split))):
            raise UserError(
                f"target of {'classes' if coded else 'planes'} {_listed(data.classes)}: no pixel of {split.name}"
                f" ({len(split)} patches) counts ({_stored_labels(images)}); correct the target's"
                f" {'codes' if coded else 'nodata'} in patches.yaml, or give {split.name} patches with targets where"
                " their bands have data"
            )
    _log_absent_planes(data)


def require_near_numbers(data: ImageData) -> None:
    """Refuse numbers that are too large to be learnt, such as heights in metres; log those that are too small.

    A network's outputs begin at about 0 ± 1, and the loss is that of the numbers as they are.

    Args:
        data: Patches whose targets are planes of numbers.

    Raises:
        UserError: A plane's mean or standard deviation over training patches is too large.
    """
    images = data.train.images
    assert isinstance(images, PatchImages), "targets that are planes"
    assert isinstance(images.target, Numbers), "targets that are numbers"
    found = plane_moments(images, len(data.target.names))
    for name, moments in zip(data.target.names, found, strict=True):
        said = (
            f"target {name}: its training numbers are {moments.mean[0]:.4g} ± {moments.std[0]:.4g}, and networks learn"
            f" numbers of about 0 ± 1; {_nearer(images.target, found)}"
        )
        if _is_large(moments.mean[0], moments.std[0]):
            raise UserError(said)
        if _is_small(moments.std[0]):
            logger.warning(said)


def _is_large(mean: float, std: float) -> bool:
    return abs(mean) > LARGEST or std > LARGEST


def _is_small(std: float) -> bool:
    return 0 < std < SMALLEST


def _nearer(target: Numbers, planes: Sequence[Moments]) -> str:
    """Say how to write a target so that its planes are near 0 ± 1."""
    first = next(moments for moments in planes if moments.std[0] > 0 or moments is planes[-1])
    mean, std = first.mean[0], first.std[0] or 1.0
    moved = [((moments.mean[0] - mean) / std, moments.std[0] / std) for moments in planes]
    if any(_is_large(*one) or _is_small(one[1]) for one in moved):
        return "bring its planes to one size, or write each as a target of its own"
    scale, offset = float(f"{target.scale / std:.3g}"), float(f"{(target.offset - mean) / std:.3g}")
    return f"write scale: {scale:g} and offset: {offset:g} for it in patches.yaml, which R2 does not depend on"


def _log_absent_planes(data: ImageData) -> None:
    assert isinstance(data.train.images, PatchImages), "targets that are planes"
    absent, looked = absent_planes(data.train.images, data.classes)
    if not absent:
        return
    coded = data.target.kind == "codes"
    sample = "" if looked == len(data.train) else f" in the {looked:,} patches that were looked at"
    step = "leave them out by data.classes, " if coded else ""
    logger.warning(
        f"train: has no pixel of {_listed(absent)} ({len(absent)} of {len(data.classes)}"
        f" {'classes' if coded else 'planes'}){sample}, so they are not learnt; {step}hold other places out by another"
        " data.split_seed, or give splits of your own"
    )


def _has_labels(images: PatchImages, index: int) -> bool:
    """Say whether a pixel of a patch counts. Its bands may take long to decode, so its labels are looked at first."""
    if not _is_label(images.labels(index)).any():
        return False
    found = images.whole(np.array([index])).target
    return found is not None and bool(_is_label(found).any())


def _is_label(target: Array) -> npt.NDArray[np.bool_]:
    return target >= 0 if target.dtype.kind == "i" else ~np.isnan(target)


def _stored_labels(images: PatchImages) -> str:
    """Say what the target of the first patch holds, beside its codes."""
    values = np.unique(images.stored_labels(0)).tolist()
    known = f"codes {_listed(images.target.values)}; " if isinstance(images.target, Codes) else ""
    return f"{known}the first patch has {_listed(values)}"


def _listed(values: Sequence[object]) -> str:
    """Return the first of some values for a message."""
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values[:MOST_LISTED]]
    return ", ".join([*shown, *(["…"] if len(values) > MOST_LISTED else [])])


def _first_pair(
    groups: Indices, kinds: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | None = None
) -> tuple[int, int, int] | None:
    """Count pairs of neighbours in a group, or of those that differ in kind; give the first; None for none."""
    order = np.lexsort((groups,) if kinds is None else (kinds, groups))
    follows = groups[order[1:]] == groups[order[:-1]]
    if kinds is not None:
        follows &= kinds[order[1:]] != kinds[order[:-1]]
    repeats = np.flatnonzero(follows)
    if not len(repeats):
        return None
    return len(repeats), int(order[repeats[0]]), int(order[repeats[0] + 1])


def _log_pair(found: tuple[int, int, int] | None, trees: Sequence[FileImages], what: str) -> None:
    if found is not None:
        count, *pair = found
        (one, _), (other, _) = located(trees, pair)
        logger.warning(f"data: pairs of images that {what}: {count} (the first: {one} and {other})")


def _checked(split: Split) -> CheckedImages:
    assert isinstance(split.images, CheckedImages), "an opened data set of files"
    return split.images


def _trees(listed: Listed) -> list[FileImages]:
    trees = [split.images for split in listed.splits if isinstance(split.images, FileImages)]
    assert len(trees) == len(listed.splits), "a data set of files as it is listed"
    return trees


def _without_file(listed: Listed) -> Reasons:
    """Find links that lead nowhere, pipes, devices."""
    return {
        (position, int(index)): _broken_link(files.path(int(index)))
        for position, files in enumerate(_trees(listed))
        for index in np.flatnonzero(files.stamps[:, 0] < 0)
    }


def _broken_link(path: Path) -> str:
    """Return why a file of which the system reported nothing is no image.

    Raises:
        UnreadableError: That is the system's fault, so the image may be whole.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"image {path}: is no file"
        reason, links = "it was just written", False
    except OSError as error:
        reason, links = error.strerror or "no reason given", error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    if not links:
        raise UnreadableError(f"image {path}: cannot be read ({reason}); see that it can be, and start again")
    return f"image {path}: cannot be read ({reason})"


def _with_two_labels(listed: Listed) -> Reasons:
    """Find files that stand in two classes, as links: one of the two is wrong, and there is no telling which."""
    trees = _trees(listed)
    nodes = np.concatenate([files.nodes for files in trees])
    labels = np.concatenate([split.targets for split in listed.splits])
    groups = np.unique(nodes, axis=0, return_inverse=True)[1].reshape(-1)
    lowest, highest = np.full(groups.max() + 1, labels.max()), np.zeros(groups.max() + 1, dtype=np.int64)
    np.minimum.at(lowest, groups, labels)
    np.maximum.at(highest, groups, labels)
    there = np.concatenate([files.stamps[:, 0] >= 0 for files in trees])
    starts = np.cumsum([0, *(len(split) for split in listed.splits)])
    found: Reasons = {}
    for number in np.flatnonzero((lowest != highest)[groups] & there).tolist():
        position = int(np.searchsorted(starts, number, side="right")) - 1
        index = number - int(starts[position])
        label = int(lowest[groups[number]])
        other = label if label != labels[number] else int(highest[groups[number]])
        found[position, index] = (
            f"image {trees[position].path(index)}: the same file is an image of class {listed.classes[other]!r}, too"
        )
    return found


def _looked_at(listed: Listed, config: DataConfig, root: Path) -> tuple[Listed, Reasons]:
    """Return the data set with what is known of its images' contents, and which of them cannot be decoded."""
    trees = _trees(listed)
    store = _open_store(trees, config, root)
    starts = np.cumsum([0, *(len(files.paths) for files in trees)])
    splits = [
        replace(split, images=CheckedImages(files, store, np.arange(start, start + len(split))))
        for split, files, start in zip(listed.splits, trees, starts, strict=False)
    ]
    bad: Reasons = {}
    for number, reason in store.bad.items():
        position = int(np.searchsorted(starts, number, side="right")) - 1
        index = number - int(starts[position])
        bad[position, index] = f"image {trees[position].path(index)}: cannot be decoded ({reason})"
    return listed.with_splits(splits), bad


def _open_store(trees: Sequence[FileImages], config: DataConfig, root: Path) -> Store:
    cache = Path(config.cache).expanduser() if config.cache is not None else None
    digests = content_digests(trees, name=config.name, root=root, cache=cache)
    return (cache and open_store(trees, digests, config, root, cache)) or Store(digests)


def _without(listed: Listed, bad: Reasons) -> tuple[Listed, tuple[str, ...]]:
    """Return a data set without bad images, and why each is bad."""
    if not bad:
        return listed, ()
    splits = []
    for position, split in enumerate(listed.splits):
        good = [index for index in range(len(split)) if (position, index) not in bad]
        splits.append(split.take(split.name, np.array(good, dtype=np.int64)))
    return listed.with_splits(splits), tuple(bad[key] for key in sorted(bad))


def _refuse(reasons: Sequence[str]) -> NoReturn:
    """Refuse a data set for its bad images: a table of all kinds of trouble, then the first in one line."""
    if len(reasons) > 1:
        logger.warning(table("images that can't be used", ("images", "problem", "the first"), _problems(reasons)))
    others = f" (and {len(reasons) - 1} more such images)" if len(reasons) > 1 else ""
    step = "" if ";" in reasons[0] else "; replace the file or remove it"
    raise UserError(f"{reasons[0]}{others}{step}, or leave such images out by data.bad_images=skip")


def _problems(reasons: Sequence[str]) -> list[tuple[int, str, str]]:
    """Count bad images by kind of trouble, the most frequent first: number, trouble, first image."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        image, _, why = reason.partition(": ")
        kinds.setdefault(re.split(r"[;(]", why)[0].strip(), []).append(image.removeprefix("image "))
    rows = [(len(images), kind, images[0]) for kind, images in kinds.items()]
    return sorted(rows, key=lambda row: -row[0])


def _require_classes(listed: Listed) -> None:
    for split in listed.splits:
        counts = np.bincount(split.targets, minlength=len(listed.classes))
        if not counts.all():
            name = listed.classes[int(counts.argmin())]
            raise UserError(f"class {name!r}: no usable image is left in {split.name}; add images or remove the class")
