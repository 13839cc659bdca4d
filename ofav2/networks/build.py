"""Build the supernet that a recipe, or a record, describes."""

from dataclasses import asdict
from typing import Any

import supernets
from ofav2.config.schema import Config
from supernets import Architecture, Supernet


def build_supernet(arch: Architecture, resolutions: tuple[int, ...], seed: int = 0) -> Supernet:
    """Return a supernet of an architecture, with fresh weights.

    Args:
        arch: The architecture.
        resolutions: Image sides in pixels that its space offers.
        seed: Seed of the weights.
    """
    return supernets.create(
        arch.variant,
        num_classes=arch.num_classes,
        width_mult=arch.width_mult,
        kernel=arch.kernel,
        expand=arch.expand,
        depth=arch.depth,
        resolutions=resolutions,
        stem_stride=arch.stem_stride,
        in_channels=arch.in_channels,
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
