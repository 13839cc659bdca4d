"""A latency table of random numbers, for tests that measure nothing."""

import numpy as np

from ofav2.nas.latency_table import LatencyTable, PredictionError
from ofav2.nas.machine import Machine
from supernets import Architecture, Space
from supernets.parts import space_parts


def made_up_table(arch: Architecture, space: Space) -> LatencyTable:
    """Return random latencies, so that what is quick is not what is small."""
    rng = np.random.default_rng(7)
    entries = {
        f"{part} @{side}": int(rng.integers(1, 1000)) for part, sides in space_parts(arch, space) for side in sides
    }
    return LatencyTable(Machine("cpu", "none", 1, "0"), 1, arch, entries, 1.0, PredictionError(1, 0.0, 0.0))
