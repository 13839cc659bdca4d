"""What a network costs with some of its outputs, read off one record, is what that network costs by itself."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from ofav2.exits.early import NEVER, early_exits
from supernets import Exits, GraphError
from supernets.cost import graph_cost
from supernets.graphs import keep
from supernets.output_costs import exit_macs, output_costs
from supernets.subnet_cost import subnet_cost
from tests.supernets.randomise import images_for, small_net


def every_choice(outputs: int) -> list[tuple[int, ...]]:
    return [choice for count in range(1, outputs + 1) for choice in combinations(range(outputs), count)]


@pytest.mark.parametrize("variant", ["ee_b", "ee_dp"])
def test_every_subset_of_exits_costs_what_the_extracted_network_does(variant: str) -> None:
    net = small_net(variant, width_mult=0.1, depth=(1, 2), dtype=torch.float32)
    subnet = replace(net.space.largest(), resolution=32)
    module = net.extract(subnet, "all")
    choices = every_choice(5)
    for choice, cost in zip(choices, output_costs(module, (3, 32, 32), choices), strict=True):
        exits = tuple(place + 1 for place in choice)
        assert cost == subnet_cost(net.architecture, replace(subnet, height=exits[-1]), exits), exits
        assert cost == graph_cost(keep(module, choice), (3, 32, 32)), exits


class Shared(nn.Module):
    """A layer that two exits share, a view that is returned, a weight without a layer, and a tensor that waits long."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.later = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3)
        self.head = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(9))
        self.end = nn.Linear(9, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        first = self.stem(images)
        near = self.head(first.mean((2, 3)))
        second = self.later(first)
        far = self.end(second.mean((2, 3)) * self.scale)
        again = self.head(first.amax((2, 3)))
        return near.flatten(1), far, again


def test_shared_weights_views_and_waiting_tensors_are_counted_as_in_the_network_alone() -> None:
    module = symbolic_trace(Shared()).eval()
    choices = every_choice(3)
    expected = [graph_cost(keep(module, choice), (3, 9, 9)) for choice in choices]
    assert list(output_costs(module, (3, 9, 9), choices)) == expected


def test_a_network_with_one_tensor_is_refused() -> None:
    with pytest.raises(GraphError, match="returns no tuple of logits"):
        output_costs(symbolic_trace(nn.Linear(3, 4)).eval(), (3,), [(0,)])


def test_an_image_costs_what_the_parts_up_to_its_exit_do() -> None:
    """Counted by torch while images leave, beside the graph."""
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2), dtype=torch.float32)
    images = images_for(net, 1)
    subnet = replace(net.space.largest(), resolution=32)
    asked: Sequence[Exits] = ("all", (2, 4))
    for exits in asked:
        arch = net.chosen_exits(subnet, exits)
        module = net.extract(subnet, exits)
        early = early_exits(module, arch)
        costs = exit_macs(module, (3, 32, 32), arch)
        assert [cost.exit for cost in costs] == list(arch)
        for place, cost in enumerate(costs):
            never, leave = [NEVER] * (len(arch) - 1), [0.0] * (len(arch) - 1)
            with FlopCounterMode(display=False) as counter:
                found = early.predict(images, [*never[:place], *leave[place:]])
            assert found.exits.tolist() == [cost.exit]
            assert counter.get_total_flops() == 2 * cost.passed
            assert cost.alone == subnet_cost(net.architecture, replace(subnet, height=cost.exit)).macs
    assert costs[-1].passed == subnet_cost(net.architecture, replace(subnet, height=4), (2, 4)).macs
