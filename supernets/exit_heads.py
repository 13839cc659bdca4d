"""Make the heads that exits of a network end in (AEP, notebook): features -> logits, of stock torch layers."""

from typing import assert_never

from torch import nn

from supernets.backbone import HeadKind


def exit_head(kind: HeadKind, channels: int, classes: int) -> nn.Sequential:
    """Return a head with fresh weights of torch's own initialisation.

    `norm_linear`, the default, and `linear` read pooled features (N, C). `norm_linear` normalises them first, because
    features in the middle of a network have any scale. All others read feature maps (N, C, H, W). AEP has `linear` for
    ResNet and VGG, `relu_linear` for DenseNet, and copies of MobileNetV3's and EfficientNet's own heads for those.

    Args:
        kind: What it is made of.
        channels: Channels of the features.
        classes: Classes of the logits.
    """
    match kind:
        case "norm_linear":
            return nn.Sequential(nn.LayerNorm(channels), nn.Dropout(0.0), nn.Linear(channels, classes))
        case "linear":
            return nn.Sequential(nn.Dropout(0.0), nn.Linear(channels, classes))
        case "relu_linear":
            return nn.Sequential(nn.ReLU(), *_pooled(), nn.Dropout(0.0), nn.Linear(channels, classes))
        case "mobilenetv3":
            wide, hidden = 6 * channels, int(1.75 * channels)
            middle = (nn.Linear(wide, hidden), nn.Hardswish(), nn.Dropout(0.2))
            convolved = _convolved(channels, wide, nn.Hardswish())
            return nn.Sequential(*convolved, *_pooled(), *middle, nn.Linear(hidden, classes))
        case "efficientnet":
            wide = 4 * channels
            convolved = _convolved(channels, wide, nn.SiLU())
            return nn.Sequential(*convolved, *_pooled(), nn.Dropout(0.4), nn.Linear(wide, classes))
        case _:
            assert_never(kind)


def reads_maps(head: nn.Module) -> bool:
    """Return whether a head of `exit_head` reads feature maps (N, C, H, W), not pooled features (N, C)."""
    return any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in head.children())


def _convolved(channels: int, wide: int, activation: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01), activation


def _pooled() -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()
