"""Parameters and multiply-adds of a sub-network, by formula: no network is built.

Multiply-adds are counted as everywhere in the field: of convolutions and linear layers, without biases; norms,
activations, pooling and sums are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from supernets import Architecture, BlockChoice, Subnet
from supernets.architecture import hidden_channels, squeeze_channels


@dataclass(frozen=True)
class Cost:
    """What a network costs per image."""

    params: int
    """Trainable parameters of the extracted network."""
    macs: int
    """Multiply-adds of one image at the sub-network's resolution."""

    def __add__(self, other: "Cost") -> "Cost":
        """Cost of both."""
        return Cost(self.params + other.params, self.macs + other.macs)


def subnet_cost(numbers: Architecture, subnet: Subnet) -> Cost:
    """Cost of the sub-network with its own exit alone.

    Args:
        numbers: The supernet's numbers, `net.architecture`.
        subnet: A network of its space.
    """
    return sum(layer_costs(numbers, subnet), Cost(0, 0))


def layer_costs(numbers: Architecture, subnet: Subnet) -> Iterator[Cost]:
    """Cost of each layer with parameters, in the order in which they run."""
    side = _strided(subnet.resolution, numbers.stem_stride)
    stem = numbers.stem_channels
    yield _conv(numbers.in_channels, stem, 3, side) + _norm(stem)
    yield _depthwise(stem, 3, side) + _norm(stem)
    yield _conv(stem, stem, 1, side) + _norm(stem)
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            stride = numbers.stages[stage].stride if block == 0 else 1
            yield from _block(numbers, stage, block, choice, side, _strided(side, stride))
            side = _strided(side, stride)
    middle, last = numbers.exit_channels(subnet.height)
    yield _conv(numbers.stages[subnet.height - 1].channels, middle, 1, side) + _norm(middle)
    yield _conv(middle, last, 1, 1)
    yield Cost((last + 1) * numbers.num_classes, last * numbers.num_classes)


def _block(
    numbers: Architecture, stage: int, block: int, choice: BlockChoice, before: int, after: int
) -> Iterator[Cost]:
    inputs, outputs = numbers.block_inputs(stage, block), numbers.stages[stage].channels
    if choice.kernel is not None and choice.expand is not None:
        hidden = hidden_channels(inputs, choice.expand)
        if numbers.expand != (1,):
            yield _conv(inputs, hidden, 1, before) + _norm(hidden)
        yield _depthwise(hidden, choice.kernel, after) + _norm(hidden)
        if numbers.stages[stage].squeeze_excite:
            squeezed = squeeze_channels(hidden)
            yield _conv(hidden, squeezed, 1, 1) + Cost(squeezed, 0)
            yield _conv(squeezed, hidden, 1, 1) + Cost(hidden, 0)
        yield _conv(hidden, outputs, 1, after) + _norm(outputs)
    if "conv" in choice.level:
        yield _conv(inputs, outputs, 1, after) + _norm(outputs)
    if "transform" in choice.level:
        if inputs != outputs:
            yield _conv(inputs, outputs, 1, after) + Cost(outputs, 0)
        yield _norm(outputs)


def _conv(inputs: int, outputs: int, kernel: int, side: int) -> Cost:
    weights = inputs * outputs * kernel**2
    return Cost(weights, weights * side**2)


def _depthwise(channels: int, kernel: int, side: int) -> Cost:
    return Cost(channels * kernel**2, channels * kernel**2 * side**2)


def _norm(channels: int) -> Cost:
    return Cost(2 * channels, 0)


def _strided(side: int, stride: int) -> int:
    """Side of a strided layer's output, in pixels: all layers pad so that it is rounded up."""
    return -(-side // stride)
