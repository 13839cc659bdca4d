"""Record the parts of which all networks of a supernet are made: stem, blocks, dense skips and exits.

A part is a value. Networks share most of their parts, so each part is recorded, priced or timed once, at each side of
its input. The text of a part is its name in tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule

from supernets.architecture import Architecture
from supernets.mobilenetv3 import Supernet
from supernets.recorder import record
from supernets.space import BlockChoice, Space, Subnet


@dataclass(frozen=True)
class StemPart:
    """Stem and first block."""

    def __str__(self) -> str:
        return "stem"

    def channels(self, arch: Architecture) -> int:
        """Return the channels of its input."""
        return arch.in_channels

    def record(self, net: Supernet) -> GraphModule:
        """Return it as a module of stock layers in evaluation mode."""
        return record(_Stem(net)).eval()


@dataclass(frozen=True)
class BlockPart:
    """A block of a stage; all blocks after the first one are alike."""

    stage: int
    """Body stage, from 0."""
    later: bool
    """Whether it is not the stage's first block."""
    choice: BlockChoice
    """Its choices."""

    def __str__(self) -> str:
        position = "later" if self.later else "first"
        mbconv = f" k{self.choice.kernel} e{self.choice.expand}" if self.choice.kernel is not None else ""
        return f"stage {self.stage + 1} {position} {'+'.join(self.choice.level)}{mbconv}"

    def channels(self, arch: Architecture) -> int:
        """Return the channels of its input."""
        return arch.block_inputs(self.stage, int(self.later))

    def record(self, net: Supernet) -> GraphModule:
        """Return it as a module of stock layers in evaluation mode, named as in the block."""
        block = net.get_submodule(f"stages.{self.stage}.blocks.{int(self.later)}")
        return record(block, self.choice).eval()


@dataclass(frozen=True)
class SkipPart:
    """A dense skip: the sum of two blocks' outputs."""

    stage: int
    """Body stage, from 0."""

    def __str__(self) -> str:
        return f"stage {self.stage + 1} skip"

    def channels(self, arch: Architecture) -> int:
        """Return the channels of its inputs."""
        return arch.stages[self.stage].channels

    def record(self, net: Supernet) -> GraphModule:
        """Return it as a module of one input, which is added to itself."""
        return record(_Sum()).eval()


@dataclass(frozen=True)
class ExitPart:
    """The head of an exit."""

    exit: int
    """The exit, from 1."""

    def __str__(self) -> str:
        return f"exit {self.exit}"

    def record(self, net: Supernet) -> GraphModule:
        """Return it as a module of stock layers in evaluation mode, named as in the head, with an input per feature."""
        names = [f"feature_{index}" for index in net.architecture.head_reads(self.exit)]
        return record(net.exits[str(self.exit)], inputs=names).eval()


Part = StemPart | BlockPart | SkipPart | ExitPart
"""A part of a supernet's networks."""


def part_side(arch: Architecture, part: Part, resolution: int) -> int:
    """Return the side that a part's cost depends on: that of its input, or of the image where it has several inputs.

    Args:
        arch: The supernet's architecture.
        part: The part.
        resolution: Side of the image in pixels.
    """
    match part:
        case StemPart():
            return resolution
        case BlockPart():
            return arch.stage_side(part.stage + part.later, resolution)
        case SkipPart():
            return arch.stage_side(part.stage + 1, resolution)
        case ExitPart():
            return resolution if arch.head_width is not None else arch.stage_side(part.exit, resolution)


def input_shapes(arch: Architecture, part: Part, side: int) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of a part's inputs without the batch dimension.

    Args:
        arch: The supernet's architecture.
        part: The part.
        side: What `part_side` gives.
    """
    if not isinstance(part, ExitPart):
        return ((part.channels(arch), side, side),)
    if arch.head_width is None:
        return ((arch.feature_channels(part.exit), side, side),)
    sides = [arch.stage_side(feature, side) for feature in arch.head_reads(part.exit)]
    return tuple((arch.feature_channels(feature), own, own) for feature, own in enumerate(sides))


def subnet_parts(arch: Architecture, subnet: Subnet) -> Iterator[tuple[Part, int]]:
    """Yield the parts of a network with its own exit, in the order in which they run, with their sides (`part_side`).

    Args:
        arch: The supernet's architecture.
        subnet: A network of its space.
    """
    for part in _parts(arch, subnet):
        yield part, part_side(arch, part, subnet.resolution)


def _parts(arch: Architecture, subnet: Subnet) -> Iterator[Part]:
    yield StemPart()
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            yield BlockPart(stage, block > 0, choice)
            yield from [SkipPart(stage)] * arch.skips(block)
    yield ExitPart(subnet.height)


def space_parts(arch: Architecture, space: Space) -> Iterator[tuple[Part, tuple[int, ...]]]:
    """Yield every different part of a space's networks with all sides (`part_side`) that it may have.

    Args:
        arch: The supernet's architecture.
        space: The networks.
    """
    for part in _space_parts(arch, space):
        yield part, tuple(sorted({part_side(arch, part, resolution) for resolution in space.resolution}))


def _space_parts(arch: Architecture, space: Space) -> Iterator[Part]:
    yield StemPart()
    for stage in range(max(space.height)):
        for later in range(min(2, max(space.depth))):
            yield from (BlockPart(stage, later > 0, choice) for choice in space.block_choices)
        if arch.skips(max(space.depth) - 1):
            yield SkipPart(stage)
        if stage + 1 in space.height:
            yield ExitPart(stage + 1)


class _Stem(nn.Module):
    """The modules of a supernet up to its stages."""

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.stem, self.act, self.first = net.stem, net.stem_act, net.first

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, stem channels, ceil(H / stride), ceil(W / stride))."""
        features: Tensor = self.first(self.act(self.stem(images)), 3, 1)
        return features


class _Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + x
