"""Predict losses of networks that were not measured, with an uncertainty.

To add a predictor, write a frozen class with `fit` and name it in `PREDICTORS`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.optimize import nnls
from sklearn import config_context
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel
from sklearn.linear_model import RidgeCV

from ofav2.nas.engine.features import Features
from ofav2.nas.engine.kernel import GroupKernel
from ofav2.nas.engine.problem import Floats

FOLDS = 5
"""Parts that are left out in turn, where a model has no closed form for rows that it has not seen."""
KERNEL_ROWS = 300
"""Rows that a kernel's parameters are fitted on: the time of that is cubic in them."""


class Prediction(NamedTuple):
    """Predicted losses."""

    mean: Floats
    """The loss, (N,)."""
    sd: Floats
    """Standard deviation of the prediction, (N,), without the noise of a measurement."""


class Fitted(Protocol):
    """A predictor that has learned from measurements."""

    @property
    def left_out(self) -> Prediction:
        """Its own rows, each predicted without that row."""
        ...

    def predict(self, features: Features) -> Prediction:
        """Predict the losses of features."""
        ...

    def mean(self, features: Features) -> Floats:
        """Predict the losses of features, without their uncertainty."""
        ...


class Predictor(Protocol):
    """Learns to predict losses."""

    def fit(self, features: Features, losses: Floats) -> Fitted:
        """Learn from features and losses (N,) of mean 0 and deviation 1; equal input gives an equal result."""
        ...


@dataclass(frozen=True, eq=False)
class _Fit:
    """A fitted predictor that is made of functions."""

    left_out: Prediction
    predict: Callable[[Features], Prediction]
    mean: Callable[[Features], Floats]


@dataclass(frozen=True)
class GaussianProcess:
    """A Gaussian process: a linear trend in the features, and a smooth deviation from it (Matern 1.5)."""

    def fit(self, features: Features, losses: Floats) -> Fitted:
        """Fit the kernel's parameters by their likelihood, then condition on all rows."""
        count = len(features.groups)
        kernel = GroupKernel(features.groups, [0.3] * count, [1.0] * count, 0.3) + WhiteKernel(1e-2, (1e-6, 1.0))
        few = features.values[-KERNEL_ROWS:], losses[-KERNEL_ROWS:]
        with warnings.catch_warnings():
            # A parameter at its bound is a fine answer here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(kernel).fit(*few)
            if len(losses) > KERNEL_ROWS:
                process = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(features.values, losses)
        noise = process.kernel_.k2.noise_level
        inverse = _inverse(process.L_)
        spread = 1 / np.diag(inverse)
        left_out = Prediction(losses - process.alpha_.ravel() * spread, np.sqrt(np.maximum(spread - noise, 0)))

        def predict(given: Features) -> Prediction:
            mean, sd = process.predict(given.values, return_std=True)
            return Prediction(mean, np.sqrt(np.maximum(sd**2 - noise, 0)))

        return _Fit(left_out, predict, lambda given: process.predict(given.values))


@dataclass(frozen=True)
class Ridge:
    """Linear regression with the penalty that leaves the least error on rows that are left out."""

    def fit(self, features: Features, losses: Floats) -> Fitted:
        """Fit, and take the deviation of left-out errors as that of any prediction."""
        model = RidgeCV(np.logspace(-3, 3, 13), store_cv_results=True).fit(features.values, losses)
        errors = model.cv_results_[:, int(np.flatnonzero(model.alphas == model.alpha_)[0])]
        # scikit-learn stores squared errors; the sign is that of the residual.
        residuals = losses - model.predict(features.values)
        own = losses - np.sign(residuals) * np.sqrt(errors)
        return _constant_sd(own, losses, lambda given: model.predict(given.values))


@dataclass(frozen=True)
class Trees:
    """Small boosted trees."""

    def fit(self, features: Features, losses: Floats) -> Fitted:
        """Fit, once more without each fold, and take the deviation of left-out errors as that of any prediction."""
        values = features.values

        # Each split looks at a third of the features, which errs no more and is quicker.
        def trees(rows: Any) -> GradientBoostingRegressor:
            model = GradientBoostingRegressor(
                learning_rate=0.1,
                n_estimators=100,
                max_leaf_nodes=8,
                min_samples_leaf=5,
                max_features=1 / 3,
                random_state=0,
            )
            return model.fit(values[rows], losses[rows])

        own, fold = np.empty_like(losses), np.arange(len(losses)) % FOLDS
        # Arguments are checked once a tree, which takes a fifth of the time.
        with config_context(skip_parameter_validation=True, assume_finite=True):
            for part in range(FOLDS):
                if (fold == part).any():
                    own[fold == part] = trees(fold != part).predict(values[fold == part])
            model = trees(slice(None))
        return _constant_sd(own, losses, lambda given: model.predict(given.values))


@dataclass(frozen=True)
class Ensemble:
    """Several predictors, weighted so that their left-out predictions together err least (stacking)."""

    members: tuple[Predictor, ...]

    def fit(self, features: Features, losses: Floats) -> Fitted:
        """Fit all members, and weigh them."""
        fits = [member.fit(features, losses) for member in self.members]
        weights = stacking_weights(np.stack([fit.left_out.mean for fit in fits], 1), losses)
        kept = [(fit, weight) for fit, weight in zip(fits, weights, strict=True) if weight > 0]

        def combined(predictions: Sequence[Prediction]) -> Prediction:
            mean = sum(weight * one.mean for one, (_, weight) in zip(predictions, kept, strict=True))
            square = sum(
                weight * (one.sd**2 + (one.mean - mean) ** 2)
                for one, (_, weight) in zip(predictions, kept, strict=True)
            )
            return Prediction(np.asarray(mean), np.sqrt(np.asarray(square)))

        return _Fit(
            combined([fit.left_out for fit, _ in kept]),
            lambda given: combined([fit.predict(given) for fit, _ in kept]),
            lambda given: np.asarray(sum(weight * fit.mean(given) for fit, weight in kept)),
        )


def stacking_weights(predictions: Floats, losses: Floats) -> Floats:
    """Return non-negative weights (members,) of sum 1 whose mix of predictions (N, members) errs least."""
    heavy = 1e3 * np.sqrt(np.mean(losses**2) * len(losses) + 1e-12)
    system = np.concatenate([predictions, np.full((1, predictions.shape[1]), heavy)])
    weights, _ = nnls(system, np.append(losses, heavy))
    return np.asarray(weights / weights.sum())


def _constant_sd(left_out: Floats, losses: Floats, mean: Callable[[Features], Floats]) -> _Fit:
    error = float(np.sqrt(np.mean((left_out - losses) ** 2)))
    return _Fit(
        Prediction(left_out, np.full(len(losses), error)),
        lambda given: Prediction(mean(given), np.full(len(given.values), error)),
        mean,
    )


def _inverse(lower: Floats) -> Floats:
    """Return the inverse of a matrix whose lower Cholesky factor is given."""
    half = np.linalg.inv(lower)
    return half.T @ half


PREDICTORS: Mapping[str, Predictor] = MappingProxyType(
    {
        "gp": GaussianProcess(),
        "ridge": Ridge(),
        "trees": Trees(),
        "ensemble": Ensemble((GaussianProcess(), Ridge(), Trees())),
    }
)
"""Predictors by name."""
