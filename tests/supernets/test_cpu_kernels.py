"""A CPU's kernels compute what conv2d does, and only where they are enabled."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from supernets import use_cpu_kernels
from supernets.cpu_kernels import PointwiseConv2d, depthwise_conv2d, pointwise_conv2d, weight_gradient
from supernets.layers import ElasticConv2d, ElasticDepthwise
from tests.supernets.randomise import images_for, small_net, some_subnets
from tests.supernets.variants import VARIANTS


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.to(memory_format=torch.channels_last)


def stock(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def ours(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return depthwise_conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


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


@pytest.mark.parametrize(
    ("kernel", "side", "stride"), [(7, 8, 2), (7, 8, 1), (5, 7, 1), (5, 4, 2), (7, 2, 1), (3, 2, 1)]
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_depthwise_kernel_is_conv2d_in_float32(kernel: int, side: int, stride: int, contiguous: bool) -> None:
    x, weight = drawn((8, 24, side, side), 4), drawn((24, 1, kernel, kernel), 5)
    if contiguous:
        weight = torch.empty(weight.shape).copy_(weight)
    y, of_x, of_weight = gradients(ours, x, weight, stride, 6)
    stock_gradients = gradients(stock, x, weight, stride, 6)
    assert is_ours(ours(x, weight.requires_grad_(), stride))
    assert torch.equal(y, stock_gradients[0])
    assert of_x.is_contiguous(memory_format=torch.channels_last)
    exact = gradients(stock, x.double(), weight.detach().double(), stride, 6)
    torch.testing.assert_close(of_x, stock_gradients[1], rtol=1e-5, atol=1e-5)
    error, stocks = ((tensor - exact[2]).abs().max() for tensor in (of_weight, stock_gradients[2]))
    assert error <= 4 * stocks + 1e-5


@pytest.mark.parametrize("which", ["x", "weight"])
def test_only_what_requires_a_gradient_gets_one(which: str) -> None:
    x, weight = drawn((2, 8, 8, 8), 7), drawn((8, 1, 5, 5), 8)
    tensors = {"x": x, "weight": weight}
    tensors[which].requires_grad_()
    ours(x, weight, 1).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [which]


def test_cases_that_the_depthwise_kernel_lacks_are_left_to_torch() -> None:
    """Other types, layouts, devices, autocast, large images, small kernels."""
    weight = drawn((8, 1, 5, 5), 9).requires_grad_()
    x = drawn((2, 8, 7, 7), 10)
    assert is_ours(ours(x, weight, 1))
    with torch.autocast("cpu", torch.bfloat16):
        cast = ours(x, weight, 1)
    assert cast.dtype == torch.bfloat16
    meta = torch.nn.Parameter(weight.detach().to("meta"))
    others = (cast, ours(x.contiguous(), weight, 1), ours(x.to("meta"), meta, 1))
    large, small = ours(drawn((2, 8, 8, 8), 10), weight, 1), ours(x, drawn((8, 1, 3, 3), 9).requires_grad_(), 1)
    doubles = ours(x.double(), weight.double(), 1)
    assert not any(is_ours(y) for y in (*others, doubles, large, small))


@pytest.mark.slow
def test_a_compiler_sees_plain_convolutions() -> None:
    net = small_net("ee_dp", seed=1, dtype=torch.float32).train()
    images = images_for(net, 2, 32, 32).to(memory_format=torch.channels_last)
    seen: list[list[str]] = []

    def noting(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def forward(given: Tensor) -> tuple[Tensor, ...]:
        return net(given, net.space.largest(), exits="all")

    for prepare in (lambda net: None, use_cpu_kernels):
        prepare(net)
        torch.compiler.reset()
        torch.compile(forward, backend=noting, fullgraph=True)(images)
    plain, with_kernels = seen
    assert with_kernels == plain


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
    assert (type(found[0].grad_fn).__name__ == "ConvolutionBackward0") == (side == 9), "small images are products"


@pytest.mark.parametrize("compute", [pointwise_conv2d, depthwise_conv2d])
def test_kernels_are_conv2d_to_the_bit_without_gradients(compute: Callable[..., Tensor]) -> None:
    for side in (1, 4):
        depthwise = compute is depthwise_conv2d
        x, weight = drawn((3, 16, side, side), 1), drawn((16, 1, 5, 5) if depthwise else (8, 16, 1, 1), 2)
        given = x, weight.requires_grad_(), None, 1, 2 * depthwise, 1, 16 if depthwise else 1
        with torch.no_grad():
            assert torch.equal(compute(*given), functional.conv2d(*given))


def test_an_activation_in_place_may_follow() -> None:
    """On a view, it would have the backward pass copy."""
    weight = drawn((40, 24, 1, 1), 2).requires_grad_()
    for side in (1, 8, 9):
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
    layer, exact = PointwiseConv2d(conv), copy.deepcopy(conv).double()
    with torch.inference_mode():
        found, stocks, expected = layer(x), conv(x), exact(x.double())
        assert_as_close((found,), (stocks,), (expected,))
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert len(multiplied) == (side < 9)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        if side > 1:
            layer(x.contiguous())
        layer.double()(x.double())
        assert len(multiplied) == (side < 9), "other layouts, types and autocast are torch's"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_with_plain_pointwise_layers_is_the_same(name: str) -> None:
    net = small_net(name, seed=1).float()
    images = images_for(net, 2, 24, 24).float().contiguous(memory_format=torch.channels_last)
    for subnet in some_subnets(net, 1, seed=2):
        module = net.extract(subnet, "all").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        before = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
        with torch.inference_mode():
            expected = module(images)
            use_cpu_kernels(module)
            for got, logits in zip(module(images), expected, strict=True):
                torch.testing.assert_close(got, logits, rtol=1e-3, atol=1e-4)
        assert {key: tensor.data_ptr() for key, tensor in module.state_dict().items()} == before, "weights are shared"
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                assert isinstance(layer, PointwiseConv2d) == (layer.kernel_size == layer.stride == (1, 1))


def is_ours(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_DepthwiseBackward"


def assert_as_close(found: tuple[Tensor, ...], stocks: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """Whether these are no further from the exact numbers than torch's own in the same arithmetic, to a factor of 4."""
    for one, stock_one, exact_one in zip(found, stocks, exact, strict=True):
        error, stocks_error = ((tensor - exact_one).abs().max() for tensor in (one, stock_one))
        assert error <= 4 * stocks_error + 1e-5 * exact_one.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_supernet_learns_as_in_double_precision_which_torch_computes_alone(name: str) -> None:
    net = small_net(name, seed=1, dtype=torch.float32).train()
    net.set_dropout(0.0)
    exact = copy.deepcopy(net).double()
    use_cpu_kernels(net)
    images = images_for(net, 16, 32, 32).to(memory_format=torch.channels_last)
    for subnet in some_subnets(net, 1, seed=2):
        gradients = []
        for one, dtype in ((net, torch.float32), (exact, torch.float64)):
            logits = torch.stack(one(images.to(dtype), subnet, exits="all"))
            one.zero_grad(set_to_none=True)
            (logits * drawn((1, 1, *logits.shape[1:]), 3, dtype)[0]).sum().backward()
            gradients.append({key: p.grad.double() for key, p in one.named_parameters() if p.grad is not None})
        found, expected = gradients
        assert found.keys() == expected.keys()
        # A ReLU whose input is zero but for rounding may have passed in one and not in the other.
        error = torch.stack([(found[key] - expected[key]).norm() for key in expected]).norm()
        assert error <= 0.01 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for (key, kept), right in zip(net.named_buffers(), exact.buffers(), strict=True):
            torch.testing.assert_close(kept.double(), right, rtol=1e-4, atol=1e-5, msg=key)


def test_layers_are_plain_torch_until_the_kernels_are_enabled() -> None:
    net = small_net("ee_dp", seed=1)
    layers = [layer for layer in net.modules() if isinstance(layer, ElasticConv2d | ElasticDepthwise)]
    assert {layer.conv2d for layer in layers} == {functional.conv2d}
    state = {key: tensor.data_ptr() for key, tensor in net.state_dict().items()}
    use_cpu_kernels(net)
    for layer in layers:
        pointwise = layer.weight.shape[-1] == layer.stride == 1
        expected = depthwise_conv2d if isinstance(layer, ElasticDepthwise) else functional.conv2d
        assert layer.conv2d is (pointwise_conv2d if pointwise else expected)
    assert {key: tensor.data_ptr() for key, tensor in net.state_dict().items()} == state
