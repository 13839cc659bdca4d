"""Depthwise convolution whose weight gradient is quick for kernels of more than three columns, too.

On the CPU with channels last, oneDNN (as of 3.11) has a quick weight gradient for depthwise kernels of up to three
columns that overhang the image by no more than one column; for all others it takes some ten times as long per
multiply-add, which made them a quarter of a training step. So the gradient of a larger kernel is put together from
those of strips of its columns, each of an image that was shifted instead. Rows and columns of a kernel that see nothing
but padding, as the outer ones of 7x7 on an image of 2x2, have no gradient and are left out.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

CHUNK_BYTES = 2 * 2**20
"""Shifted images are made in chunks of about this size, which the processor's cache holds."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A depthwise convolution with padding that keeps the size at stride 1; what it computes is `conv2d`'s, to the bit.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        stride: Stride in pixels.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)).
    """
    if _is_slow(x, weight):
        found: Tensor = _InStrips.apply(x, weight, stride)
        return found
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """The gradient (C, 1, k, k) of a depthwise convolution's weight, in strips of columns.

    Args:
        x: The input (N, C, H, W).
        grad: Gradient of the output (N, C, ceil(H / stride), ceil(W / stride)).
        kernel: Kernel size k in pixels, odd.
        stride: Stride in pixels.
    """
    channels, height, width = x.shape[1:]
    half = kernel // 2
    # Further from its centre, a kernel sees padding alone.
    up, left = min(half, height - 1), min(half, width - 1)
    rows = 2 * up + 1
    found = grad.new_zeros(channels, 1, rows, 2 * left + 1)
    images = max(1, CHUNK_BYTES // (x.element_size() * channels * (height + 2 * up) * (width + 2)))
    for part, grad_part in zip(x.split(images), grad.split(images), strict=True):
        for first, columns in _strips(left):
            strip = channels, 1, rows, columns
            # oneDNN's quick form also wants few rows of padding at stride 2, and no kernel higher than the image.
            if first == left - 1 and columns == 3 and height >= rows and (stride == 1 or up <= 2):
                gradient = conv2d_weight(part, strip, grad_part, stride, (up, 1), groups=channels)
            else:
                below = (grad.shape[2] - 1) * stride + rows - height - up
                right = (grad.shape[3] - 1) * stride + columns - width - (left - first)
                shifted = functional.pad(part, (left - first, right, up, below))
                gradient = conv2d_weight(shifted, strip, grad_part, stride, groups=channels)
            found[..., first : first + columns] += gradient
    return functional.pad(found, (half - left, half - left, half - up, half - up))


class _InStrips(torch.autograd.Function):
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
            # The weight tells the layout of the result; with one input channel, its own strides may mean either.
            told = weight.clone(memory_format=torch.channels_last)
            of_x = conv2d_input(x.shape, told, grad, ctx.stride, kernel // 2, groups=len(weight))
        return of_x, of_weight, None


def _is_slow(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN would be slow."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and weight.requires_grad
        and (weight.shape[-1] > 3 or min(x.shape[2:]) < weight.shape[-1])
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _strips(reach: int) -> Iterator[tuple[int, int]]:
    """First column and width of strips of up to three columns, the middle one of which is centred where that can be."""
    columns = 2 * reach + 1
    first = 0
    # Single columns are slow as well.
    width = 2 if reach % 3 == 0 and reach else min(3, columns)
    while first < columns:
        yield first, width
        first += width
        width = min(3, columns - first)
