"""Build the eight supernets by name."""

from difflib import get_close_matches
from types import MappingProxyType
from typing import NamedTuple

from supernets.architecture import architecture
from supernets.mobilenetv3 import Supernet
from supernets.space import SpaceError

PAPER_RESOLUTIONS = (48, 52, 56, 60, 64)
"""OFAv2's image sides on Tiny ImageNet."""


class Variant(NamedTuple):
    """What a supernet has beyond OFA's."""

    early_exit: bool
    """An exit after every stage (EE) instead of after the last alone (SE)."""
    dense: bool
    """Dense skips inside stages (D)."""
    parallel: bool
    """Parallel blocks (P)."""


VARIANTS = MappingProxyType(
    {
        "se_b": Variant(early_exit=False, dense=False, parallel=False),
        "se_d": Variant(early_exit=False, dense=True, parallel=False),
        "se_p": Variant(early_exit=False, dense=False, parallel=True),
        "se_dp": Variant(early_exit=False, dense=True, parallel=True),
        "ee_b": Variant(early_exit=True, dense=False, parallel=False),
        "ee_d": Variant(early_exit=True, dense=True, parallel=False),
        "ee_p": Variant(early_exit=True, dense=False, parallel=True),
        "ee_dp": Variant(early_exit=True, dense=True, parallel=True),
    }
)


def names() -> tuple[str, ...]:
    """Return the names of all supernets."""
    return tuple(VARIANTS)


def create(
    name: str,
    *,
    num_classes: int,
    width_mult: float = 1.0,
    kernel: tuple[int, ...] = (3, 5, 7),
    expand: tuple[int, ...] = (3, 4, 6),
    depth: tuple[int, ...] = (2, 3, 4),
    resolutions: tuple[int, ...] = PAPER_RESOLUTIONS,
    stem_stride: int = 2,
    in_channels: int = 3,
    dropout: float = 0.1,
    seed: int = 0,
) -> Supernet:
    """Build a supernet with fresh weights.

    Args:
        name: One of `names()`.
        num_classes: Classes of every exit.
        width_mult: Width multiplier of all channel counts; the paper has 1.0 and 1.2.
        kernel: Kernel sizes in pixels that a block may have, odd.
        expand: Expansion ratios that a block may have.
        depth: Numbers of blocks that a stage may have.
        resolutions: Image sides in pixels that its space offers.
        stem_stride: Stride of the first convolution: 2, or 1 for images of about 32 pixels or less.
        in_channels: Channels of the images.
        dropout: Dropout probability before each exit's classifier.
        seed: Seed of the initial weights.

    Returns:
        The supernet in training mode; `net.space` holds its sub-networks.

    Raises:
        SpaceError: If the name is unknown or a number makes no network; the message names it.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        near = get_close_matches(str(name), VARIANTS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SpaceError(f"supernet ({name!r}) is unknown{hint}: choose one of {', '.join(VARIANTS)}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise SpaceError(f"dropout ({dropout!r}) must be a number of at least 0 and less than 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise SpaceError(f"seed ({seed!r}) must be a whole number of at least 0 and less than 2**63")
    arch = architecture(
        name,
        **VARIANTS[name]._asdict(),
        num_classes=num_classes,
        width_mult=width_mult,
        kernel=kernel,
        expand=expand,
        depth=depth,
        stem_stride=stem_stride,
        in_channels=in_channels,
    )
    return Supernet(arch, resolutions, dropout, seed)
