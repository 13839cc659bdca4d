"""Memory by formula is what really lies in memory while the extracted network runs; rows add up and carry its names."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

import supernets
from supernets import Subnet, Supernet
from supernets.cost import Cost, layer_costs, stage_costs, subnet_cost
from tests.supernets.randomise import exit_choices


class Memory(Interpreter):
    """Runs a graph layer by layer, drops each tensor after its last use, and looks at the storages that are left."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.most = 0

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        alive = [value for value in (*self.env.values(), made) if isinstance(value, Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
        self.most = max(self.most, sum(storages.values()))
        return made


def most_alive(module: GraphModule, net: Supernet, subnet: Subnet) -> int:
    memory = Memory(module)
    with torch.inference_mode():
        memory.run(torch.zeros(1, net.architecture.in_channels, subnet.resolution, subnet.resolution))
    return memory.most


def drawn(net: Supernet, count: int) -> list[Subnet]:
    generator = np.random.default_rng(1)
    return [net.space.largest(), net.space.smallest(), *(net.space.sample(generator) for _ in range(count))]


# Odd sides, deep dense stages and a first block without a stride each keep other tensors alive.
@pytest.mark.parametrize("arch", [{}, {"depth": (1, 5, 6), "stem_stride": 1}], ids=str)
@pytest.mark.parametrize("variant", supernets.names())
def test_memory_by_formula_is_the_peak_of_live_tensors(variant: str, arch: dict[str, Any]) -> None:
    net = supernets.create(variant, num_classes=7, width_mult=0.1, resolutions=(32, 33, 50), **arch).eval()
    for subnet in drawn(net, 3):
        for exits in exit_choices(net, subnet):
            module = net.extract(subnet, exits)
            cost = subnet_cost(net.architecture, subnet, exits)
            assert cost.memory == most_alive(module, net, subnet), (subnet, exits)
            assert cost.params == sum(parameter.numel() for parameter in module.parameters()), (subnet, exits)


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_rows_carry_the_networks_names_and_sizes(variant: str) -> None:
    net = supernets.create(variant, num_classes=7, width_mult=0.25, resolutions=(32, 48))
    for subnet in drawn(net, 4):
        module = net.extract(subnet, "all")
        own = {
            name: sum(parameter.numel() for parameter in layer.parameters(recurse=False))
            for name, layer in module.named_modules()
        }
        order = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
        expected = [(name, own[name]) for name in order if own[name]]
        assert [(row.name, row.params) for row in layer_costs(net.architecture, subnet, "all")] == expected


def test_sums_by_stage_and_by_layer_are_the_total() -> None:
    net = supernets.create("ee_dp", num_classes=7, width_mult=0.25, resolutions=(32, 48))
    for subnet in drawn(net, 5):
        total = subnet_cost(net.architecture, subnet)
        stages = stage_costs(net.architecture, subnet)
        layers = layer_costs(net.architecture, subnet)
        names = [f"stage {stage}" for stage in range(1, subnet.height + 1)]
        assert [part.name for part in stages] == ["stem", *names, f"exit {subnet.height}"]
        for rows in ([part.cost for part in stages], layers):
            assert (sum(row.params for row in rows), sum(row.macs for row in rows)) == (total.params, total.macs)
        assert max(part.cost.memory for part in stages) == total.memory


def test_of_two_parts_the_larger_peak_counts() -> None:
    assert Cost(1, 2, 30) + Cost(4, 5, 6) == Cost(5, 7, 30)
