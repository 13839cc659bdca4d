"""Losses: against slow float64 references, in exact cases, in gradients and under autocast."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import distill
from distill import (
    Distance,
    DistillError,
    Target,
    distance,
    distances,
    ens_kd_target,
    ensemble,
    exit_weights,
    mse,
    soft_cross_entropy,
    teacher_target,
)
from ofav2.tasks.classification import Classification


def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return Classification(logits.shape[1], smoothing).loss(logits, labels)


def joint_loss(
    exits: Sequence[Tensor], labels: Tensor, weights: Sequence[Fraction | float], label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    return distill.joint_loss(exits, lambda logits: label_loss(logits, labels, label_smoothing), weights)


def student_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float,
    target: Target | None,
    distance: Distance,
    kd_ratio: float,
) -> dict[str, Tensor]:
    own = label_loss(logits, labels, label_smoothing)
    return distill.student_loss(logits, own, target=target, distance=distance, kd_ratio=kd_ratio)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels_of(images: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))


def softmax(row: Sequence[float]) -> list[float]:
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def plain_cross_entropy(student: Tensor, probabilities: Sequence[Sequence[float]]) -> float:
    """Mean over images of -sum p log q, one number at a time."""
    total = 0.0
    for row, row_target in zip(student.tolist(), probabilities, strict=True):
        total -= sum(p * math.log(q) for p, q in zip(row_target, softmax(row), strict=True))
    return total / len(student)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> list[list[float]]:
    return [
        [smoothing / classes + (1 - smoothing) * (index == label) for index in range(classes)]
        for label in labels.tolist()
    ]


def test_ensemble_is_the_weighted_sum() -> None:
    logits = [torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -4.0]]), torch.tensor([[0.5, 8.0]])]
    weights = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4))
    assert torch.equal(ensemble(logits, weights), torch.tensor([[3.125, 2.0]]))
    assert torch.equal(ensemble(logits[:1], (1,)), logits[0])


def test_exits_of_weight_zero_are_not_touched() -> None:
    good, broken = draw(3, 4), torch.full((3, 4), float("nan"), dtype=torch.float64)
    assert torch.equal(ensemble([broken, good], (0, 1)), good)
    assert torch.equal(ensemble([draw(1, 9), good], (Fraction(0), Fraction(1))), good), "not even its shape is checked"
    losses = joint_loss([broken, good], labels_of(3, 4), (0.0, 1.0))
    assert set(losses) == {"loss", "exit_2"}
    assert losses["loss"].isfinite()


def test_target_is_the_softmax_of_the_ensemble() -> None:
    logits = [draw(5, 7, seed=seed) for seed in range(3)]
    weights = exit_weights("ascending", 3).ensemble
    target = ens_kd_target(logits, weights)
    assert target.shape == (5, 7)
    for image in range(5):
        mixed = [
            sum(
                float(weight) * exit_logits[image, label].item()
                for weight, exit_logits in zip(weights, logits, strict=True)
            )
            for label in range(7)
        ]
        assert target[image].tolist() == pytest.approx(softmax(mixed), rel=1e-12)


def test_a_target_computed_once_equals_one_computed_for_each_student() -> None:
    teacher = [draw(6, 5, seed=seed).float() for seed in range(2)]
    weights = exit_weights("ascending", 2).ensemble
    once = teacher_target(teacher, weights)
    for seed in (10, 11, 12):
        student = draw(6, 5, seed=seed).float()
        for name in distances():
            again = teacher_target(teacher, weights)
            assert torch.equal(distance(name)(student, once), distance(name)(student, again))
    assert torch.equal(once.probabilities, ens_kd_target(teacher, weights))
    assert torch.equal(once.logits, ensemble(teacher, weights))


def test_no_gradient_reaches_the_teacher() -> None:
    teacher, student = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    target = teacher_target([teacher], (1,))
    for name in distances():
        losses = student_loss(
            student, labels_of(4, 3), label_smoothing=0.0, target=target, distance=distance(name), kd_ratio=1.0
        )
        losses["loss"].backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_soft_cross_entropy_against_a_plain_reference() -> None:
    student, teacher = draw(8, 6, seed=1), draw(8, 6, seed=2)
    expected = plain_cross_entropy(student, [softmax(row) for row in teacher.tolist()])
    assert soft_cross_entropy(student, teacher_target([teacher], (1,))).item() == pytest.approx(expected, rel=1e-12)


def test_soft_cross_entropy_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[5.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    expected = (math.log(2) + 0.5 * math.log(4 / 3) + 0.5 * math.log(4)) / 2
    assert soft_cross_entropy(student, teacher_target([teacher], (1,))).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_of_soft_cross_entropy_is_student_minus_teacher_over_the_batch() -> None:
    student, teacher = draw(5, 4, seed=3).requires_grad_(), draw(5, 4, seed=4)
    target = teacher_target([teacher], (1,))
    soft_cross_entropy(student, target).backward()
    assert student.grad is not None
    expected = (student.detach().softmax(dim=1) - teacher.softmax(dim=1)) / 5
    torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(
        lambda logits: soft_cross_entropy(logits, target), (student.detach().requires_grad_(),)
    )


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = draw(5, 4)
    target = teacher_target([teacher], (1,))
    for name in distances():
        student = teacher.clone().requires_grad_()
        distance(name)(student, target).backward()
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-15
    assert mse(teacher, target) == 0


def test_mse_is_the_mean_over_batch_and_classes_of_weighted_logits() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = [torch.tensor([[1.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])]
    assert mse(student, teacher_target(teacher, (0.5, 0.5))).item() == (0 + 4 + 4 + 0) / 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_joint_loss_against_a_plain_reference(smoothing: float) -> None:
    logits, labels = [draw(6, 5, seed=seed) for seed in range(5)], labels_of(6, 5)
    weights = exit_weights("ascending_paper", 5).losses
    losses = joint_loss(logits, labels, weights, label_smoothing=smoothing)
    parts = [plain_cross_entropy(exit_logits, smoothed(labels, 5, smoothing)) for exit_logits in logits]
    assert list(losses) == ["loss", "exit_1", "exit_2", "exit_3", "exit_4", "exit_5"]
    for number, expected in enumerate(parts, start=1):
        assert losses[f"exit_{number}"].item() == pytest.approx(expected, rel=1e-12)
    expected = sum(weight * part for weight, part in zip((0.06, 0.13, 0.20, 0.27, 0.34), parts, strict=True))
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-12)


def test_joint_loss_weighs_each_exits_gradient() -> None:
    logits = [draw(4, 3, seed=seed).requires_grad_() for seed in range(3)]
    joint_loss(logits, labels_of(4, 3), (0.75, 0.0, 0.25))["loss"].backward()
    first, skipped, last = (exit_logits.grad for exit_logits in logits)
    one_hot = torch.nn.functional.one_hot(labels_of(4, 3), 3)
    assert skipped is None
    for grad, exit_logits, weight in ((first, logits[0], 0.75), (last, logits[2], 0.25)):
        assert grad is not None
        expected = weight * (exit_logits.detach().softmax(dim=1) - one_hot) / 4
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
@pytest.mark.parametrize(("smoothing", "kd_ratio"), [(0.0, 1.0), (0.1, 1.0), (0.1, 0.3)])
def test_student_loss_against_a_plain_reference(name: str, smoothing: float, kd_ratio: float) -> None:
    student, teacher, labels = draw(7, 5, seed=1), draw(7, 5, seed=2), labels_of(7, 5)
    losses = student_loss(
        student,
        labels,
        label_smoothing=smoothing,
        target=teacher_target([teacher], (1,)),
        distance=distance(name),
        kd_ratio=kd_ratio,
    )
    ce = plain_cross_entropy(student, smoothed(labels, 5, smoothing))
    kd = {
        "cross_entropy": plain_cross_entropy(student, [softmax(row) for row in teacher.tolist()]),
        "mse": sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
        / 35,
    }[name]
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        {"loss": kd_ratio * kd + ce, "task_loss": ce, "kd": kd}, rel=1e-12
    )
    assert not losses["task_loss"].requires_grad
    assert not losses["kd"].requires_grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_labels_may_be_probabilities(smoothing: float, dtype: torch.dtype) -> None:
    """Certain ones are classes; of a mixture of two, the loss is the mixture of the losses, as the loss is linear."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator).to(dtype)
    first, second = (torch.randint(0, 5, (6,), generator=generator) for _ in range(2))

    def losses(labels: Tensor) -> Tensor:
        joint = joint_loss([logits, 2 * logits], labels, [Fraction(1, 4), Fraction(3, 4)], smoothing)["loss"]
        student = student_loss(
            logits, labels, label_smoothing=smoothing, target=None, distance=distance("mse"), kd_ratio=0.0
        )["loss"]
        return torch.stack([joint, student])

    one_hot = torch.eye(5)
    torch.testing.assert_close(losses(one_hot[first]), losses(first))
    mixture = 0.3 * one_hot[first] + 0.7 * one_hot[second]
    torch.testing.assert_close(losses(mixture), 0.3 * losses(first) + 0.7 * losses(second))


def test_without_teacher_or_ratio_the_students_loss_is_the_labels_alone() -> None:
    student, labels = draw(4, 3).requires_grad_(), labels_of(4, 3)
    broken = Target(*(torch.full((4, 3), float("nan"), dtype=torch.float64),) * 2)
    expected = torch.nn.functional.cross_entropy(student, labels, label_smoothing=0.1)
    for target, kd_ratio in ((None, 1.0), (broken, 0.0)):
        losses = student_loss(
            student, labels, label_smoothing=0.1, target=target, distance=soft_cross_entropy, kd_ratio=kd_ratio
        )
        assert torch.equal(losses["loss"], expected)
        assert torch.equal(losses["task_loss"], expected)
        assert losses["kd"] == 0


def test_any_function_of_student_and_target_is_a_distance() -> None:
    def total_variation(student_logits: Tensor, target: Target) -> Tensor:
        return (student_logits.softmax(dim=1) - target.probabilities).abs().sum(dim=1).mean() / 2

    student, teacher = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    losses = student_loss(
        student,
        torch.tensor([0]),
        label_smoothing=0.0,
        target=teacher_target([teacher], (1,)),
        distance=total_variation,
        kd_ratio=2.0,
    )
    assert losses["loss"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_everything_is_float32_or_wider_with_and_without_autocast(dtype: torch.dtype) -> None:
    exits = [draw(4, 6, seed=seed).to(dtype) for seed in range(2)]
    weights, labels = exit_weights("ascending", 2), labels_of(4, 6)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def everything() -> dict[str, Tensor]:
        target = teacher_target(exits, weights.ensemble)
        results = {"logits": target.logits, "probabilities": target.probabilities}
        results |= {f"joint {k}": v for k, v in joint_loss(exits, labels, weights.losses, 0.1).items()}
        for name in distances():
            losses = student_loss(
                exits[0], labels, label_smoothing=0.1, target=target, distance=distance(name), kd_ratio=1.0
            )
            results |= {f"{name} {k}": v for k, v in losses.items()}
        return results

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    for key, value in plain.items():
        assert value.dtype == wide, key
        assert inside[key].dtype == wide, key
        assert torch.equal(inside[key], value), key
    exact = ensemble([exit_logits.double() for exit_logits in exits], weights.ensemble)
    torch.testing.assert_close(plain["logits"].double(), exact, rtol=1e-6, atol=1e-6)


def test_huge_logits_give_finite_losses() -> None:
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    losses = student_loss(
        student,
        torch.tensor([1, 1]),
        label_smoothing=0.1,
        target=teacher_target([-student.detach()], (1,)),
        distance=soft_cross_entropy,
        kd_ratio=1.0,
    )
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_distances_are_found_by_name() -> None:
    assert distances() == ("cross_entropy", "mse")
    assert distance("cross_entropy") is soft_cross_entropy
    assert distance("mse") is mse
    with pytest.raises(DistillError, match=r"'cross_entrpy'.*did you mean cross_entropy.*use cross_entropy or mse"):
        distance("cross_entrpy")


@pytest.mark.parametrize(
    ("logits", "weights", "message"),
    [
        ([draw(2, 3)] * 3, (0.5, 0.5), r"exits \(3 tensors of logits\) must be as many as weights \(2\)"),
        ([], (), r"leave no exit"),
        ([draw(2, 3)] * 2, (0.0, 0), r"\[0\.0, 0\.0\].*leave no exit"),
        ([draw(2, 3), draw(1, 3)], (0.5, 0.5), r"shapes \[\(2, 3\), \(1, 3\)\]"),
        ([draw(3)], (1,), r"shapes \[\(3,\)\]"),
    ],
)
def test_exits_that_do_not_belong_together_are_refused(
    logits: list[Tensor], weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        ensemble(logits, weights)
    with pytest.raises(DistillError, match=message):
        joint_loss(logits, labels_of(2, 3), weights)
    with pytest.raises(DistillError, match=message):
        teacher_target(logits, weights)


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
@pytest.mark.parametrize("shape", [(1, 3), (4, 5)])
def test_a_teacher_of_another_shape_is_refused_and_not_broadcast(name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(DistillError, match=r"student logits \(shape \(4, 3\)\) must have the teacher's shape"):
        distance(name)(draw(4, 3), teacher_target([draw(*shape)], (1,)))


@pytest.mark.parametrize("kd_ratio", [-1.0, float("nan"), float("inf")])
def test_a_kd_ratio_that_is_no_weight_is_refused(kd_ratio: float) -> None:
    with pytest.raises(DistillError, match=r"kd_ratio \(.*must be 0 or more and finite"):
        student_loss(draw(2, 3), labels_of(2, 3), label_smoothing=0.0, target=None, distance=mse, kd_ratio=kd_ratio)


@pytest.mark.parametrize("name", distances())
def test_of_maps_the_mean_is_over_pixels_and_of_those_that_count(name: str) -> None:
    student, teacher = draw(3, 4, 5, 6, seed=1), draw(3, 4, 5, 6, seed=2)
    counted = draw(3, 5, 6, seed=3) > 0
    by_pixel, target = student.movedim(1, -1), teacher.movedim(1, -1)
    for chosen in (torch.ones_like(counted), counted):
        expected = distance(name)(by_pixel[chosen], teacher_target([target[chosen]], [1]))
        found = distance(name)(student, teacher_target([teacher], [1]).at(chosen))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        distance(name)(student, teacher_target([teacher], [1])),
        distance(name)(student, teacher_target([teacher], [1]).at(torch.ones_like(counted))),
    )
    student.requires_grad_()
    distance(name)(student, teacher_target([teacher], [1]).at(counted)).backward()
    assert student.grad is not None
    assert torch.equal((student.grad != 0).any(1), counted)
    assert distance(name)(student, teacher_target([teacher], [1]).at(torch.zeros_like(counted))) == 0


def test_numbers_of_a_pixel_may_count_one_by_one_where_they_are_compared_one_by_one() -> None:
    student, teacher = draw(3, 4, 5, 6, seed=1), draw(3, 4, 5, 6, seed=2)
    counted = draw(3, 4, 5, 6, seed=3) > 0
    target = teacher_target([teacher], [1]).at(counted)
    torch.testing.assert_close(mse(student, target), (student - teacher)[counted].square().mean())
    with pytest.raises(DistillError, match="one per pixel"):
        soft_cross_entropy(student, target)


def test_the_ensemble_of_maps_is_that_of_each_pixels_logits() -> None:
    exits = [draw(2, 3, 4, 5, seed=seed) for seed in range(3)]
    weights = exit_weights("ascending", 3).ensemble
    found = teacher_target(exits, weights)
    flat = teacher_target([exit.movedim(1, -1).flatten(0, 2) for exit in exits], weights)
    torch.testing.assert_close(found.probabilities.movedim(1, -1).flatten(0, 2), flat.probabilities)
