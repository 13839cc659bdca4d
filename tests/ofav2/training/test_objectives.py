"""Losses are those of the paper, written out plainly; a teacher looks once, and learns nothing."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import distill
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Distill, DistillExits, InPlace, Joint, Losses, Teacher, all_exits, as_teacher
from supernets import Subnet, Supernet
from supernets.outputs import exit_logits
from tests.ofav2.tiny import cut, given, tiny_net

WEIGHTS = tuple(Fraction(i, 15) for i in (1, 2, 3, 4, 5))
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def net() -> Supernet:
    return tiny_net("ee_dp", dtype=torch.float64).eval()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 5, (count,), generator=generator)


def smoothed_ce(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with smoothed labels, image by image."""
    classes = logits.shape[1]
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        logs = row - row.exp().sum().log()
        for number in range(classes):
            target = smoothing / classes + (1 - smoothing if number == label else 0)
            total = total - target * logs[number]
    return total / len(labels)


def joint(net: Supernet, *subnets: Subnet) -> Joint:
    return Joint(Classification(5, 0.1), given(net, *subnets), WEIGHTS, all_exits(net))


def students(
    net: Supernet,
    subnets: tuple[Subnet, ...],
    teacher: Teacher | None = None,
    distance: distill.Distance = distill.mse,
    kd_ratio: float = 1.0,
) -> Distill:
    return Distill(Classification(5, 0.1), given(net, *subnets), net, teacher, distance, kd_ratio)


def counting(teach: Callable[[Tensor], distill.Target], seen: list[Tensor]) -> Teacher:
    def counted(images: Tensor) -> distill.Target:
        seen.append(images)
        return teach(images)

    return counted


def test_the_joint_loss_is_the_weighted_sum_over_exits(net: Supernet) -> None:
    images, labels = batch()
    subnets = (net.space.largest(), net.space.uniform(kernel=3, height=3))
    with pytest.raises(distill.DistillError, match="exits"):
        list(joint(net, *subnets).losses(images, labels, 0))
    (found,) = joint(net, subnets[0]).losses(images, labels, 0)
    exits = [smoothed_ce(logits, labels, 0.1) for logits in net(images, subnets[0], exits="all")]
    assert len(exits) == 5
    expected = sum((float(a) * loss for a, loss in zip(WEIGHTS, exits, strict=True)), torch.zeros(()))
    torch.testing.assert_close(found["loss"], expected, check_dtype=False, **TIGHT)
    for number, loss in enumerate(exits, start=1):
        torch.testing.assert_close(found[f"exit_{number}"], loss.detach(), **TIGHT)
        assert not found[f"exit_{number}"].requires_grad


@pytest.mark.parametrize("name", distill.distances())
def test_a_students_loss_is_distance_plus_cross_entropy(net: Supernet, name: str) -> None:
    images, labels = batch()
    generator = np.random.default_rng(2)
    subnets = tuple(net.space.sample(generator) for _ in range(3))
    module = tiny_net("ee_dp", seed=8, dtype=torch.float64).eval().extract(net.space.largest(), exits="all")
    objective = students(net, subnets, as_teacher(module, WEIGHTS), distill.distance(name), 0.7)
    found = list(objective.losses(images, labels, 0))

    weighted = sum(float(b) * logits for b, logits in zip(WEIGHTS, module(images), strict=True)).detach()
    for losses, subnet in zip(found, subnets, strict=True):
        logits = net(images, subnet)
        ce = smoothed_ce(logits, labels, 0.1)
        apart = {
            "cross_entropy": lambda own: -(weighted.softmax(1) * own.log_softmax(1)).sum(1).mean(),
            "mse": lambda own: ((own - weighted) ** 2).mean(),
        }[name](logits)
        torch.testing.assert_close(losses["loss"], 0.7 * apart + ce, **TIGHT)
        torch.testing.assert_close(losses["task_loss"], ce.detach(), **TIGHT)
        torch.testing.assert_close(losses["kd"], apart.detach(), **TIGHT)
        assert not losses["task_loss"].requires_grad
        assert not losses["kd"].requires_grad


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_teacher_looks_at_the_students_batch_once(net: Supernet, count: int) -> None:
    images, labels = batch()
    seen: list[Tensor] = []
    teacher = counting(as_teacher(net.extract(net.space.largest(), exits="all"), WEIGHTS), seen)
    losses = list(students(net, (net.space.smallest(),) * count, teacher).losses(images, labels, 0))
    assert len(losses) == count
    assert len(seen) == 1
    assert seen[0] is images


def test_no_gradient_flows_into_the_teacher(net: Supernet) -> None:
    images, labels = batch()
    module = tiny_net("ee_dp", seed=8, dtype=torch.float64).eval().extract(net.space.largest(), exits="all")
    assert all(parameter.requires_grad for parameter in module.parameters()), "nothing but the call keeps them out"
    target = as_teacher(module, WEIGHTS)(images)
    assert not target.logits.requires_grad
    assert not target.probabilities.requires_grad
    ends = (net.space.largest(), net.space.smallest())
    objective = students(net, ends, as_teacher(module, WEIGHTS), distill.soft_cross_entropy)
    for losses in objective.losses(images, labels, 0):
        losses["loss"].backward()
    assert all(parameter.grad is None for parameter in module.parameters())

    recorded: list[bool] = []
    module.register_forward_pre_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    as_teacher(module, WEIGHTS)(images)
    assert recorded == [False], "its activations are not even kept"
    assert any(parameter.grad is not None for parameter in net.parameters())


# All exits of a body at once

SOME = {1: Fraction(1, 4), 3: Fraction(1, 2), 5: Fraction(1, 4)}
"""Weights of the exits that are trained."""


def gradients(net: Supernet, losses: Iterable[Losses]) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    for parts in losses:
        parts["loss"].backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kd_ratio", [0.7, 0.0])
def test_gradients_of_all_exits_are_the_weighted_sum_of_each_ones_own(net: Supernet, kd_ratio: float) -> None:
    """The plain reference: a forward and a backward pass for each exit, each network ending there."""
    images, labels = batch()
    bodies = (net.space.largest(), net.space.uniform(kernel=3, depth=2))
    module = tiny_net("ee_dp", seed=8, dtype=torch.float64).eval().extract(net.space.largest(), exits="all")
    teach, kd = as_teacher(module, WEIGHTS), distill.soft_cross_entropy
    seen: list[Tensor] = []
    objective = DistillExits(
        Classification(5, 0.1), given(net, *bodies), net, counting(teach, seen), kd, kd_ratio, SOME
    )
    parts = list(objective.losses(images, labels, 0))
    assert len(seen) == (1 if kd_ratio else 0)
    found = gradients(net, parts)

    expected: dict[str, Tensor] = {}
    for body, losses in zip(bodies, parts, strict=True):
        totals = dict.fromkeys(("loss", "task_loss", "kd"), 0.0)
        for exit_, weight in SOME.items():
            (single,) = students(net, (cut(body, exit_),), teach, kd, kd_ratio).losses(images, labels, 0)
            totals = {name: total + float(weight) * float(single[name].detach()) for name, total in totals.items()}
            assert float(losses[f"exit_{exit_}"]) == pytest.approx(float(single["task_loss"]), rel=1e-12)
            for name, gradient in gradients(net, [single]).items():
                expected[name] = expected.get(name, torch.zeros_like(gradient)) + float(weight) * gradient
        assert {name: float(losses[name].detach()) for name in totals} == pytest.approx(totals, rel=1e-12)
        assert losses.keys() == {"loss", "task_loss", "kd", "exit_1", "exit_3", "exit_5"}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)
    assert not any(name.startswith(("exits.2", "exits.4")) for name in found), "exits without weight take no part"


def test_in_place_the_largest_learns_from_labels_and_its_ensemble_teaches_the_others(net: Supernet) -> None:
    images, labels = batch()
    largest, others = net.space.largest(), [net.space.uniform(kernel=3, depth=depth) for depth in (1, 2)]
    ensemble = {2: Fraction(1, 3), 5: Fraction(2, 3)}
    task = Classification(5, 0.1)
    objective = InPlace(task, given(net, largest, *others), net, SOME, ensemble, distill.soft_cross_entropy, 0.7)
    found = gradients(net, objective.losses(images, labels, 0))

    first = DistillExits(task, given(net, largest), net, None, distill.soft_cross_entropy, 0.7, SOME)
    expected = gradients(net, first.losses(images, labels, 0))
    outputs = net(images, largest, exits="all")
    said = distill.teacher_target([outputs[1], outputs[4]], tuple(ensemble.values()))
    assert not said.logits.requires_grad
    rest = DistillExits(task, given(net, *others), net, lambda _: said, distill.soft_cross_entropy, 0.7, SOME)
    for name, gradient in gradients(net, rest.losses(images, labels, 0)).items():
        expected[name] = expected.get(name, torch.zeros_like(gradient)) + gradient
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)
    assert len({frozenset(parts) for parts in objective.losses(images, labels, 0)}) == 1, "means are over all losses"


def refusing(images: Tensor) -> Any:
    pytest.fail("the teacher ran")


def test_without_a_share_the_teacher_never_runs(net: Supernet) -> None:
    images, labels = batch()
    subnet = net.space.smallest()
    (silent,) = students(net, (subnet,), refusing, kd_ratio=0.0).losses(images, labels, 0)
    (alone,) = students(net, (subnet,)).losses(images, labels, 0)
    expected = smoothed_ce(net(images, subnet), labels, 0.1)
    torch.testing.assert_close(silent["loss"], expected, **TIGHT)
    torch.testing.assert_close(alone["loss"], expected, **TIGHT)
    assert silent["kd"] == alone["kd"] == 0
    task, kd = Classification(5, 0.1), distill.mse
    list(DistillExits(task, given(net, net.space.largest()), net, refusing, kd, 0.0, SOME).losses(images, labels, 0))


def test_without_a_share_nobody_teaches_in_place(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "teacher_target", refusing)
    images, labels = batch()
    subnets, task = (net.space.largest(), net.space.uniform(kernel=3, depth=1)), Classification(5, 0.1)
    found = list(InPlace(task, given(net, *subnets), net, SOME, SOME, distill.mse, 0.0).losses(images, labels, 0))
    assert [float(losses["kd"]) for losses in found] == [0, 0]


def test_losses_come_one_by_one(net: Supernet) -> None:
    """Memory holds one sub-network's activations: the next one runs after the last one's backward pass."""
    images, labels = batch()
    ran: list[int] = []

    class Noted(nn.Module):
        def forward(self, images: Tensor, subnet: Any, **choices: Any) -> Any:
            ran.append(subnet.height)
            return net(images, subnet, **choices)

    subnets = tuple(net.space.uniform(height=height) for height in (5, 3, 1))
    objective = replace(students(net, subnets), net=Noted())  # type: ignore[arg-type]
    losses = objective.losses(images, labels, 0)
    assert ran == []
    for count in (1, 2, 3):
        next(losses)
        assert ran == [5, 3, 1][:count]


def test_outputs_with_one_and_with_several_exits() -> None:
    one, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert exit_logits(one) == (one,)
    assert exit_logits((one, other)) == (one, other)


def test_what_a_teacher_says_can_be_saved_for_a_backward_pass(net: Supernet) -> None:
    """It computes in inference mode, whose tensors could not; a single exit of weight 1 is what it was given."""
    images = torch.randn(2, 3, 32, 32, dtype=next(net.parameters()).dtype, generator=torch.Generator().manual_seed(3))
    seen: list[bool] = []

    def module(given: Tensor) -> Tensor:
        seen.append(torch.is_inference_mode_enabled())
        return net(given, net.space.smallest())

    target = as_teacher(module, (Fraction(1),))(images)  # type: ignore[arg-type]
    assert seen == [True]
    assert not target.logits.is_inference()
    assert not target.probabilities.is_inference()
    logits = torch.zeros_like(target.logits, requires_grad=True)
    (distill.soft_cross_entropy(logits, target) + distill.mse(logits, target)).backward()
    assert logits.grad is not None
