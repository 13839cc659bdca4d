"""Heads: the layers from an exit's features to its output."""

from torch import Tensor, nn

from supernets.blocks import ConvNorm
from supernets.layers import Dropout, ElasticConv2d, Linear


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
