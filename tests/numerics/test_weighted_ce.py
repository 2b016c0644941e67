"""Class-weighted cross-entropy against torch's, and against the guide's formula written out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from ftcore import Task, UserError
from ftcore.testing import invoke
from ftcore_plugins.losses.cross_entropy import (
    CrossEntropy,
    CrossEntropyConfig,
    WeightedCrossEntropy,
    WeightedCrossEntropyConfig,
    class_weights,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Loss

TASK = Task("classification", ("benign", "cyst", "tumor"), (50, 30, 7))


def make(
    weights: tuple[float, ...] | dict[str, float] | str, divide_by: str = "weights", label_smoothing: float = 0.0
) -> Loss:
    config = WeightedCrossEntropyConfig(weights, None, divide_by, label_smoothing)  # type: ignore[arg-type]
    loss = WeightedCrossEntropy(config).make_loss(TASK)
    assert loss is not None
    return loss


def outputs_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(40, 3, generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_divided_by_weights_it_equals_that_of_torch(smoothing: float) -> None:
    outputs, targets = outputs_and_targets()
    weights = (0.5, 1.0, 10.0)

    found = make(weights, label_smoothing=smoothing).function(outputs, targets)

    expected = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=smoothing)(outputs, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_divided_by_samples_it_equals_the_guides_formula() -> None:
    outputs, targets = outputs_and_targets()
    weights = (0.5, 1.0, 10.0)

    found = make(weights, "samples").function(outputs, targets)

    rows = outputs.double().tolist()
    terms = [
        weights[y] * (math.log(sum(math.exp(x) for x in row)) - row[y])
        for row, y in zip(rows, targets.tolist(), strict=True)
    ]
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6)


@pytest.mark.parametrize("divide_by", ["weights", "samples"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_with_label_smoothing_it_is_the_formula_written_out(divide_by: str, soft: bool) -> None:  # noqa: FBT001
    outputs, targets = outputs_and_targets()
    hard = np.eye(3)[targets.numpy()]
    given = 0.7 * hard + 0.3 * np.roll(hard, 1, axis=0) if soft else hard
    weights = np.array([0.5, 1.0, 10.0])
    loss = make((0.5, 1.0, 10.0), divide_by, label_smoothing=0.3)

    found = loss.function(outputs, torch.tensor(given).float() if soft else targets)

    rows = outputs.double().numpy()
    log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    total = -((given * 0.7 + 0.1) * weights * log_p).sum()
    divisor = (given @ weights).sum() if divide_by == "weights" else len(rows)
    assert float(found) == pytest.approx(total / divisor, rel=1e-6)


@pytest.mark.parametrize(("divide_by", "expected"), [("weights", 0.5 + 10.0 + 10.0), ("samples", 3.0)])
def test_the_divisor_is_what_the_mean_was_divided_by(divide_by: str, expected: float) -> None:
    loss = make((0.5, 1.0, 10.0), divide_by)

    assert float(loss.denominator(torch.tensor([0, 2, 2]))) == expected


@pytest.mark.parametrize("divide_by", ["weights", "samples"])
def test_batches_combine_to_the_loss_of_all_samples(divide_by: str) -> None:
    outputs, targets = outputs_and_targets()
    loss = make((0.5, 1.0, 10.0), divide_by)
    parts = [(outputs[a:b], targets[a:b]) for a, b in ((0, 7), (7, 8), (8, 40))]

    total = sum(float(loss.function(x, y)) * float(loss.denominator(y)) for x, y in parts)

    assert total / sum(float(loss.denominator(y)) for _, y in parts) == pytest.approx(
        float(loss.function(outputs, targets))
    )


@pytest.mark.parametrize("divide_by", ["weights", "samples"])
@pytest.mark.parametrize("ones", [(1.0, 1.0, 1.0), {}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_all_ones_it_is_plain_cross_entropy(
    ones: tuple[float, ...] | dict[str, float], divide_by: str, smoothing: float
) -> None:
    outputs, targets = outputs_and_targets()

    found = make(ones, divide_by, smoothing).function(outputs, targets)

    plain = CrossEntropy(CrossEntropyConfig(smoothing)).make_loss(TASK)
    assert plain is not None
    torch.testing.assert_close(found, plain.function(outputs, targets), rtol=0, atol=1e-6)


def test_a_list_is_in_the_order_of_the_class_names() -> None:
    assert class_weights((1.0, 2.0, 3.0), TASK) == [1.0, 2.0, 3.0]


def test_a_table_weighs_classes_by_name_and_the_others_one() -> None:
    assert class_weights({"tumor": 10.0}, TASK) == [1.0, 1.0, 10.0]


def test_balanced_equals_that_of_scikit_learn() -> None:
    labels = np.repeat(np.arange(3), TASK.counts)

    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)

    assert class_weights("balanced", TASK) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("beta", "meant"), [(None, 0.999), (0.0, 0.0), (0.9, 0.9)])
def test_effective_numbers_are_equation_4_of_the_paper(beta: float | None, meant: float) -> None:
    loss = WeightedCrossEntropy(WeightedCrossEntropyConfig("effective", beta)).make_loss(TASK)

    raw = [1 / sum(meant**power for power in range(count)) for count in TASK.counts]  # (1 - b^n) / (1 - b), summed
    assert loss is not None
    expected = [f"{3 * weight / sum(raw):.4g}" for weight in raw]
    assert [row[2] for row in loss.tables[0].rows] == expected


@pytest.mark.parametrize("weights", ["balanced", (1.0, 1.0, 1.0), {"tumor": 2.0}], ids=["balanced", "list", "table"])
def test_beta_is_refused_where_nothing_reads_it(weights: Any) -> None:
    with pytest.raises(ValueError, match=r'beta needs weights = "effective", not '):
        WeightedCrossEntropyConfig(weights, beta=0.9)


def test_a_list_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(UserError, match=r"2 numbers for 3 classes \(benign, cyst, tumor\)"):
        class_weights((1.0, 2.0), TASK)


def test_an_unknown_class_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no class 'tumour'; did you mean 'tumor'"):
        class_weights({"tumour": 10.0}, TASK)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_no_positive_number_is_an_error(weight: float) -> None:
    with pytest.raises(UserError, match="that of 'cyst' must be a positive number"):
        class_weights({"cyst": weight}, TASK)


def test_the_weights_are_in_the_report_of_the_start(tmp_path: Path) -> None:
    sets = ["weighted_ce.weights={6 = 10}", "train.epochs=1", f"run.folder={tmp_path / 'run'}"]
    options = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "weighted_ce", *options)

    lines = [line.split() for line in result.err.partition("weighted_ce, divided by the weights")[2].splitlines()]
    assert result.code == 0
    assert lines[1:4] == [["class", "images", "weight"], ["5", "145", "1"], ["6", "145", "10"]]


def test_a_wrong_weight_ends_the_run_with_one_message(tmp_path: Path) -> None:
    sets = ["--set", "weighted_ce.weights=[1, 2, 3]", "--set", f"run.folder={tmp_path / 'run'}"]

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "weighted_ce", *sets)

    assert (result.code, result.out) == (2, "")
    assert "weighted_ce.weights has 3 numbers for 2 classes (5, 6)" in result.err
    assert not (tmp_path / "run").exists()
