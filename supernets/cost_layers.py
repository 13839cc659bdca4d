"""The layers of a sub-network in arch, in the order in which they run: no network is built.

One description, from which parameters, multiply-adds and memory are all worked out. Layers are named as in the
extracted network. What makes no tensor of its own in inference (flatten, dropout, a sum of one tensor) is left out.
"""

from itertools import product
from typing import NamedTuple

from supernets import Architecture, BlockChoice, Space
from supernets.architecture import hidden_channels, squeeze_channels


class Layer(NamedTuple):
    """One layer, or one operation without weights."""

    name: str
    """Name in the part it belongs to; an operation without weights has none."""
    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one image."""
    elements: int
    """Values of its output for one image."""
    reads: tuple[int, ...]
    """Places in the part's list of the layers whose outputs it takes."""


class _Part:
    """Notes layers in the order in which they run; place 0 is the part's input."""

    def __init__(self, channels: int, side: int) -> None:
        self.layers = [Layer("", 0, 0, channels * side**2, ())]

    def note(self, layer: Layer) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def conv(self, name: str, x: int, weights: int, channels: int, side: int, bias: int = 0) -> int:
        """A convolution or linear layer: each weight is used once per output pixel."""
        return self.note(Layer(name, weights + bias, weights * side**2, channels * side**2, (x,)))

    def norm(self, name: str, x: int, channels: int) -> int:
        return self.note(Layer(name, 2 * channels, 0, self.layers[x].elements, (x,)))

    def apply(self, *reads: int) -> int:
        """An activation of one tensor, or a sum or product of two: the size of the first."""
        return self.note(Layer("", 0, 0, self.layers[reads[0]].elements, reads))

    def pool(self, x: int, channels: int, side: int) -> int:
        return self.note(Layer("", 0, 0, channels * side**2, (x,)))


def stem_layers(arch: Architecture, resolution: int) -> tuple[Layer, ...]:
    """Stem and first block; the part's input is the image.

    Args:
        arch: The supernet's arch.
        resolution: Side of the image in pixels.
    """
    part = _Part(arch.in_channels, resolution)
    channels, side = arch.stem_channels, strided(resolution, arch.stem_stride)
    x = part.conv("stem.conv", 0, arch.in_channels * channels * 9, channels, side)
    shortcut = part.apply(part.norm("stem.norm", x, channels))
    x = part.conv("first.depthwise", shortcut, channels * 9, channels, side)
    x = part.apply(part.norm("first.depthwise_norm", x, channels))
    x = part.conv("first.project", x, channels**2, channels, side)
    part.apply(shortcut, part.norm("first.project_norm", x, channels))
    return tuple(part.layers)


def block_layers(arch: Architecture, stage: int, block: int, choice: BlockChoice, side: int) -> tuple[Layer, ...]:
    """One block: its active branches and their sum.

    Args:
        arch: The supernet's arch.
        stage: Body stage, from 0.
        block: Block position, from 0.
        choice: The block's choices.
        side: Side of its input in pixels.
    """
    part = _Part(arch.block_inputs(stage, block), side)
    outputs = []
    if choice.kernel is not None and choice.expand is not None:
        outputs.append(_mbconv(part, arch, stage, block, choice.kernel, choice.expand, side))
    if "conv" in choice.level:
        outputs.append(_conv(part, arch, stage, block, side))
    if "transform" in choice.level:
        outputs.append(_transform(part, arch, stage, block, side))
    total = outputs[0]
    for output in outputs[1:]:
        total = part.apply(total, output)
    return tuple(part.layers)


def exit_layers(arch: Architecture, exit: int, side: int) -> tuple[Layer, ...]:
    """The head of an exit; the part's input is the features.

    Args:
        arch: The supernet's arch.
        exit: The exit, from 1.
        side: Side of the features in pixels.
    """
    channels = arch.stages[exit - 1].channels
    middle, last = arch.exit_channels(exit)
    part, name = _Part(channels, side), f"exits.{exit}"
    x = part.conv(f"{name}.widen.conv", 0, channels * middle, middle, side)
    x = part.apply(part.norm(f"{name}.widen.norm", x, middle))
    x = part.conv(f"{name}.mix", part.pool(x, middle, 1), middle * last, last, 1)
    part.conv(
        f"{name}.classifier",
        part.apply(x),
        last * arch.num_classes,
        arch.num_classes,
        1,
        bias=arch.num_classes,
    )
    return tuple(part.layers)


def block_choices(space: Space) -> tuple[BlockChoice, ...]:
    """Every different set of choices that a block of the space may have."""
    found: list[BlockChoice] = []
    for level in space.levels:
        if "mbconv" in level:
            found += [BlockChoice(kernel, expand, level) for kernel, expand in product(space.kernel, space.expand)]
        else:
            found.append(BlockChoice(None, None, level))
    return tuple(found)


def strided(side: int, stride: int) -> int:
    """Side of a strided layer's output, in pixels: all layers pad so that it is rounded up."""
    return -(-side // stride)


def block_side(arch: Architecture, stage: int, block: int, side: int) -> int:
    """Side of a block's output, in pixels, given that of its input."""
    return strided(side, arch.stages[stage].stride) if block == 0 else side


def stage_side(arch: Architecture, stage: int, resolution: int) -> int:
    """Side of a body stage's input, in pixels; of stage `len(stages)`, the side of the last stage's output."""
    side = strided(resolution, arch.stem_stride)
    for before in range(stage):
        side = block_side(arch, before, 0, side)
    return side


def _mbconv(part: _Part, arch: Architecture, stage: int, block: int, kernel: int, expand: int, side: int) -> int:
    inputs, outputs = arch.block_inputs(stage, block), arch.stages[stage].channels
    hidden, after = hidden_channels(inputs, expand), block_side(arch, stage, block, side)
    name = f"stages.{stage}.blocks.{block}.mbconv"
    x = 0
    if arch.expand != (1,):
        x = part.conv(f"{name}.expand", x, inputs * hidden, hidden, side)
        x = part.apply(part.norm(f"{name}.expand_norm", x, hidden))
    x = part.conv(f"{name}.depthwise", x, hidden * kernel**2, hidden, after)
    x = part.apply(part.norm(f"{name}.depthwise_norm", x, hidden))
    if arch.stages[stage].squeeze_excite:
        squeezed = squeeze_channels(hidden)
        gate = part.conv(f"{name}.squeeze.reduce", part.pool(x, hidden, 1), hidden * squeezed, squeezed, 1, squeezed)
        gate = part.conv(f"{name}.squeeze.expand", part.apply(gate), squeezed * hidden, hidden, 1, hidden)
        x = part.apply(x, part.apply(gate))
    x = part.conv(f"{name}.project", x, hidden * outputs, outputs, after)
    x = part.norm(f"{name}.project_norm", x, outputs)
    return part.apply(0, x) if inputs == outputs and _stride(arch, stage, block) == 1 else x


def _conv(part: _Part, arch: Architecture, stage: int, block: int, side: int) -> int:
    inputs, outputs = arch.block_inputs(stage, block), arch.stages[stage].channels
    name = f"stages.{stage}.blocks.{block}.conv"
    x = part.conv(f"{name}.conv", 0, inputs * outputs, outputs, block_side(arch, stage, block, side))
    return part.apply(part.norm(f"{name}.norm", x, outputs))


def _transform(part: _Part, arch: Architecture, stage: int, block: int, side: int) -> int:
    inputs, outputs = arch.block_inputs(stage, block), arch.stages[stage].channels
    name = f"stages.{stage}.blocks.{block}.transform"
    after = block_side(arch, stage, block, side)
    x = part.pool(0, inputs, after) if _stride(arch, stage, block) > 1 else 0
    if inputs != outputs:
        x = part.conv(f"{name}.conv", x, inputs * outputs, outputs, after, bias=outputs)
    return part.apply(part.norm(f"{name}.norm", x, outputs))


def _stride(arch: Architecture, stage: int, block: int) -> int:
    return arch.stages[stage].stride if block == 0 else 1
