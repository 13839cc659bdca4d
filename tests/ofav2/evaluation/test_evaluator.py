"""Sub-networks are evaluated with statistics of their own, in any order and company, and the supernet never notices."""

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics
from torch import Tensor, nn

import distill
import supernets
from ofav2.data import Batch, ImageData
from ofav2.data.patches import IGNORED
from ofav2.data.views import evaluation_view
from ofav2.evaluation import evaluator as evaluation
from ofav2.evaluation.evaluator import Score, nested_groups
from ofav2.evaluation.recalibration import adopt_statistics, recalibrate
from ofav2.exits.collect import predict_exits
from ofav2.tasks.classification import Classification
from ofav2.tasks.segmentation import Segmentation
from supernets import Subnet, Supernet
from tests.ofav2.tiny import CPU, bits, cut, same_bits, tiny_data, tiny_evaluator, tiny_net
from tests.supernets.randomise import randomise

B = tuple(Fraction(i, 15) for i in (1, 2, 3, 4, 5))
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def uneven(*counts: int, side: int = 16, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Batches of different size, each from a distribution of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, 3, side, side, generator=generator, dtype=dtype) * (1 + number) + number
        for number, count in enumerate(counts)
    ]


def some(net: Supernet, count: int, seed: int = 0) -> list[Subnet]:
    generator = np.random.default_rng(seed)
    return [net.space.largest(), net.space.smallest(), *(net.space.sample(generator) for _ in range(count))]


def plain_recalibrate(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """OFA's routine as one would write it: every norm normalises with its batch, and notes mean and biased variance."""
    noted: dict[str, list[tuple[Tensor, Tensor, int]]] = {}

    def norm_with_batch(name: str, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3))
        centred = x - mean[:, None, None]
        var = (centred**2).mean((0, 2, 3))
        noted.setdefault(name, []).append((mean, var, len(x)))
        scale = norm.weight / (var + norm.eps).sqrt()
        return centred * scale[:, None, None] + norm.bias[:, None, None]

    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = partial(norm_with_batch, name, layer)  # type: ignore[method-assign]
    with torch.no_grad():
        for images in inputs:
            module(images)
    total = sum(map(len, inputs))
    return {
        name: (sum(mean * n for mean, _, n in rows) / total, sum(var * n for _, var, n in rows) / total)  # type: ignore[misc]
        for name, rows in noted.items()
    }


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_statistics_are_those_of_a_plain_routine(variant: str) -> None:
    net = tiny_net(variant, dtype=torch.float64)
    inputs = uneven(6, 6, 3)
    for subnet in some(net, 3):
        module = net.extract(subnet)
        expected = plain_recalibrate(net.extract(subnet), inputs)
        recalibrate(module, inputs)
        norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
        assert norms.keys() == expected.keys()
        for name, (mean, var) in expected.items():
            torch.testing.assert_close(norms[name].running_mean, mean, **CLOSE)
            torch.testing.assert_close(norms[name].running_var, var, **CLOSE)


def test_logits_are_those_of_the_original_package_after_its_own_recalibration() -> None:
    choices = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4], "dropout_rate": 0.1}
    theirs = OFAMobileNetV3(n_classes=5, bn_param=(0.1, 1e-5), width_mult=0.25, **choices).double()
    randomise(theirs, 4)
    net = supernets.create("se_b", num_classes=5, width_mult=0.25).double()
    supernets.load_ofa_state_dict(net, theirs.state_dict())
    inputs = uneven(5, 5, 2, side=48)
    images = uneven(4, side=48, seed=9)[0]
    generator = np.random.default_rng(5)
    for _ in range(4):
        k, e, d = (int(generator.choice(choices[key])) for key in ("ks_list", "expand_ratio_list", "depth_list"))  # type: ignore[call-overload]
        theirs.set_active_subnet(ks=k, e=e, d=d)
        set_running_statistics(theirs, [(batch, None) for batch in inputs])
        module = net.extract(net.space.uniform(kernel=k, expand=e, depth=d, resolution=48))
        recalibrate(module, inputs)
        with torch.no_grad():
            torch.testing.assert_close(module(images), theirs.eval()(images), rtol=1e-8, atol=1e-8)


def test_one_step_of_torchs_cumulative_mean_is_not_recalibration() -> None:
    """What would go wrong with torch's own averages: batches counted alike, and unbiased variances."""
    net = tiny_net(dtype=torch.float64)
    inputs = uneven(8, 2)
    module, careless = net.extract(net.space.largest()), net.extract(net.space.largest())
    recalibrate(module, inputs)
    careless.train()
    for layer in careless.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        for images in inputs:
            careless(images)
    ours: Any = module.get_submodule("stem.norm")
    other: Any = careless.get_submodule("stem.norm")
    assert not torch.allclose(ours.running_mean, other.running_mean, rtol=1e-2)
    assert not torch.allclose(ours.running_var, other.running_var, rtol=1e-2)


def test_recalibration_changes_statistics_and_nothing_else() -> None:
    net = tiny_net(dropout=0.5)
    module = net.extract(net.space.largest())
    assert any(isinstance(layer, nn.Dropout) and layer.p == 0.5 for layer in module.modules())
    before, inputs = bits(module), uneven(4, 3, dtype=torch.float32)
    recalibrate(module, inputs)
    after = bits(module)
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert {name.rpartition(".")[2] for name in changed} <= {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(layer.training for layer in module.modules())
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert not any(norm._forward_pre_hooks for norm in norms)

    again = net.extract(net.space.largest())
    torch.manual_seed(7)
    recalibrate(again, inputs)
    statistics = {name: t for name, t in after.items() if "running" in name}
    assert same_bits(statistics, {name: t for name, t in bits(again).items() if "running" in name}), "no dropout in it"


def test_a_recalibrated_module_can_go_on_as_any_other() -> None:
    net = tiny_net()
    module = net.extract(net.space.largest())
    recalibrate(module, uneven(4, 3, dtype=torch.float32))
    module.train()
    module(uneven(4, dtype=torch.float32)[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


# Groups


def test_nested_groups_hold_each_network_once_highest_first() -> None:
    net = tiny_net("ee_dp")
    wide, narrow = net.space.largest(), net.space.uniform(kernel=3)
    other = net.space.uniform(resolution=16)
    found = nested_groups([cut(narrow, 2), cut(wide, 3), wide, cut(wide, 3), other, cut(other, 1), cut(wide, 1)])
    assert sorted(map(len, found)) == [1, 2, 3]
    assert (wide, cut(wide, 3), cut(wide, 1)) in found
    assert (other, cut(other, 1)) in found
    assert (cut(narrow, 2),) in found


def test_every_member_is_its_host_cut_and_no_two_hosts_could_be_one() -> None:
    net = tiny_net("ee_dp")
    subnets = [cut(subnet, height) for subnet in some(net, 6) for height in range(1, subnet.height + 1)]
    random.Random(0).shuffle(subnets)
    found = nested_groups(subnets)
    assert sorted(map(str, (subnet for group in found for subnet in group))) == sorted(map(str, set(subnets)))
    for host, *members in found:
        assert all(cut(host, member.height) == member and member.height < host.height for member in members)
    assert len(found) == len({cut(subnet, subnet.height) for subnet in some(net, 6)})


@pytest.mark.parametrize("variant", ["ee_b", "ee_dp"])
def test_sharing_a_host_changes_no_statistic_by_a_bit(variant: str) -> None:
    net, data = tiny_net(variant), tiny_data()
    evaluator = tiny_evaluator(data)
    for subnet in (net.space.largest(), net.space.uniform(kernel=3, depth=2)):
        shared = bits(evaluator.calibrated(net, subnet, (1, 3, 5)))
        for height in (1, 3, 5):
            alone = bits(evaluator.calibrated(net, cut(subnet, height), (height,)))
            assert alone.keys() <= shared.keys()
            assert all(torch.equal(tensor, shared[name]) for name, tensor in alone.items())


def relatives(net: Supernet) -> list[Subnet]:
    """Two hosts cut at every exit, and some that share with nobody."""
    hosts = net.space.largest(), net.space.uniform(kernel=3, depth=2, level=1)
    return [*(cut(host, height) for host in hosts for height in (1, 2, 3, 4, 5)), *some(net, 2)[1:]]


def test_evaluating_together_is_evaluating_alone_in_any_order() -> None:
    net, data = tiny_net("ee_dp"), tiny_data(val=60)
    subnets = relatives(net)
    together = {score.subnet: score for score in tiny_evaluator(data).scores(net, subnets, data.val)}
    assert together.keys() == set(subnets)
    evaluator = tiny_evaluator(data)
    for subnet in subnets:
        assert list(evaluator.scores(net, [subnet], data.val)) == [together[subnet]]
    shuffled = random.Random(1).sample(subnets * 2, 2 * len(subnets))
    assert {score.subnet: score for score in evaluator.scores(net, shuffled, data.val)} == together
    for start in (0, 5):
        exits = [together[subnet].value for subnet in subnets[start : start + 5]]
        assert exits != exits[::-1], "exits that can be told apart"


def test_scores_are_those_of_a_plain_loop_image_by_image() -> None:
    net, data = tiny_net("ee_dp"), tiny_data()
    evaluator = tiny_evaluator(data, eval_crop=1.0, seed=3)
    (score,) = evaluator.scores(net, [net.space.uniform(depth=2, height=4, resolution=16)], data.test)
    module = net.extract(score.subnet)
    plain = net.extract(score.subnet)
    calibration = list(evaluator.calibration(16))
    assert [len(batch) for batch in calibration] == [8, 8, 3]
    for name, (mean, var) in plain_recalibrate(plain.double(), [batch.double() for batch in calibration]).items():
        norm: Any = module.get_submodule(name)
        norm.running_mean, norm.running_var = mean.float(), var.float()
    hits = 0
    for index, label in enumerate(data.test.targets.tolist()):
        image = data.normalise(evaluation_view(data.test.image(index), 16, 1.0)[None])
        with torch.no_grad():
            hits += int(module(image).argmax().item() == label)
    assert score == Score(score.subnet, hits / 17, 17)


class Mean(Classification):
    """A task whose metric is the mean of the logits, which shows every bit of them."""

    def tally(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.stack([output.double().sum(), torch.tensor(output.numel(), dtype=torch.float64)])


def test_a_runs_precision_is_that_of_training_and_changes_no_score() -> None:
    """What is written is float32, so a network that was measured in bfloat16 would be another one."""
    net, data = tiny_net("ee_dp"), tiny_data()
    found = []
    for precision in ("float32", "bfloat16"):
        runtime = replace(CPU, precision=precision)
        evaluator = tiny_evaluator(data, task=Mean(5), runtime=runtime)
        module = evaluator.calibrated(net, net.space.largest(), net.architecture.exits)
        scores = {score.subnet: score.value for score in evaluator.scores(net, relatives(net), data.val)}
        ensemble = evaluator.ensemble_score(module, B, 16, data.val)
        predicted, _ = predict_exits(module, evaluator, data.val, 16)
        with runtime.autocast():
            narrow = module(evaluator.sample_inputs(16))[-1].dtype
        found.append((scores, evaluator.exit_scores(module, 16, data.val), ensemble, predicted.tolist(), bits(module)))
    assert narrow == torch.bfloat16, "or the run's precision would mean nothing"
    assert found[0][:-1] == found[1][:-1]
    assert same_bits(found[0][-1], found[1][-1])


def test_the_supernet_is_untouched_by_evaluating() -> None:
    net, data = tiny_net("ee_dp"), tiny_data()
    for mode in (True, False):
        net.train(mode)
        before, gradients = bits(net), [p.requires_grad for p in net.parameters()]
        list(tiny_evaluator(data).scores(net, relatives(net), data.val))
        assert same_bits(bits(net), before)
        assert all(module.training is mode for module in net.modules())
        assert [p.requires_grad for p in net.parameters()] == gradients


def test_the_same_calibration_images_each_time_and_only_of_the_training_split() -> None:
    data = tiny_data()
    reference = tiny_evaluator(data).sample_inputs(16)
    assert torch.equal(tiny_evaluator(data).sample_inputs(16), reference)
    assert not torch.equal(tiny_evaluator(data, seed=4).sample_inputs(16), reference)
    blind = ImageData(
        **{**vars(data), "val": data.test.take("val", np.arange(0)), "test": data.val.take("test", np.arange(0))}
    )
    assert torch.equal(tiny_evaluator(blind).sample_inputs(16), reference)


def test_an_ensemble_is_evaluated_by_its_weighted_sum() -> None:
    net, data = tiny_net("ee_dp"), tiny_data()
    evaluator = tiny_evaluator(data, eval_crop=1.0)
    module = evaluator.calibrated(net, net.space.largest(), net.architecture.exits)
    hits = 0
    for images, labels in evaluator.inputs(data.val, 20):
        with torch.no_grad():
            weighted = sum(float(b) * logits.double() for b, logits in zip(B, module(images), strict=True))
        hits += int((weighted.argmax(1) == labels).sum())
    assert evaluator.ensemble_score(module, B, 20, data.val) == hits / len(data.val)
    only_last = tuple(Fraction(i) for i in (0, 0, 0, 0, 1))
    single = evaluator.calibrated(net, net.space.largest(), (5,))
    assert evaluator.ensemble_score(module, only_last, 20, data.val) == evaluator.exit_scores(single, 20, data.val)[0]


# Adopting statistics


def test_the_supernet_that_adopts_computes_what_the_module_does() -> None:
    net, data = tiny_net("ee_dp"), tiny_data()
    evaluator = tiny_evaluator(data)
    subnet = net.space.largest()
    module = evaluator.calibrated(net, subnet, net.architecture.exits)
    images = evaluator.sample_inputs(20)
    with torch.no_grad():
        assert not torch.allclose(net.eval()(images, subnet), module(images)[-1], rtol=1e-3)
        adopt_statistics(net, module)
        for ours, theirs in zip(net.eval()(images, subnet, exits="all"), module(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_smaller_module_changes_its_own_channels_and_nothing_else() -> None:
    net, data = tiny_net("ee_dp"), tiny_data()
    subnet = net.space.uniform(expand=2, depth=1, height=2)
    before = bits(net)
    module = tiny_evaluator(data).calibrated(net, subnet, (2,))
    adopt_statistics(net, module)
    own, after = bits(module), bits(net)
    for name, tensor in after.items():
        if name in own and "running" in name:
            count = len(own[name])
            assert torch.equal(tensor[:count], own[name])
            assert torch.equal(tensor[count:], before[name][count:])
        else:
            assert torch.equal(tensor, before[name])
    assert any(len(own[name]) < len(after[name]) for name in own if "running" in name)


def test_a_part_of_a_split_is_scored_after_the_whole_as_if_it_came_first() -> None:
    """Both are called `val`: what is kept of one must not be taken for the other."""
    data, net = tiny_data(val=40), tiny_net("ee_d", depth=(1,))
    part = data.val.take("val", np.arange(7))
    evaluator = tiny_evaluator(data)
    whole = list(evaluator.scores(net, [net.space.smallest()], data.val))
    (after,) = evaluator.scores(net, [net.space.smallest()], part)
    (first,) = tiny_evaluator(data).scores(net, [net.space.smallest()], part)
    assert after == first
    assert after.images == 7
    assert list(evaluator.scores(net, [net.space.smallest()], data.val)) == whole


def test_what_is_kept_of_all_resolutions_has_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(val=40)
    one = 40 * 3 * 16**2
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 2 * one)
    evaluator, plain = tiny_evaluator(data), tiny_evaluator(data)
    for side in (16, 16, 12, 20, 16):
        kept = [batch.images for batch in evaluator.inputs(data.val, side)]
        assert evaluator._kept.used <= 2 * one
        plain._kept.budget = 0
        assert all(map(torch.equal, kept, (batch.images for batch in plain.inputs(data.val, side))))
    assert evaluator._kept.used == one + 40 * 3 * 12**2


def test_a_loss_over_pixels_that_count_is_that_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of images have more or fewer such pixels, and a card's portions are others than a CPU's."""
    task, weights = Segmentation(("water", "land")), distill.exit_weights("uniform", 1)
    outputs = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(4, 5, 5, dtype=torch.long)
    targets[1, 1:], targets[2], targets[3, :, 2:] = IGNORED, IGNORED, IGNORED
    judge = tiny_evaluator(tiny_data())
    monkeypatch.setattr(judge, "task", task)
    for size in (1, 2, 3, 4):
        batches = list(map(Batch, outputs.split(size), targets.split(size)))
        monkeypatch.setattr(type(judge), "inputs", lambda *given, batches=batches: iter(batches))
        found = judge.joint_scores(nn.Identity(), weights, 5, judge.data.val)
        assert found.loss == pytest.approx(float(task.loss(outputs, targets)))
