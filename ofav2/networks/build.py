"""Build the supernet that a recipe, or a record, describes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import supernets
from ofav2.config.schema import Config
from supernets import Supernet


def build_supernet(arch: Mapping[str, Any], seed: int = 0) -> Supernet:
    """A supernet with fresh weights from the numbers that a run has recorded of it."""
    return supernets.create(
        arch["variant"],
        num_classes=arch["num_classes"],
        width_mult=arch["width_mult"],
        kernel=tuple(arch["kernel"]),
        expand=tuple(arch["expand"]),
        depth=tuple(arch["depth"]),
        resolutions=tuple(arch["space"]["resolution"]),
        stem_stride=arch["stem_stride"],
        in_channels=arch["in_channels"],
        seed=seed,
    )


def supernet_options(config: Config, *, outputs: int, channels: int) -> dict[str, Any]:
    """Keyword arguments of `supernets.create` for a recipe and its data."""
    options = {name: value for name, value in asdict(config.supernet).items() if name != "variant"}
    return {
        **options,
        "num_classes": outputs,
        "in_channels": channels,
        "resolutions": config.data.resolutions,
        "seed": config.run.seed,
    }
