"""Evaluate all thresholds of early exits on some images, and choose one for a target.

One threshold for all exits. It splits the images by their confidences alone, so there are as many different ones as
there are different confidences, and all are looked at: nothing is searched for or approximated. A threshold per exit
would fit a small validation split more closely than it deserves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofav2.errors import UserError
from ofav2.exits.early import NEVER
from ofav2.nas.limits import show

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """All thresholds that differ on some images, ascending: from all images exiting as early as possible to none."""

    thresholds: Floats
    """(T,). Each lies halfway between two confidences, so that the last digits decide about no image."""
    exited: Counts
    """Images that exit at each exit, (T, exits)."""
    right: Counts
    """Images whose class is right, (T,)."""
    lost: Counts
    """Images whose class is wrong, though the last exit would have it right, (T,)."""
    macs: tuple[int, ...]
    """Multiply-adds of an image by the exit that it takes."""

    @property
    def images(self) -> int:
        """How many images."""
        return int(self.exited[0].sum())

    @property
    def mean_macs(self) -> npt.NDArray[np.float64]:
        """Mean multiply-adds per image, (T,)."""
        return self._total_macs / self.images

    @property
    def top1(self) -> npt.NDArray[np.float64]:
        """Share of images (0..1) whose class is right, (T,)."""
        return self.right / self.images

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of images (0..1) that exit at each exit, (T, exits)."""
        return self.exited / self.images

    @property
    def _total_macs(self) -> Counts:
        return self.exited @ np.array(self.macs, dtype=np.int64)

    def within(self, macs: int) -> int:
        """Return the most accurate threshold of at most a mean cost; of equals the cheapest, then the most cautious.

        Args:
            macs: Mean multiply-adds per image, at most.

        Returns:
            Its index.

        Raises:
            UserError: If every threshold costs more; the message says what the least is.
        """
        total = self._total_macs
        kept = np.flatnonzero(total <= macs * self.images)
        if not len(kept):
            least = -(-int(total.min()) // self.images)
            raise UserError(
                f"limit macs ({macs:,}) is less than any threshold needs: the mean is at least {show('macs', least)}"
                f" ({least:,}), where images exit as early as they can"
            )
        return int(kept[np.lexsort((self.thresholds[kept], -total[kept], self.right[kept]))[-1]])

    def reaching(self, top1: float) -> int:
        """Return the cheapest threshold of at least an accuracy; of equals the most accurate, then the most cautious.

        Args:
            top1: Share of images (0..1) whose class is right, at least.

        Returns:
            Its index.

        Raises:
            UserError: If no threshold reaches it; the message says what the best one reaches.
        """
        kept = np.flatnonzero(self.top1 >= top1)
        if not len(kept):
            best = np.floor(1e4 * self.top1.max()) / 1e4
            raise UserError(f"top-1 ({top1:g}) is more than any threshold reaches on validation: give up to {best:g}")
        return self._cheapest(kept)

    def harmless(self, hidden: float | None) -> int:
        """Return the cheapest threshold that loses no image that is right without it, nor many unseen ones.

        No loss in k images that exit early leaves a rate of 3/k possible with 95 % confidence (the rule of three). Of
        fewer than these, the surest ones, each is lost no more often than that. So all of k may exit early, or as many
        as keep their share of all images times 3/k at `hidden`. An equal accuracy would be a weaker rule: losses and
        gains may cancel by accident.

        Args:
            hidden: Share of all images (0..1) that may be lost unseen; None sets no bound.

        Returns:
            Its index; of equals as in `reaching`.
        """
        sound = np.flatnonzero(self.lost == 0)
        early = self.images - self.exited[:, -1]
        if hidden is None:
            return self._cheapest(sound)
        allowed = hidden * self.images * early[sound].max() / 3
        return self._cheapest(sound[early[sound] <= allowed])

    def _cheapest(self, kept: npt.NDArray[np.intp]) -> int:
        return int(kept[np.lexsort((self.thresholds[kept], self.right[kept], -self._total_macs[kept]))[-1]])

    def spread(self, count: int) -> list[int]:
        """Return indices of at most so many thresholds, both ends included, about evenly spaced in cost; ascending."""
        total = self._total_macs
        targets = np.linspace(int(total.min()), int(total.max()), count)
        nearest = {int(np.abs(total - value).argmin()) for value in targets}
        return sorted({0, len(total) - 1, *nearest})


def threshold_curve(
    confidences: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], macs: Sequence[int]
) -> ThresholdCurve:
    """Evaluate every threshold on some images.

    Args:
        confidences: How sure each exit but the last is of each image, (exits - 1, N), N at least 1; NaN is never sure.
        right: Whether each exit's class is right, (exits, N).
        macs: Multiply-adds of an image that exits at each exit, ascending.
    """
    exits, images = right.shape
    assert confidences.shape == (exits - 1, images)
    assert len(macs) == exits
    known = np.where(np.isnan(confidences), -np.inf, confidences).astype(np.float32)
    # An image has exited before exit k if, and only if, one of the exits before it was sure enough.
    surest = np.maximum.accumulate(np.vstack([np.full(images, -np.inf), known, np.full(images, np.inf)]), 0)
    thresholds = _thresholds(known)
    everything = np.ones(images, bool)
    gone = np.stack([_tail(row, everything, thresholds) for row in surest])

    def total(counted: npt.NDArray[np.bool_]) -> Counts:
        """Return images that count at the exit they take, per threshold."""
        ends = zip(surest[:-1], surest[1:], counted, strict=True)
        at = [_tail(until, own, thresholds) - _tail(before, own, thresholds) for before, until, own in ends]
        return np.asarray(np.sum(at, 0))

    return ThresholdCurve(thresholds, np.diff(gone, axis=0).T, total(right), total(right[-1] & ~right), tuple(macs))


def _thresholds(known: Floats) -> Floats:
    """Return all that differ: between two confidences, those of exits that decide nothing included."""
    values = np.unique(known[np.isfinite(known)])
    lower, upper = values[:-1], values[1:]
    middle = (lower / 2 + upper / 2).astype(np.float32)
    # Between neighbouring floats there is no middle.
    between = np.where(middle > lower, middle, upper)
    return np.concatenate([np.zeros(1, np.float32), between, np.array([NEVER], np.float32)])


def _tail(values: Floats, counted: npt.NDArray[np.bool_], thresholds: Floats) -> Counts:
    """Return how many counted images have a value of at least each threshold."""
    order = np.argsort(values)
    sums = np.concatenate([[0], np.cumsum(counted[order], dtype=np.int64)])
    return np.asarray(sums[-1] - sums[np.searchsorted(values[order], thresholds)])
