"""Sort hidden channels by importance, without changing what the network computes.

A smaller expansion ratio keeps the first hidden channels (OFA, section 3.2, figure 6), so they must be the ones that
matter. OFA sorts when a smaller ratio is first unlocked; so do we, and channels never cross the border of a ratio that
was unlocked before, so every network that could be chosen so far computes what it did.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from supernets.architecture import hidden_channels, squeeze_channels
from supernets.blocks import InvertedResidual, SqueezeExcite
from supernets.layers import ElasticBatchNorm2d
from supernets.mobilenetv3 import Supernet


def sort_channels(net: Supernet, unlocked: Sequence[int]) -> None:
    """Sort the hidden channels of every elastic MBConv by importance, in place.

    A hidden channel's importance is the L1 norm of the projection's weights that read it; a squeeze-excite unit's, that
    of the expanding weights that read it. Kernel matrices are shared by all channels and stay as they are.

    Args:
        net: The supernet.
        unlocked: Expansion ratios that could be chosen so far; the function of all such networks is unchanged.

    Raises:
        ValueError: If a ratio is not in the supernet's space.
    """
    for expand in unlocked:
        if expand not in net.space.expand:
            raise ValueError(f"unlocked ({expand}) is no expansion ratio of this supernet: {net.space.expand}")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, InvertedResidual) and module.expands != (1,):
                _sort_block(module, unlocked)


def _sort_block(block: InvertedResidual, unlocked: Sequence[int]) -> None:
    assert block.expand is not None, "an elastic MBConv expands"
    assert block.expand_norm is not None, "and norms what it expanded"
    widths = [hidden_channels(block.channels[0], expand) for expand in unlocked]
    importance = block.project.weight.abs().sum(dim=(0, 2, 3))
    order = _order(importance, widths)
    _permute(block.project.weight, order, dim=1)
    _permute(block.depthwise.weight, order)
    _permute_norm(block.depthwise_norm, order)
    _permute(block.expand.weight, order)
    _permute_norm(block.expand_norm, order)
    if block.squeeze is not None:
        _permute(block.squeeze.expand.weight, order)
        _permute(block.squeeze.expand.bias, order)
        _permute(block.squeeze.reduce.weight, order, dim=1)
        _sort_squeeze(block.squeeze, [squeeze_channels(width) for width in widths])


def _sort_squeeze(squeeze: SqueezeExcite, widths: Sequence[int]) -> None:
    order = _order(squeeze.expand.weight.abs().sum(dim=(0, 2, 3)), widths)
    _permute(squeeze.expand.weight, order, dim=1)
    _permute(squeeze.reduce.weight, order)
    _permute(squeeze.reduce.bias, order)


def _order(importance: Tensor, widths: Sequence[int]) -> Tensor:
    """Return indices by falling importance, sorted only between the borders in `widths`; equals keep their order."""
    borders = sorted({0, *widths, len(importance)})
    parts = [start + importance[start:end].argsort(descending=True, stable=True) for start, end in pairwise(borders)]
    return torch.cat(parts)


def _permute_norm(norm: ElasticBatchNorm2d, order: Tensor) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        _permute(tensor, order)


def _permute(tensor: Tensor | nn.Parameter | None, order: Tensor, dim: int = 0) -> None:
    assert tensor is not None, "the layers of a squeeze-excite have biases"
    tensor.copy_(tensor.index_select(dim, order))
