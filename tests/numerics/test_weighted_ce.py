"""Class-weighted cross-entropy against torch's, and against the guide's formula written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog
import torch
from sklearn.utils.class_weight import compute_class_weight

from ftcore import Context, UserError
from ftcore.testing import invoke
from ftcore_plugins.losses.cross_entropy import (
    CrossEntropy,
    CrossEntropyConfig,
    WeightedCrossEntropy,
    WeightedCrossEntropyConfig,
    class_weights,
    how_smoothing_inverts,
)
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from ftcore import Loss

TASK = Classification(("benign", "cyst", "tumor"), (50, 30, 7))


CONTEXT = Context(Path(), structlog.get_logger())


def make(
    weights: tuple[float, ...] | dict[str, float] | str,
    divide_by: str = "weights",
    label_smoothing: float = 0.0,
    smoothing_weights: str = "true_class",
) -> Loss:
    given: Any = (weights, None, divide_by, label_smoothing, smoothing_weights)
    loss = WeightedCrossEntropy(WeightedCrossEntropyConfig(*given)).make_loss(TASK, CONTEXT)
    assert loss is not None
    return loss


def outputs_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(40, 3, generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_divided_by_weights_it_equals_that_of_torch(smoothing: float) -> None:
    outputs, targets = outputs_and_targets()
    weights = (0.5, 1.0, 10.0)

    rule = "torch" if smoothing else "true_class"

    found = make(weights, label_smoothing=smoothing, smoothing_weights=rule).function(outputs, targets)

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


@pytest.mark.parametrize("rule", ["true_class", "torch"])
@pytest.mark.parametrize("divide_by", ["weights", "samples"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_with_label_smoothing_it_is_the_formula_written_out(divide_by: str, soft: bool, rule: str) -> None:  # noqa: FBT001
    outputs, targets = outputs_and_targets()
    hard = np.eye(3)[targets.numpy()]
    given = 0.7 * hard + 0.3 * np.roll(hard, 1, axis=0) if soft else hard
    weights = np.array([0.5, 1.0, 10.0])
    loss = make((0.5, 1.0, 10.0), divide_by, 0.3, rule)

    found = loss.function(outputs, torch.tensor(given).float() if soft else targets)

    rows = outputs.double().numpy()
    log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    spread = weights if rule == "torch" else (given @ weights)[:, None]  # whose weight the share e/K = 0.1 has
    total = -((given * 0.7 * weights + 0.1 * spread) * log_p).sum()
    divisor = (given @ weights).sum() if divide_by == "weights" else len(rows)
    assert float(found) == pytest.approx(total / divisor, rel=1e-6)


def slope(loss: Loss, p: np.ndarray[Any, Any], target: int) -> float:
    """How steep the loss of one image is at these probabilities: 0 at its least."""
    outputs = torch.tensor(np.log(p), dtype=torch.float32)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(loss.function(outputs, torch.tensor([target])), outputs)
    return float(gradient.abs().max())


@pytest.mark.parametrize("target", [0, 1, 2])
def test_an_image_costs_least_where_its_own_class_is_answered(target: int) -> None:
    """By torch's rule it is p[c] ~ w[c] e/K + [c = y] w[y] (1 - e), whose largest is the heavy class."""
    weights, e = np.array([1.0, 1.0, 150.0]), 0.1
    smoothed = (1 - e) * np.eye(3)[target] + e / 3
    by_torch = smoothed * weights / (smoothed * weights).sum()
    loss, torchs = (make(tuple(weights), "samples", e, rule) for rule in ("true_class", "torch"))

    assert slope(loss, smoothed, target) < 1e-4
    assert slope(torchs, by_torch, target) < 1e-4
    assert (smoothed.argmax(), by_torch.argmax()) == (target, 2)


@pytest.mark.parametrize(
    ("weights", "smoothing", "wrong", "right"),
    [((1.0, 2.0, 29.0), 0.1, 29 * 0.1 / 3, 0.9 + 0.1 / 3), ((0.5, 150.0, 1.0), 0.3, 150 * 0.1, 0.5 * 0.8)],
)
def test_where_torchs_rule_answers_the_heavy_class_it_is_said_with_the_formula(
    weights: tuple[float, ...], smoothing: float, wrong: float, right: float
) -> None:
    said = how_smoothing_inverts(TASK.names, weights, smoothing)

    heavy, light = (TASK.names[weights.index(extreme(weights))] for extreme in (max, min))
    assert f"an image of {light!r} has the lowest loss if {heavy!r} is predicted" in said
    assert f" = {wrong:.4g} > w[y] (1 - e + e/K) = " in said
    assert f" = {right:.4g}; " in said


@pytest.mark.parametrize(
    ("weights", "smoothing"), [((1.0, 2.0, 27.0), 0.1), ((1.0, 1.0, 1.0), 0.9), ((1.0, 1.0, 1e6), 0.0)]
)
def test_where_torchs_rule_answers_the_right_class_nothing_is_said(
    weights: tuple[float, ...], smoothing: float
) -> None:
    assert how_smoothing_inverts(TASK.names, weights, smoothing) == ""


def test_the_condition_is_where_the_least_loss_answers_the_wrong_class() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        weights, e = np.exp(random.normal(size=3) * 2), random.uniform(0, 0.9)
        least = [(weights * e / 3 + np.eye(3)[y] * weights[y] * (1 - e)).argmax() for y in range(3)]

        assert bool(how_smoothing_inverts(TASK.names, list(weights), e)) == (least != [0, 1, 2])


def test_torchs_rule_is_refused_where_nothing_is_smoothed() -> None:
    with pytest.raises(ValueError, match='smoothing_weights = "torch" needs label_smoothing > 0'):
        WeightedCrossEntropyConfig(smoothing_weights="torch")


@pytest.mark.parametrize("rule", ["true_class", "torch"])
def test_a_heavy_class_does_not_take_all_images_but_by_torchs_rule_of_which_is_warned(
    rule: str, tmp_path: Path
) -> None:
    sets = ("weighted_ce.weights={9 = 15}", "weighted_ce.label_smoothing=0.4", f"weighted_ce.smoothing_weights={rule}")
    more = (*sets, f"run.folder={tmp_path / 'run'}", "train.epochs=5", "train.threads=1", "adamw.lr=0.003")
    words = [word for setting in more for word in ("--set", setting)]

    done = invoke("run", "--data", "digits:5-9", "--model", "digits/cnn", "--plugin", "weighted_ce", *words, "--json")

    warned = "an image of '5' has the lowest loss if '9' is predicted" in done.err
    assert (done.report["best"]["accuracy"] > 0.5, warned) == (rule == "true_class", rule == "torch")


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
    loss = WeightedCrossEntropy(WeightedCrossEntropyConfig("effective", beta)).make_loss(TASK, CONTEXT)

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
    with pytest.raises(UserError, match="the value of 'cyst' must be a positive number"):
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
