"""From the counts of an evaluation to the numbers that a page shows. Where nothing was there to be divided: None."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@frozen
class Scores:
    """How well one class or label is found.

    Attributes:
        name: of it.
        true: images of it.
        predicted: images that were said to be of it.
        precision: share of those that are.
        recall: share of its images that were said to be.
        f1: 2 hits / (true + predicted).
    """

    name: str
    true: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def ratio(part: float | None, whole: float) -> float | None:
    """Return a share; None of nothing, or where the part was not finite."""
    return part / whole if whole and part is not None else None


def per_class_scores(counts: Mapping[str, Any], names: Sequence[str]) -> list[Scores]:
    """Return the scores of each class or label, from ``true``, ``predicted`` and ``hits``."""
    columns = zip(names, counts["true"], counts["predicted"], counts["hits"], strict=True)
    return [
        Scores(name, true, predicted, ratio(hits, predicted), ratio(hits, true), ratio(2 * hits, true + predicted))
        for name, true, predicted, hits in columns
    ]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that there are."""
    there = [value for value in values if value is not None]
    return ratio(sum(there), len(there))


@frozen
class Bin:
    """Samples of about the same confidence.

    Attributes:
        low: probability above which it begins.
        high: probability that it reaches to.
        images: in it.
        confidence: the mean.
        accuracy: share that is right.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def reliability(counts: Mapping[str, Any]) -> list[Bin]:
    """Return the bins of a reliability diagram, of equal width."""
    columns = list(zip(counts["images"], counts["confidence"], counts["right"], strict=True))
    size = len(columns)
    return [
        Bin(i / size, (i + 1) / size, images, ratio(confidence, images), ratio(right, images))
        for i, (images, confidence, right) in enumerate(columns)
    ]


def calibration_error(counts: Mapping[str, Any]) -> float | None:
    """Return the expected calibration error: sum over bins of (images / all) |accuracy - confidence|.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 5.
    """
    gaps = (abs(right - _real(sure)) for right, sure in zip(counts["right"], counts["confidence"], strict=True))
    return ratio(sum(gaps), sum(counts["images"]))


def _real(value: float | None) -> float:
    return math.nan if value is None else value


@frozen
class ThresholdPoint:
    """What becomes of a label where its score has to reach a threshold."""

    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None


def threshold_curve(present: Sequence[int], absent: Sequence[int]) -> list[ThresholdPoint]:
    """Return precision, recall and F1 of a label at each threshold.

    Args:
        present: (T + 1,) images with the label, by how many of the T thresholds their score reaches.
        absent: likewise, images without it.
    """
    hits, wrong = (list(accumulate(reversed(row)))[-2::-1] for row in (present, absent))
    true, last = sum(present), len(hits) - 1
    return [
        ThresholdPoint(place / last, ratio(hit, hit + miss), ratio(hit, true), ratio(2 * hit, true + hit + miss))
        for place, (hit, miss) in enumerate(zip(hits, wrong, strict=True))
    ]


@frozen
class Errors:
    """How far the predictions of one regression target are off, in its own unit.

    Attributes:
        name: of the target.
        rmse: root of the mean square.
        mae: mean absolute error.
        bias: mean of predicted - true.
        r2: 1 - sum of squares / sum of squares around the mean of the true values.
    """

    name: str
    rmse: float | None
    mae: float | None
    bias: float | None
    r2: float | None


def errors(counts: Mapping[str, Any], names: Sequence[str], std: Sequence[float]) -> list[Errors]:
    """Return the errors of each regression target."""
    images, found = counts["images"], []
    sums = (counts[name] for name in ("squared", "absolute", "error", "z", "z2"))
    for name, scale, *given in zip(names, std, *sums, strict=True):
        squared, absolute, error, z, z2 = map(_real, given)
        around = (z2 - z * z / images) * scale**2
        rmse = (squared / images) ** 0.5
        r2 = None if around <= 0 else 1 - squared / around
        found.append(Errors(name, rmse, absolute / images, error / images, r2))
    return found
