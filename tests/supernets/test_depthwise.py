"""The depthwise convolution with a gradient of its own: conv2d's output to the bit, and its gradients."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from supernets.depthwise import depthwise_conv2d, weight_gradient


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.to(memory_format=torch.channels_last)


def stock(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def gradients(compute: object, x: Tensor, weight: Tensor, stride: int, seed: int) -> tuple[Tensor, ...]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = compute(x, weight, stride)  # type: ignore[operator]
    return y, *torch.autograd.grad(y, (x, weight), drawn(tuple(y.shape), seed, y.dtype))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_gradients_are_those_of_conv2d(kernel: int, stride: int) -> None:
    for height, width in itertools.product((1, 2, 3, 7, 8), (1, 2, 5, 8)):
        x = drawn((3, 4, height, width), 1, torch.float64)
        weight = drawn((4, 1, kernel, kernel), 2, torch.float64)
        y, _, expected = gradients(stock, x, weight, stride, 3)
        found = weight_gradient(x, drawn(tuple(y.shape), 3, torch.float64), kernel, stride)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 4096])
def test_chunks_add_up(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernets.depthwise.CHUNK_BYTES", chunk)
    x, weight = drawn((5, 4, 9, 9), 1, torch.float64), drawn((4, 1, 7, 7), 2, torch.float64)
    for stride in (1, 2):
        y, _, expected = gradients(stock, x, weight, stride, 3)
        found = weight_gradient(x, drawn(tuple(y.shape), 3, torch.float64), 7, stride)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "side", "stride"), [(7, 16, 1), (7, 16, 2), (5, 8, 1), (5, 4, 2), (7, 2, 1), (3, 2, 1)]
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_it_is_conv2d_in_float32(kernel: int, side: int, stride: int, contiguous: bool) -> None:
    x, weight = drawn((8, 24, side, side), 4), drawn((24, 1, kernel, kernel), 5)
    if contiguous:
        weight = torch.empty(weight.shape).copy_(weight)
    y, of_x, of_weight = gradients(depthwise_conv2d, x, weight, stride, 6)
    wanted = gradients(stock, x, weight, stride, 6)
    assert "InStrips" in type(depthwise_conv2d(x, weight.requires_grad_(), stride).grad_fn).__name__
    assert torch.equal(y, wanted[0])
    assert of_x.is_contiguous(memory_format=torch.channels_last)
    exact = gradients(stock, x.double(), weight.detach().double(), stride, 6)
    torch.testing.assert_close(of_x, wanted[1], rtol=1e-5, atol=1e-5)
    error, stocks = ((tensor - exact[2]).abs().max() for tensor in (of_weight, wanted[2]))
    assert error <= 4 * stocks + 1e-5


@pytest.mark.parametrize("which", ["x", "weight"])
def test_only_what_is_asked_for_gets_a_gradient(which: str) -> None:
    x, weight = drawn((2, 8, 8, 8), 7), drawn((8, 1, 5, 5), 8)
    tensors = {"x": x, "weight": weight}
    tensors[which].requires_grad_()
    depthwise_conv2d(x, weight, 1).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [which]


def test_elsewhere_it_is_left_to_torch() -> None:
    """Other types, layouts, devices and autocast have gradients of their own."""
    weight = drawn((8, 1, 5, 5), 9).requires_grad_()
    x = drawn((2, 8, 8, 8), 10)
    with torch.autocast("cpu", torch.bfloat16):
        cast = depthwise_conv2d(x, weight, 1)
    assert cast.dtype == torch.bfloat16
    meta = torch.nn.Parameter(weight.detach().to("meta"))
    others = (cast, depthwise_conv2d(x.contiguous(), weight, 1), depthwise_conv2d(x.to("meta"), meta, 1))
    doubles = depthwise_conv2d(x.double(), weight.double(), 1)
    assert not any("InStrips" in type(y.grad_fn).__name__ for y in (*others, doubles))
