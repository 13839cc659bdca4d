"""A network's price is that of its parts, one after the other."""

from functools import reduce

import numpy as np
import pytest

import supernets
from ofav2.errors import UserError
from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.latency_table import predict_latency
from supernets.parts import BlockPart, ExitPart, StemPart
from supernets.subnet_cost import Position, subnet_cost
from tests.ofav2.nas.made_up import made_up_table


@pytest.mark.parametrize(("variant", "head_width"), [("se_b", None), ("ee_dp", None), ("ee_dp", 8)])
def test_the_parts_prices_are_the_networks(variant: str, head_width: int | None) -> None:
    options = {"width_mult": 0.1, "expand": (2,), "depth": (1, 4), "resolutions": (34, 40)}
    net = supernets.create(variant, num_classes=3, head_width=head_width, **options)  # type: ignore[arg-type]
    arch, space = net.architecture, net.space
    model = CostModel(arch, made_up_table(arch, space))
    rng = np.random.default_rng(1)
    for subnet in (space.largest(), space.smallest(), *(space.sample(rng) for _ in range(10))):
        prices = [model.part(StemPart(), subnet.resolution)]
        for stage in range(subnet.height):
            choices = subnet.blocks(stage)
            for block, choice in enumerate(choices):
                part = BlockPart(stage, block > 0, choice)
                prices.append(model.block(part, Position(block, len(choices)), subnet.resolution))
        prices.append(model.part(ExitPart(subnet.height), subnet.resolution))
        assert reduce(Price.then, prices) == model.price(subnet)


def test_the_table_of_another_supernet_is_refused() -> None:
    net, wider = (supernets.create("se_b", num_classes=3, width_mult=width) for width in (0.1, 0.2))
    with pytest.raises(UserError, match="latency table is of another supernet"):
        CostModel(wider.architecture, made_up_table(net.architecture, net.space))


def test_a_model_without_a_table_knows_no_latency() -> None:
    net = supernets.create("ee_d", num_classes=3, width_mult=0.1, resolutions=(32,))
    largest = net.space.largest()
    table = made_up_table(net.architecture, net.space)
    plain, timed = CostModel(net.architecture), CostModel(net.architecture, table)
    cost = subnet_cost(net.architecture, largest)
    assert plain.price(largest) == Price(cost.params, cost.macs, cost.memory, 0)
    assert timed.price(largest).latency == predict_latency(table, largest) > 0
    assert plain.cost(largest, "all") == timed.cost(largest, "all") == subnet_cost(net.architecture, largest, "all")
