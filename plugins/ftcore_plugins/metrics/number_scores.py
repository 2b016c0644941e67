"""Numbers of a regression by name, of one target over a whole split, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .class_scores import Array

    Score = Callable[[Array, Array], Any]


def of_sklearn(name: str) -> Score:
    """scikit-learn's function of that name: predictions (N,) and true values (N,) -> a number."""
    from sklearn import metrics

    function = getattr(metrics, name)
    return lambda said, truth: function(truth, said)


def at_least_two(score: Score) -> Score:
    """The same; NaN of less than two images."""
    return lambda said, truth: score(said, truth) if len(truth) > 1 else np.nan


def msle(said: Array, truth: Array) -> Any:
    """Mean squared error of log(1 + value); NaN where a value is -1 or less."""
    if min(said.min(), truth.min()) <= -1:
        return np.nan
    return ((np.log1p(said) - np.log1p(truth)) ** 2).mean()


def smape(said: Array, truth: Array) -> Any:
    """Mean of 2 |error| / (|prediction| + |truth|), in [0, 2]; 0 where both are 0."""
    size = np.abs(said) + np.abs(truth)
    return np.where(size > 0, 2 * np.abs(said - truth) / np.where(size > 0, size, 1), 0.0).mean()


def wmape(said: Array, truth: Array) -> Any:
    """Sum of |error| over the sum of |truth|; NaN where that is 0."""
    size = np.abs(truth).sum()
    return np.abs(said - truth).sum() / size if size else np.nan


def correlation(name: str) -> Score:
    """``pearsonr``, ``spearmanr`` or ``kendalltau`` of scipy; NaN of constant values and of less than two images."""
    from scipy import stats

    function = getattr(stats, name)

    def score(said: Array, truth: Array) -> Any:
        if len(truth) < 2 or np.ptp(said) == 0 or np.ptp(truth) == 0:
            return np.nan
        return function(said, truth).statistic

    return score


def ccc(said: Array, truth: Array) -> Any:
    """Lin's concordance correlation coefficient (Lin 1989, eq. 2, variances divided by N)."""
    means = said.mean() - truth.mean()
    size = said.var() + truth.var() + means**2
    return 2 * ((said - said.mean()) * (truth - truth.mean())).mean() / size if size else np.nan


def pinball(quantile: float) -> Score:
    """Mean pinball loss of a quantile in (0, 1)."""
    from sklearn.metrics import mean_pinball_loss

    return lambda said, truth: mean_pinball_loss(truth, said, alpha=quantile)


ERRORS: Mapping[str, Score] = {
    "mae": of_sklearn("mean_absolute_error"),
    "mape": of_sklearn("mean_absolute_percentage_error"),
    "max_error": of_sklearn("max_error"),
    "median_ae": of_sklearn("median_absolute_error"),
    "mse": of_sklearn("mean_squared_error"),
    "msle": msle,
    "rmse": of_sklearn("root_mean_squared_error"),
    "smape": smape,
    "wmape": wmape,
}
"""Lower is better."""

AGREEMENT: Mapping[str, Score] = {
    "ccc": ccc,
    "explained_variance": at_least_two(of_sklearn("explained_variance_score")),
    "kendall": correlation("kendalltau"),
    "pearson": correlation("pearsonr"),
    "r2": at_least_two(of_sklearn("r2_score")),
    "spearman": correlation("spearmanr"),
}
"""Higher is better."""
