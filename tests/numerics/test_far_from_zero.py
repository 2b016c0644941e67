"""Numbers far from zero: what every command says of them is what scikit-learn says of the same predictions."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as reference

from ftcore import BatchEvaluated, RunConfig
from ftcore.testing import invoke
from ftcore_plugins.metrics.builtin import RegressionMetrics
from ftcore_plugins.observers.report.regression_statistics import RegressionStatistics
from ftcore_plugins.observers.report.scores import errors
from ftcore_plugins.tasks import Regression

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

OFFSETS = [(1e2, 1.0), (1e3, 1.0), (1e4, 1.0), (1e6, 1.0), (-1e6, 1e-3), (0.0, 1e-6)]
"""A number, and how far targets are from it."""


def drawn(offset: float, spread: float, count: int = 500) -> tuple[Tensor, Tensor]:
    """Predictions and true values (N, 2) float64."""
    random = np.random.default_rng(0)
    true = offset + spread * random.normal(size=(count, 2))
    return torch.tensor(true + 0.5 * spread * random.normal(size=(count, 2))), torch.tensor(true)


def task(offset: float, spread: float, targets: int) -> Regression:
    names = ("one", "other")[:targets]
    return Regression(names, mean=(offset + 0.1 * spread,) * targets, std=(1.1 * spread,) * targets)


def said(given: Regression, predicted: Tensor, true: Tensor) -> dict[str, Any]:
    made = RegressionMetrics().make_metrics(given, RunConfig())
    assert made is not None
    for start in range(0, len(true), 64):
        for metric in made.values():
            metric.update(predicted[start : start + 64], true[start : start + 64])
    return {name: metric.compute().tolist() for name, metric in made.items()}


@pytest.mark.parametrize(("offset", "spread"), OFFSETS)
def test_metrics_of_two_targets_are_scikit_learns(offset: float, spread: float) -> None:
    predicted, true = drawn(offset, spread)

    found = said(task(offset, spread, 2), predicted, true)

    each: Any = {"multioutput": "raw_values"}
    assert found["r2"] == pytest.approx(reference.r2_score(true, predicted), abs=1e-8)
    assert found["r2_of_each"] == pytest.approx(reference.r2_score(true, predicted, **each), abs=1e-8)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(true, predicted, **each), rel=1e-8)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(true, predicted, **each), rel=1e-8)


@pytest.mark.parametrize(("offset", "spread"), OFFSETS)
def test_metrics_and_the_report_of_one_target_are_scikit_learns(offset: float, spread: float) -> None:
    predicted, true = (values[:, :1] for values in drawn(offset, spread))
    given = task(offset, spread, 1)
    counts = RegressionStatistics(given, samples=4)

    found = said(given, predicted, true)
    counts.add(BatchEvaluated(torch.arange(len(true)), predicted, true))
    (shown,) = errors(counts.result(), given.names, given.std)

    expected = {
        "rmse": reference.root_mean_squared_error(true, predicted),
        "mae": reference.mean_absolute_error(true, predicted),
        "r2": reference.r2_score(true, predicted),
    }
    assert found == pytest.approx(expected, rel=1e-8)
    assert {name: getattr(shown, name) for name in expected} == pytest.approx(expected, rel=1e-8)
    worst = counts.result()["worst"][0]
    assert float(worst["said"][0][1]) == pytest.approx(float(predicted[worst["index"]]), rel=0, abs=1e-3 * spread)


@pytest.mark.parametrize("predicted", [[3.0, 3.0], [3.0, 3.5]])
def test_true_values_without_spread_have_the_r2_that_scikit_learn_gives_them(predicted: list[float]) -> None:
    true = [[3.0], [3.0]]

    found = said(task(1.0, 1.0, 1), torch.tensor(predicted)[:, None], torch.tensor(true))

    assert found["r2"] == reference.r2_score(true, predicted)


def test_one_image_has_an_error_and_no_r2() -> None:
    found = said(task(1.0, 1.0, 1), torch.tensor([[3.0]]), torch.tensor([[2.5]]))

    assert found["mae"] == pytest.approx(0.5)
    assert np.isnan(found["r2"])


@pytest.fixture(scope="module", params=[1e4, 1e6], ids=["10,000", "1,000,000"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on grey pictures whose brightness is a number far from zero, give or take one."""
    folder, random = tmp_path_factory.mktemp("far"), np.random.default_rng(0)
    rows = []
    for place in range(80):
        grey = random.integers(0, 256)
        Image.fromarray(np.full((8, 8), grey, dtype=np.uint8)).save(folder / f"{place}.png")
        number = request.param + (grey - 127.5) / 73.9 + 0.3 * random.normal()
        rows.append((f"{place}.png", repr(float(number)), "train" if place < 56 else "val"))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "number", "split"), *rows])
    sets = (f"run.folder={folder / 'run'}", "train.epochs=8", "train.batch_size=8", "train.eval_batch_size=5")
    more = ("table.target=number", "data.task=regression", "adamw.lr=0.01", "train.threads=1")
    words = [word for setting in (*sets, *more) for word in ("--set", setting)]
    done = invoke("run", "--model", "digits/cnn", "--data", folder / "table.csv", *words)
    assert done.code == 0, done.err
    return folder


def by_scikit_learn(run: Path) -> dict[str, float]:
    """The metrics of what `predict` says of the validation split, with the numbers that the table holds."""
    with (run / "table.csv").open(encoding="utf-8", newline="") as file:
        held_out = [row for row in csv.DictReader(file) if row["split"] == "val"]
    done = invoke("predict", run / "run", *(run / row["path"] for row in held_out), "--csv")
    predicted = [float(row["number"]) for row in csv.DictReader(done.out.splitlines())]
    true = [float(row["number"]) for row in held_out]
    return {
        "rmse": reference.root_mean_squared_error(true, predicted),
        "mae": reference.mean_absolute_error(true, predicted),
        "r2": reference.r2_score(true, predicted),
    }


def test_run_evaluate_and_compare_say_what_scikit_learn_says_of_the_predictions(run: Path) -> None:
    expected = by_scikit_learn(run)

    lines = (run / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rmse = min((json.loads(line)["val"] for line in lines), key=lambda val: val["rmse"])
    measured = json.loads(invoke("evaluate", run / "run", "--json").out)["metrics"]
    compared = json.loads(invoke("compare", run / "run", run / "run", "--json").out)["runs"][0]

    assert 0.5 < expected["r2"] < 0.99
    for found in (rmse, measured, compared["metrics"]):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert compared["score"]["mean"] == pytest.approx(expected["mae"], rel=1e-5)
