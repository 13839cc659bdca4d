"""Segmentation's metrics are those of a plain loop over pixels, however they are divided into batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from ofav2.data.patches import IGNORED
from ofav2.errors import UserError
from ofav2.tasks.base import log_weights
from ofav2.tasks.segmentation import Segmentation

TASK = Segmentation(("tree", "grass", "snow", "water"))


def made_up() -> tuple[Tensor, Tensor]:
    """Logits and targets of seven small images, without a pixel of snow, some pixels ignored."""
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(7, 4, 5, 6, generator=generator)
    target = torch.tensor([0, 1, 3])[torch.randint(0, 3, (7, 5, 6), generator=generator)]
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORED
    target[0] = IGNORED
    return output, target


def slow_metrics(output: Tensor, target: Tensor) -> dict[str, float]:
    """The metrics from a list of pixels."""
    guesses, truths = output.argmax(1).flatten().tolist(), target.flatten().tolist()
    pixels = [(guess, truth) for guess, truth in zip(guesses, truths, strict=True) if truth != IGNORED]
    found: dict[str, float] = {}
    for code, name in enumerate(TASK.classes):
        both = sum(guess == truth == code for guess, truth in pixels)
        either = sum(code in pair for pair in pixels)
        found[f"IoU {name}"] = both / either if either else math.nan
    known = [value for value in found.values() if not math.isnan(value)]
    right = sum(guess == truth for guess, truth in pixels)
    absent = sum(all(truth != code for _, truth in pixels) for code in range(4))
    return {"mIoU": sum(known) / len(known), "pixel accuracy": right / len(pixels), "absent classes": absent, **found}


@pytest.mark.parametrize("sizes", [[7], [1, 1, 5], [4, 3]], ids=str)
@pytest.mark.parametrize("never", [False, True], ids=["taken for snow", "never taken for snow"])
def test_metrics_are_a_plain_loops_whatever_the_batches(sizes: list[int], never: bool) -> None:
    output, target = made_up()
    output[:, 2] -= 100 * never
    sums = sum(TASK.tally(*part) for part in zip(output.split(sizes), target.split(sizes), strict=True))
    assert isinstance(sums, Tensor)
    assert sums.dtype == torch.float64
    found = TASK.read(sums)
    assert found == pytest.approx(slow_metrics(output, target), rel=1e-12, nan_ok=True)
    assert [*found] == [metric.name for metric in TASK.metrics]
    assert found["absent classes"] == 1
    assert math.isnan(found["IoU snow"]) == never


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_counted_pixels(smoothing: float) -> None:
    output, target = made_up()
    expected = functional.cross_entropy(output, target, ignore_index=IGNORED, label_smoothing=smoothing)
    assert float(Segmentation(TASK.classes, smoothing).loss(output, target)) == pytest.approx(float(expected), rel=1e-6)


def test_rare_classes_weigh_more_where_asked() -> None:
    output, target = made_up()
    shares = (0.5, 0.25, 0.0, 0.25)
    weights = log_weights(shares)
    assert sum(weight * share for weight, share in zip(weights, shares, strict=True)) == pytest.approx(1)
    assert weights[2] / weights[0] == pytest.approx(math.log(1.52) / math.log(1.02))
    chances = output.log_softmax(1)
    pixels = [
        (weights[code], float(chances[image, code, row, column]))
        for image, row, column in (target != IGNORED).nonzero().tolist()
        if (code := int(target[image, row, column])) >= 0
    ]
    expected = -sum(weight * chance for weight, chance in pixels) / len(pixels)
    assert float(Segmentation(TASK.classes, 0.0, weights).loss(output, target)) == pytest.approx(expected, rel=1e-5)
    target[:] = IGNORED
    assert float(Segmentation(TASK.classes, 0.0, weights).loss(output, target)) == 0


def test_images_of_ignored_pixels_alone_teach_nothing_and_are_not_measured() -> None:
    output, target = made_up()
    target[:] = IGNORED
    output.requires_grad_()
    TASK.loss(output, target).backward()
    assert output.grad is not None
    assert not output.grad.any()
    with pytest.raises(UserError, match="no pixel that counts"):
        TASK.read(TASK.tally(output, target))


def test_metrics_are_those_of_torchmetrics() -> None:
    output, target = made_up()
    found, of = TASK.read(TASK.tally(output, target)), {"num_classes": 4, "ignore_index": IGNORED}
    each = multiclass_jaccard_index(output, target, average=None, **of)
    # It gives 0 to a class that nothing is, and nothing is taken for; here that is none.
    there = multiclass_confusion_matrix(output, target, **of)
    known = (there.sum(0) + there.sum(1)) > 0
    assert [found[f"IoU {name}"] for name in TASK.classes] == pytest.approx(
        torch.where(known, each, math.nan).tolist(), rel=1e-6, nan_ok=True
    )
    assert found["mIoU"] == pytest.approx(float(each[known].mean()), rel=1e-6)
    accuracy = multiclass_accuracy(output, target, average="micro", **of)
    assert found["pixel accuracy"] == pytest.approx(float(accuracy), rel=1e-6)


def test_logits_that_are_nan_are_no_accuracy() -> None:
    task = Segmentation(("land", "water"))
    output, target = torch.randn(2, 2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    output[0, 1, 2, 2] = torch.nan
    found = task.read(task.tally(output, target))
    assert all(math.isnan(found[name]) for name in ("mIoU", "pixel accuracy"))
