"""Numbers of a classification by name, from what the network gave for a whole split.

Where scikit-learn has the number, it computes it. Averages over classes leave out those for which there is no value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Array = np.ndarray[Any, np.dtype[Any]]
    Score = Callable[["Classified"], Any]

BINS = 15
"""Of confidences, in the calibration errors (Guo et al. 2017, arXiv:1706.04599)."""


class Classified:
    """A split that was classified.

    Attributes:
        logits: (N, K) float64.
        truth: (N,) int64, a class each.
        said: (N,) int64, the most probable class; of equal ones the first.
    """

    def __init__(self, logits: Array, truth: Array) -> None:
        """Take logits (N, K) and classes (N,)."""
        self.logits, self.truth, self.said = logits.astype(np.float64), truth, logits.argmax(axis=1)

    @property
    def log_probabilities(self) -> Array:
        """(N, K) float64."""
        from scipy.special import log_softmax

        return np.asarray(log_softmax(self.logits, axis=1))

    @property
    def probabilities(self) -> Array:
        """(N, K) float64, each row adds up to 1."""
        return np.asarray(np.exp(self.log_probabilities))

    @property
    def scores(self) -> Array:
        """The probabilities as float32, for orders: what is equal there is a tie, as in a written prediction."""
        return np.asarray(self.probabilities, np.float32)

    @property
    def one_hot(self) -> Array:
        """(N, K) bool."""
        return np.equal(self.truth[:, None], np.arange(self.logits.shape[1]))


def average(name: str, how: str | None, place: int | None, beta: float = 1.0) -> Score:
    """Precision, recall, F-beta or the Jaccard index: of one class, or averaged over classes as scikit-learn does.

    Args:
        name: ``precision``, ``recall``, ``fbeta`` or ``jaccard``.
        how: ``macro``, ``micro`` or ``weighted``.
        place: of the class, for that alone.
        beta: of F-beta, by how much recall weighs more than precision, > 0.
    """
    from sklearn import metrics

    more = {"beta": beta} if name == "fbeta" else {}
    function = getattr(metrics, f"{name}_score")

    def score(data: Classified) -> Any:
        if place is None:
            return function(data.truth, data.said, average=how, zero_division=0, **more)
        if not ((data.truth == place) | (data.said == place)).any():
            return np.nan
        return function(data.truth, data.said, labels=[place], average=None, zero_division=0, **more)[0]

    return score


def accuracy(data: Classified) -> Any:
    """Share of images whose class is the most probable one."""
    return (data.said == data.truth).mean()


def top(count: int) -> Score:
    """Share of images whose class is among the `count` most probable; of equal ones those with lower places."""

    def score(data: Classified) -> Any:
        own = np.take_along_axis(data.logits, data.truth[:, None], axis=1)
        before = (data.logits == own) & (np.arange(data.logits.shape[1]) < data.truth[:, None])
        return (((data.logits > own) | before).sum(axis=1) < count).mean()

    return score


def per_class_recall(data: Classified) -> Array:
    """Recall (K,) of each class, NaN for one that no image has."""
    there = np.bincount(data.truth, minlength=data.logits.shape[1])
    right = np.bincount(data.truth[data.said == data.truth], minlength=data.logits.shape[1])
    return np.where(there > 0, right / np.maximum(there, 1), np.nan)


def specificity(data: Classified) -> Array:
    """Share (K,) of the images of other classes that were not taken for a class.

    NaN where there are none, and for a class that neither is there nor was predicted.
    """
    classes = data.logits.shape[1]
    there, said = (np.bincount(values, minlength=classes) for values in (data.truth, data.said))
    wrongly = said - np.bincount(data.truth[data.said == data.truth], minlength=classes)
    others = len(data.truth) - there
    return np.where((others > 0) & (there + said > 0), 1 - wrongly / np.maximum(others, 1), np.nan)


def kappa(weights: str | None) -> Score:
    """Cohen's kappa, with weights ``linear`` or ``quadratic`` of the distance between classes, or without."""
    from sklearn.metrics import cohen_kappa_score

    def score(data: Classified) -> Any:
        if len({*data.truth.tolist(), *data.said.tolist()}) < 2:
            return np.nan  # 0 / 0
        return cohen_kappa_score(data.truth, data.said, weights=weights, labels=np.arange(data.logits.shape[1]))

    return score


def mcc(data: Classified) -> Any:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(data.truth, data.said)


def auroc(scores: Array, positive: Array) -> Array:
    """Area under the ROC curve of each column, NaN where all rows or none are positive.

    The share of pairs of a positive and a negative row in which the positive has the higher score, ties as one half,
    by the mean ranks of the positives (Mann and Whitney 1947).

    Args:
        scores: (N, K).
        positive: (N, K) bool.
    """
    from scipy.stats import rankdata

    ones = positive.sum(axis=0)
    zeros = len(positive) - ones
    ranks = (rankdata(scores, axis=0) * positive).sum(axis=0)
    return np.where(ones * zeros > 0, (ranks - ones * (ones + 1) / 2) / np.maximum(ones * zeros, 1), np.nan)


def average_precision(scores: Array, positive: Array) -> Array:
    """Area under the precision-recall curve of each column (N, K) -> (K,), as scikit-learn; NaN without a positive."""
    from sklearn.metrics import average_precision_score

    columns = range(scores.shape[1])
    return np.array(
        [average_precision_score(positive[:, k], scores[:, k]) if positive[:, k].any() else np.nan for k in columns]
    )


def ranked(function: Callable[[Array, Array], Array], how: str | None, place: int | None) -> Score:
    """A number of each class against all others, from the probabilities: of one class, or averaged.

    Args:
        function: `auroc` or `average_precision`.
        how: ``macro``, ``weighted`` by the images of the classes, or ``micro``: all images and classes in one column.
        place: of the class, for that alone.
    """

    def score(data: Classified) -> Any:
        scores, positive = data.scores, data.one_hot
        if place is not None:
            return function(scores[:, [place]], positive[:, [place]])[0]
        if how == "micro":
            return function(scores.reshape(-1, 1), positive.reshape(-1, 1))[0]
        return mean_over(function(scores, positive), positive.sum(axis=0) if how == "weighted" else None)

    return score


def mean_over(values: Array, weights: Array | None = None) -> Any:
    """Mean (K,) -> () over the classes that have a value, weighted by (K,) if given; NaN where none has."""
    there = ~np.isnan(values)
    if not there.any():
        return np.nan
    return np.average(values[there], weights=None if weights is None else weights[there])


def auroc_ovo(data: Classified) -> Any:
    """Area under the ROC curve of each pair of classes that are there, the mean over pairs (Hand and Till 2001)."""
    scores, found = data.scores, []
    classes = np.unique(data.truth).tolist()
    for one in classes:
        for other in classes:
            if one != other:
                rows = np.isin(data.truth, (one, other))
                found.append(auroc(scores[rows][:, [one]], data.truth[rows][:, None] == one)[0])
    return np.mean(found) if found else np.nan


def nll(data: Classified) -> Any:
    """Mean negative log-likelihood, in nats."""
    return -np.take_along_axis(data.log_probabilities, data.truth[:, None], axis=1).mean()


def brier(data: Classified) -> Any:
    """Mean over images of the sum over classes of (probability - truth)^2, in [0, 2]; of two classes, not halved."""
    return ((data.probabilities - data.one_hot) ** 2).sum(axis=1).mean()


def confidence_gaps(data: Classified, *, equal_mass: bool = False, bins: int = BINS) -> tuple[Array, Array]:
    """Share of images and |accuracy - mean confidence| of each bin that is not empty, of confidences [low, high).

    Args:
        data: what was classified.
        equal_mass: bins of equally many images, in the order of confidence, instead of equal width.
        bins: how many.
    """
    confidence, right = data.probabilities.max(axis=1), data.said == data.truth
    if equal_mass:
        parts: Sequence[Array] = np.array_split(confidence.argsort(kind="stable"), bins)
    else:
        place = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right").clip(1, bins) - 1
        parts = [np.flatnonzero(place == each) for each in range(bins)]
    parts = [part for part in parts if len(part)]
    gaps = [abs(right[part].mean() - confidence[part].mean()) for part in parts]
    return np.array([len(part) / len(right) for part in parts]), np.array(gaps)


def ece(*, equal_mass: bool = False) -> Score:
    """Expected calibration error: the mean over images of the gap of their bin."""

    def score(data: Classified) -> Any:
        shares, gaps = confidence_gaps(data, equal_mass=equal_mass)
        return (shares * gaps).sum()

    return score


def mce(data: Classified) -> Any:
    """Maximum calibration error: the largest gap."""
    return confidence_gaps(data)[1].max()


def operating_point(wanted: str, least: str, value: float, place: int) -> Score:
    """The best of one number where another is at least `value`, over all thresholds on a class's probability.

    Args:
        wanted: ``specificity``, ``sensitivity``, ``precision`` or ``recall``.
        least: ``sensitivity`` of specificity and the other way round; ``recall`` of precision and the other way round.
        value: in [0, 1].
        place: of the class that counts as positive.
    """

    def score(data: Classified) -> Any:
        scores, positive = data.scores[:, place], data.truth == place
        if positive.all() or not positive.any():
            return np.nan
        known = _curve(scores, positive, ratios="precision" in {wanted, least})
        reached = known[wanted][known[least] >= value]
        return reached.max() if len(reached) else np.nan

    return score


def _curve(scores: Array, positive: Array, *, ratios: bool) -> dict[str, Array]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    if ratios:
        precision, recall, _ = precision_recall_curve(positive, scores)
        return {"precision": precision[:-1], "recall": recall[:-1]}  # the last point has no threshold
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    return {"specificity": 1 - false, "sensitivity": true}


PLAIN: Mapping[str, Score] = {
    "accuracy": accuracy,
    "auroc_ovo": auroc_ovo,
    "balanced_accuracy": lambda data: mean_over(per_class_recall(data)),
    "brier": brier,
    "ece": ece(),
    "ece_mass": ece(equal_mass=True),
    "error": lambda data: 1 - accuracy(data),
    "hamming": lambda data: 1 - accuracy(data),
    "kappa": kappa(None),
    "kappa_linear": kappa("linear"),
    "mcc": mcc,
    "mce": mce,
    "nll": nll,
    "qwk": kappa("quadratic"),
    "specificity": lambda data: mean_over(specificity(data)),
}
"""Names of what has no other forms."""
