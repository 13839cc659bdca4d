"""Predictors: left-out predictions are honest, wide targets are met, weights are those of the least error."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel

from ofav2.nas.engine.features import Features
from ofav2.nas.engine.kernel import GroupKernel
from ofav2.nas.engine.predictors import PREDICTORS, GaussianProcess, Ridge, stacking_weights
from ofav2.nas.engine.problem import Floats


def sample(count: int, seed: int = 0) -> tuple[Features, Floats]:
    """Features in two groups, and losses of mean 0 and deviation 1 that are neither linear nor free of noise."""
    rng = np.random.default_rng(seed)
    values = rng.random((count, 6))
    losses = values @ np.arange(6) + 2 * values[:, 0] * values[:, 5] + 0.05 * rng.normal(size=count)
    return Features(values, (4, 2)), (losses - losses.mean()) / losses.std()


def without(features: Features, row: int) -> Features:
    return replace_values(features, np.delete(features.values, row, 0))


def replace_values(features: Features, values: Floats) -> Features:
    return features._replace(values=values)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictors_learn_and_are_reproducible(name: str) -> None:
    features, losses = sample(120)
    known, unseen = replace_values(features, features.values[:80]), replace_values(features, features.values[80:])
    fit, again = (PREDICTORS[name].fit(known, losses[:80]) for _ in range(2))
    mean, sd = fit.predict(unseen)
    assert mean.shape == sd.shape == fit.mean(unseen).shape == (40,)
    assert (sd >= 0).all()
    assert np.allclose(mean, fit.mean(unseen))
    assert np.array_equal(mean, again.predict(unseen).mean)
    assert np.corrcoef(mean, losses[80:])[0, 1] > 0.9
    assert np.corrcoef(fit.left_out.mean, losses[:80])[0, 1] > 0.9


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_span_of_forty_points_is_predicted_with_one_of_at_least_36(name: str) -> None:
    features, losses = sample(150)
    losses = 28 + 40 * (losses - losses.min()) / np.ptp(losses)
    centre, scale = losses.mean(), losses.std()
    found = PREDICTORS[name].fit(features, (losses - centre) / scale).mean(features) * scale + centre
    assert np.ptp(found) >= 36


@pytest.mark.parametrize("name", PREDICTORS)
def test_eight_rows_are_enough(name: str) -> None:
    features, losses = sample(8)
    mean, sd = PREDICTORS[name].fit(features, losses).predict(features)
    assert np.isfinite([mean, sd]).all()


@pytest.mark.parametrize("name", PREDICTORS)
def test_equal_losses_are_predicted_as_such(name: str) -> None:
    features, _ = sample(30)
    assert np.allclose(PREDICTORS[name].fit(features, np.zeros(30)).mean(features), 0, atol=1e-6)


def test_left_out_losses_of_a_gaussian_process_are_those_of_one_without_the_row() -> None:
    features, losses = sample(25)
    fit = GaussianProcess().fit(features, losses)
    kernel = GroupKernel((4, 2), [0.3] * 2, [1.0] * 2, 0.3) + WhiteKernel(1e-2, (1e-6, 1.0))
    fitted = GaussianProcessRegressor(kernel).fit(features.values, losses).kernel_
    for row in (0, 7, 24):
        rest = GaussianProcessRegressor(fitted, optimizer=None).fit(
            without(features, row).values, np.delete(losses, row)
        )
        mean, sd = rest.predict(features.values[row : row + 1], return_std=True)
        assert np.allclose(mean, fit.left_out.mean[row])
        assert np.allclose(sd**2 - fitted.k2.noise_level, fit.left_out.sd[row] ** 2, atol=1e-6)


def test_left_out_losses_of_a_ridge_regression_are_those_of_one_without_the_row() -> None:
    from sklearn.linear_model import Ridge as PlainRidge
    from sklearn.linear_model import RidgeCV

    features, losses = sample(25)
    fit = Ridge().fit(features, losses)
    alpha = RidgeCV(np.logspace(-3, 3, 13)).fit(features.values, losses).alpha_
    for row in (0, 7, 24):
        rest = PlainRidge(alpha).fit(without(features, row).values, np.delete(losses, row))
        assert np.allclose(rest.predict(features.values[row : row + 1]), fit.left_out.mean[row])


def test_more_rows_than_the_kernel_is_fitted_on_are_all_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from ofav2.nas.engine import predictors

    features, losses = sample(60)
    monkeypatch.setattr(predictors, "KERNEL_ROWS", 20)
    fit = GaussianProcess().fit(features, losses)
    assert np.abs(fit.mean(features) - losses).mean() < 0.1


def test_weights_are_those_of_the_least_error() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(size=200)
    good, bad = losses + 0.1 * rng.normal(size=200), rng.normal(size=200)
    weights = stacking_weights(np.stack([bad, good], 1), losses)
    assert np.isclose(weights.sum(), 1)
    assert weights[1] > 0.95
    grid = [np.mean((share * bad + (1 - share) * good - losses) ** 2) for share in np.linspace(0, 1, 1001)]
    assert np.isclose(weights[0], np.argmin(grid) / 1000, atol=1e-3)


def test_the_kernel_is_its_formula_and_so_are_its_gradients() -> None:
    rng = np.random.default_rng(1)
    x, kernel = rng.random((5, 6)), GroupKernel((4, 2), [0.3, 0.7], [0.5, 1.5], 0.4)
    value, gradient = kernel(x, eval_gradient=True)
    for i, j in ((0, 0), (1, 4), (3, 2)):
        a, b = x[i], x[j]
        distance = (3 * (((a - b)[:4] ** 2).sum() / 0.25 + ((a - b)[4:] ** 2).sum() / 2.25)) ** 0.5
        expected = 0.3 * a[:4] @ b[:4] + 0.7 * a[4:] @ b[4:] + 0.4 * (1 + distance) * np.exp(-distance)
        assert np.isclose(value[i, j], expected)
    assert np.allclose(np.diag(value), kernel.diag(x))
    for place in range(len(kernel.theta)):
        step = np.zeros_like(kernel.theta)
        step[place] = 1e-6
        up, down = (kernel.clone_with_theta(kernel.theta + sign * step)(x) for sign in (1, -1))
        assert np.allclose((up - down) / 2e-6, gradient[:, :, place], atol=1e-6)
