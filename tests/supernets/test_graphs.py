"""A network split at its outputs, or cut to some of them, computes what it did, with the same weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from supernets import GraphError
from supernets.graphs import alone, keep, pieces, split
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


def test_a_network_that_keeps_some_outputs_has_only_what_they_need() -> None:
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2), dtype=torch.float32)
    module, images = net.extract(net.space.largest(), "all"), images_for(net, 3)
    whole = module(images)
    for places in ((0,), (1, 3), (0, 1, 2, 3, 4)):
        kept = keep(module, places)
        assert all(torch.equal(found, whole[place]) for found, place in zip(kept(images), places, strict=True))
        cut = replace(net.space.largest(), height=places[-1] + 1)
        alike = net.extract(cut, tuple(place + 1 for place in places))
        assert {*kept.state_dict()} == {*alike.state_dict()}
        assert all(kept.get_submodule(name) is module.get_submodule(name) for name in layers(kept))


def test_pieces_are_the_stages_and_the_heads() -> None:
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2), dtype=torch.float32)
    module, images = net.extract(net.space.largest(), (1, 3, 4)), images_for(net, 2)
    cut = pieces(module)
    assert [piece.outputs for piece in cut] == [0b111, 0b110, 0b100, 0b001, 0b010]
    run = [name for piece in cut for name in layers(piece.module)]
    assert len(run) == len(set(run))
    values: dict[str, Tensor] = {"images": images}
    for piece in cut:
        made = piece.module(*(values[name] for name in piece.takes))
        values.update(zip(piece.gives, made, strict=True))
    found = [values[f"exits_{exit}_classifier"] for exit in (1, 3, 4)]
    assert all(map(torch.equal, found, module(images)))


class Branches(nn.Module):
    """The second output's first layer comes before what it and the first output share."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        own = images * 3
        shared = images + 1
        return shared * 2, own + shared


def test_pieces_come_after_what_they_read() -> None:
    images, values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), {}
    module = symbolic_trace(Branches())
    values["images"] = images
    for piece in pieces(module):
        values.update(zip(piece.gives, piece.module(*(values[name] for name in piece.takes)), strict=True))
    assert all(any(torch.equal(value, output) for value in values.values()) for output in module(images))


class InPlaceHead(nn.Module):
    """An exit that activates, in place, what the next stage reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.relu, self.head, self.end = nn.Linear(3, 3), nn.ReLU(True), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stage(images)
        return self.head(self.relu(features)), self.end(features)


@pytest.mark.parametrize("cut", [lambda module: keep(module, (1,)), pieces], ids=["keep", "pieces"])
def test_an_exit_that_writes_into_what_another_one_reads_cannot_be_left_out(cut: Any) -> None:
    with pytest.raises(GraphError, match=r"works in place \(relu\)"):
        cut(symbolic_trace(InPlaceHead()))


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
