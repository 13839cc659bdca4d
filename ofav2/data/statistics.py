"""Measure means and standard deviations of the bands of patches."""

from collections.abc import Sequence

import numpy as np

from ofav2.data.patches import PatchImages, valid_pixels
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
    chosen = np.unique(np.linspace(0, len(images.rows) - 1, min(MOST, len(images.rows))).astype(np.int64))
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


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
