"""Define layers that can be sliced: convolution, depthwise with kernel matrices, batch norm, linear, dropout.

Every layer has ONE slice function. Its `forward` computes with the slice, and `plain` copies the very same slice into
the stock torch layer that extraction puts in its place. Sizes come with each call; nothing active is stored.
"""

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

M = TypeVar("M", bound=nn.Module)


class ElasticLayer(nn.Module):
    """A layer that extraction replaces by a stock torch layer of the size that a call names."""

    plain: Callable[..., nn.Module]
    """Makes the stock torch layer that computes what a call with these sizes does, with weights of its own."""

    def __call__(self, x: Tensor, *sizes: int) -> Tensor:
        """Compute; or, on the stand-in that extraction sends through the network, record the call."""
        if isinstance(x, Proxy):
            recorded: Tensor = x.tracer.create_layer(self, x, sizes)
            return recorded
        computed: Tensor = super().__call__(x, *sizes)
        return computed


class ElasticConv2d(ElasticLayer):
    """A convolution whose first input and output channels can be used alone; padding keeps the size at stride 1.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size in pixels, odd.
        stride: Stride in pixels.
        bias: Whether there is a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv2d: Callable[..., Tensor] = functional.conv2d
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def slice(self, in_channels: int, out_channels: int) -> tuple[Tensor, Tensor | None]:
        """Return the weight (out, in, k, k) and bias (out,) of the first channels."""
        weight = _first(_first(self.weight, out_channels), in_channels, 1)
        return weight, None if self.bias is None else _first(self.bias, out_channels)

    def forward(self, x: Tensor, in_channels: int, out_channels: int) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        weight, bias = self.slice(in_channels, out_channels)
        return self.conv2d(x, weight, bias, self.stride, self.weight.shape[-1] // 2)

    def plain(self, in_channels: int, out_channels: int) -> nn.Conv2d:
        """Return a stock convolution of this size."""
        weight, bias = self.slice(in_channels, out_channels)
        kernel = self.weight.shape[-1]
        return _filled(
            _empty(nn.Conv2d, in_channels, out_channels, kernel, self.stride, kernel // 2, bias=bias is not None),
            weight=weight,
            bias=bias,
        )


class ElasticDepthwise(ElasticLayer):
    """A depthwise convolution with elastic channels and kernel size (OFA, section 3.2, figure 4).

    A smaller kernel is the centre of the next larger one times a learned matrix, which all channels share and which
    starts as the identity: 7x7 -> centre 5x5 times a 25x25 matrix -> centre 3x3 of that times a 9x9 matrix.

    Args:
        channels: Channels.
        kernels: Kernel sizes in pixels, ascending.
        stride: Stride in pixels.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.conv2d: Callable[..., Tensor] = functional.conv2d
        self.kernels = kernels
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, 1, kernels[-1], kernels[-1]))
        self.matrices = nn.ParameterDict(
            {
                f"{large}to{small}": nn.Parameter(torch.zeros(small**2, small**2).fill_diagonal_(1))
                for small, large in pairwise(kernels)
            }
        )

    def slice(self, channels: int, kernel: int) -> Tensor:
        """Return the weight (channels, 1, kernel, kernel) of the first channels."""
        weight = _first(self.weight, channels)
        for small, large in reversed(list(pairwise(self.kernels))):
            if small < kernel:
                break
            border = (large - small) // 2
            centre = weight[:, :, border : border + small, border : border + small]
            matrix = self.matrices[f"{large}to{small}"]
            weight = functional.linear(centre.reshape(channels, small**2), matrix).view(channels, 1, small, small)
        return weight

    def forward(self, x: Tensor, channels: int, kernel: int) -> Tensor:
        """(N, channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        return self.conv2d(x, self.slice(channels, kernel), None, self.stride, kernel // 2, groups=channels)

    def plain(self, channels: int, kernel: int) -> nn.Conv2d:
        """Return a stock depthwise convolution of this size."""
        return _filled(
            _empty(nn.Conv2d, channels, channels, kernel, self.stride, kernel // 2, groups=channels, bias=False),
            weight=self.slice(channels, kernel),
        )


class ElasticBatchNorm2d(ElasticLayer):
    """A batch norm whose first channels can be used alone.

    In training mode it normalises with the batch and updates the running statistics of the channels in use. Those are
    right for one network at most; sub-networks have theirs recalibrated after extraction.

    Args:
        channels: Channels.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def slice(self, channels: int) -> dict[str, Tensor]:
        """Return scale, shift, running mean and running variance (channels,) of the first channels."""
        return {
            "weight": _first(self.weight, channels),
            "bias": _first(self.bias, channels),
            "running_mean": _first(self.running_mean, channels),
            "running_var": _first(self.running_var, channels),
        }

    def forward(self, x: Tensor, channels: int) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        part = self.slice(channels)
        return functional.batch_norm(x, training=self.training, momentum=self.momentum, eps=self.eps, **part)

    def plain(self, channels: int) -> nn.BatchNorm2d:
        """Return a stock batch norm of this size."""
        norm = _empty(nn.BatchNorm2d, channels, self.eps, self.momentum)
        return _filled(norm, **self.slice(channels), num_batches_tracked=torch.zeros((), dtype=torch.long))


class Linear(ElasticLayer):
    """A linear layer, used whole.

    Args:
        in_features: Inputs.
        out_features: Outputs.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return functional.linear(x, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """Return a stock linear layer."""
        outputs, inputs = self.weight.shape
        return _filled(_empty(nn.Linear, inputs, outputs), weight=self.weight, bias=self.bias)


class PixelLinear(ElasticLayer):
    """A linear layer on the channels of each pixel, used whole.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        return functional.conv2d(x, self.weight, self.bias)

    def plain(self) -> nn.Conv2d:
        """Return a stock 1x1 convolution."""
        outputs, inputs = self.weight.shape[:2]
        return _filled(_empty(nn.Conv2d, inputs, outputs, 1), weight=self.weight, bias=self.bias)


class Dropout(ElasticLayer):
    """Dropout, a layer of ours only so that extraction can put the stock one in its place.

    Args:
        p: Probability of dropping a value.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> the same shape."""
        return functional.dropout(x, self.p, self.training)

    def plain(self) -> nn.Dropout:
        """Return a stock dropout."""
        return nn.Dropout(self.p)


class ChannelDropout(Dropout):
    """Dropout of whole channels: neighbouring pixels are so alike that dropping some of them changes little."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return functional.dropout2d(x, self.p, self.training)

    def plain(self) -> nn.Dropout2d:  # type: ignore[override]
        """Return a stock dropout of channels."""
        return nn.Dropout2d(self.p)


def _first(tensor: Tensor, count: int, dim: int = 0) -> Tensor:
    """Return the first entries of a dimension; the tensor itself where that is all, as a slice's gradient is a copy."""
    return tensor if count == tensor.shape[dim] else tensor.narrow(dim, 0, count)


def _empty(kind: Callable[..., M], *sizes: float, **options: Any) -> M:
    """Return a new stock layer without values. Torch takes ten times as long to make one as to copy one."""
    pattern: M = _pattern(kind, *sizes, **options)
    layer = copy.copy(pattern)
    # Its parameters, buffers and hooks by name.
    vars(layer).update({name: held.copy() for name, held in vars(pattern).items() if isinstance(held, dict | set)})
    return layer


@lru_cache(maxsize=4096)
def _pattern(kind: Callable[..., nn.Module], *sizes: float, **options: Any) -> Any:
    return kind(*sizes, **options, device="meta")


def _filled(layer: M, **values: Tensor | None) -> M:
    """Return the layer with copies of these tensors as its parameters and buffers."""
    for name, value in values.items():
        if value is None:
            continue
        held = value.detach().clone()
        if name in layer._parameters:
            layer._parameters[name] = nn.Parameter(held)
        else:
            layer._buffers[name] = held
    return layer


def activation(name: str) -> nn.Module:
    """Return the activation of this name: `relu` or `hardswish`."""
    layers: dict[str, Any] = {"relu": partial(nn.ReLU, inplace=True), "hardswish": nn.Hardswish}
    layer: nn.Module = layers[name]()
    return layer
