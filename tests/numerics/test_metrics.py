"""The metrics against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from ftcore import RunConfig
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import fit
from ftcore.training.state import Progress, TrainingParts
from ftcore_plugins.metrics.builtin import ClassMetrics, RegressionMetrics
from ftcore_plugins.tasks import Classification, Regression

CLASSES = Classification(("a", "b", "c"), (5, 5, 5))


def build(*sets: str, source: str) -> TrainingParts:
    return prepare(load_config(None, CliOverrides("digits/cnn", source, sets=("train.epochs=1", *sets)))).assembly.parts


def outputs_and_targets(parts: TrainingParts) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    batches, network = list(parts.data.val.epoch(0)), parts.network.eval()
    with torch.no_grad():
        outputs = torch.cat([network(batch.images) for batch in batches])
    return outputs, np.array([parts.data.val.samples[index][1] for index in range(len(parts.data.val.samples))])


def test_class_metrics_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(60, 3)), np.array([0] * 40 + [1] * 15 + [2] * 5)
    made = ClassMetrics().make_metrics(CLASSES, RunConfig())
    assert made is not None
    for chosen in (slice(0, 50), slice(50, 60)):
        for metric in made.values():
            metric.update(torch.tensor(scores[chosen]).float(), torch.tensor(targets[chosen]))

    predicted = scores.argmax(axis=1)
    assert float(made["accuracy"].compute()) == pytest.approx(reference.accuracy_score(targets, predicted))
    assert float(made["f1"].compute()) == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    expected = reference.confusion_matrix(targets, predicted)
    assert made["confusion_matrix"].compute().tolist() == expected.tolist()


def test_of_many_classes_f1_is_scikit_learns_and_no_matrix_is_written() -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(900, 300)), generator.integers(0, 300, size=900)
    scores[np.arange(900), targets] += generator.uniform(0, 7, size=900)
    made = ClassMetrics().make_metrics(Classification(tuple(map(str, range(300)))), RunConfig())
    assert made is not None
    for start in range(0, 900, 64):
        for metric in made.values():
            metric.update(torch.tensor(scores[start : start + 64]), torch.tensor(targets[start : start + 64]))

    predicted = scores.argmax(axis=1)
    assert list(made) == ["accuracy", "f1"]
    assert 0.3 < reference.accuracy_score(targets, predicted) < 0.9
    assert float(made["f1"].compute()) == pytest.approx(reference.f1_score(targets, predicted, average="macro"))


def test_a_classifiers_evaluation_equals_scikit_learns() -> None:
    parts = build(source="digits:5-9")

    found = evaluate(parts)

    outputs, targets = outputs_and_targets(parts)
    predicted = outputs.argmax(dim=1).numpy()
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert found["f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    assert found["confusion_matrix"] == reference.confusion_matrix(targets, predicted).tolist()


def test_a_regressions_evaluation_is_in_the_targets_own_unit() -> None:
    parts = build("data.task=regression", "train.batch_size=32", source="digits:5-9")
    fit(parts, Progress(), lambda _: None)

    found = evaluate(parts)

    outputs, targets = outputs_and_targets(parts)
    train = [parts.data.train.samples[index][1] for index in range(len(parts.data.train.samples))]
    predicted = outputs.numpy()[:, 0] * np.std(train) + np.mean(train)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(targets, predicted), rel=1e-5)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(targets, predicted), rel=1e-5)
    assert found["r2"] == pytest.approx(reference.r2_score(targets, predicted), rel=1e-4)


def test_regression_metrics_have_one_target() -> None:
    made = RegressionMetrics().make_metrics(Regression(("age",), mean=(40.0,), std=(9.0,)), RunConfig())
    assert made is not None
    for metric in made.values():
        metric.update(torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [6.0]]))

    assert float(made["rmse"].compute()) == pytest.approx((2.5) ** 0.5)
    assert float(made["mae"].compute()) == pytest.approx(1.5)
    assert float(made["r2"].compute()) == pytest.approx(1 - 5 / 8)


def test_metrics_answer_only_for_their_own_task() -> None:
    assert ClassMetrics().make_metrics(Regression(("age",), mean=(0.0,), std=(1.0,)), RunConfig()) is None
    assert RegressionMetrics().make_metrics(CLASSES, RunConfig()) is None


def test_a_new_evaluation_forgets_the_one_before() -> None:
    parts = build(source="digits:5-6")

    first, second = evaluate(parts), evaluate(parts)

    assert sum(map(sum, second["confusion_matrix"])) == len(parts.data.val.samples)
    assert first == second
