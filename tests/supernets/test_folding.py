"""A folded network computes what the extracted one does, without the norms that follow a convolution."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

import supernets
from tests.supernets.randomise import images_for, small_net, some_subnets
from tests.supernets.variants import VARIANTS


def convolutions_and_norms(module: nn.Module) -> tuple[int, int]:
    layers = list(module.modules())
    return sum(isinstance(m, nn.Conv2d) for m in layers), sum(isinstance(m, nn.BatchNorm2d) for m in layers)


@pytest.mark.parametrize("name", VARIANTS)
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


class Activated(nn.BatchNorm2d):
    """A norm that activates, too, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Scaled(nn.Module):
    """A norm of torch's and one of another class, and a weight that the forward reads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 1), Activated(4)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_norm(self.first(images))
        return self.scale * self.second_norm(self.second(x))


def test_norms_of_other_classes_stay_and_so_do_weights_without_a_layer() -> None:
    net = Scaled().eval()
    nn.init.constant_(net.first_norm.running_mean, 0.3)  # type: ignore[arg-type]
    module = OpenTracer.traced(net)
    folded = supernets.fold_norms(module)
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(images), net(images))
    assert [type(layer) for layer in folded.children()].count(Activated) == 1
    assert supernets.foldable_norms(module) == {"first_norm": "first"}


class Shared(nn.Module):
    """A convolution and a norm that are called twice, and a norm that follows the same convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.norm(self.conv(images))
        return self.norm(self.other(self.conv(x)).relu())


def test_layers_that_run_twice_stay() -> None:
    net = Shared().eval()
    for norm in (net.norm, net.other):
        nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.constant_(norm.running_var, 4.0)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = net(images)
    torch.testing.assert_close(supernets.fold_norms(OpenTracer.traced(net))(images), expected)
    in_place = OpenTracer.traced(net)
    supernets.fold_norms_(in_place)
    torch.testing.assert_close(in_place(images), expected)


class OpenTracer(Tracer):
    """Takes layers as nodes, of whatever package their class is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    @classmethod
    def traced(cls, net: nn.Module) -> GraphModule:
        return GraphModule(net, cls().trace(net))
