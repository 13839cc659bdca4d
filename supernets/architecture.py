"""Describe a supernet without making it: channels, strides, activations, exits (OFAv2, section 3; OFA).

The network is built from them, and whatever prices or draws a network can do so from them alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from supernets.space import BRANCHES, Space, SpaceError, known_fields, read_choices, shown

CHANNEL_DIVISOR = 8
STEM_CHANNELS = 16
# Channels, stride, activation, squeeze-excite of the five body stages (MobileNetV3-Large as OFA has it).
BODY = (
    (24, 2, "relu", False),
    (40, 2, "relu", True),
    (80, 2, "hardswish", False),
    (112, 1, "hardswish", True),
    (160, 2, "hardswish", True),
)


_FREE = ("num_classes", "width_mult", "stem_stride", "in_channels", "head_width")


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


def make_divisible(value: float, divisor: int = CHANNEL_DIVISOR) -> int:
    """Round `value` to a multiple of `divisor`: the nearest, at least one, never under 90 % of it (MobileNet)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def hidden_channels(in_channels: int, expand: int) -> int:
    """Return hidden channels of an inverted residual with `in_channels` inputs and this expansion ratio."""
    return make_divisible(round(in_channels * expand))


def squeeze_channels(hidden: int) -> int:
    """Return hidden units of the squeeze-excite of an inverted residual with this many hidden channels."""
    return make_divisible(hidden // 4)


def _strided(side: int, stride: int) -> int:
    """Return the side of a strided layer's output: all layers pad so that it is rounded up."""
    return -(-side // stride)


@dataclass(frozen=True)
class StageSpec:
    """One body stage."""

    in_channels: int
    """Channels of the stage's input."""
    channels: int
    """Channels of all its blocks' outputs."""
    stride: int
    """Stride of its first block."""
    activation: str
    """`relu` or `hardswish`."""
    squeeze_excite: bool
    """Whether its inverted residuals have a squeeze-excite."""


@dataclass(frozen=True)
class Architecture:
    """One supernet's architecture; `architecture(...)` makes it."""

    variant: str
    """Registered name."""
    num_classes: int
    """Classes of every exit."""
    width_mult: float
    """Width multiplier of all channel counts."""
    in_channels: int
    """Channels of the images."""
    stem_channels: int
    """Channels of the stem and of the first block."""
    stem_stride: int
    """Stride of the stem."""
    stages: tuple[StageSpec, ...]
    """The body stages."""
    exits: tuple[int, ...]
    """Stages (from 1) after which there is an exit."""
    kernel: tuple[int, ...]
    """Kernel sizes, ascending."""
    expand: tuple[int, ...]
    """Expansion ratios, ascending."""
    depth: tuple[int, ...]
    """Blocks per stage, ascending."""
    dense: bool
    """Whether stages have dense skips."""
    parallel: bool
    """Whether blocks have three parallel branches."""
    head_width: int | None
    """Channels inside every exit's dense head; None: exits pool, and have one output vector per image."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them: lists, numbers, texts and truth values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """Read what `to_dict` wrote.

        The free fields (variant, classes, width, choices, stem stride, image channels, width of the heads) are checked
        like those of a new supernet. All others follow from them, and must say the same.

        Raises:
            SpaceError: A field is missing, unknown or out of range, or contradicts another; the message names it.
        """
        known_fields("architecture", values, tuple(field.name for field in fields(cls)))
        found = architecture(
            values["variant"],
            **{name: values[name] for name in _FREE},
            **{name: values[name] for name in ("kernel", "expand", "depth")},
        )
        for name, expected in found.to_dict().items():
            if values[name] != expected:
                raise SpaceError(
                    f"{name} ({shown(values[name])}) does not go with the other fields: a {found.variant} supernet of"
                    f" these has {shown(expected)}"
                )
        return found

    @property
    def blocks(self) -> int:
        """Block positions per stage."""
        return self.depth[-1]

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of a block."""
        return BRANCHES if self.parallel else BRANCHES[:1]

    def block_inputs(self, stage: int, block: int) -> int:
        """Return input channels of a block position, both counted from 0."""
        spec = self.stages[stage]
        return spec.in_channels if block == 0 else spec.channels

    def exit_channels(self, exit: int) -> tuple[int, int]:
        """Return channels before and after pooling at exit `exit` (from 1): 6 and 8 times the stage's base count."""
        base = BODY[exit - 1][0]
        return make_divisible(6 * base * self.width_mult), make_divisible(8 * base * self.width_mult)

    def feature_channels(self, feature: int) -> int:
        """Return the channels of a feature: 0 is the stem's output, k that of body stage k, counted from 1."""
        return self.stages[feature - 1].channels if feature else self.stem_channels

    def head_reads(self, exit: int) -> tuple[int, ...]:
        """Return the features that the head of exit `exit` (from 1) reads: a dense one has all up to the exit."""
        return (exit,) if self.head_width is None else tuple(range(exit + 1))

    def output_values(self, resolution: int) -> int:
        """Return how many values an exit puts out for an image of this side in pixels."""
        return self.num_classes * (1 if self.head_width is None else resolution**2)

    def block_side(self, stage: int, block: int, side: int) -> int:
        """Return the side of a block's output in pixels, given that of its input."""
        return _strided(side, self.stages[stage].stride) if block == 0 else side

    def stage_side(self, stage: int, resolution: int) -> int:
        """Return the side of a body stage's input in pixels; of stage `len(stages)`, that of the last one's output."""
        side = _strided(resolution, self.stem_stride)
        for before in range(stage):
            side = self.block_side(before, 0, side)
        return side

    def skips(self, block: int) -> int:
        """Return how many tensors dense skips add to the output of block position `block`, counted from 0."""
        return max(0, block - 1) if self.dense else 0

    def stride_to(self, exit: int) -> int:
        """Return input pixels per pixel of the features at exit `exit`, counted from 1."""
        return self.stem_stride * prod(stage.stride for stage in self.stages[:exit])

    def space(self, resolutions: tuple[int, ...]) -> Space:
        """Return all sub-networks of the supernet at these resolutions.

        Raises:
            SpaceError: If a resolution is smaller than the network's stride, so that its last features would collapse,
                or if a dense head could not give back an image's size.
        """
        space = Space(
            resolution=resolutions,
            kernel=self.kernel,
            expand=self.expand,
            depth=self.depth,
            level=tuple(range(1, len(self.branches) + 1)),
            height=self.exits,
            stages=len(self.stages),
            blocks=self.blocks,
            branches=self.branches,
        )
        stride = self.stride_to(len(self.stages))
        if min(space.resolution) < stride:
            hint = " or stem_stride 1" if self.stem_stride > 1 else ""
            raise SpaceError(
                f"resolution ({min(space.resolution)}) is smaller than the network's total stride {stride}:"
                f" use at least {stride}{hint}"
            )
        odd = [side for side in space.resolution if side % self.stem_stride]
        if odd and self.head_width is not None:
            raise SpaceError(
                f"resolution ({odd[0]}) is no multiple of stem_stride ({self.stem_stride}), so dense heads can't give"
                f" back an image's size: use {odd[0] + 1}, or stem_stride 1"
            )
        return space


def variant(name: str) -> Variant:
    """Return what the supernet of this name has.

    Raises:
        SpaceError: There is no such supernet; the message lists them.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        near = get_close_matches(str(name), VARIANTS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SpaceError(f"supernet ({shown(name)}) is unknown{hint}: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def check_options(
    *, width_mult: float, kernel: Sequence[int], expand: Sequence[int], depth: Sequence[int], stem_stride: int
) -> None:
    """Refuse what makes no network of any variant; arguments are those of `architecture`.

    Raises:
        SpaceError: Naming the first option that is out of range.
    """
    if isinstance(width_mult, bool) or not isinstance(width_mult, int | float) or not 0.05 <= width_mult <= 20:
        raise SpaceError(f"width_mult ({shown(width_mult)}) must lie between 0.05 and 20; the paper has 1.0 and 1.2")
    if isinstance(stem_stride, bool) or stem_stride not in (1, 2):
        raise SpaceError(f"stem_stride ({shown(stem_stride)}) must be 1 or 2")
    for name, choices, most in (("kernel", kernel, 31), ("expand", expand, 16), ("depth", depth, 16)):
        largest = read_choices(name, choices)[-1]
        if largest > most:
            raise SpaceError(f"{name} ({largest}) must be at most {most}")
        if len(set(choices)) < len(choices):
            raise SpaceError(f"{name} ({', '.join(map(str, choices))}) names a choice twice")


def architecture(
    name: str,
    *,
    num_classes: int,
    width_mult: float,
    kernel: tuple[int, ...],
    expand: tuple[int, ...],
    depth: tuple[int, ...],
    stem_stride: int,
    in_channels: int,
    head_width: int | None,
) -> Architecture:
    """Compute the architecture of a supernet; see `supernets.create`.

    Raises:
        SpaceError: If the name is unknown or a number makes no network; the message names it.
    """
    flags = variant(name)
    named = {"num_classes": num_classes, "in_channels": in_channels}
    for option, value in (named if head_width is None else {**named, "head_width": head_width}).items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
            raise SpaceError(f"{option} ({shown(value)}) must be a whole number from 1 to 1000000")
    check_options(width_mult=width_mult, kernel=kernel, expand=expand, depth=depth, stem_stride=stem_stride)
    stem = make_divisible(STEM_CHANNELS * width_mult)
    widths = (stem, *(make_divisible(channels * width_mult) for channels, *_ in BODY))
    stages = tuple(
        StageSpec(widths[i], widths[i + 1], stride, activation, squeeze)
        for i, (_, stride, activation, squeeze) in enumerate(BODY)
    )
    return Architecture(
        variant=name,
        num_classes=num_classes,
        width_mult=float(width_mult),
        in_channels=in_channels,
        stem_channels=stem,
        stem_stride=int(stem_stride),
        stages=stages,
        exits=tuple(range(1, len(stages) + 1)) if flags.early_exit else (len(stages),),
        kernel=read_choices("kernel", kernel),
        expand=read_choices("expand", expand),
        depth=read_choices("depth", depth),
        dense=flags.dense,
        parallel=flags.parallel,
        head_width=head_width,
    )
