"""Convolutions in training: conv2d's numbers, whichever way they are computed."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import supernets
from supernets import cpu_kernels as convolution
from supernets.cpu_kernels import PointwiseConv2d, depthwise_conv2d, joins_norm, pointwise_conv2d, pointwise_norm
from supernets.layers import ElasticBatchNorm2d, ElasticConv2d, conv_norm
from tests.supernets.randomise import images_for, small_net, some_subnets

Gradient = Callable[[Tensor, Tensor, int, int], Tensor]


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.to(memory_format=torch.channels_last)


def stock(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def gradients(compute: object, x: Tensor, weight: Tensor, stride: int, seed: int) -> tuple[Tensor, ...]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = compute(x, weight, stride)  # type: ignore[operator]
    return y, *torch.autograd.grad(y, (x, weight), drawn(tuple(y.shape), seed, y.dtype))


@pytest.mark.parametrize("by", [convolution._by_pairs, convolution._by_strips])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_gradients_are_those_of_conv2d(by: Gradient, kernel: int, stride: int) -> None:
    for height, width in itertools.product((1, 2, 3, 7, 8), (1, 2, 5, 8)):
        x = drawn((3, 4, height, width), 1, torch.float64)
        weight = drawn((4, 1, kernel, kernel), 2, torch.float64)
        y, _, expected = gradients(stock, x, weight, stride, 3)
        found = by(x, drawn(tuple(y.shape), 3, torch.float64), kernel, stride)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 4096])
def test_chunks_add_up(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernets.cpu_kernels.CHUNK_BYTES", chunk)
    x, weight = drawn((5, 4, 9, 9), 1, torch.float64), drawn((4, 1, 7, 7), 2, torch.float64)
    for stride in (1, 2):
        y, _, expected = gradients(stock, x, weight, stride, 3)
        found = convolution._by_strips(x, drawn(tuple(y.shape), 3, torch.float64), 7, stride)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "side", "stride"), [(7, 16, 1), (7, 16, 2), (7, 8, 1), (5, 8, 1), (5, 4, 2), (7, 2, 1), (3, 2, 1)]
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_it_is_conv2d_in_float32(kernel: int, side: int, stride: int, contiguous: bool) -> None:
    x, weight = drawn((8, 24, side, side), 4), drawn((24, 1, kernel, kernel), 5)
    if contiguous:
        weight = torch.empty(weight.shape).copy_(weight)
    y, of_x, of_weight = gradients(depthwise_conv2d, x, weight, stride, 6)
    wanted = gradients(stock, x, weight, stride, 6)
    assert is_ours(depthwise_conv2d(x, weight.requires_grad_(), stride))
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
    assert not any(is_ours(y) for y in (*others, doubles))


@pytest.mark.parametrize("side", [1, 2, 8, 9])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_a_pointwise_convolution_is_conv2d(side: int, biased: bool, sliced: bool) -> None:
    x = drawn((6, 24, side, side), 1)
    weight = drawn((40, 30, 1, 1), 2)[:, :24] if sliced else drawn((40, 24, 1, 1), 2)
    tensors = (x, weight, *([drawn((40, 1, 1, 1), 3).flatten()] if biased else []))
    grad = drawn((6, 40, side, side), 4)

    def gradients_of(compute: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [tensor.to(dtype).clone().requires_grad_() for tensor in tensors]
        y = compute(*given, *([] if biased else [None]))
        return y, *torch.autograd.grad(y, given, grad.to(dtype))

    found, stocks = (gradients_of(compute, torch.float32) for compute in (pointwise_conv2d, functional.conv2d))
    exact = gradients_of(functional.conv2d, torch.float64)
    assert_as_close(found, stocks, exact)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert side < 9 or torch.equal(found[0], stocks[0])


@pytest.mark.parametrize("compute", [pointwise_conv2d, lambda x, weight, _: depthwise_conv2d(x, weight, 1)])
def test_without_gradients_it_is_conv2d_to_the_bit(compute: Callable[..., Tensor]) -> None:
    for side in (1, 4):
        x, depthwise = drawn((3, 16, side, side), 1), compute is not pointwise_conv2d
        weight = drawn((16, 1, 5, 5) if depthwise else (8, 16, 1, 1), 2).requires_grad_()
        expected = functional.conv2d(x, weight, None, 1, 2 * depthwise, groups=16 if depthwise else 1)
        with torch.no_grad():
            assert torch.equal(compute(x, weight, None), expected)


def test_an_activation_in_place_may_follow() -> None:
    """On a view, it would have the backward pass copy."""
    weight = drawn((40, 24, 1, 1), 2).requires_grad_()
    for side in (1, 3):
        assert not pointwise_conv2d(drawn((6, 24, side, side), 1), weight, None)._is_view()


@pytest.mark.parametrize("side", [1, 4, 9])
@pytest.mark.parametrize("biased", [False, True])
def test_a_plain_pointwise_layer_multiplies_small_images(
    side: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: list[Tensor] = []

    def linear(x: Tensor, *weights: Tensor | None) -> Tensor:
        multiplied.append(x)
        return torch._C._nn.linear(x, *weights)

    monkeypatch.setattr(functional, "linear", linear)
    x, conv = drawn((6, 24, side, side), 1), nn.Conv2d(24, 40, 1, bias=biased)
    ours, exact = PointwiseConv2d(conv), copy.deepcopy(conv).double()
    with torch.inference_mode():
        found, stocks, expected = ours(x), conv(x), exact(x.double())
        assert_as_close((found,), (stocks,), (expected,))
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert len(multiplied) == (side < 9)
        with torch.autocast("cpu", torch.bfloat16):
            ours(x)
        if side > 1:
            ours(x.contiguous())
        ours.double()(x.double())
        assert len(multiplied) == (side < 9), "other layouts, types and autocast are torch's"


@pytest.mark.parametrize("name", supernets.names())
def test_a_network_with_plain_pointwise_layers_is_the_same(name: str) -> None:
    net = small_net(name, seed=1).float()
    images = images_for(net, 2, 24, 24).float().contiguous(memory_format=torch.channels_last)
    for subnet in some_subnets(net, 1, seed=2):
        module = net.extract(subnet, "all").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        before = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
        with torch.inference_mode():
            expected = module(images)
            supernets.multiply_pointwise(module)
            for got, wanted in zip(module(images), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        assert {key: tensor.data_ptr() for key, tensor in module.state_dict().items()} == before, "weights are shared"
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                assert isinstance(layer, PointwiseConv2d) == (layer.kernel_size == layer.stride == (1, 1))


@pytest.mark.parametrize(("channels", "out", "side"), [(4, 8, 8), (6, 36, 16), (3, 60, 5)])
@pytest.mark.parametrize("centre", [0.0, 30.0])
def test_a_convolution_with_its_norm_is_one_after_the_other(channels: int, out: int, side: int, centre: float) -> None:
    tensors = (
        drawn((16, channels, side, side), 1) + centre,
        drawn((out, channels, 1, 1), 2),
        drawn((out, 1, 1, 1), 3).flatten(),
        drawn((out, 1, 1, 1), 4).flatten(),
    )
    grad = drawn((16, out, side, side), 5)

    def apart(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        made = functional.conv2d(x, weight)
        var, mean = torch.var_mean(made.detach(), (0, 2, 3), correction=0)
        return functional.batch_norm(made, None, None, scale, shift, training=True), mean, var

    def together(*given: Tensor) -> tuple[Tensor, ...]:
        assert joins_norm(given[0], given[1], channels, out) or given[0].dtype == torch.float64
        return pointwise_norm(*given, 1e-5)

    def gradients_of(compute: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [tensor.to(dtype).clone().requires_grad_() for tensor in tensors]
        y, *statistics = compute(*given)
        return y, *statistics, *torch.autograd.grad(y, given, grad.to(dtype))

    found, stocks = (gradients_of(compute, torch.float32) for compute in (together, apart))
    assert_as_close(found, stocks, gradients_of(apart, torch.float64))


def test_a_channel_that_does_not_vary_is_normed_as_by_torch() -> None:
    x = torch.full((16, 4, 8, 8), 1e4).contiguous(memory_format=torch.channels_last)
    weight, scale, shift = drawn((8, 4, 1, 1), 2).requires_grad_(), torch.ones(8), torch.arange(8.0)
    found = pointwise_norm(x, weight, scale, shift, 1e-5)
    assert torch.equal(found.variance, torch.zeros(8))
    assert torch.isfinite(found.y).all()


def test_two_passes_are_left_two_where_they_are_quicker() -> None:
    def together(side: int, out: int, dtype: torch.dtype = torch.float32) -> bool:
        weight = drawn((out, 4, 1, 1), 2, dtype).requires_grad_()
        return joins_norm(drawn((4, 4, side, side), 1, dtype), weight, 4, out)

    assert together(8, 8)
    assert not together(8, 7), "it does not widen enough"
    assert not together(7, 8), "too few pixels"
    assert not together(8, 8, torch.float64)


def test_a_convolution_and_its_norm_are_two_to_the_bit_without_gradients() -> None:
    conv, norm = ElasticConv2d(4, 20), ElasticBatchNorm2d(20)
    nn.init.normal_(conv.weight)
    x = drawn((16, 4, 8, 8), 1)
    assert joins_norm(x, conv.weight, 4, 20), "with gradients they would be one"
    other = copy.deepcopy(norm)
    with torch.no_grad():
        assert torch.equal(conv_norm(conv, norm, x, 4, 20), other(conv(x, 4, 20), 20))
    assert torch.equal(norm.running_var, other.running_var)


def is_ours(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_DepthwiseBackward"


def assert_as_close(found: tuple[Tensor, ...], stocks: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """Whether these are no further from the exact numbers than torch's own in the same arithmetic, to a factor of 4."""
    for one, stock_one, exact_one in zip(found, stocks, exact, strict=True):
        error, stocks_error = ((tensor - exact_one).abs().max() for tensor in (one, stock_one))
        assert error <= 4 * stocks_error + 1e-5 * exact_one.abs().max()


def test_a_norm_remembers_a_batch_whichever_way_it_is_computed() -> None:
    conv, norm = ElasticConv2d(4, 20), ElasticBatchNorm2d(20, momentum=0.3)
    nn.init.normal_(conv.weight)
    nn.init.normal_(norm.running_mean)
    before = norm.running_mean.clone(), norm.running_var.clone()
    stock = nn.Sequential(conv.plain(4, 12), norm.plain(12)).to(memory_format=torch.channels_last)
    x = drawn((9, 4, 8, 8), 1) + 2
    y = conv_norm(conv, norm, x, 4, 12)
    assert "Pointwise" in type(y.grad_fn).__name__, "together"
    torch.testing.assert_close(y, stock(x), rtol=1e-4, atol=1e-4)
    for name, kept in zip(("running_mean", "running_var"), before, strict=True):
        torch.testing.assert_close(getattr(norm, name)[:12], getattr(stock[1], name))
        assert torch.equal(getattr(norm, name)[12:], kept[12:])


@pytest.mark.parametrize("name", supernets.names())
def test_a_supernet_learns_as_in_double_precision_which_torch_computes_alone(name: str) -> None:
    net = small_net(name, seed=1, dtype=torch.float32).train()
    net.set_dropout(0.0)
    exact = copy.deepcopy(net).double()
    images = images_for(net, 16, 32, 32).to(memory_format=torch.channels_last)
    for subnet in some_subnets(net, 1, seed=2):
        gradients = []
        for one, dtype in ((net, torch.float32), (exact, torch.float64)):
            logits = torch.stack(one(images.to(dtype), subnet, exits="all"))
            one.zero_grad(set_to_none=True)
            (logits * drawn((1, 1, *logits.shape[1:]), 3, dtype)[0]).sum().backward()
            gradients.append({key: p.grad.double() for key, p in one.named_parameters() if p.grad is not None})
        found, wanted = gradients
        assert found.keys() == wanted.keys()
        # A ReLU whose input is zero but for rounding may have passed in one and not in the other.
        error = torch.stack([(found[key] - wanted[key]).norm() for key in wanted]).norm()
        assert error <= 0.01 * torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
        for (key, kept), right in zip(net.named_buffers(), exact.buffers(), strict=True):
            torch.testing.assert_close(kept.double(), right, rtol=1e-4, atol=1e-5, msg=key)
