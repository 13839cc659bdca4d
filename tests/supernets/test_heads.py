"""Dense heads: outputs for every pixel, as a plain pyramid has them; recorded, split, folded and priced exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import supernets
from supernets import SpaceError, Supernet
from supernets.cost import graph_cost
from supernets.graphs import keep, split
from supernets.subnet_cost import stage_costs, subnet_cost
from tests.supernets.alive import most_alive
from tests.supernets.randomise import exit_choices, images_for, small_net, some_subnets
from tests.supernets.test_graphs import chained

SIDES = (96, 100, 128)


@pytest.fixture(scope="module")
def net() -> Supernet:
    """A narrow supernet with dense heads for images of seven bands."""
    sizes = {"num_classes": 4, "width_mult": 0.1, "in_channels": 7, "head_width": 6}
    return small_net("ee_dp", seed=1, dtype=torch.float32, resolutions=SIDES, **sizes)


def plain_head(state: Mapping[str, Tensor], features: Sequence[Tensor], side: int) -> Tensor:
    """Compute the head of one exit from its weights."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def pointwise(x: Tensor, name: str) -> Tensor:
        return normed(functional.conv2d(x, state[f"{name}.conv.weight"]), f"{name}.norm")

    x = pointwise(features[-1], f"laterals.{len(features) - 1}")
    for index in reversed(range(len(features) - 1)):
        y = pointwise(features[index], f"laterals.{index}")
        x = y + functional.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)
    x, depthwise = functional.hardswish(x), state["depthwise.weight"]
    x = normed(functional.conv2d(x, depthwise, padding=1, groups=len(depthwise)), "depthwise_norm")
    x = functional.hardswish(pointwise(functional.hardswish(x), "mix"))
    x = functional.conv2d(x, state["classifier.weight"], state["classifier.bias"])
    return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("side", SIDES)
def test_each_exit_is_a_pyramid_of_all_features_so_far_at_the_images_size(net: Supernet, side: int) -> None:
    images, largest = images_for(net, 2, side, side), net.space.largest()
    with torch.no_grad():
        features, found = net.features(images, largest), net(images, largest, exits="all")
        for exit, output in enumerate(found, 1):
            head = net.exits[str(exit)].state_dict()
            torch.testing.assert_close(output, plain_head(head, features[: exit + 1], side), rtol=1e-4, atol=1e-5)
            assert torch.equal(output, net(images, replace(largest, height=exit)))
            assert output.shape == (2, 4, side, side)


@pytest.mark.parametrize("side", SIDES)
def test_a_recorded_network_is_the_supernets_to_the_bit_and_costs_what_its_parts_do(net: Supernet, side: int) -> None:
    images = images_for(net, 2, side, side)
    for drawn in some_subnets(net, 1, seed=side):
        subnet = replace(drawn, resolution=side)
        for exits in exit_choices(net, subnet):
            module = net.extract(subnet, exits)
            with torch.inference_mode():
                torch.testing.assert_close(module(images), net(images, subnet, exits), rtol=0, atol=0)
            cost = subnet_cost(net.architecture, subnet, exits)
            assert cost == graph_cost(module, (7, side, side)), (subnet, exits)
            assert cost.memory == most_alive(module, (7, side, side)), (subnet, exits)


def test_parts_split_at_the_outputs_compute_the_whole(net: Supernet) -> None:
    module, images = net.extract(net.space.largest(), "all"), images_for(net, 2, 96, 96)
    with torch.inference_mode():
        whole = module(images)
        for found, expected in zip(chained(split(module), images), whole, strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(keep(module, (2,))(images)[0], whole[2])


def test_folded_norms_keep_the_function() -> None:
    net = small_net("ee_b", seed=2, num_classes=3, width_mult=0.1, head_width=8)
    module, images = net.extract(net.space.largest(), "all"), images_for(net, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(supernets.fold_norms(module)(images), module(images), rtol=1e-9, atol=1e-9)


def test_an_exit_takes_ten_million_multiply_adds_at_128_pixels_and_eleven_classes() -> None:
    net = supernets.create("ee_d", num_classes=11, resolutions=(128,), head_width=32)
    largest = net.space.largest()
    heads = [stage_costs(net.architecture, replace(largest, height=exit))[-1].cost for exit in (1, 2, 3, 4, 5)]
    assert [cost.macs for cost in heads] == [9_699_328, 10_027_008, 10_190_848, 10_420_224, 10_502_144]
    assert [cost.params for cost in heads] == [3_211, 4_555, 7_179, 10_827, 16_011]


def test_fresh_outputs_are_small_so_that_a_regression_starts_near_zero() -> None:
    net = supernets.create("ee_b", num_classes=1, resolutions=(64,), head_width=32, dropout=0.0).train()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        spreads = [float(output.std()) for output in net(images, net.space.largest(), "all")]
    assert all(0.01 < spread < 1 for spread in spreads), spreads


def test_dropout_drops_whole_channels_until_it_is_turned_off() -> None:
    net = supernets.create("se_b", num_classes=1, width_mult=0.1, resolutions=(32,), head_width=8).train()
    net.set_dropout(0.5)
    dropout, x = net.exits["5"].dropout, torch.ones(16, 8, 4, 4)
    torch.manual_seed(0)
    dropped = dropout(x).flatten(2)
    assert torch.equal(dropped.amin(2), dropped.amax(2))
    assert sorted(dropped.unique().tolist()) == [0.0, 2.0]
    net.set_dropout(0.0)
    assert torch.equal(dropout(x), x)


def test_a_side_that_the_stem_rounds_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"resolution \(65\) is no multiple of stem_stride \(2\).*use 66"):
        supernets.create("ee_b", num_classes=1, resolutions=(64, 65), head_width=8)
    assert supernets.create("ee_b", num_classes=1, width_mult=0.1, resolutions=(65,), head_width=8, stem_stride=1)


@pytest.mark.parametrize("width", [0, -1, 2.5, True])
def test_impossible_widths_are_refused(width: object) -> None:
    with pytest.raises(SpaceError, match="head_width"):
        supernets.create("ee_b", num_classes=1, head_width=width)  # type: ignore[arg-type]
