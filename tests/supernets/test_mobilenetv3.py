"""The elastic network against a plain one, and what it promises around a call: nothing stored, nothing else touched."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import supernets
from supernets import SpaceError, Subnet, Supernet
from tests.supernets.randomise import exit_choices, images_for, small_net, some_subnets
from tests.supernets.reference import Reference, hidden, squeezed
from tests.supernets.variants import VARIANTS

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def reference_of(net: Supernet, *, training: bool = False) -> Reference:
    arch = net.architecture
    return Reference(net.state_dict(), arch.dense, arch.kernel, arch.stem_stride, training)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sub_network_computes_what_the_plain_network_computes(name: str) -> None:
    net = small_net(name, seed=1)
    plain = reference_of(net)
    for i, subnet in enumerate(some_subnets(net, 8, seed=2)):
        images = images_for(net, 2, 32 + 13 * (i % 2), 32 + 7 * (i % 3), seed=i)
        features, logits = plain.run(images, subnet)
        with torch.no_grad():
            torch.testing.assert_close(net.features(images, subnet)[1:], tuple(features), **TIGHT)
            torch.testing.assert_close(net(images, subnet), logits[subnet.height], **TIGHT)
            torch.testing.assert_close(net(images, subnet, exits="all"), tuple(logits.values()), **TIGHT)
        assert len(features) == subnet.height


@pytest.mark.parametrize(
    "choices",
    [
        {"kernel": (3,), "expand": (2, 4), "depth": (1, 2)},
        {"kernel": (1, 3, 7), "expand": (1, 5), "depth": (1, 6), "stem_stride": 1, "in_channels": 13},
        {"kernel": (5,), "expand": (1,), "depth": (3,)},
    ],
)
def test_other_choices_compute_what_the_plain_network_computes(choices: dict[str, Any]) -> None:
    net = small_net("ee_dp", seed=3, **choices)
    plain = reference_of(net)
    for subnet in some_subnets(net, 5, seed=4):
        images = images_for(net, 2, 33, 32)
        with torch.no_grad():
            torch.testing.assert_close(net(images, subnet), plain.run(images, subnet)[1][subnet.height], **TIGHT)


@pytest.mark.parametrize("name", ["se_b", "ee_dp"])
def test_in_training_mode_the_batch_normalises_and_only_channels_in_use_keep_statistics(name: str) -> None:
    net = small_net(name, seed=5, dropout=0.0).train()
    images = images_for(net, 4, 64, 64)
    for subnet in some_subnets(net, 3, seed=6):
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        plain = Reference(before, net.architecture.dense, training=True)
        expected = plain.run(images, subnet)[1][subnet.height]
        with torch.no_grad():
            torch.testing.assert_close(net(images, subnet), expected, **TIGHT)
        for key, tensor in net.state_dict().items():
            used = plain.statistics.get(key, tensor[:0])
            if key.startswith("exits.") and not key.startswith(f"exits.{subnet.height}."):
                used = tensor[:0]
            torch.testing.assert_close(tensor[: len(used)], used, **TIGHT)
            assert torch.equal(tensor[len(used) :], before[key][len(used) :]), key


@pytest.mark.parametrize("name", ["ee_b", "ee_dp"])
def test_exits_are_consistent(name: str) -> None:
    net = small_net(name, seed=7)
    images = images_for(net)
    subnet = replace(net.space.largest(), height=4)
    with torch.no_grad():
        every = net(images, subnet, exits="all")
        assert len(every) == 4
        assert torch.equal(net(images, subnet), every[3])
        assert torch.equal(net(images, subnet, exits="last"), every[3])
        for exit in range(1, 5):
            assert torch.equal(net(images, replace(subnet, height=exit)), every[exit - 1])
        pair = net(images, subnet, exits=(2, 4))
        assert isinstance(pair, tuple)
        assert len(pair) == 2
        assert torch.equal(pair[0], every[1])
        assert torch.equal(pair[1], every[3])
        (single,) = net(images, subnet, exits=[3])
        assert torch.equal(single, every[2])


def test_features_have_the_channels_and_strides_of_the_architecture() -> None:
    net = small_net("ee_dp", seed=8)
    with torch.no_grad():
        features = net.features(images_for(net, 2, 64, 45), net.space.largest())
    sides = [(32, 23), (16, 12), (8, 6), (4, 3), (4, 3), (2, 2)]
    channels = [net.architecture.stem_channels, *(stage.channels for stage in net.architecture.stages)]
    assert [tuple(x.shape) for x in features] == [(2, c, *side) for c, side in zip(channels, sides, strict=True)]


def test_resolution_is_not_looked_at() -> None:
    net = small_net("se_b", seed=9)
    subnet = net.space.smallest()
    with torch.no_grad():
        assert torch.equal(net(images_for(net), subnet), net(images_for(net), replace(subnet, resolution=999)))


def snapshot(net: Supernet) -> dict[str, Any]:
    """Everything that a module holds, by identity, and how often each tensor was written."""
    held: dict[str, Any] = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            held[f"{name}:{key}"] = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else id(value)
    return held | {name: tensor._version for name, tensor in net.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_forward_in_evaluation_mode_leaves_nothing_behind(name: str) -> None:
    net = small_net(name, seed=10)
    images = images_for(net)
    first, *others = some_subnets(net, 3)
    before = snapshot(net)
    with torch.no_grad():
        alone = net(images, first)
        for subnet in others:
            net(images, subnet, exits="all")
            net.features(images, subnet)
        again = net(images, first)
    assert snapshot(net) == before
    assert torch.equal(alone, again)


def test_two_threads_with_different_sub_networks_get_what_they_get_alone() -> None:
    net = small_net("ee_dp", seed=11)
    images = images_for(net)
    pair = net.space.largest(), net.space.smallest()
    with torch.no_grad():
        alone = [net(images, subnet) for subnet in pair]
    assert not torch.equal(*alone)
    start = threading.Barrier(len(pair))
    got: list[list[Tensor]] = [[], []]

    def run(i: int) -> None:
        start.wait()
        with torch.no_grad():
            got[i].extend(net(images, pair[i]) for _ in range(15))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(pair))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, got, strict=True):
        assert len(results) == 15
        assert all(torch.equal(result, expected) for result in results)


def used_part(net: Supernet, subnet: Subnet, name: str, tensor: Tensor) -> Tensor:
    """Mask of the entries of a parameter that the sub-network's logits depend on, from the method's description."""
    used = torch.zeros(tensor.shape, dtype=torch.bool)
    area, *rest = name.split(".")
    if area in ("stem", "first"):
        return ~used
    if area == "exits":
        return ~used if int(rest[0]) == subnet.height else used
    stage, block, branch, part = int(rest[0]), int(rest[2]), rest[3], ".".join(rest[4:])
    if stage >= subnet.height or block >= subnet.depth[stage] or branch not in subnet.level[stage][block]:
        return used
    if branch != "mbconv":
        return ~used
    kernel, expand = subnet.kernel[stage][block], subnet.expand[stage][block]
    assert kernel is not None
    assert expand is not None
    width = hidden(net.architecture.block_inputs(stage, block), expand)
    units = squeezed(width)
    if part == "depthwise.weight":
        # Kernels below 7 are made of the centre 5x5: the outer ring is 7's alone.
        ring = 0 if kernel == 7 else 1
        used[:width, :, ring : 7 - ring, ring : 7 - ring] = True
    elif part == "depthwise.matrices.7to5":
        # Rows are pixels of the 5x5 kernel that is made; 3x3 takes the centre ones.
        rows = used.view(5, 5, 25)
        if kernel == 5:
            rows[:] = True
        elif kernel == 3:
            rows[1:4, 1:4] = True
    elif part == "depthwise.matrices.5to3":
        used[:] = kernel == 3
    elif part == "squeeze.reduce.weight":
        used[:units, :width] = True
    elif part == "squeeze.reduce.bias":
        used[:units] = True
    elif part == "squeeze.expand.weight":
        used[:width, :units] = True
    elif part == "project.weight":
        used[:, :width] = True
    elif part.startswith("project_norm."):
        used[:] = True
    else:
        assert part.split(".")[0] in ("expand", "expand_norm", "depthwise_norm", "squeeze"), name
        used[:width] = True
    return used


@pytest.mark.parametrize("name", ["se_b", "ee_d", "ee_dp"])
def test_a_backward_touches_only_the_slices_in_use(name: str) -> None:
    net = small_net(name, seed=12)
    images = images_for(net, 2, 64, 64)
    # Distinct weights per logit: a plain sum would hide a permuted or doubled one.
    slopes = torch.linspace(-1.0, 2.0, net.architecture.num_classes, dtype=torch.float64)
    for subnet in some_subnets(net, 4, seed=13):
        net.zero_grad(set_to_none=True)
        (net(images, subnet) * slopes).sum().backward()
        for key, parameter in net.named_parameters():
            used = used_part(net, subnet, key, parameter)
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert (grad[~used] == 0).all(), f"{key} is touched outside {subnet}"
            assert not used.any() or (grad[used] != 0).any(), f"{key} gets no gradient in {subnet}"


def test_gradients_are_those_of_the_plain_network() -> None:
    net = small_net("ee_dp", seed=14)
    images = images_for(net)
    subnet = some_subnets(net, 1, seed=15)[2]
    net(images, subnet).square().sum().backward()
    parameters = {key: p.detach().clone().requires_grad_() for key, p in net.named_parameters()}
    plain = Reference({**net.state_dict(), **parameters}, net.architecture.dense)
    plain.run(images, subnet)[1][subnet.height].square().sum().backward()
    for key, parameter in net.named_parameters():
        if parameter.grad is None:
            assert parameters[key].grad is None, key
        else:
            # torch's backward of the hard sigmoid has 1/6 in single precision, which is 3e-8 off.
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, parameters[key].grad, rtol=0, atol=1e-6 * scale, msg=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 3}, r"height \(3\)"),
        (
            {
                "depth": (5,) * 5,
                "kernel": ((3,) * 5,) * 5,
                "expand": ((3,) * 5,) * 5,
                "level": ((("mbconv",),) * 5,) * 5,
            },
            "5",
        ),
        ({"kernel": ((3,) * 4,) * 4 + ((3, 9, 3, 3),)}, r"kernel\[4\]\[1\] \(9\)"),
        ({"expand": ((3,) * 4,) * 3 + ((3, 3, 5, 3),) * 2}, r"expand\[3\]\[2\] \(5\)"),
        ({"level": ((("mbconv", "conv"),) * 4,) * 5}, r"level\[0\]\[0\] \(mbconv, conv\)"),
    ],
)
def test_a_sub_network_outside_the_space_is_refused_by_name_and_value(change: dict[str, Any], message: str) -> None:
    net = small_net("se_b")
    foreign = replace(net.space.largest(), **change)
    assert foreign not in net.space
    for call in (net, net.features, lambda _, subnet: net.extract(subnet)):
        with pytest.raises(SpaceError, match=message):
            call(images_for(net), foreign)


@pytest.mark.parametrize(
    "exits", ["first", "", (), None, 3, (4, 2), (2, 2), (0,), (5,), (True,), (2.0,), ("2",), ([],), {2}]
)
def test_exits_that_are_not_on_the_way_are_refused(exits: Any) -> None:
    net = supernets.create("ee_b", num_classes=2, width_mult=0.05)
    subnet = replace(net.space.largest(), height=4)
    for call in (net, lambda _, subnet, exits: net.extract(subnet, exits)):
        with pytest.raises(SpaceError, match="exits"):
            call(images_for(net), subnet, exits)


def test_a_single_exit_network_has_the_last_exit_alone() -> None:
    net = small_net("se_dp")
    images = images_for(net)
    assert len(net(images, net.space.largest(), exits="all")) == 1
    assert exit_choices(net, net.space.largest()) == ["last", "all"]
    with pytest.raises(SpaceError, match="exits"):
        net(images, net.space.largest(), exits=(4,))


def test_set_dropout_reaches_every_exit() -> None:
    net = small_net("ee_b", dropout=0.0)
    images = images_for(net, 4, 64, 64)
    # Batch statistics are those of the batch in both calls, so only dropout can make them differ.
    net.train()
    subnet = net.space.largest()
    with torch.no_grad():
        plain, again = net(images, subnet, exits="all"), net(images, subnet, exits="all")
        net.set_dropout(0.5)
        torch.testing.assert_close(plain, again, rtol=0, atol=0)
        assert all(not torch.equal(a, b) for a, b in zip(plain, net(images, subnet, exits="all"), strict=True))
        net.set_dropout(0.0)
        torch.testing.assert_close(net(images, subnet, exits="all"), plain, rtol=0, atol=0)
