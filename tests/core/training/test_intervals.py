"""Intervals equal those of scipy and statsmodels' tables, and hold as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torchmetrics import MeanMetric, Metric

from ftcore.training.intervals import MeasuredOutputs, intervals, wilson


class Mean(Metric):
    """The mean of the outputs; a share of images that are right, if it says so."""

    def __init__(self, *, is_proportion: bool = False) -> None:
        super().__init__()
        self.is_proportion = is_proportion
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, outputs: torch.Tensor, _targets: torch.Tensor) -> None:
        self.values: Any
        self.values.append(outputs)

    def compute(self) -> torch.Tensor:
        return torch.cat(self.values).double().mean()


def of(outputs: Any, metric: Metric, groups: Any = None) -> Any:
    """Measure some outputs in two batches."""
    seen, values = MeasuredOutputs(), torch.as_tensor(outputs, dtype=torch.float64)
    for rows in (slice(3), slice(3, None)):
        seen.add(values[rows], torch.zeros(len(values[rows])))
    metric.update(values, values)
    return intervals(
        {"it": metric, "several": MeanMetric()}, {"it": metric.compute().item(), "several": [0.5]}, seen, groups
    )


@pytest.mark.parametrize(("right", "images"), [(0, 10), (1, 10), (8, 10), (10, 10), (1, 1), (90, 100), (950, 1000)])
def test_a_share_of_images_has_wilsons_interval(right: int, images: int) -> None:
    found = binomtest(right, images).proportion_ci(method="wilson")

    assert wilson(right / images, images) == pytest.approx((found.low, found.high), abs=1e-9)
    ends = of([1.0] * right + [0.0] * (images - right), Mean(is_proportion=True))["metrics"]["it"]
    assert ends == pytest.approx([found.low, found.high], abs=1e-9)


def test_another_number_has_the_percentiles_of_a_bootstrap() -> None:
    values = np.array([1, 2, 2, 3, 5, 8, 13, 21.0])
    rows = np.random.default_rng(0).integers(0, 8, (1000, 8))
    wanted = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])

    found = of(values, Mean())

    assert found["metrics"] == {"it": pytest.approx(list(wanted))}
    assert (found["level"], found["resamples"], found["over"]) == (0.95, 1000, "images")


def test_of_groups_whole_groups_are_drawn_and_few_say_nothing() -> None:
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(25), 10)
    outputs = generator.normal(size=25)[groups] + 0.1 * generator.normal(size=250)

    alone = of(outputs, Mean())["metrics"]["it"]
    together = of(outputs, Mean(is_proportion=True), groups)

    assert together["over"] == "groups"
    widths = [high - low for low, high in (alone, together["metrics"]["it"])]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(10), rel=0.15)  # as if each group were one image
    assert of(outputs[:190], Mean(), groups[:190])["metrics"] == {"it": None}


class Undefined(Mean):
    """Has no value where the largest output was not drawn."""

    def compute(self) -> torch.Tensor:
        values = torch.cat(self.values)
        return values.mean() if values.max() == 7 else torch.tensor(math.nan)


def test_a_number_that_is_often_undefined_has_no_interval() -> None:
    assert of([0.0, 1, 2, 3, 4, 5, 6, 7], Undefined())["metrics"] == {"it": None}
    assert of([0.0, 1, 2, 3, 7, 7, 7, 7], Undefined())["metrics"]["it"] is not None


@pytest.mark.parametrize("clusters", [False, True], ids=["images", "groups"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(clusters: bool) -> None:  # noqa: FBT001
    generator, held = np.random.default_rng(2), 0
    groups = np.repeat(np.arange(40), 3) if clusters else None
    for _ in range(50):
        common = generator.normal(size=40)[groups] if groups is not None else 0.0
        low, high = of(common + generator.normal(size=120), Mean(), groups)["metrics"]["it"]
        held += low <= 0 <= high
    assert held >= 43  # of a binomial of 50 and 0.95, one in 250 is below
