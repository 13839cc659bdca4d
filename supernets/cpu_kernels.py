"""Convolutions as a supernet trains them: `conv2d`, and on the CPU quicker ways to the same numbers.

Where there is no gradient to compute, as in evaluation, all are `conv2d` to the bit, and so is a depthwise convolution
in training. Everything else differs in the order of additions.

**Depthwise weights.** On the CPU with channels last, oneDNN (as of 3.11) has a quick gradient for depthwise kernels of
up to three columns that overhang the image by no more than one column; for all others it takes some ten times as long
per multiply-add, which made them a quarter of a training step. So

- on small images, one batched matrix product multiplies every pixel of the output's gradient by every pixel of the
  input, summed over the images, and a second product adds up what belongs to one tap of the kernel;
- on larger ones the gradient of a larger kernel is put together from those of strips of its columns, each of an image
  that was shifted instead.

**1x1 convolutions of small images** are matrix products, forward and backward, of tensors as they lie in memory: oneDNN
copies weights into another layout in every call, and is slow on images of one pixel.

**1x1 convolutions and their norms.** Where a convolution widens, its output's statistics follow from its input's.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES = 2**20
"""Images are shifted in chunks of about this size per thread, which the processor's cache holds."""
PIXELS_PER_TAP = 2
"""Largest number of input pixels, per tap of the kernel, of which all pairs with the output's are multiplied."""
PRODUCT_PIXELS = 64
"""Largest number of an image's pixels of which a 1x1 convolution is a matrix product."""
PIXELS_PER_CHANNEL = 64
"""Smallest number of pixels of a batch, per input channel, of which the channels' covariance is cheap."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A depthwise convolution with padding that keeps the size at stride 1; what it computes is `conv2d`'s, to the bit.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        stride: Stride in pixels.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)).
    """
    kernel = weight.shape[-1]
    if (kernel > 3 or min(x.shape[2:]) < kernel) and _trains_on_cpu(x, weight):
        found: Tensor = _Depthwise.apply(x, weight, stride)
        return found
    return functional.conv2d(x, weight, None, stride, kernel // 2, groups=len(weight))


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of stride 1.

    Args:
        x: (N, C, H, W).
        weight: (K, C, 1, 1).
        bias: (K,), or None.

    Returns:
        (N, K, H, W).
    """
    if _is_small(x) and _trains_on_cpu(x, weight):
        if x.shape[2:] == (1, 1):
            # In place, as a view would have what follows in place, an activation, make copies in its backward pass.
            return functional.linear(x.flatten(1), weight.flatten(1), bias).unsqueeze_(-1).unsqueeze_(-1)
        found: Tensor = _Pointwise.apply(x, weight, bias)
        return found
    return functional.conv2d(x, weight, bias)


class PointwiseConv2d(nn.Conv2d):
    """A stock 1x1 convolution that on a CPU, of small images in float32, is a matrix product. For inference.

    oneDNN reorders the weights in each call, which takes longer than few images take.

    Args:
        conv: The stock layer, whose weight and bias it shares.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        if _is_small(x) and _is_plain(x, self.weight):
            images, _, height, width = x.shape
            made = functional.linear(_rows(x), self.weight.flatten(1), self.bias)
            return made.view(images, height, width, -1).permute(0, 3, 1, 2)
        return super().forward(x)


def multiply_pointwise(module: nn.Module) -> None:
    """Makes the 1x1 convolutions of a plain module `PointwiseConv2d`, in place; sums are then added in other orders."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Conv2d and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
            module.set_submodule(name, PointwiseConv2d(layer))


class Normed(NamedTuple):
    """What a convolution and its batch norm make of a batch."""

    y: Tensor
    """The norm's output (N, K, H, W)."""
    mean: Tensor
    """Of the convolution's output, per channel (K,)."""
    variance: Tensor
    """Of the convolution's output, per channel (K,), of the batch itself (biased)."""


def joins_norm(x: Tensor, weight: Tensor, inputs: int, outputs: int) -> bool:
    """Whether a 1x1 convolution is quicker together with its norm (`pointwise_norm`) than before it.

    Args:
        x: (N, inputs, H, W).
        weight: The convolution's weight, or a larger one of which it takes a part.
        inputs: Input channels.
        outputs: Output channels.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return pixels >= PIXELS_PER_CHANNEL * inputs and outputs >= 2 * inputs and _is_plain(x, weight)


def pointwise_norm(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Normed:
    """A widening 1x1 convolution and a batch norm that takes the batch's statistics in one pass, see `joins_norm`.

    The statistics of a 1x1 convolution's output follow from those of its input, of fewer channels: with the input's
    mean m and covariance C, a channel of weights w has mean w.m and variance w.C.w. So the norm becomes a part of the
    convolution, its output is never read back to be measured and scaled, and what the convolution alone would have
    given is neither made nor kept for the backward pass.

    Args:
        x: (N, C, H, W).
        weight: (K, C, 1, 1).
        scale: The norm's weight (K,).
        shift: The norm's bias (K,).
        eps: Added to the variance.
    """
    mean_in, flat = _rows(x).mean(0), weight.flatten(1)
    centred = x - mean_in[:, None, None]
    rows = _rows(centred)
    covariance = rows.t() @ rows / len(rows)
    # Rounding may leave a channel that hardly varies with less than nothing.
    variance = ((flat @ covariance) * flat).sum(1).clamp_min(0)
    folded = weight * (scale * torch.rsqrt(variance + eps))[:, None, None, None]
    y = pointwise_conv2d(centred, folded, shift)
    mean = flat @ mean_in
    return Normed(y, mean.detach(), variance.detach())


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """The gradient (C, 1, k, k) of a depthwise convolution's weight.

    Args:
        x: The input (N, C, H, W).
        grad: Gradient of the output (N, C, ceil(H / stride), ceil(W / stride)).
        kernel: Kernel size k in pixels, odd.
        stride: Stride in pixels.
    """
    pixels = x.shape[2] * x.shape[3]
    by = _by_pairs if pixels <= PIXELS_PER_TAP * kernel**2 else _by_strips
    return by(x, grad, kernel, stride)


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
            of_x = _gradients(grad, x, weight, ctx.stride, (kernel // 2, kernel // 2), (True, False))[0]
        return of_x, of_weight, None


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution and its gradients as matrix products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        images, _, height, width = x.shape
        # No view: what follows in place, an activation, would make copies in its backward pass.
        made = torch.empty(images, len(weight), height, width, dtype=x.dtype, memory_format=torch.channels_last)
        if bias is None:
            torch.mm(_rows(x), weight.flatten(1).t(), out=_rows(made))
        else:
            torch.addmm(bias, _rows(x), weight.flatten(1).t(), out=_rows(made))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = _rows(grad)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ _rows(x)).view_as(weight)
        if ctx.needs_input_grad[0]:
            images, _, height, width = grad.shape
            of_x = (rows @ weight.flatten(1)).view(images, height, width, -1).permute(0, 3, 1, 2)
        return of_x, of_weight, of_bias


def _trains_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether these have the gradients of which oneDNN's are slow."""
    return weight.requires_grad and torch.is_grad_enabled() and _is_plain(x, weight)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether these are convolved by oneDNN, in float32 with channels last."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_small(x: Tensor) -> bool:
    return x.shape[2] * x.shape[3] <= PRODUCT_PIXELS


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W), channels last, as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _by_pairs(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """The weight's gradient from the products of all pairs of an output's and an input's pixel."""
    channels = x.shape[1]
    outputs, inputs = (tensor.transpose(0, 1).contiguous().flatten(2) for tensor in (grad, x))
    products = torch.bmm(outputs.transpose(1, 2), inputs)
    taps = _taps(tuple(grad.shape[2:]), tuple(x.shape[2:]), kernel, stride).to(x.dtype)
    return (products.flatten(1) @ taps).view(channels, 1, kernel, kernel)


@lru_cache(maxsize=64)
def _taps(outputs: tuple[int, int], inputs: tuple[int, int], kernel: int, stride: int) -> Tensor:
    """1 where a pair of an output's and an input's pixel meets at a tap of the kernel: (pairs, k * k)."""
    half = kernel // 2
    rows, columns = (
        (torch.arange(size) - stride * torch.arange(out)[:, None] + half)[..., None] == torch.arange(kernel)
        for out, size in zip(outputs, inputs, strict=True)
    )
    meets = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return meets.flatten(4).flatten(0, 3).float()


def _by_strips(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """The weight's gradient in strips of columns.

    Rows and columns of a kernel that see nothing but padding, as the outer ones of 7x7 on an image of 2 rows, have no
    gradient and are left out.
    """
    height, width = x.shape[2:]
    half = kernel // 2
    # Further from its centre, a kernel sees padding alone.
    up, left = min(half, height - 1), min(half, width - 1)
    images = max(1, CHUNK_BYTES * torch.get_num_threads() // x[0].nbytes)
    strips = [_strip(x[:images], grad[:images], up, left, stride, *columns) for columns in _columns(left)]
    found = [
        torch.cat([strip(*chunk) for strip in strips], 3)
        for chunk in zip(x.split(images), grad.split(images), strict=True)
    ]
    return functional.pad(sum(found[1:], found[0]), (half - left, half - left, half - up, half - up))


def _strip(
    x: Tensor, grad: Tensor, up: int, left: int, stride: int, first: int, columns: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the gradient (C, 1, rows, columns) of some columns of a kernel that reaches `up` rows, `left` columns.

    Args:
        x: Input of the size that it will be given at most.
        grad: Gradient of that input's output.
        up: Rows of the kernel above its centre, and below.
        left: Columns of the kernel on each side of its centre.
        stride: Stride in pixels.
        first: The strip's first column.
        columns: How many.
    """
    height, width = x.shape[2:]
    weight = x.new_empty(x.shape[1], 1, 2 * up + 1, columns)
    # oneDNN's quick form also wants few rows of padding at stride 2, and no kernel higher than the image.
    if first == left - 1 and columns == 3 and height >= weight.shape[2] and (stride == 1 or up <= 2):
        return lambda part, of_part: _gradients(of_part, part, weight, stride, (up, 1), (False, True))[1]
    seen = [(size - 1) * stride + taps for size, taps in zip(grad.shape[2:], weight.shape[2:], strict=True)]
    # Everywhere else it stays zero.
    frame = torch.empty(*x.shape[:2], *seen, dtype=x.dtype, memory_format=torch.channels_last).zero_()
    shift = left - first
    rows, begin, end = min(height, seen[0] - up), max(0, -shift), min(width, seen[1] - shift)

    def gradient(part: Tensor, of_part: Tensor) -> Tensor:
        shifted = frame[: len(part)]
        shifted[:, :, up : up + rows, shift + begin : shift + end] = part[:, :, :rows, begin:end]
        return _gradients(of_part, shifted, weight, stride, (0, 0), (False, True))[1]

    return gradient


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of a depthwise convolution's input and weight as torch has them, those that are wanted."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (stride, stride), padding, (1, 1), False, (0, 0), len(weight), (*wanted, False)
    )
    return found[0], found[1]


def _columns(reach: int) -> Iterator[tuple[int, int]]:
    """First column and width of strips of up to three columns, the middle one of which is centred where that can be."""
    columns = 2 * reach + 1
    first = 0
    # Single columns are slow as well.
    width = 2 if reach % 3 == 0 and reach else min(3, columns)
    while first < columns:
        yield first, width
        first += width
        width = min(3, columns - first)
