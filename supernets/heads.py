"""Heads: the layers from features to an exit's output. `Architecture.head_reads` says which features a head reads."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from supernets.architecture import Architecture
from supernets.blocks import ConvNorm
from supernets.layers import (
    ChannelDropout,
    Dropout,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwise,
    Linear,
    PixelLinear,
)


class ExitHead(nn.Module):
    """Map features to logits: 1x1 conv and norm, mean over the image, 1x1 conv, dropout, linear.

    Args:
        in_channels: Channels of the features.
        middle_channels: Channels before the pooling.
        last_channels: Channels after the pooling.
        num_classes: Classes.
        dropout: Probability of dropping a value before the linear layer.
    """

    def __init__(
        self, in_channels: int, middle_channels: int, last_channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.channels = middle_channels, last_channels
        self.widen = ConvNorm(in_channels, middle_channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mix = ElasticConv2d(middle_channels, last_channels)
        self.act = nn.Hardswish()
        self.flatten = nn.Flatten()
        self.dropout = Dropout(dropout)
        self.classifier = Linear(last_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        middle, last = self.channels
        x = self.pool(self.act(self.widen(x)))
        x = self.flatten(self.act(self.mix(x, middle, last)))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class DenseHead(nn.Module):
    """Map all features up to an exit to one output per pixel (feature pyramid networks, section 3).

    A 1x1 convolution brings each feature to the head's width. From the coarsest on, the sum so far is resized to the
    next finer feature and added to it. A depthwise 3x3 and a 1x1 convolution mix the sum, a linear layer per pixel
    makes the outputs, and these are resized to the image. Resizing is bilinear.

    Args:
        in_channels: Channels of the features, from the finest one on.
        width: Channels inside.
        outputs: Outputs per pixel.
        scale: Pixels of the image per pixel of the finest feature, along a side.
        dropout: Probability of dropping a channel before the outputs.
    """

    def __init__(self, in_channels: Sequence[int], width: int, outputs: int, scale: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.laterals = nn.ModuleList(ConvNorm(channels, width) for channels in in_channels)
        self.depthwise = ElasticDepthwise(width, (3,), 1)
        self.depthwise_norm = ElasticBatchNorm2d(width)
        self.mix = ConvNorm(width, width)
        self.act = nn.Hardswish()
        self.dropout = ChannelDropout(dropout)
        self.classifier = PixelLinear(width, outputs)
        self.resize = nn.Upsample(scale_factor=scale, mode="bilinear") if scale > 1 else nn.Identity()

    def forward(self, *features: Tensor) -> Tensor:
        """(N, C_i, H_i, W_i) each, the finest one first -> (N, outputs, scale * H_0, scale * W_0)."""
        (coarsest, feature), *finer = reversed(list(zip(self.laterals, features, strict=True)))
        x: Tensor = coarsest(feature)
        for lateral, feature in finer:
            y = lateral(feature)
            x = y + functional.interpolate(x, size=y.shape[-2:], mode="bilinear")
        x = self.act(self.depthwise_norm(self.depthwise(self.act(x), self.width, 3), self.width))
        outputs: Tensor = self.resize(self.classifier(self.dropout(self.act(self.mix(x)))))
        return outputs


def build_head(arch: Architecture, exit: int, dropout: float) -> ExitHead | DenseHead:
    """Return the head of an exit, counted from 1.

    Args:
        arch: The supernet's architecture.
        exit: The exit.
        dropout: Dropout probability before the outputs.
    """
    channels = [arch.feature_channels(feature) for feature in arch.head_reads(exit)]
    if arch.head_width is not None:
        return DenseHead(channels, arch.head_width, arch.num_classes, arch.stem_stride, dropout)
    (in_channels,) = channels
    return ExitHead(in_channels, *arch.exit_channels(exit), num_classes=arch.num_classes, dropout=dropout)
