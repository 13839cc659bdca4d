"""A sub-network in two parts computes what the whole one does, and equal beginnings are equal parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import supernets
from tests.supernets.randomise import images_for, small_net, some_subnets
from tests.supernets.variants import VARIANTS


def outputs(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.parametrize("name", VARIANTS)
def test_both_parts_are_the_whole_to_the_bit(name: str) -> None:
    net = small_net(name, seed=1, dtype=torch.float32)
    images = images_for(net, 2, 48, 40)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with torch.inference_mode():
        for subnet in some_subnets(net, 1, seed=2):
            for exits in ("last", "all"):
                module = net.extract(subnet, exits)
                first, rest = net.extract_parts(subnet, exits)
                given = images.clone()
                middle = first(given)
                kept = middle.clone()
                for got, correct in zip(outputs(rest(middle)), outputs(module(images)), strict=True):
                    assert torch.equal(got, correct)
                assert torch.equal(given, images)
                assert torch.equal(middle, kept), "the second part leaves what it is given as it was"
                assert first.state_dict().keys() | rest.state_dict().keys() == module.state_dict().keys()
                assert not first.state_dict().keys() & rest.state_dict().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", ["se_b", "ee_dp"])
def test_networks_with_one_first_block_have_one_first_part(name: str) -> None:
    net = small_net(name, seed=3)
    codes = set()
    for kernel in (3, 7):
        one, other = (net.extract_parts(net.space.uniform(kernel=kernel, depth=depth))[0] for depth in (2, 4))
        assert one.code == other.code
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())
        codes.add(str(one.get_submodule("stages.0.blocks.0.mbconv.depthwise")))
    assert len(codes) == 2


def test_activations_are_in_place_only_where_nothing_else_reads() -> None:
    net = small_net("ee_dp", seed=5)
    first, rest = net.extract_parts(net.space.largest())
    in_place = [node for part in (first, rest) for node in part.graph.nodes if node.kwargs.get("inplace")]
    assert len(in_place) > 20
    assert all(len(node.all_input_nodes[0].users) == 1 for node in in_place)


def test_folded_norms_are_gone_and_the_function_stays() -> None:
    net = small_net("ee_dp", seed=6)
    images = images_for(net, 2, 48, 40)
    for subnet in some_subnets(net, 1, seed=7):
        module = net.extract(subnet, "all")
        before = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
        folded = supernets.fold_norms(module)
        with torch.no_grad():
            expected, same = module(images), folded(images)
            supernets.fold_norms_(module)
            for got, correct, known in zip(module(images), expected, same, strict=True):
                torch.testing.assert_close(got, correct, rtol=1e-10, atol=1e-10)
                assert torch.equal(got, known)
        counts = [sum(isinstance(layer, nn.BatchNorm2d) for layer in one.modules()) for one in (module, folded)]
        assert counts[0] == counts[1] < before / 2


def test_norms_of_products_fold_as_those_of_convolutions_do() -> None:
    """Else an evaluation on a CPU, which multiplies small images, would run most norms by themselves."""
    net = small_net("ee_dp", seed=6)
    plain, multiplied = (net.extract(net.space.largest(), "all") for _ in range(2))
    supernets.use_cpu_kernels(multiplied)
    assert supernets.foldable_norms(multiplied) == supernets.foldable_norms(plain)
    images = images_for(net, 2, 48, 40)
    for module in (plain, multiplied):
        supernets.fold_norms_(module)
    counts = [sum(isinstance(layer, nn.BatchNorm2d) for layer in one.modules()) for one in (plain, multiplied)]
    assert counts[0] == counts[1]
    with torch.no_grad():
        for got, expected in zip(multiplied(images), plain(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_norms_that_share_what_they_read_are_not_alone() -> None:
    net = small_net("ee_dp", seed=8)
    module = net.extract(replace(net.space.largest(), height=2))
    alone = supernets.foldable_norms(module)
    norms = {name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert "stages.0.blocks.0.mbconv.expand_norm" in alone
    assert "stages.0.blocks.1.transform.norm" in norms - set(alone), "it reads the block's input, as others do"
