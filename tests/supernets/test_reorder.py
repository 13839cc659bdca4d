"""Sorting hidden channels: the same function, the most important channels first, borders respected."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from supernets import Supernet, sort_channels
from supernets.blocks import InvertedResidual
from tests.supernets.randomise import images_for, small_net
from tests.supernets.reference import Reference, hidden, squeezed
from tests.supernets.variants import VARIANTS

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def elastic_blocks(net: Supernet) -> dict[str, InvertedResidual]:
    found = {name: module for name, module in net.named_modules() if isinstance(module, InvertedResidual)}
    assert found.pop("first") is net.first
    return found


def channel_importance(block: InvertedResidual) -> list[float]:
    return [block.project.weight[:, channel].abs().sum().item() for channel in range(block.project.weight.shape[1])]


def unit_importance(block: InvertedResidual) -> list[float]:
    assert block.squeeze is not None
    weight = block.squeeze.expand.weight
    return [weight[:, unit].abs().sum().item() for unit in range(weight.shape[1])]


def falls(values: list[float]) -> bool:
    # Sums are added in another order than the package adds them.
    return all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_function_of_networks_unlocked_so_far_is_unchanged(name: str) -> None:
    net = small_net(name, seed=1)
    images = images_for(net)
    space = net.space
    largest = space.largest()
    subnets = [
        largest,
        space.uniform(kernel=3),
        space.uniform(depth=2, kernel=5),
        space.uniform(level=min(space.level)),
        replace(largest, kernel=((3, 5, 7, 3),) * 5),
    ]
    with torch.no_grad():
        before = [net(images, subnet, exits="all") for subnet in subnets]
        small = net(images, space.uniform(expand=3))
        weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        sort_channels(net, (6,))
        for subnet, expected in zip(subnets, before, strict=True):
            torch.testing.assert_close(net(images, subnet, exits="all"), expected, **EXACT)
        assert not torch.allclose(net(images, space.uniform(expand=3)), small, rtol=1e-3)
    touched = {key for key, tensor in net.state_dict().items() if not torch.equal(tensor, weights[key])}
    assert touched
    assert all(".mbconv." in key and ".matrices." not in key for key in touched)
    assert not any("project_norm" in key for key in touched)


@pytest.mark.parametrize("name", ["se_b", "ee_dp"])
def test_importance_falls_inside_the_borders(name: str) -> None:
    net = small_net(name, seed=2)
    before = {block: sorted(channel_importance(module)) for block, module in elastic_blocks(net).items()}
    assert not any(falls(channel_importance(module)) for module in elastic_blocks(net).values())
    sort_channels(net, (6,))
    for block, module in elastic_blocks(net).items():
        assert falls(channel_importance(module)), block
        assert sorted(channel_importance(module)) == pytest.approx(before[block], rel=1e-12)
        assert module.squeeze is None or falls(unit_importance(module)), block
    assert any(module.squeeze is not None for module in elastic_blocks(net).values())


def test_a_second_sort_keeps_what_was_unlocked_before() -> None:
    net = small_net("ee_dp", seed=3)
    images = images_for(net)
    kept = [net.space.uniform(expand=expand, kernel=kernel) for expand in (4, 6) for kernel in (3, 7)]
    below = net.space.uniform(expand=3)
    with torch.no_grad():
        before = [net(images, subnet, exits="all") for subnet in kept]
        small = net(images, below)
        values = {name: channel_importance(module) for name, module in elastic_blocks(net).items()}
        sort_channels(net, (4, 6))
        for subnet, expected in zip(kept, before, strict=True):
            torch.testing.assert_close(net(images, subnet, exits="all"), expected, **EXACT)
        assert not torch.allclose(net(images, below), small, rtol=1e-3)
    for name, module in elastic_blocks(net).items():
        border = hidden(module.channels[0], 4)
        after = channel_importance(module)
        for part in (after[:border], after[border:]):
            assert falls(part), name
        assert sorted(after[:border]) == pytest.approx(sorted(values[name][:border]), rel=1e-12)
        if module.squeeze is not None:
            units, after = squeezed(border), unit_importance(module)
            for part in (after[:units], after[units:]):
                assert falls(part), name


def test_sorting_twice_is_sorting_once() -> None:
    net = small_net("se_b", seed=4)
    sort_channels(net, (6,))
    once = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    sort_channels(net, (6,))
    assert all(torch.equal(tensor, once[key]) for key, tensor in net.state_dict().items())


def top(importance: list[float], count: int) -> Tensor:
    """Indices of the `count` most important, the most important first."""
    return torch.tensor(sorted(range(len(importance)), key=lambda i: -importance[i])[:count])


def selected(net: Supernet, expand: int) -> dict[str, Tensor]:
    """Weights of the network with only the most important channels of each block, picked one by one."""
    state = dict(net.state_dict())
    for name, block in elastic_blocks(net).items():
        channels = top(channel_importance(block), hidden(block.channels[0], expand))
        rows = ["expand.weight", "depthwise.weight"]
        rows += [f"{norm}.{key}" for norm in ("expand_norm", "depthwise_norm") for key in net.stem.norm.state_dict()]
        columns = ["project.weight"]
        if block.squeeze is not None:
            rows += ["squeeze.expand.weight", "squeeze.expand.bias"]
            columns += ["squeeze.reduce.weight"]
        for key in rows:
            state[f"{name}.{key}"] = state[f"{name}.{key}"][channels]
        for key in columns:
            state[f"{name}.{key}"] = state[f"{name}.{key}"][:, channels]
        if block.squeeze is not None:
            units = top(unit_importance(block), squeezed(len(channels)))
            for key in ("squeeze.reduce.weight", "squeeze.reduce.bias"):
                state[f"{name}.{key}"] = state[f"{name}.{key}"][units]
            state[f"{name}.squeeze.expand.weight"] = state[f"{name}.squeeze.expand.weight"][:, units]
    return state


@pytest.mark.parametrize("expand", [3, 4])
@pytest.mark.parametrize("name", ["se_b", "ee_dp"])
def test_a_smaller_network_has_the_most_important_channels(name: str, expand: int) -> None:
    net = small_net(name, seed=5)
    images = images_for(net)
    subnet = net.space.uniform(expand=expand, kernel=5)
    plain = Reference(selected(net, expand), net.architecture.dense)
    expected = plain.run(images, subnet)[1][subnet.height]
    with torch.no_grad():
        assert not torch.allclose(net(images, subnet), expected, rtol=1e-3)
        sort_channels(net, (6,))
        torch.testing.assert_close(net(images, subnet), expected, **EXACT)


def test_a_ratio_that_the_supernet_lacks_is_refused_and_nothing_is_sorted() -> None:
    net = small_net("se_b", seed=6)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"unlocked \(5\)"):
        sort_channels(net, (6, 5))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_network_with_one_ratio_of_1_has_nothing_to_sort() -> None:
    net = small_net("ee_dp", seed=7, expand=(1,))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    sort_channels(net, (1,))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
