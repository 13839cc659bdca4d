"""Exits attached to a network leave the network as it was, and read the features that they name."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from supernets import SpaceError
from supernets.backbone import Backbone, Tap
from supernets.exit_heads import exit_head
from supernets.graphs import GraphError, alone, keep, split
from supernets.taps import AmbiguousLayoutError, Output, attach, find_outputs, layout_of, tap_values, trace
from tests.supernets.plain_nets import CLASSES, Pairs, Staged, Tokens, images

TAPS = (Tap("stages.0", 8, "NCHW", 0, 4), Tap("stages.1", 16, "NCHW", 0, 4))


def heads(taps: Sequence[Tap]) -> list[nn.Module]:
    return [exit_head("norm_linear", tap.channels, CLASSES) for tap in taps]


def by_hand(net: Staged, made: Sequence[nn.Module], given: Tensor) -> list[Tensor]:
    """Each exit's logits as plain torch has them."""
    x, found = net.stem(given), []
    for stage, head in zip(net.stages, made, strict=False):
        x = stage(x)
        found.append(head(x.mean((2, 3))))
    return [*found, net(given)]


def test_exits_equal_the_network_cut_there_and_the_last_is_the_networks_own() -> None:
    net = Staged().eval()
    made = heads(TAPS)
    expected = by_hand(net, [head.eval() for head in made], images())
    found = attach(net, TAPS, made)(images())
    assert len(found) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_modules_and_weights_keep_their_names() -> None:
    net = Staged()
    before = list(net.state_dict())
    module = attach(net, TAPS, heads(TAPS))
    names = list(module.state_dict())
    assert [name for name in names if not name.startswith("exits.")] == before
    assert {name.split(".")[1] for name in names if name.startswith("exits.")} == {"1", "2"}


def test_dropout_that_the_forward_calls_follows_the_graphs_mode() -> None:
    net = Staged()
    module = attach(net, TAPS, heads(TAPS)).train()
    rates = [layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)]
    assert 0.5 in rates
    with torch.random.fork_rng():
        one, other = module(images())[-1], module(images())[-1]
    assert not torch.equal(one, other)
    module.eval()
    assert torch.equal(module(images())[-1], module(images())[-1])


def test_all_parameters_learn_from_the_joint_loss() -> None:
    module = attach(Staged(), TAPS, heads(TAPS)).train()
    sum(logits.square().sum() for logits in module(images())).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_prefix_tokens_are_left_out_and_weights_without_a_layer_are_kept() -> None:
    net = Tokens().eval()
    taps = (Tap("blocks.0", 6, "NLC", 1, 4), Tap("blocks.1", 6, "NLC", 1, 4))
    made = heads(taps)
    tokens = net.patches(images()).flatten(2).transpose(1, 2)
    expected = net(images())
    module = attach(net, taps, made).eval()
    every = torch.cat([net.token.expand(len(tokens), -1, -1), tokens], 1)
    # A product of as many rows: of fewer, a processor may add in another order.
    first = made[0].eval()(net.blocks[0](every)[:, 1:].mean(1))
    assert torch.equal(module(images())[0], first)
    assert torch.equal(module(images())[-1], expected)
    assert all(
        torch.equal(one(images()), many) for one, many in zip([alone(module, 1)], [module(images())[1]], strict=True)
    )


def test_parts_of_a_network_with_exits_hand_on_a_row_per_image() -> None:
    module = attach(Staged(), TAPS, heads(TAPS)).eval()
    values: Sequence[Tensor] = (images(),)
    for part, expected in zip(split(module), module(images()), strict=True):
        logits, *values = part(*values)
        assert torch.equal(logits, expected)
        assert all(len(value) == 3 for value in values)


class Counting(Staged):
    """Reads the number of images once, and uses it at the end."""

    def forward(self, images: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        x = self.stem(images)
        count, channels = x.shape[0], x.size(1)
        return self.head(self.stages(x).mean((2, 3)).reshape(count, 8 * channels))


def test_parts_repeat_the_number_of_images_instead_of_handing_it_on() -> None:
    module = attach(Counting(), TAPS, heads(TAPS)).eval()
    whole = module(images())
    values: Sequence[Tensor] = (images(),)
    for count, part in zip((3, 2, 1), split(module), strict=True):
        # An image leaves before each part but the first.
        logits, *values = part(*(value[:count] for value in values))
        assert logits.shape == (count, CLASSES)
        torch.testing.assert_close(logits, whole[3 - count][:count])


def test_kept_exits_are_those_of_the_whole_and_nothing_else_is_left() -> None:
    module = attach(Staged(), TAPS, heads(TAPS)).eval()
    whole = module(images())
    for places in ([0], [1], [2], [0, 2], [0, 1, 2]):
        part = keep(module, places)
        assert all(torch.equal(one, whole[place]) for one, place in zip(part(images()), places, strict=True))
    assert not any(name.startswith(("head", "stages.1", "exits.2")) for name in keep(module, [0]).state_dict())


@pytest.mark.parametrize(
    ("net", "taps", "message"),
    [
        (Staged(), ["stages.7"], "calls stages.7 0 times"),
        (Staged(lambda net, x: net.stages[2](net.stages[2].skip(x)[:, :16])), ["stages.2"], "calls stages.2 2 times"),
        (Staged(lambda net, x: x if x.sum() > 0 else -x), ["stages.0"], "can't be traced"),
        (Staged(lambda net, x: 2 * x if net.training else x), ["stages.0"], "in training mode"),
    ],
    ids=["absent", "twice", "control flow", "another mode"],
)
def test_a_forward_that_has_no_such_graph_is_refused(net: nn.Module, taps: list[str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        trace(net, taps)


def test_taps_in_another_order_and_heads_for_other_features_are_refused() -> None:
    with pytest.raises(GraphError, match="another order"):
        attach(Staged(), TAPS[::-1], heads(TAPS[::-1]))
    token = Tap("blocks.0", 6, "NLC", 1, 4)
    with pytest.raises(GraphError, match="tokens"):
        attach(Tokens(), [token], [exit_head("mobilenetv3", 6, CLASSES)])


def test_tracing_leaves_the_mode_as_it_was() -> None:
    for mode in (True, False):
        net = Staged().train(mode)
        assert trace(net, ["stages.0"]).training == net.training == mode


def test_values_of_taps_are_those_of_the_forward() -> None:
    net = Staged().eval()
    found = tap_values(trace(net, ["stages.0", "stages.2"]), ["stages.0", "stages.2"], images())
    assert torch.equal(found["stages.2"], net.stages(net.stem(images())))
    assert torch.equal(found["stages.0"], net.stages[0](net.stem(images())))


MAPS = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
SQUARE = torch.arange(2 * 27.0).reshape(2, 3, 3, 3)
WITH_TOKENS = torch.cat([torch.zeros(2, 2, 3), MAPS.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize(
    ("features", "maps", "expected"),
    [
        (MAPS, MAPS, ("NCHW", 0)),
        (MAPS.permute(0, 2, 3, 1), MAPS, ("NHWC", 0)),
        (MAPS.flatten(2).transpose(1, 2), MAPS, ("NLC", 0)),
        (WITH_TOKENS, MAPS, ("NLC", 2)),
        (WITH_TOKENS.to("meta"), MAPS.to("meta"), ("NLC", 2)),
        (SQUARE, SQUARE, ("NCHW", 0)),
        (SQUARE.permute(0, 2, 3, 1), SQUARE, ("NHWC", 0)),
        ((MAPS, MAPS), MAPS, None),
        (torch.zeros(2, 3), MAPS, None),
        (torch.zeros(2, 19, 3), MAPS, None),
        (MAPS + 1, MAPS, None),
        (MAPS.to("meta"), MAPS.to("meta"), ("NCHW", 0)),
    ],
)
def test_layouts_are_told_apart(features: object, maps: Tensor, expected: object) -> None:
    assert layout_of(features, maps) == expected


def test_shapes_alone_dont_tell_layouts_apart_where_all_sides_are_equal() -> None:
    with pytest.raises(AmbiguousLayoutError):
        layout_of(SQUARE.to("meta"), SQUARE.to("meta"))


# Features that no module gives by itself


def pairs() -> Pairs:
    """A network whose stages hand on two tensors, with taps that name one of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pairs().eval()


PAIR_TAPS = (Tap("stages.0", 4, "NCHW", 0, 1, 1, 2), Tap("stages.1", 4, "NCHW", 0, 1, 0, 2))


def test_features_are_found_by_their_numbers() -> None:
    net = pairs()
    first = net.stages[0](net.stem(images()))
    second = net.stages[1](first)
    found = find_outputs(net, images(), [first[1], second[0], net.stem(images())[0] + 1])
    assert found == [Output("stages.0", 1, 2), Output("stages.1", 0, 2), None]


def test_of_modules_inside_each_other_the_outermost_that_is_a_node_is_found() -> None:
    net = Staged().eval()
    stages = [net.stem(images())]
    for stage in net.stages:
        stages.append(stage(stages[-1]))
    assert find_outputs(net, images(), stages[3:]) == [Output("stages")]
    # `stages` is entered for the others, so it is no node.
    assert find_outputs(net, images(), stages[2:]) == [Output("stages.1"), Output("stages.2")]


def test_a_tap_names_one_of_several_tensors_and_each_is_handed_on_by_itself() -> None:
    net = pairs()
    first = net.stages[0](net.stem(images()))
    second = net.stages[1](first)
    made, expected = [exit_head("norm_linear", 4, CLASSES).eval() for _ in PAIR_TAPS], net(images())
    module = attach(net, PAIR_TAPS, made).eval()
    outputs = module(images())
    assert torch.equal(outputs[0], made[0](first[1].mean((2, 3))))
    assert torch.equal(outputs[1], made[1](second[0].mean((2, 3))))
    assert torch.equal(outputs[2], expected)
    values: Sequence[Tensor] = (images(),)
    for part, whole in zip(split(module), outputs, strict=True):
        logits, *values = part(*values)
        assert torch.equal(logits, whole)
        assert all(isinstance(value, Tensor) and len(value) == 3 for value in values)


def test_two_exits_can_read_two_tensors_of_one_module() -> None:
    net = pairs()
    first = net.stages[0](net.stem(images()))
    taps = [Tap("stages.0", 4, "NCHW", 0, 1, item, 2) for item in (0, 1)]
    made = [exit_head("norm_linear", 4, CLASSES).eval() for _ in taps]
    outputs = attach(net, taps, made).eval()(images())
    assert all(torch.equal(outputs[item], made[item](first[item].mean((2, 3)))) for item in (0, 1))


def test_a_module_that_changes_the_list_that_it_gets_runs_as_in_its_network() -> None:
    net = pairs()
    found = tap_values(trace(net, ["stages.0"]), ["stages.0"], images())["stages.0"]
    assert all(map(torch.equal, found, net.stages[0](net.stem(images()))))


def test_a_tap_names_a_value_that_there_is() -> None:
    for tap in (Tap("a", 4, "NCHW", 0, 1, 2, 2), Tap("a", 4, "NCHW", 0, 1, -1, 2), Tap("a", 4, "NCHW", 0, 1, 0, 10**9)):
        with pytest.raises(SpaceError, match="must be one of them"):
            Backbone("a", 5, 3, 8, True, 0.0, "linear", (tap,), ())
