"""Costs put together from parts are those of the extracted network: recorded whole, counted by torch, and run."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import supernets
from supernets import Subnet, Supernet
from supernets.cost import graph_cost, graph_layers
from supernets.subnet_cost import layer_costs, stage_costs, subnet_cost
from tests.supernets.alive import most_alive
from tests.supernets.randomise import exit_choices, some_subnets
from tests.supernets.variants import VARIANTS


# Odd sides, deep dense stages and a first block without a stride each keep other tensors alive.
@pytest.mark.parametrize(
    "arch",
    [
        {},
        *(
            pytest.param(it, marks=pytest.mark.slow)
            for it in ({"depth": (1, 5, 6), "stem_stride": 1}, {"expand": (1,)})
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sum_of_the_parts_is_the_whole_graph(variant: str, arch: dict[str, Any]) -> None:
    net = supernets.create(variant, num_classes=7, width_mult=0.1, resolutions=(32, 33, 50), **arch)
    for subnet in some_subnets(net, 1, seed=1):
        shape = (3, subnet.resolution, subnet.resolution)
        for exits in exit_choices(net, subnet):
            module = net.extract(subnet, exits)
            assert subnet_cost(net.architecture, subnet, exits) == graph_cost(module, shape), (subnet, exits)
            assert layer_costs(net.architecture, subnet, exits) == graph_layers(module, shape), (subnet, exits)


def priced(net: Supernet, subnet: Subnet) -> tuple[int, int]:
    cost = subnet_cost(net.architecture, subnet)
    return cost.params, cost.macs


def counted(net: Supernet, subnet: Subnet) -> tuple[int, int]:
    """Parameters and multiply-adds as torch sees them: a multiply-add is two floating-point operations."""
    module = net.extract(subnet)
    images = torch.zeros(1, net.architecture.in_channels, subnet.resolution, subnet.resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return sum(parameter.numel() for parameter in module.parameters()), flops // 2


def check(net: Supernet, count: int, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    subnets = [net.space.largest(), net.space.smallest(), *(net.space.sample(generator) for _ in range(count))]
    for subnet in subnets:
        assert priced(net, subnet) == counted(net, subnet), subnet


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_what_torch_counts(variant: str) -> None:
    check(supernets.create(variant, num_classes=7, width_mult=0.25, resolutions=(32, 48, 64)), 6)


@pytest.mark.parametrize(
    "arch",
    [
        {"resolutions": (37, 45, 51, 63)},
        {"kernel": (1, 9), "expand": (1, 5), "depth": (3,)},
        *(
            pytest.param(arch, marks=pytest.mark.slow)
            for arch in (
                {"resolutions": (16, 17, 23), "stem_stride": 1},
                {"in_channels": 13},
                {"in_channels": 1, "num_classes": 1},
                {"width_mult": 1.2, "num_classes": 1000},
                {"expand": (1,), "depth": (1, 2), "kernel": (3,)},
            )
        ),
    ],
    ids=str,
)
def test_so_they_are_for_other_architectures(arch: dict[str, Any]) -> None:
    choices: dict[str, Any] = {"num_classes": 5, "width_mult": 0.1, "resolutions": (32, 40)}
    check(supernets.create("ee_dp", **(choices | arch)), 4)


def test_the_papers_largest_network() -> None:
    net = supernets.create("se_b", num_classes=200)
    largest = net.space.uniform(resolution=64)
    assert priced(net, largest) == counted(net, largest) == (6_639_960, 49_798_016)


def test_a_network_that_does_less_costs_less() -> None:
    net = supernets.create("ee_dp", num_classes=10, resolutions=(32, 64))
    largest = subnet_cost(net.architecture, net.space.largest())
    for choice in ({"kernel": 3}, {"expand": 3}, {"depth": 2}, {"level": 1}, {"height": 4}):
        cost = subnet_cost(net.architecture, net.space.uniform(**choice))
        assert cost.params < largest.params
        assert cost.macs < largest.macs
    smaller_images = subnet_cost(net.architecture, net.space.uniform(resolution=32))
    assert smaller_images.params == largest.params
    assert smaller_images.macs < largest.macs


# Memory


@pytest.mark.parametrize(
    "arch", [{}, pytest.param({"depth": (1, 5, 6), "stem_stride": 1}, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_what_lies_there(variant: str, arch: dict[str, Any]) -> None:
    net = supernets.create(variant, num_classes=7, width_mult=0.1, resolutions=(32, 33, 50), **arch).eval()
    for subnet in some_subnets(net, 1):
        for exits in exit_choices(net, subnet):
            module = net.extract(subnet, exits)
            cost = subnet_cost(net.architecture, subnet, exits)
            assert cost.memory == most_alive(module, (3, subnet.resolution, subnet.resolution)), (subnet, exits)
            assert cost.params == sum(parameter.numel() for parameter in module.parameters()), (subnet, exits)


def test_sums_by_stage_and_by_layer_are_the_total() -> None:
    net = supernets.create("ee_dp", num_classes=7, width_mult=0.25, resolutions=(32, 48))
    for subnet in some_subnets(net, 5):
        total = subnet_cost(net.architecture, subnet)
        stages = stage_costs(net.architecture, subnet)
        layers = layer_costs(net.architecture, subnet)
        names = [f"stage {stage}" for stage in range(1, subnet.height + 1)]
        assert [part.name for part in stages] == ["stem", *names, f"exit {subnet.height}"]
        for rows in ([part.cost for part in stages], layers):
            assert (sum(row.params for row in rows), sum(row.macs for row in rows)) == (total.params, total.macs)
        assert max(part.cost.memory for part in stages) == total.memory
