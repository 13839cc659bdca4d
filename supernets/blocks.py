"""Build the parts of a supernet: inverted residual, parallel block, stage.

A part's `forward` takes the choices of the sub-network that runs as arguments. Channel counts are worked out from the
choices, never read off a tensor, so that extraction can send a stand-in through the very same code.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from supernets.architecture import Architecture, StageSpec, hidden_channels, squeeze_channels
from supernets.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticDepthwise, activation
from supernets.space import BlockChoice


class ConvNorm(nn.Module):
    """Convolution and batch norm, used whole.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size in pixels, odd.
        stride: Stride in pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.channels = in_channels, out_channels
        self.conv = ElasticConv2d(in_channels, out_channels, kernel, stride)
        self.norm = ElasticBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        inputs, outputs = self.channels
        return self.norm(self.conv(x, inputs, outputs), outputs)


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means (MobileNetV3's form, with hard sigmoid).

    Args:
        channels: Largest number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = ElasticConv2d(channels, squeeze_channels(channels), bias=True)
        self.act = activation("relu")
        self.expand = ElasticConv2d(squeeze_channels(channels), channels, bias=True)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor, channels: int) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        squeezed = squeeze_channels(channels)
        y = self.act(self.reduce(self.pool(x), channels, squeezed))
        scaled: Tensor = x * self.gate(self.expand(y, squeezed, channels))
        return scaled


class InvertedResidual(nn.Module):
    """The MBConv: 1x1 expand, depthwise, squeeze-excite, 1x1 project; elastic in kernel and expansion.

    With the single expansion ratio 1 there is no expanding convolution. The identity shortcut is added where input and
    output have the same shape.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernels: Kernel sizes in pixels, ascending.
        expands: Expansion ratios, ascending.
        stride: Stride in pixels.
        act: Name of the activation.
        squeeze_excite: Whether there is a squeeze-excite.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernels: tuple[int, ...],
        expands: tuple[int, ...],
        stride: int,
        act: str,
        squeeze_excite: bool,
    ) -> None:
        super().__init__()
        hidden = hidden_channels(in_channels, expands[-1])
        self.channels = in_channels, out_channels
        self.expands = expands
        self.shortcut = stride == 1 and in_channels == out_channels
        if expands == (1,):
            self.expand, self.expand_norm = None, None
        else:
            self.expand, self.expand_norm = ElasticConv2d(in_channels, hidden), ElasticBatchNorm2d(hidden)
        self.depthwise = ElasticDepthwise(hidden, kernels, stride)
        self.depthwise_norm = ElasticBatchNorm2d(hidden)
        self.squeeze = SqueezeExcite(hidden) if squeeze_excite else None
        self.project = ElasticConv2d(hidden, out_channels)
        self.project_norm = ElasticBatchNorm2d(out_channels)
        self.act = activation(act)

    def forward(self, x: Tensor, kernel: int, expand: int) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        inputs, outputs = self.channels
        hidden = hidden_channels(inputs, expand)
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.act(self.expand_norm(self.expand(y, inputs, hidden), hidden))
        y = self.act(self.depthwise_norm(self.depthwise(y, hidden, kernel), hidden))
        if self.squeeze is not None:
            y = self.squeeze(y, hidden)
        y = self.project_norm(self.project(y, hidden, outputs), outputs)
        return x + y if self.shortcut else y


class Transform(nn.Module):
    """Branch (c) of a parallel block: max-pool where it strides, 1x1 conv where channels change, norm, activation.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Size and stride of the max-pool; 1: none.
        act: Name of the activation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, act: str) -> None:
        super().__init__()
        self.channels = in_channels, out_channels
        self.pool = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else None
        self.conv = ElasticConv2d(in_channels, out_channels, bias=True) if in_channels != out_channels else None
        self.norm = ElasticBatchNorm2d(out_channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        inputs, outputs = self.channels
        if self.pool is not None:
            x = self.pool(x)
        if self.conv is not None:
            x = self.conv(x, inputs, outputs)
        y: Tensor = self.act(self.norm(x, outputs))
        return y


class Block(nn.Module):
    """One block position: the MBConv and, in parallel blocks, two more branches; the active ones are summed (OFAv2).

    Args:
        spec: The stage's spec.
        in_channels: Input channels.
        stride: Stride in pixels.
        kernels: Kernel sizes in pixels, ascending.
        expands: Expansion ratios, ascending.
        parallel: Whether there are the branches (b) and (c).
    """

    def __init__(
        self,
        spec: StageSpec,
        *,
        in_channels: int,
        stride: int,
        kernels: tuple[int, ...],
        expands: tuple[int, ...],
        parallel: bool,
    ) -> None:
        super().__init__()
        out = spec.channels
        self.mbconv = InvertedResidual(
            in_channels,
            out,
            kernels=kernels,
            expands=expands,
            stride=stride,
            act=spec.activation,
            squeeze_excite=spec.squeeze_excite,
        )
        self.conv = ConvNorm(in_channels, out, 1, stride) if parallel else None
        self.transform = Transform(in_channels, out, stride, spec.activation) if parallel else None
        self.act = activation(spec.activation)

    def forward(self, x: Tensor, choice: BlockChoice) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)): the sum of the active branches."""
        outputs: list[Tensor] = []
        if choice.kernel is not None and choice.expand is not None:
            outputs.append(self.mbconv(x, choice.kernel, choice.expand))
        if self.conv is not None and "conv" in choice.level:
            outputs.append(self.act(self.conv(x)))
        if self.transform is not None and "transform" in choice.level:
            outputs.append(self.transform(x))
        assert len(outputs) == len(choice.level), "the space lets no block have branches that it lacks"
        return _total(outputs)


class Stage(nn.Module):
    """Blocks in sequence, of which the first ones run; with dense skips when `dense` (OFAv2).

    With y_i the output of block i, block i + 1 is given y_i, plus y_1 + … + y_{i-2} with dense skips; the stage's
    output is formed the same way from its last active block. Skips carry no parameters and follow the depth.

    Args:
        blocks: The block positions: modules that are called with features and choices.
        dense: Whether there are dense skips.
    """

    def __init__(self, blocks: Sequence[nn.Module], dense: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.dense = dense

    def forward(self, x: Tensor, choices: tuple[BlockChoice, ...]) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)), through a block per choice."""
        outputs: list[Tensor] = []
        for block, choice in zip(self.blocks, choices, strict=False):
            outputs.append(block(x, choice))
            skipped = outputs[:-2] if self.dense else []
            x = _total([outputs[-1], *skipped])
        return x


def build_stage(arch: Architecture, stage: int) -> Stage:
    """Body stage `stage` (from 0) of an architecture."""
    body = arch.stages[stage]
    blocks = [
        Block(
            body,
            in_channels=arch.block_inputs(stage, block),
            stride=body.stride if block == 0 else 1,
            kernels=arch.kernel,
            expands=arch.expand,
            parallel=arch.parallel,
        )
        for block in range(arch.blocks)
    ]
    return Stage(blocks, arch.dense)


def _total(tensors: list[Tensor]) -> Tensor:
    """Return the sum of at least one tensor; the tensor itself where there is one."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
