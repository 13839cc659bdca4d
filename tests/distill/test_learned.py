"""Learned weights are the one minimum of a convex loss: no slope is left, and no other weights do better."""

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import distill
from distill import DistillError, learned_weights

CLASSES = 6
ALL = tuple(choice for count in range(1, 5) for choice in combinations(range(4), count))


def exits(
    images: int = 120, strengths: tuple[float, ...] = (0.3, 1.0, 1.5, 2.5), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits of exits that know the more, the later they come."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (images,), generator=generator)
    noise = torch.randn(len(strengths), images, CLASSES, generator=generator, dtype=torch.float64)
    return noise + functional.one_hot(targets, CLASSES) * torch.tensor(strengths)[:, None, None], targets


def loss(weights: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss as it is defined: mean cross-entropy, and a prior that counts as one image."""
    total = sum(weight * own for weight, own in zip(weights, logits, strict=True))
    assert isinstance(total, Tensor)
    prior = ((weights - 1 / 4) ** 2).sum() / 2
    return functional.cross_entropy(total, targets) + prior / len(targets)


@pytest.mark.parametrize("seed", range(3))
def test_no_slope_is_left_at_the_minimum_of_any_choice(seed: int) -> None:
    logits, targets = exits(seed=seed)
    for choice, found in zip(ALL, learned_weights(logits, targets, ALL), strict=True):
        weights = found.clone().requires_grad_()
        loss(weights, logits, targets).backward()
        assert weights.grad is not None
        outside = [exit_ for exit_ in range(4) if exit_ not in choice]
        assert not found[outside].any()
        assert (found >= 0).all()
        slope = weights.grad[list(choice)]
        free = found[list(choice)] > 0
        assert slope[free].abs().max() < 1e-8
        assert (slope[~free] >= 0).all()


def test_weights_are_found_where_the_loss_is_smaller_than_its_rounding() -> None:
    """Logits this large give a loss of 4e-11, which steps near the minimum change by less than can be seen."""
    generator = torch.Generator().manual_seed(132)
    images = int(torch.randint(5, 60, (), generator=generator))
    targets = torch.randint(0, 10, (images,), generator=generator)
    scale = float(torch.rand((), generator=generator)) * 60 + 20
    logits = torch.randn(5, images, 10, generator=generator) * scale
    logits[:, range(images), targets] += scale * 1.5
    found = learned_weights(logits, targets, [choice for count in (4, 5) for choice in combinations(range(5), count)])
    torch.testing.assert_close(found[-1], torch.full((5,), 1 / 5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_exits_that_only_harm_get_no_weight() -> None:
    logits, targets = exits()
    logits[1] = -logits[3]
    (found,) = learned_weights(logits, targets, [(0, 1, 2, 3)])
    assert found[1] == 0
    (without,) = learned_weights(logits, targets, [(0, 2, 3)])
    torch.testing.assert_close(found, without, rtol=1e-6, atol=1e-8)


def test_no_random_weights_do_better() -> None:
    logits, targets = exits(seed=5)
    (found,) = learned_weights(logits, targets, [(0, 1, 2, 3)])
    least = float(loss(found, logits, targets))
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = (found + 0.3 * torch.randn(4, generator=generator, dtype=torch.float64)).clamp(min=0)
        assert float(loss(other, logits, targets)) >= least


def test_the_same_weights_come_out_alone_or_together_in_any_precision() -> None:
    logits, targets = exits(seed=2)
    together = learned_weights(logits, targets, ALL)
    assert torch.equal(together, learned_weights(logits, targets, ALL))
    for choice, found in zip(ALL, together, strict=True):
        torch.testing.assert_close(found, learned_weights(logits, targets, [choice])[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(together, learned_weights(logits.float(), targets, ALL), rtol=1e-4, atol=1e-5)


def test_images_that_are_all_right_leave_finite_weights() -> None:
    """Without the prior, any multiple of the weights would be better still."""
    targets = torch.arange(CLASSES).repeat(3)
    logits = torch.stack([functional.one_hot(targets, CLASSES).double() * 10] * 2)
    (found,) = learned_weights(logits, targets, [(0, 1)])
    assert torch.isfinite(found).all()
    assert 0 < float(found.sum()) < 5
    assert found[0] == pytest.approx(float(found[1]))


def test_their_ensemble_is_calibrated_better_than_a_fixed_one() -> None:
    logits, targets = exits(400, seed=3)
    (found,) = learned_weights(logits[:, :200], targets[:200], [(0, 1, 2, 3)])
    fixed = distill.exit_weights("ascending", 4).ensemble
    held_out = logits[:, 200:]
    learned, scheme = (
        functional.cross_entropy(distill.ensemble(list(held_out), list(weights)), targets[200:])
        for weights in (found.tolist(), fixed)
    )
    assert learned < scheme


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits, targets = exits()
    logits[2, 3, 1] = value
    with pytest.raises(DistillError, match="must be finite"):
        learned_weights(logits, targets, [(0, 1)])


def test_no_images_are_refused() -> None:
    with pytest.raises(DistillError, match=r"logits \(0 images\)"):
        learned_weights(torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.int64), [(0, 1)])
