"""Compute Pareto fronts and hypervolumes. The only owner of moocore."""

from collections.abc import Sequence

import moocore
import numpy as np

from ofav2.nas.engine.problem import Floats, Mask


def on_front(points: Floats) -> Mask:
    """Return which points (N, objectives), all minimised, no other one beats; of equal points, the first."""
    return np.asarray(moocore.is_nondominated(points, keep_weakly=False), dtype=bool)


def hypervolume(points: Floats, reference: Sequence[float] | Floats) -> float:
    """Return the volume that points (N, objectives), all minimised, dominate up to a reference point."""
    inside = points[(points < np.asarray(reference)).all(1)]
    return float(moocore.hypervolume(inside, ref=np.asarray(reference))) if len(inside) else 0.0
