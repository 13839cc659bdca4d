"""Exits are priced from a network's description alone, and cost what the extracted network costs."""

from dataclasses import replace
from itertools import combinations

import pytest

from ofav2.errors import UserError
from ofav2.networks.build import build_network
from ofav2.networks.cost import network_cost, network_layers, network_parts, subset_costs
from supernets.backbone import Backbone
from supernets.cost import graph_cost, graph_layers
from supernets.multi_exit import MultiExit
from supernets.output_costs import exit_macs
from tests.ofav2 import tiny
from tests.ofav2.networks.test_backbone import described


@pytest.fixture(scope="module")
def arch() -> Backbone:
    return described()


@pytest.fixture(scope="module")
def net(arch: Backbone) -> MultiExit:
    net = build_network(arch, (32,))
    assert isinstance(net, MultiExit)
    return net


def test_costs_are_those_of_the_extracted_network(arch: Backbone, net: MultiExit) -> None:
    for subnet in net.space.corners():
        assert network_cost(arch, subnet) == graph_cost(net.extract(subnet), (3, 32, 32))
        assert network_cost(arch, subnet, "all") == graph_cost(net.extract(subnet, "all"), (3, 32, 32))


def test_layers_are_those_of_the_extracted_network(arch: Backbone, net: MultiExit) -> None:
    for subnet in net.space.corners():
        assert network_layers(arch, subnet) == graph_layers(net.extract(subnet), (3, 32, 32))
        assert network_layers(arch, subnet, "all") == graph_layers(net.extract(subnet, "all"), (3, 32, 32))
    supernet = tiny.tiny_net()
    extracted = supernet.extract(supernet.space.largest())
    largest = network_layers(supernet.architecture, supernet.space.largest())
    side = supernet.space.largest().resolution
    assert largest == graph_layers(extracted, (3, side, side))


def test_parts_of_several_exits_are_of_supernets_alone(arch: Backbone, net: MultiExit) -> None:
    with pytest.raises(UserError, match=r"^exits \(all\) of a network of timm"):
        network_parts(arch, net.space.largest(), "all")
    supernet = tiny.tiny_net("ee_d")
    names = [part.name for part in network_parts(supernet.architecture, supernet.space.largest(), "all")]
    assert sum(name.startswith("exit") for name in names) == len(supernet.architecture.exits)


def test_all_subsets_are_priced_without_what_comes_after_their_last_exit(arch: Backbone, net: MultiExit) -> None:
    found = subset_costs(arch, 32)
    assert set(found) == {subset for count in (1, 2, 3, 4) for subset in combinations((1, 2, 3, 4), count)}
    assert list(found.values()) == sorted(found.values(), key=lambda cost: (cost.macs, cost.params))
    for exits, cost in found.items():
        module = net.extract(replace(net.space.largest(), height=exits[-1]), exits)
        assert cost == graph_cost(module, (3, 32, 32))
        assert cost.params == sum(parameter.numel() for parameter in module.parameters())


def test_parts_add_up_to_the_whole(arch: Backbone, net: MultiExit) -> None:
    for subnet in net.space.corners():
        parts, whole = network_parts(arch, subnet), network_cost(arch, subnet)
        assert sum(part.cost.macs for part in parts) == whole.macs
        assert sum(part.cost.params for part in parts) == whole.params
        assert all(part.cost.macs > 0 for part in parts[1 : 1 + subnet.height])


def test_an_image_that_passes_exits_pays_for_their_heads(arch: Backbone, net: MultiExit) -> None:
    largest = net.space.largest()
    for number, cost in enumerate(exit_macs(net.extract(largest, "all"), (3, 32, 32), arch.exits), 1):
        subnet = replace(largest, height=number)
        assert cost.alone == network_cost(arch, subnet).macs
        assert cost.passed == network_cost(arch, subnet, "all").macs


def test_supernets_are_priced_as_before() -> None:
    net = tiny.tiny_net()
    for subnet in (net.space.largest(), net.space.smallest()):
        assert network_cost(net.architecture, subnet) == graph_cost(
            net.extract(subnet), (3,) + (subnet.resolution,) * 2
        )


def test_all_subsets_of_many_exits_are_priced() -> None:
    deep = described("vit_tiny_patch16_224", exits=(1, 2, 3, 4, 5))
    assert len(subset_costs(deep, 32)) == 2**6 - 1
