"""Build the eight supernets by name."""

from supernets.architecture import VARIANTS, architecture
from supernets.mobilenetv3 import Supernet
from supernets.space import SpaceError

PAPER_RESOLUTIONS = (48, 52, 56, 60, 64)
"""OFAv2's image sides on Tiny ImageNet."""


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
    head_width: int | None = None,
    dropout: float = 0.1,
    seed: int = 0,
) -> Supernet:
    """Build a supernet with fresh weights.

    Args:
        name: One of `names()`.
        num_classes: Outputs of every exit: one per class.
        width_mult: Width multiplier of all channel counts; the paper has 1.0 and 1.2.
        kernel: Kernel sizes in pixels that a block may have, odd.
        expand: Expansion ratios that a block may have.
        depth: Numbers of blocks that a stage may have.
        resolutions: Image sides in pixels that its space offers.
        stem_stride: Stride of the first convolution: 2, or 1 for images of about 32 pixels or less.
        in_channels: Channels of the images.
        head_width: Channels inside dense heads, which have outputs for every pixel; None for heads that pool.
        dropout: Dropout probability before each exit's classifier.
        seed: Seed of the initial weights.

    Returns:
        The supernet in training mode; `net.space` holds its sub-networks.

    Raises:
        SpaceError: If the name is unknown or a number makes no network; the message names it.
    """
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise SpaceError(f"dropout ({dropout!r}) must be a number of at least 0 and less than 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise SpaceError(f"seed ({seed!r}) must be a whole number of at least 0 and less than 2**63")
    arch = architecture(
        name,
        num_classes=num_classes,
        width_mult=width_mult,
        kernel=kernel,
        expand=expand,
        depth=depth,
        stem_stride=stem_stride,
        in_channels=in_channels,
        head_width=head_width,
    )
    return Supernet(arch, resolutions, dropout, seed)
