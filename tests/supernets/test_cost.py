"""Any recorded network is priced as it runs: what its layers multiply and hold, and what lies in memory."""

import operator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer, symbolic_trace
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from supernets import GraphError
from supernets.cost import Cost, graph_cost, graph_layers, graph_steps, peak_values
from tests.supernets.alive import most_alive

# Residual sums in place, gates, layer scale, concatenation, chunks, attention over tokens, standardised weights.
BACKBONES = (
    "resnet18",
    "mobilenetv3_small_050",
    "convnext_atto",
    "densenet121",
    "mixnet_s",
    "res2net50_26w_4s",
    "levit_128s",
    "resnetv2_50",
)
SIDE = {"levit_128s": 224}


def hooked(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds by layer, noted by hooks while the network runs."""
    found: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(layer: Any, _: Any, result: Tensor) -> None:
            found[name] = result.numel() * layer.weight[0].numel()

        return hook

    handles = [
        layer.register_forward_hook(note(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        module(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_costs_what_hooks_and_storages_show(name: str) -> None:
    module = timm.create_model(name, num_classes=10).eval()
    shape = (3, SIDE.get(name, 64), SIDE.get(name, 64))
    traced = symbolic_trace(module)
    cost = graph_cost(traced, shape)
    assert cost.macs == sum(hooked(module, shape).values())
    assert cost.params == sum(parameter.numel() for parameter in module.parameters())
    assert cost.memory == most_alive(traced, shape)


def test_rows_are_the_layers_that_run() -> None:
    module = timm.create_model("resnet18", num_classes=10).eval()
    rows = graph_layers(symbolic_trace(module), (3, 64, 64))
    layers = {name: layer for name, layer in module.named_modules() if not list(layer.children())}
    assert {row.name: row.params for row in rows} == {
        name: sum(parameter.numel() for parameter in layer.parameters())
        for name, layer in layers.items()
        if list(layer.parameters())
    }
    assert {row.name: row.macs for row in rows if row.macs} == hooked(module, (3, 64, 64))


def test_a_network_of_a_hundred_gigabytes_is_priced_without_its_weights() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(100_000, 100_000), nn.Linear(100_000, 100_000)).eval()
    cost = graph_cost(symbolic_trace(module), (100_000,))
    assert cost == Cost(2 * (10**10 + 10**5), 2 * 10**10, 4 * 2 * 10**5)


class Odd(nn.Module):
    """Two outputs, by functions, methods, views and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.drop(self.act(self.conv(x)))
        first, second = y.chunk(2, 1)
        first = first.mul(self.scale)
        first += second
        weight = self.conv.weight[:2]
        other = functional.conv2d(x, weight=weight, padding=1).relu_()
        return self.up(first), other.flatten(1)


def test_odd_graphs_are_priced_by_hand() -> None:
    steps = graph_steps(symbolic_trace(Odd().eval()), (3, 4, 4))
    x, y, half, two, up = 3 * 16, 8 * 16, 4 * 16, 2 * 16, 2 * 64
    made = {step.name: step.makes for step in steps if step.makes}
    assert list(made.values()) == [(x,), (y,), (y,), (half,), (half,), (two,), (two,), (up,)]
    macs = {step.name: step.macs for step in steps if step.macs}
    assert list(macs.values()) == [8 * 27 * 16, 2 * 27 * 16, half * 8]
    assert sum(step.params for step in steps) == 8 * 27 + 8 + 4 * 2 * 4 + 2 + 4
    # The sum is there while its two terms, the chunks' tensor and the images are.
    assert peak_values(steps) == x + 2 * y
    assert peak_values(steps[:2], kept=True) == x + y


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Linear(5, 9),
        nn.Conv2d(6, 4, 3, 2, groups=2),
    ],
    ids=str,
)
def test_shapes_are_those_that_torch_gives(layer: nn.Module) -> None:
    layer.eval()
    steps = graph_steps(symbolic_trace(nn.Sequential(layer)), (6, 7, 5))
    assert steps[1].makes == (layer(torch.zeros(1, 6, 7, 5)).numel(),)


@pytest.mark.parametrize("combine", [torch.add, torch.mul, operator.add, operator.mul, torch.sub, operator.imul])
def test_shapes_of_sums_broadcast(combine: Any) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return combine(combine(x, x.mean((2, 3), keepdim=True)), 2)  # type: ignore[no-any-return]

    steps = graph_steps(symbolic_trace(Pair().eval()), (6, 7, 5))
    assert [step.makes for step in steps if step.makes] == [(210,), (6,), (210,), (210,)]


def test_transposed_convolutions_and_groups_are_what_torch_counts() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3, 2, groups=4), nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 4, 9, 7))
    assert 2 * graph_cost(symbolic_trace(module), (4, 9, 7)).macs == counter.get_total_flops()


def test_pricing_changes_nothing_in_the_network() -> None:
    module = timm.create_model("mobilenetv3_small_050", num_classes=10).eval()
    traced = symbolic_trace(module)
    before = {name: tensor.clone() for name, tensor in traced.state_dict().items()}
    graph_cost(traced, (3, 32, 32))
    for name, tensor in traced.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert next(traced.parameters()).device.type == "cpu"


def test_parameters_that_two_layers_share_count_once() -> None:
    shared = nn.Linear(4, 4)
    assert graph_cost(symbolic_trace(nn.Sequential(shared, shared).eval()), (4,)) == Cost(20, 32, 32)


class ValueDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4)), "training mode"),
        (ValueDependent().eval(), "without values"),
    ],
    ids=["training", "values"],
)
def test_what_has_no_price_is_one_line(module: nn.Module, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        graph_cost(symbolic_trace(module), (4,))
    assert "\n" not in str(caught.value)


def test_layers_that_hide_their_products_are_refused() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("attend", (x, x, x)))
    module = GraphModule(nn.ModuleDict({"attend": nn.MultiheadAttention(4, 1).eval()}), graph)
    with pytest.raises(GraphError, match=r"attend \(MultiheadAttention\)"):
        graph_cost(module, (4,))


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_multiplies_its_matrices_once_per_place(directions: int) -> None:
    graph = torch.fx.Graph()
    values = graph.call_module("scan", (graph.placeholder("x"),))
    graph.output(graph.call_function(operator.getitem, (values, 0)))
    module = GraphModule(nn.ModuleDict({"scan": nn.LSTM(3, 4, batch_first=True, bidirectional=directions > 1)}), graph)
    places, gates = 5, 4
    assert graph_cost(module.eval(), (places, 3)).macs == directions * places * gates * 4 * (3 + 4)


def test_of_two_costs_the_larger_peak_counts() -> None:
    assert Cost(1, 2, 30) + Cost(4, 5, 6) == Cost(5, 7, 30)


class Whole(Tracer):
    """Takes every stage of a network as one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_a_module_that_holds_others_costs_what_its_operations_do(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name).eval()
    shape = (3, 64, 64)
    coarse = GraphModule(net, Whole().trace(net))
    fine = graph_cost(symbolic_trace(net), shape)
    assert len(coarse.graph.nodes) < len(symbolic_trace(net).graph.nodes) / 2
    assert graph_cost(coarse, shape) == fine
    by_layer = graph_layers(coarse, shape)
    assert sum(layer.macs for layer in by_layer) == fine.macs
    assert len({layer.name for layer in by_layer}) == len(by_layer)
