"""Measure means and standard deviations of the bands of patches, and which classes there are and how often."""

from collections.abc import Sequence

import numpy as np

from ofav2.data.images import Indices
from ofav2.data.patches import Codes, PatchImages, valid_pixels
from ofav2.data.splits import Split
from ofav2.errors import UserError

MOST = 10_000
"""Patches that are measured, at most: more move the fourth digit."""
DIGITS = 7
"""Significant digits that are kept, so that sums in another order give the same."""


def measure_bands(images: PatchImages, bands: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band over all pixels with data in all bands.

    Of more than 10,000 patches, as many that lie evenly among all are measured.

    Args:
        images: The training patches.
        bands: Names of the bands.

    Raises:
        UserError: No pixel has data, or a band has one value everywhere.

    Source: Chan et al., Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    count, mean, squares = 0, np.zeros(len(bands)), np.zeros(len(bands))
    chosen = _evenly(len(images.rows))
    for cut in images.chunks(chosen):
        values = cut.images[valid_pixels(cut.images, images.nodata)].astype(np.float64)
        if len(values):
            total, own = count + len(values), values.mean(0)
            squares += ((values - own) ** 2).sum(0) + (own - mean) ** 2 * (count * len(values) / total)
            mean += (own - mean) * (len(values) / total)
            count = total
    if not count:
        raise UserError(
            f"nodata ({images.nodata}): no pixel of the {len(chosen)} training patches has data in all of "
            f"{', '.join(bands)}; correct nodata in patches.yaml, or leave out the empty band by data.bands"
        )
    for band, square, value in zip(bands, squares, mean, strict=True):
        if not square > 0:
            raise UserError(
                f"band {band!r}: is {value:g} in all {count} pixels of the training patches, so it tells nothing; "
                "leave it out by data.bands"
            )
    std = np.sqrt(squares / count)
    return tuple(map(_rounded, mean.tolist())), tuple(map(_rounded, std.tolist()))


def class_shares(split: Split, classes: int) -> tuple[float, ...]:
    """Return each class's share of a split's targets (0..1): images, or pixels that count.

    Of more than 10,000 patches, pixels of as many that lie evenly among all are counted.

    Args:
        split: Images with classes, or patches with a plane of classes.
        classes: How many classes there are.

    Raises:
        UserError: No pixel counts.
    """
    if split.targets.ndim == 1:
        counts = np.bincount(split.targets, minlength=classes)
    else:
        images = split.images
        assert isinstance(images, PatchImages), "planes of classes"
        counts = np.zeros(classes, np.int64)
        for cut in images.chunks(_evenly(len(images.rows))):
            assert cut.target is not None, "planes of classes"
            counts += np.bincount(cut.target[cut.target >= 0], minlength=classes)
    if not counts.any():
        raise UserError("targets of the training patches have no pixel of a class, so there is nothing to learn")
    return tuple((counts / counts.sum()).tolist())


def absent_planes(images: PatchImages, names: Sequence[str]) -> tuple[list[str], int]:
    """Return the classes, or the planes of numbers, that no pixel has, and how many patches were looked at.

    Of more than 10,000 patches, as many that lie evenly among all are looked at, and no more once all are found.
    Bands are not read, so pixels without data count.

    Args:
        images: Patches with target planes.
        names: Names of the classes or planes.
    """
    found = np.zeros(len(names), bool)
    chosen = _evenly(len(images.rows)).tolist()
    for index in chosen:
        labels = images.labels(index)
        if isinstance(images.target, Codes):
            found |= np.bincount(labels[labels >= 0], minlength=len(names)) > 0
        else:
            found |= ~np.isnan(labels).all((0, 1))
        if found.all():
            break
    return [name for name, there in zip(names, found, strict=True) if not there], len(chosen)


def _evenly(count: int) -> Indices:
    """Return as many indices as are measured, evenly among all."""
    return np.unique(np.linspace(0, count - 1, min(MOST, count)).astype(np.int64))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
