"""SE_B against a peer: the original Once-For-All package's own MobileNetV3 supernet."""

import re
from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from torch import Tensor, nn

import supernets
from supernets import SpaceError, Subnet, Supernet, load_ofa_state_dict
from tests.supernets.randomise import CLASSES, images_for, randomise, small_net

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def peer(width_mult: float = 0.25, seed: int = 0, **changes: Any) -> nn.Module:
    choices = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4], "dropout_rate": 0.1}
    net = OFAMobileNetV3(n_classes=CLASSES, bn_param=(0.1, 1e-5), width_mult=width_mult, **choices | changes)
    randomise(net.double(), seed)
    return net.eval()


def ours(width_mult: float = 0.25, **changes: Any) -> Supernet:
    return small_net("se_b", seed=99, width_mult=width_mult, resolutions=(32, 48, 64), **changes)


@pytest.fixture(scope="module")
def peers_state() -> Mapping[str, Tensor]:
    """A state dict that nobody changes."""
    return MappingProxyType(peer(seed=10).state_dict())


@pytest.fixture(scope="module")
def refusing() -> Supernet:
    """A network that refuses all it is given, and so stays as it is."""
    return ours()


def activate(net: nn.Module, subnet: Subnet, generator: np.random.Generator) -> None:
    """Sets the peer's active sub-network; what does not run gets any value, since it must not matter."""
    blocks = max(net.depth_list)

    def padded(rows: tuple[tuple[int | None, ...], ...], choices: list[int]) -> list[int]:
        fill = [[int(c) for c in generator.choice(choices, blocks - len(row))] for row in rows]
        return list(chain.from_iterable([*row, *rest] for row, rest in zip(rows, fill, strict=True)))

    net.set_active_subnet(
        ks=padded(subnet.kernel, net.ks_list), e=padded(subnet.expand, net.expand_ratio_list), d=list(subnet.depth)
    )


def agree(theirs: nn.Module, net: Supernet, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = {side: images_for(net, 1, side, side, seed=side) for side in (48, 64, 80)}
    seen = []
    for _ in range(count):
        subnet = net.space.sample(generator)
        activate(theirs, subnet, generator)
        for side in images:
            with torch.no_grad():
                expected = theirs(images[side])
                torch.testing.assert_close(net(images[side], subnet), expected, **TIGHT)
        seen.append(expected)
    assert not any(torch.allclose(one, other, rtol=1e-6) for one, other in pairwise(seen))


@pytest.mark.parametrize(
    ("width_mult", "count"),
    [(1.0, 6), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1.2, 3), (0.25, 20)))],
)
def test_random_sub_networks_have_the_peers_logits(width_mult: float, count: int) -> None:
    theirs, net = peer(width_mult, seed=1), ours(width_mult)
    load_ofa_state_dict(net, theirs.state_dict())
    agree(theirs, net, count, seed=2)


def test_sub_networks_have_the_peers_logits_after_the_kernel_matrices_were_perturbed() -> None:
    theirs, net = peer(seed=3), ours()
    load_ofa_state_dict(net, theirs.state_dict())
    images, smallest = images_for(net), net.space.smallest()
    with torch.no_grad():
        before = net(images, smallest)
        generator = torch.Generator().manual_seed(4)
        for name, parameter in theirs.named_parameters():
            if name.endswith("_matrix"):
                parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1
    load_ofa_state_dict(net, theirs.state_dict())
    agree(theirs, net, 10, seed=5)
    with torch.no_grad():
        assert not torch.allclose(net(images, smallest), before, rtol=1e-6)


def test_other_choices_have_the_peers_logits() -> None:
    choices = {"kernel": (3, 7), "expand": (2, 4), "depth": (1, 3)}
    theirs = peer(seed=6, ks_list=[3, 7], expand_ratio_list=[2, 4], depth_list=[1, 3])
    net = ours(**choices)
    load_ofa_state_dict(net, theirs.state_dict())
    agree(theirs, net, 6, seed=7)


def test_the_largest_network_is_the_peers_in_training_mode_too() -> None:
    theirs, net = peer(seed=8, dropout_rate=0.0), ours(dropout=0.0)
    load_ofa_state_dict(net, theirs.state_dict())
    theirs.set_max_net()
    images = images_for(net, 4, 64, 64)
    with torch.no_grad():
        expected = theirs.train()(images)
        torch.testing.assert_close(net.train()(images, net.space.largest()), expected, **TIGHT)
    updated = ours(dropout=0.0)
    load_ofa_state_dict(updated, theirs.state_dict())
    torch.testing.assert_close(net.state_dict(), updated.state_dict(), **TIGHT)


def official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The older names that the official checkpoints have."""
    renamed = {}
    for name, tensor in state.items():
        old = re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", name)
        renamed[old.replace("classifier.linear.", "classifier.linear.linear.")] = tensor
    return renamed


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the wrappers' doubled parts."""
    pairs = ((".bn.bn.", ".bn."), (".conv.conv.weight", ".conv.weight"))
    renamed = dict(state)
    for doubled, single in pairs:
        renamed = {name.replace(doubled, single): tensor for name, tensor in renamed.items()}
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("style", [official, bare, lambda state: bare(official(state))])
def test_ofa_checkpoints_of_other_styles_load_alike(style: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
    theirs, net, other = peer(seed=9), ours(), ours()
    renamed = style(theirs.state_dict())
    assert set(renamed) != set(theirs.state_dict())
    load_ofa_state_dict(net, theirs.state_dict())
    load_ofa_state_dict(other, renamed)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in other.state_dict().items())


def without(part: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: peer(0.5).state_dict(), "shape.*width"),
        (lambda state: peer(ks_list=[3, 5]).state_dict(), "shape.*kernels"),
        (lambda state: peer(expand_ratio_list=[3, 4]).state_dict(), "shape"),
        (lambda state: peer(depth_list=[2, 3]).state_dict(), "shape|counterpart"),
        (lambda state: peer(depth_list=[4, 5]).state_dict(), "shape|counterpart"),
        (lambda state: {"state_dict": state}, "state_dict is no tensor"),
        (lambda state: {}, "no counterpart"),
        (lambda state: without("classifier", state), r"classifier\.weight has no counterpart"),
        (lambda state: without("7to5", state), "7to5 has no counterpart"),
        (lambda state: without("running_var", state), "running_var has no counterpart"),
        (lambda state: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict(), "is no tensor"),
        (lambda state: supernets.create("se_b", num_classes=CLASSES, width_mult=0.25).state_dict(), "is no tensor"),
        (lambda state: state | {"blocks.21.conv.depth_conv.conv.conv.weight": torch.zeros(1)}, "does not fit"),
        (lambda state: state | {"classifier.linear.bias": torch.zeros(3)}, "shape"),
        (lambda state: state | {"classifier.linear.bias": "junk"}, "classifier"),
        (lambda state: state | {7: torch.zeros(3)}, "7"),
    ],
)
def test_foreign_state_dicts_are_refused_and_the_net_is_unchanged(
    change: Any, message: str, refusing: Supernet, peers_state: Mapping[str, Tensor]
) -> None:
    net = refusing
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    given = change(dict(peers_state))
    with pytest.raises(SpaceError, match=message) as refusal:
        load_ofa_state_dict(net, given)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", [name for name in supernets.names() if name != "se_b"])
def test_only_se_b_takes_ofa_weights(name: str, peers_state: Mapping[str, Tensor]) -> None:
    net = small_net(name)
    with pytest.raises(SpaceError, match=rf"variant \({name}\)"):
        load_ofa_state_dict(net, peers_state)
