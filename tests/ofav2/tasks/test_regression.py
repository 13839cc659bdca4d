"""Regression's metrics are those of numpy on all numbers at once, however they are divided into batches."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from ofav2.errors import UserError
from ofav2.tasks.regression import Regression

TASK = Regression(("roads", "height"))


def made_up() -> tuple[Tensor, Tensor]:
    """Outputs and targets of two planes of different scale, some numbers missing."""
    rng = np.random.default_rng(1)
    mean, spread, error = (np.array(pair)[:, None, None] for pair in ((0.2, 300.0), (0.1, 80.0), (0.05, 40.0)))
    target = mean + spread * rng.standard_normal((7, 2, 5, 6))
    output = target + error * rng.standard_normal(target.shape)
    target[rng.random(target.shape) < 0.3] = math.nan
    target[0], target[1, 1] = math.nan, math.nan
    return torch.from_numpy(output).float(), torch.from_numpy(target).float()


@pytest.mark.parametrize("sizes", [[7], [1, 1, 5], [4, 3]], ids=str)
def test_metrics_are_numpys_whatever_the_batches(sizes: list[int]) -> None:
    output, target = made_up()
    sums = sum(TASK.tally(*part) for part in zip(output.split(sizes), target.split(sizes), strict=True))
    assert isinstance(sums, Tensor)
    assert sums.dtype == torch.float64
    truth, said = target.double().numpy().swapaxes(0, 1), output.double().numpy().swapaxes(0, 1)
    errors = said - truth
    r2 = [1 - np.nanmean(own**2) / np.nanvar(plane) for own, plane in zip(errors, truth, strict=True)]
    centred = truth - np.nanmean(truth, axis=(1, 2, 3), keepdims=True)
    expected = {
        "R2": np.mean(r2),
        "RMSE": np.sqrt(np.nanmean(errors**2)),
        "MAE": np.nanmean(np.abs(errors)),
        "RMSE of zero": np.sqrt(np.nanmean(truth**2)),
        "RMSE of the mean": np.sqrt(np.nanmean(centred**2)),
        "R2 roads": r2[0],
        "R2 height": r2[1],
    }
    assert TASK.read(sums) == pytest.approx(expected, rel=1e-9)
    assert [*TASK.read(sums)] == [metric.name for metric in TASK.metrics]


def test_a_plane_of_one_value_is_left_out_of_r2() -> None:
    output, target = made_up()
    target[:, 0] = 0.2
    found = TASK.read(TASK.tally(output, target))
    assert math.isnan(found["R2 roads"])
    assert found["R2"] == found["R2 height"]


@pytest.mark.parametrize("varies", [True, False])
def test_outputs_that_are_nan_in_one_plane_have_no_r2(varies: bool) -> None:
    output, target = made_up()
    output[:, 0] = math.nan
    if not varies:
        target[:, 0] = 0.2
    found = TASK.read(TASK.tally(output, target))
    assert math.isnan(found["R2"])
    assert found["R2 height"] > 0
    # What does not count may be anything.
    target[:, 0] = math.nan
    assert TASK.read(TASK.tally(output, target))["R2"] == found["R2 height"]


@pytest.mark.parametrize("value", [math.nan, 0.2, 0.0])
def test_targets_without_any_variance_are_refused(value: float) -> None:
    output, target = made_up()
    count = 0 if math.isnan(value) else target.numel()
    with pytest.raises(UserError, match=rf"targets have {count} numbers that count, all equal"):
        TASK.read(TASK.tally(output, torch.full_like(target, value)))


def test_the_loss_is_the_mean_over_counted_numbers_and_missing_ones_have_no_gradient() -> None:
    output, target = made_up()
    output.requires_grad_()
    loss = TASK.loss(output, target)
    assert loss.item() == pytest.approx(float((output.detach() - target).square().nanmean()), rel=1e-6)
    loss.backward()
    assert output.grad is not None
    assert torch.equal(output.grad == 0, target.isnan())


def test_one_plane_has_no_r2_of_its_own() -> None:
    assert Regression(("roads",)).metrics == TASK.metrics[:5]


def test_metrics_are_those_of_torchmetrics() -> None:
    output, target = (values.double() for values in made_up())
    found, counted = TASK.read(TASK.tally(output, target)), ~target.isnan()
    said, truth = output[counted], target[counted]
    assert found["RMSE"] == pytest.approx(float(mean_squared_error(said, truth, squared=False)), rel=1e-9)
    assert found["MAE"] == pytest.approx(float(mean_absolute_error(said, truth)), rel=1e-9)
    each = [
        float(r2_score(output[:, plane][counted[:, plane]], target[:, plane][counted[:, plane]])) for plane in range(2)
    ]
    assert [found["R2 roads"], found["R2 height"]] == pytest.approx(each, rel=1e-9)
    assert found["R2"] == pytest.approx(sum(each) / 2, rel=1e-9)
