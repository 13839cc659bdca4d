"""Heads are AEP's, layer by layer, or a linear layer behind a norm."""

from typing import Any

import pytest
import torch
from torch import nn

from supernets.backbone import HeadKind
from supernets.exit_heads import exit_head, reads_maps

POOL = [nn.AdaptiveAvgPool2d, nn.Flatten]
LAYERS: dict[HeadKind, list[type[nn.Module]]] = {
    "norm_linear": [nn.LayerNorm, nn.Dropout, nn.Linear],
    "linear": [nn.Dropout, nn.Linear],
    "relu_linear": [nn.ReLU, *POOL, nn.Dropout, nn.Linear],
    "mobilenetv3": [
        *(nn.Conv2d, nn.BatchNorm2d, nn.Hardswish),
        *POOL,
        *(nn.Linear, nn.Hardswish, nn.Dropout, nn.Linear),
    ],
    "efficientnet": [nn.Conv2d, nn.BatchNorm2d, nn.SiLU, *POOL, nn.Dropout, nn.Linear],
}


@pytest.mark.parametrize("kind", LAYERS)
def test_heads_are_made_of_these_layers_and_give_logits(kind: HeadKind) -> None:
    head = exit_head(kind, 24, 7).eval()
    assert [type(layer) for layer in head] == LAYERS[kind]
    assert reads_maps(head) == (kind in ("relu_linear", "mobilenetv3", "efficientnet"))
    given = torch.zeros(2, 24, 3, 3) if reads_maps(head) else torch.zeros(2, 24)
    assert head(given).shape == (2, 7)


def test_another_kind_is_a_bug() -> None:
    unknown: Any = "foo"
    with pytest.raises(AssertionError, match="foo"):
        exit_head(unknown, 24, 7)


def test_widths_are_those_of_aep() -> None:
    convolution, norm, *_, first, _, dropout, last = exit_head("mobilenetv3", 96, 10)
    assert (convolution.out_channels, convolution.kernel_size, convolution.bias) == (576, (1, 1), None)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert (first.out_features, dropout.p, last.in_features) == (168, 0.2, 168)
    convolution, *_, dropout, last = exit_head("efficientnet", 40, 10)
    assert (convolution.out_channels, dropout.p, last.in_features) == (160, 0.4, 160)
