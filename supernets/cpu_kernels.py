"""Compute some convolutions quicker on a CPU; opt-in through `use_cpu_kernels`.

Layers are plain torch until `use_cpu_kernels` is called on their network. Results then differ in the order of additions
only. Elastic layers stay equal to torch to the bit where there are no gradients. On CUDA, under autocast, under
`torch.compile`, and for other types than float32 or other layouts than channels last, everything is torch's own.

**Depthwise convolutions in training.** With channels last, oneDNN (as of 3.11) computes the weight gradient of 5x5 and
7x7 kernels some ten times slower per multiply-add than that of 3x3 kernels. On small images, one batched matrix product
multiplies every pixel of the output's gradient by every pixel of the input, summed over the images. A second product
adds up the pairs that belong to one tap of the kernel.

**1x1 convolutions.** oneDNN copies weights into another layout in every call, and is slow on images of one pixel. Those
of small images are matrix products.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from supernets.layers import ElasticConv2d, ElasticDepthwise

PIXELS_PER_TAP = 2
"""Largest number of input pixels per tap of the kernel for which all pairs with the output's are multiplied."""
PRODUCT_PIXELS = 64
"""Largest number of pixels of an image for which a 1x1 convolution is a matrix product."""


def use_cpu_kernels(module: nn.Module) -> None:
    """Let a module's convolutions take the quicker ways of this file, in place.

    Elastic layers get another function to convolve with. Stock 1x1 convolutions become `PointwiseConv2d`. Parameters
    are shared and keep their names.

    Args:
        module: A supernet, to train it, or an extracted network, to run it without gradients.
    """
    for name, layer in list(module.named_modules()):
        if isinstance(layer, ElasticDepthwise):
            layer.conv2d = depthwise_conv2d
        elif isinstance(layer, ElasticConv2d) and layer.weight.shape[-1] == layer.stride == 1:
            layer.conv2d = pointwise_conv2d
        elif type(layer) is nn.Conv2d and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
            module.set_submodule(name, PointwiseConv2d(layer))


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Compute `conv2d` of a depthwise layer, with a quicker gradient of its weight on small images.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        bias: None.
        stride: Stride in pixels.
        padding: (k - 1) / 2, which keeps the size at stride 1.
        dilation: 1.
        groups: C.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)), equal to `conv2d`'s to the bit.
    """
    kernel, (height, width) = weight.shape[-1], x.shape[2:]
    # oneDNN's gradient of kernels of three columns is quick, but for images smaller than the kernel.
    is_slow = kernel > 3 or min(height, width) < kernel
    if is_slow and height * width <= PIXELS_PER_TAP * kernel**2 and _trains_on_cpu(x, weight):
        found: Tensor = _Depthwise.apply(x, weight, stride)
        return found
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Compute `conv2d` of a 1x1 layer, of small images as a matrix product where there are gradients.

    Args:
        x: (N, C, H, W).
        weight: (K, C, 1, 1).
        bias: (K,), or None.
        stride: 1.
        padding: 0.
        dilation: 1.
        groups: 1.

    Returns:
        (N, K, H, W).
    """
    if _is_small(x) and _trains_on_cpu(x, weight):
        return _product(x, weight, bias)
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


class PointwiseConv2d(nn.Conv2d):
    """A stock 1x1 convolution that computes small images as a matrix product on a CPU; for inference.

    Args:
        conv: The stock layer, whose weight and bias it shares.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias, self.training = conv.weight, conv.bias, conv.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        if _is_small(x) and _is_on_cpu(x, self.weight):
            return _product(x, self.weight, self.bias)
        return super().forward(x)


def _is_small(x: Tensor) -> bool:
    """Return whether a matrix product is quicker than a 1x1 convolution."""
    return x.shape[2] * x.shape[3] <= PRODUCT_PIXELS


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (N, C, H, W) with (K, C, 1, 1) as a matrix product; gives (N, K, H, W), channels last."""
    rows = functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    # In place, as a view would have what follows in place, an activation, make copies in its backward pass.
    return rows.transpose_(2, 3).transpose_(1, 2)


class _Depthwise(torch.autograd.Function):
    """`conv2d`, but for the gradient of its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        kernel = weight.shape[-1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, grad, kernel, ctx.stride)
        # Last, as what comes next reads it while it is in the processor's cache.
        if ctx.needs_input_grad[0]:
            strides, padding = (ctx.stride, ctx.stride), (kernel // 2, kernel // 2)
            of_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, strides, padding, (1, 1), False, (0, 0), len(weight), (True, False, False)
            )
        return of_x, of_weight, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient (C, 1, k, k) of a depthwise convolution's weight, by all pairs of pixels.

    Args:
        x: The input (N, C, H, W).
        grad: Gradient of the output (N, C, ceil(H / stride), ceil(W / stride)).
        kernel: Kernel size k in pixels, odd.
        stride: Stride in pixels.
    """
    channels = x.shape[1]
    outputs, inputs = (tensor.transpose(0, 1).contiguous().flatten(2) for tensor in (grad, x))
    products = torch.bmm(outputs.transpose(1, 2), inputs)
    taps = _taps(tuple(grad.shape[2:]), tuple(x.shape[2:]), kernel, stride).to(x.dtype)
    return (products.flatten(1) @ taps).view(channels, 1, kernel, kernel)


@lru_cache(maxsize=64)
def _taps(outputs: tuple[int, int], inputs: tuple[int, int], kernel: int, stride: int) -> Tensor:
    """Return 1 where a pair of an output's and an input's pixel meets at a tap of the kernel: (pairs, k * k)."""
    half = kernel // 2
    rows, columns = (
        (torch.arange(size) - stride * torch.arange(out)[:, None] + half)[..., None] == torch.arange(kernel)
        for out, size in zip(outputs, inputs, strict=True)
    )
    meets = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return meets.flatten(4).flatten(0, 3).float()


def _trains_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Return whether the weight gets a gradient, on a CPU."""
    return weight.requires_grad and torch.is_grad_enabled() and _is_on_cpu(x, weight)


def _is_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN would convolve these, in float32 with channels last, and nothing compiles them."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )
