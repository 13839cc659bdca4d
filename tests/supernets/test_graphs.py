"""A network split at its outputs computes what it did, each operation once, with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from supernets import GraphError
from supernets.graphs import alone, split
from tests.supernets.randomise import exit_choices, images_for, small_net, some_subnets

VARIANTS = ("ee_b", "ee_d", "ee_p", "ee_dp")


def chained(parts: tuple[GraphModule, ...], images: Tensor) -> list[Tensor]:
    values: Any = (images,)
    outputs = []
    for part in parts:
        output, *values = part(*values)
        outputs.append(output)
    assert not values
    return outputs


def layers(module: GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_compute_bit_for_bit_what_the_whole_does(variant: str) -> None:
    net = small_net(variant, width_mult=0.1, depth=(1, 2), dtype=torch.float32)
    images = images_for(net, 3)
    for subnet in some_subnets(net, 1):
        for exits in exit_choices(net, subnet)[1:]:
            module = net.extract(subnet, exits)
            expected = module(images)
            parts = split(module)
            assert all(map(torch.equal, chained(parts, images), expected))
            for index, logits in enumerate(expected):
                assert torch.equal(alone(module, index)(images), logits)


def test_every_layer_runs_once_and_is_shared_and_the_first_part_holds_the_first_exit_alone() -> None:
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2))
    module = net.extract(net.space.largest(), (2, 4))
    parts = split(module)
    run = [name for part in parts for name in layers(part)]
    assert len(run) == len(set(run))
    # Stage 5 follows the last exit that is returned, and nothing reads it.
    assert set(layers(module)) - set(run) == {name for name in layers(module) if name.startswith("stages.4.")}
    assert not [name for name in layers(parts[0]) if name.startswith(("stages.2", "exits.4"))]
    for part in parts:
        for name in layers(part):
            assert part.get_submodule(name) is module.get_submodule(name)
    assert sorted(layers(alone(module, 0))) == sorted(layers(parts[0]))


class Odd(nn.Module):
    """What supernets don't do: constants, an exit that reads another's logits, values that jump over a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 5.0, 7.0]))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        kept = x * self.scale
        one = self.act(self.first(x))
        two = self.second(one) * self.scale
        return one, two, two, kept + one + x


def test_a_graph_from_elsewhere_is_split_at_its_outputs() -> None:
    torch.manual_seed(0)
    module = symbolic_trace(Odd())
    images = torch.randn(3, 4)
    parts = split(module)
    assert all(map(torch.equal, chained(parts, images), module(images)))
    assert all(torch.equal(alone(module, index)(images), module(images)[index]) for index in range(4))
    assert layers(parts[2]) == []


def test_parts_are_in_the_mode_that_the_network_is_in() -> None:
    module = symbolic_trace(Odd())
    assert all(part.training for part in split(module.train()))
    assert not any(part.training for part in split(module.eval()))


class InPlace(nn.Module):
    """An exit works in place on what the next stage reads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.act = how, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x * 2
        if self.how == "module":
            first = self.act(features)
        elif self.how == "method":
            first = features.relu_()
        elif self.how == "function":
            first = nn.functional.relu(features, inplace=True)
        else:
            features += 1
            first = x + 1
        return first, features * 3


@pytest.mark.parametrize("how", ["module", "method", "function"])
def test_writing_in_place_on_what_another_part_reads_is_refused(how: str) -> None:
    with pytest.raises(GraphError, match="works in place"):
        split(symbolic_trace(InPlace(how)))


class Dropped(nn.Module):
    """A write whose result nobody reads, but everybody sees."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x * 2
        features.add_(1)
        return features, features * 3


def test_a_write_that_would_be_dropped_is_refused() -> None:
    with pytest.raises(GraphError, match="works in place"):
        split(symbolic_trace(Dropped()))


class TwoInputs(nn.Module):
    """Not a network of images alone."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y


@pytest.mark.parametrize(("module", "words"), [(nn.Linear(2, 2), "no tuple"), (TwoInputs(), "2 inputs")])
def test_what_has_no_exits_is_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        split(symbolic_trace(module))
