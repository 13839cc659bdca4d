"""Describe a network with exits without making it: where exits read its features, and what their heads are (AEP).

The record is plain numbers and names. `supernets.taps` attaches the exits to a network of that name.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Literal, get_args

from supernets.architecture import Architecture
from supernets.space import FIXED, Space, SpaceError, shown

MOST_EXITS = 12
"""Exits that a network may have: choosing among all their subsets looks at 2^n of them."""

MOST_ITEMS = 64
"""Values that a module with an exit behind it may give."""

Layout = Literal["NCHW", "NHWC", "NLC"]
"""Order of the dimensions of features: images, channels, height and width, or tokens (L)."""
HeadKind = Literal["norm_linear", "linear", "relu_linear", "mobilenetv3", "efficientnet"]
"""What an attached exit ends in, see `supernets.exit_heads`."""


@dataclass(frozen=True)
class Tap:
    """Where an exit reads a network's features."""

    module: str
    """Name of the module whose output it reads."""
    channels: int
    """Channels of the features."""
    layout: Layout
    """Order of their dimensions."""
    prefix: int
    """Tokens at the start that are no part of the image, such as a class token; 0 but for NLC."""
    stride: int
    """Input pixels per pixel of the features, in height and width."""
    item: int | None = None
    """Which of several values that the module gives, from 0; None if it gives the features alone."""
    items: int = 1
    """How many values it gives."""


@dataclass(frozen=True)
class Backbone:
    """One network with exits: some read its features, the last one is its own head."""

    name: str
    """Name of the network in timm, with its weights tag if it has one."""
    num_classes: int
    """Classes of every exit."""
    in_channels: int
    """Channels of the images."""
    resolution: int
    """Side in pixels of the images that it was made for."""
    any_size: bool
    """Whether it takes images of other sizes, too."""
    drop_rate: float
    """Dropout probability in its own head."""
    head: HeadKind
    """Heads of all exits but the last (`supernets.exit_heads`)."""
    taps: tuple[Tap, ...]
    """Where all exits but the last read features, in the order in which they run; none of a network as timm has it."""
    behaviour: tuple[float, ...]
    """A logit of each exit for a fixed image and fixed weights; a network of the same name that computes otherwise, as
    another version of timm may have, has others."""

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other, or make no network."""
        sizes = {"classes": self.num_classes, "channels": self.in_channels, "resolution": self.resolution}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
                raise SpaceError(f"{name} ({shown(value)}) must be a whole number from 1 to 1000000")
        if isinstance(self.drop_rate, bool) or not isinstance(self.drop_rate, Real) or not 0 <= self.drop_rate < 1:
            raise SpaceError(f"drop_rate ({shown(self.drop_rate)}) must be a number, 0 or more and below 1")
        kinds = get_args(HeadKind)
        if self.head not in kinds:
            near = get_close_matches(str(self.head), kinds, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise SpaceError(f"head ({shown(self.head)}) is unknown{hint}: choose one of {', '.join(kinds)}")
        if len(self.taps) >= MOST_EXITS:
            raise SpaceError(f"exits ({len(self.taps) + 1}) must be {MOST_EXITS} at most, the last one included")
        if len({(tap.module, tap.item) for tap in self.taps}) < len(self.taps):
            raise SpaceError("taps name a module's output twice: every exit reads other features")
        for tap in self.taps:
            if not 1 <= tap.items <= MOST_ITEMS or not 0 <= (tap.item or 0) < tap.items:
                raise SpaceError(f"tap {tap.module} reads value {tap.item} of {tap.items}: it must be one of them")

    @property
    def variant(self) -> str:
        """Its name, as messages call it."""
        return self.name

    @property
    def exits(self) -> tuple[int, ...]:
        """Its exits by number, from 1; the last one is the network's own head."""
        return tuple(range(1, len(self.taps) + 2))

    def space(self, resolutions: tuple[int, ...]) -> Space:
        """Return its sub-networks: it can end at each exit, and has no other choice.

        Raises:
            SpaceError: If a resolution is smaller than a feature's pixels, or another than the only one that it takes.
        """
        for side in resolutions:
            if side != self.resolution and not self.any_size:
                raise SpaceError(
                    f"resolution ({side}) is another than {self.name} was made for: it takes {self.resolution} alone"
                )
        stride = max((tap.stride for tap in self.taps), default=1)
        if min(resolutions) < stride:
            raise SpaceError(
                f"resolution ({min(resolutions)}) is smaller than the {stride} pixels that features of {self.name} see"
                f" at an exit: use at least {stride}"
            )
        count = len(self.exits)
        return Space(resolutions, (1,), (1,), (1,), (1,), self.exits, stages=count, blocks=1, branches=(FIXED,))


AnyArchitecture = Backbone | Architecture
"""A supernet in numbers, or a network with exits."""
