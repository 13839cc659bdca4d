"""Measure means and standard deviations of the bands of patches, and which classes there are and how often."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ofav2.data.images import Indices
from ofav2.data.patches import Codes, Cut, PatchImages, valid_pixels
from ofav2.data.splits import Split
from ofav2.errors import UserError
from ofav2.progress import Advance, log_progress
from ofav2.typed_json import LARGEST_DEVIATION, LEAST_DEVIATION

MOST = 10_000
"""Patches that are measured, at most: more move the fourth digit."""
MOST_LABELS = 1000
"""Patches whose numbers are measured, at most: their size alone counts."""
DIGITS = 7
"""Significant digits that are kept, so that sums in another order give the same."""


class Moments(NamedTuple):
    """Means and standard deviations."""

    values: int
    """How many of each were measured."""
    mean: tuple[float, ...]
    """Mean of each."""
    std: tuple[float, ...]
    """Standard deviation of each."""


def measure_bands(images: PatchImages, bands: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band over all pixels with data in all bands.

    Of more than 10,000 patches, as many that lie evenly among all are measured.

    Args:
        images: The training patches.
        bands: Names of the bands.

    Raises:
        UserError: No pixel has data, or a band has one value everywhere, or values too large or too small to train on.
    """
    found = band_moments(images, MOST)
    if not found.values:
        raise UserError(
            f"nodata ({images.nodata}): no pixel of the {min(MOST, len(images.rows))} training patches has data in all"
            f" of {', '.join(bands)}; correct nodata in patches.yaml, or leave out the empty band by data.bands"
        )
    for band, mean, std in zip(bands, found.mean, found.std, strict=True):
        if not std > 0:
            raise UserError(
                f"band {band!r}: is {mean:g} in all {found.values} pixels of the training patches, so it tells nothing;"
                " leave it out by data.bands"
            )
        if not LEAST_DEVIATION <= std <= LARGEST_DEVIATION:
            raise UserError(
                f"band {band!r}: has standard deviation {std:g}, which must be from {LEAST_DEVIATION:g} to"
                f" {LARGEST_DEVIATION:g}; write its numbers in another unit"
            )
    return found.mean, found.std


def band_moments(images: PatchImages, most: int) -> Moments:
    """Return mean and standard deviation of each band over all pixels with data in all bands, rounded.

    Args:
        images: The patches.
        most: Of more patches, as many that lie evenly among all are measured.
    """
    chosen = _evenly(len(images.rows), most)
    bands = len(images.bands)
    if images.decoded:
        return _moments((_with_data(cut, images.nodata) for cut in images.chunks(chosen)), bands)
    with log_progress("measuring bands", len(chosen)) as advance:
        return _moments((_with_data(cut, images.nodata) for cut in _advancing(images.chunks(chosen), advance)), bands)


def _with_data(cut: Cut, nodata: float | None) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = cut.images[valid_pixels(cut.images, nodata)].astype(np.float64)
    return values


def _advancing(cuts: Iterable[Cut], advance: Advance) -> Iterator[Cut]:
    for cut in cuts:
        for _ in cut.images:
            advance()
        yield cut


def plane_moments(images: PatchImages, planes: int) -> tuple[Moments, ...]:
    """Return mean and standard deviation of each plane of numbers over all pixels that have one, rounded.

    Of more than 1,000 patches, as many that lie evenly among all are measured. Bands are not read, so pixels without
    data count.

    Args:
        images: Patches whose targets are planes of numbers.
        planes: How many there are.
    """
    chosen = _evenly(len(images.rows), MOST_LABELS).tolist()
    return tuple(_moments((_numbers(images, index, plane) for index in chosen), 1) for plane in range(planes))


def _numbers(images: PatchImages, index: int, plane: int) -> npt.NDArray[np.float64]:
    """Return what a plane of a patch holds (n, 1)."""
    values = images.labels(index)[..., plane]
    found: npt.NDArray[np.float64] = values[~np.isnan(values), None].astype(np.float64)
    return found


def _moments(chunks: Iterable[npt.NDArray[np.float64]], columns: int) -> Moments:
    """Return moments of the columns of chunks (n, columns), in one pass.

    Source: Chan et al., Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    count, mean, squares = 0, np.zeros(columns), np.zeros(columns)
    for values in chunks:
        if len(values):
            total, own = count + len(values), values.mean(0)
            squares += ((values - own) ** 2).sum(0) + (own - mean) ** 2 * (count * len(values) / total)
            mean += (own - mean) * (len(values) / total)
            count = total
    std = np.sqrt(squares / max(1, count))
    return Moments(count, tuple(map(_rounded, mean.tolist())), tuple(map(_rounded, std.tolist())))


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
        for cut in images.chunks(_evenly(len(images.rows), MOST)):
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
    chosen = _evenly(len(images.rows), MOST).tolist()
    for index in chosen:
        labels = images.labels(index)
        if isinstance(images.target, Codes):
            found |= np.bincount(labels[labels >= 0], minlength=len(names)) > 0
        else:
            found |= ~np.isnan(labels).all((0, 1))
        if found.all():
            break
    return [name for name, there in zip(names, found, strict=True) if not there], len(chosen)


def _evenly(count: int, most: int) -> Indices:
    """Return as many indices as are measured, evenly among all."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
