"""Exits merged in a graph are the weighted sum of exits, to the bit or, as one product, but for rounding."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer, symbolic_trace

import distill
from supernets.ensembles import JOINED, ensemble_alone, fold_classifiers, with_ensemble
from supernets.graphs import keep
from tests.supernets.randomise import images_for, small_net

WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.3)


def network(dtype: torch.dtype) -> tuple[GraphModule, Tensor]:
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2), dtype=dtype)
    return net.extract(net.space.largest(), "all"), images_for(net, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kept_subset_has_the_whole_networks_logits_and_their_ensemble_to_the_bit(
    dtype: torch.dtype,
) -> None:
    module, images = network(dtype)
    with torch.no_grad():
        whole = module(images)
        for count in range(2, 6):
            for places in combinations(range(5), count):
                masked = distill.ensemble([whole[place] for place in places], [WEIGHTS[place] for place in places])
                pruned = keep(module, places)
                *exits, merged = with_ensemble(pruned, [WEIGHTS[place] for place in places])(images)
                assert all(torch.equal(logits, whole[place]) for logits, place in zip(exits, places, strict=True))
                assert torch.equal(merged, masked)
                assert torch.equal(ensemble_alone(pruned, [WEIGHTS[place] for place in places])(images), masked)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_linear_exits_fold_into_one_product(dtype: torch.dtype, least: float) -> None:
    module, images = network(dtype)
    folded = fold_classifiers(module, WEIGHTS, 7)
    with torch.no_grad():
        expected = distill.ensemble(module(images), WEIGHTS)
        assert float((folded(images) - expected).abs().max() / expected.abs().max()) < least
    products = [name for name, layer in folded.named_modules() if isinstance(layer, nn.Linear)]
    assert products == [JOINED]
    assert not folded.training
    assert len(module(images)) == 5, "the network itself stays as it was"


class Heads(nn.Module):
    def __init__(self, *heads: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(images) for head in self.heads)


def test_layers_without_bias_fold_too() -> None:
    module = symbolic_trace(Heads(nn.Linear(3, 4, bias=False), nn.Linear(3, 4), nn.Linear(3, 4, bias=False)))
    images, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), (0.5, 0.2, 0.3)
    torch.testing.assert_close(fold_classifiers(module, weights, 4)(images), distill.ensemble(module(images), weights))


def test_heads_of_several_layers_fold_their_last_one_and_other_exits_join_with_their_logits() -> None:
    head, other = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    module = symbolic_trace(Heads(head, nn.Linear(3, 3), other))
    images, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), (0.5, 0.2, 0.3)
    folded = fold_classifiers(module, weights, 3)
    torch.testing.assert_close(folded(images), distill.ensemble(module(images), weights))
    assert {type(layer) for layer in folded.children()} <= {nn.Linear, nn.Sequential, nn.Module}
    assert folded.get_submodule(JOINED).in_features == 9


def test_a_single_exit_folds_into_itself() -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)))
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fold_classifiers(module, (1.0,), 4)(images), module(images))


def test_exits_without_any_linear_layer_join_with_their_logits() -> None:
    module, weights = symbolic_trace(Heads(nn.ReLU(), nn.Tanh())), (0.25, 0.75)
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fold_classifiers(module, weights, 3)(images), distill.ensemble(module(images), weights))


class OwnHead(nn.Module):
    """A head in timm's manner: dropout as a function, and a way around the classifier."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.norm, self.fc, self.after = nn.LayerNorm(3), nn.Linear(3, 4), after

    def forward(self, images: Tensor, pre_logits: bool = False) -> Tensor:
        found = nn.functional.dropout(self.norm(images), 0.5, self.training)
        return found if pre_logits else self.after(self.fc(found))


class LeafHeads(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@pytest.mark.parametrize(("after", "read"), [(nn.Identity(), 3), (nn.Tanh(), 4)], ids=["linear", "logits"])
def test_a_head_that_is_a_module_of_its_own_folds_the_classifier_inside(after: nn.Module, read: int) -> None:
    net = Heads(OwnHead(after), nn.Linear(3, 4)).eval()
    module = GraphModule(net, LeafHeads().trace(net)).eval()
    images, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), (0.75, 0.25)
    folded = fold_classifiers(module, weights, 4)
    torch.testing.assert_close(folded(images), distill.ensemble(module(images), weights))
    assert folded.get_submodule(JOINED).in_features == read + 3
