"""A folded network computes what the extracted one does, without the norms that follow a convolution."""

import pytest
import torch
from torch import Tensor, nn

import supernets
from tests.supernets.randomise import images_for, small_net, some_subnets


def convolutions_and_norms(module: nn.Module) -> tuple[int, int]:
    layers = list(module.modules())
    return sum(isinstance(m, nn.Conv2d) for m in layers), sum(isinstance(m, nn.BatchNorm2d) for m in layers)


@pytest.mark.parametrize("name", supernets.names())
def test_folding_keeps_the_function_and_leaves_the_module_as_it_was(name: str) -> None:
    net = small_net(name, seed=1)
    images = images_for(net, 2, 48, 40)
    for subnet in some_subnets(net, 1, seed=2):
        module = net.extract(subnet, "all")
        before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        with torch.no_grad():
            expected = module(images)
            folded = supernets.fold_norms(module)
            for got, correct in zip(folded(images), expected, strict=True):
                torch.testing.assert_close(got, correct, rtol=1e-10, atol=1e-10)
            again: tuple[Tensor, ...] = module(images)
        assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
        assert module.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
        convolutions, norms = convolutions_and_norms(module)
        kept, remaining = convolutions_and_norms(folded)
        assert kept == convolutions
        # The transform of a parallel block normalises what it is given where no convolution changes the channels.
        assert remaining == 0 if not net.architecture.parallel else remaining < norms / 2


def test_a_norm_is_folded_with_its_statistics_of_now() -> None:
    net = small_net("se_b", seed=3)
    module = net.extract(net.space.smallest())
    images = images_for(net)
    with torch.no_grad():
        early = supernets.fold_norms(module)(images)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean += 0.1
        torch.testing.assert_close(supernets.fold_norms(module)(images), module(images), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(early, module(images))


def test_a_network_in_training_mode_is_not_folded() -> None:
    net = small_net("se_b", seed=4)
    with pytest.raises(AssertionError, match="training mode"):
        supernets.fold_norms(net.extract(net.space.smallest()).train())
