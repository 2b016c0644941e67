"""Numbers of several labels by name, from what the network gave for a whole split. scikit-learn computes most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .class_scores import mean_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .class_scores import Array

    Score = Callable[["Labelled"], Any]


class Labelled:
    """A split whose labels were predicted.

    Attributes:
        logits: (N, K) float64, before the sigmoid.
        truth: (N, K) bool.
        said: (N, K) bool, whether the probability is above 0.5.
    """

    def __init__(self, logits: Array, truth: Array) -> None:
        """Take logits (N, K) and labels (N, K) in 0 and 1."""
        self.logits, self.truth = logits.astype(np.float64), truth > 0.5
        self.said = self.logits > 0

    @property
    def probabilities(self) -> Array:
        """(N, K) float64."""
        from scipy.special import expit

        found: Array = expit(self.logits)
        return found


def average(name: str, how: str | None, place: int | None, beta: float = 1.0) -> Score:
    """Precision, recall, F-beta or the Jaccard index: of one label, or averaged as scikit-learn does.

    Args:
        name: ``precision``, ``recall``, ``fbeta`` or ``jaccard``.
        how: ``macro``, ``micro``, ``weighted``, or ``samples``: over images.
        place: of the label, for that alone.
        beta: of F-beta, > 0.
    """
    from sklearn import metrics

    more = {"beta": beta} if name == "fbeta" else {}
    function = getattr(metrics, f"{name}_score")

    def score(data: Labelled) -> Any:
        if place is None:
            return function(data.truth, data.said, average=how, zero_division=0, **more)
        truth, said = data.truth[:, place], data.said[:, place]
        return function(truth, said, zero_division=0, **more) if (truth | said).any() else np.nan

    return score


def ranked(function: Callable[[Array, Array], Array], how: str | None, place: int | None) -> Score:
    """As `ftcore_plugins.metrics.class_scores.ranked`, label by label."""

    def score(data: Labelled) -> Any:
        scores, positive = data.logits, data.truth  # the sigmoid keeps the order, but for rounding
        if place is not None:
            return function(scores[:, [place]], positive[:, [place]])[0]
        if how == "micro":
            return function(scores.reshape(-1, 1), positive.reshape(-1, 1))[0]
        return mean_over(function(scores, positive), positive.sum(axis=0) if how == "weighted" else None)

    return score


def exact_match(data: Labelled) -> Any:
    """Share of images all of whose labels are right."""
    return (data.said == data.truth).all(axis=1).mean()


def accuracy(data: Labelled) -> Any:
    """Share of labels that are right, over all images."""
    return (data.said == data.truth).mean()


def mcc(data: Labelled) -> Any:
    """Matthews' correlation coefficient, the mean over labels."""
    from sklearn.metrics import matthews_corrcoef

    return np.mean([matthews_corrcoef(data.truth[:, k], data.said[:, k]) for k in range(data.truth.shape[1])])


def nll(data: Labelled) -> Any:
    """Mean binary cross-entropy over images and labels, in nats."""
    return (np.logaddexp(0, data.logits) - data.logits * data.truth).mean()


def brier(data: Labelled) -> Any:
    """Mean of (probability - truth)^2 over images and labels, in [0, 1]."""
    return ((data.probabilities - data.truth) ** 2).mean()


def of_rankings(name: str) -> Score:
    """A number of the order of an image's labels, by scikit-learn's function of that name."""
    from sklearn import metrics

    function = getattr(metrics, name)
    return lambda data: function(data.truth, data.probabilities)


PLAIN: Mapping[str, Score] = {
    "accuracy": accuracy,
    "brier": brier,
    "coverage_error": of_rankings("coverage_error"),
    "exact_match": exact_match,
    "hamming": lambda data: 1 - accuracy(data),
    "lrap": of_rankings("label_ranking_average_precision_score"),
    "mcc": mcc,
    "ndcg": of_rankings("ndcg_score"),
    "nll": nll,
    "ranking_loss": of_rankings("label_ranking_loss"),
}
"""Names of what has no other forms."""
