"""Metrics by name: scikit-learn, torchmetrics, scipy and numbers computed elsewhere are the second sources."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics import classification as tm

from ftcore import Task, UserError
from ftcore.testing import invoke
from ftcore_plugins.metrics.named import make_named
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from pathlib import Path

# four classes; class 3 is never true, and predicted once in A and never in B
TRUTH = [0, 0, 0, 1, 1, 2]
ROWS = [[7, 1, 1, 1], [5, 3, 1, 1], [3, 4, 2, 1], [1, 6, 2, 1], [1, 2, 2, 5], [2, 5, 2, 1]]
A = (ROWS, TRUTH)
B = ([*ROWS[:4], [1, 5, 2, 2], ROWS[5]], TRUTH)
C = ([[2, 6, 1, 1], [1, 7, 1, 1], [5, 3, 1, 1]], [1, 1, 1])
D = ([[1, 2, 6, 1]], [2])
E = ([[2.5] * 4] * 4, [0, 1, 2, 3])
NAN = math.nan

CLASSES = Classification(("a", "b", "c", "d"), counts=(3, 2, 1, 0), images=6)


def compute(names: str | list[str], outputs: Any, targets: Any, task: Task) -> Any:
    """Show metrics the outputs in two batches; one number for one name."""
    made = make_named([names] if isinstance(names, str) else names, None, task, {})
    rows, wanted = torch.as_tensor(outputs), torch.as_tensor(targets)
    half = len(rows) // 2
    for metric in made.values():
        for part in (slice(half), slice(half, None)):
            metric.update(rows[part], wanted[part])
    found = [metric.compute().item() for metric in made.values()]
    return found[0] if isinstance(names, str) else found


def of_classes(name: str, case: tuple[Any, Any]) -> float:
    """Of tenths that add up to 1."""
    rows, truth = case
    found: float = compute(name, (torch.tensor(rows, dtype=torch.float64) / 10).log(), truth, CLASSES)
    return found


@pytest.mark.parametrize(
    ("name", "case", "expected"),
    [
        ("accuracy", A, 0.5),
        ("balanced_accuracy", A, 0.388889),
        ("bacc", B, 0.555556),
        ("uar", C, 2 / 3),
        ("top2", A, 0.833333),
        ("precision", A, 0.333333),
        ("recall", A, 0.291667),
        ("ppv", B, 0.5),
        ("sensitivity", B, 0.555556),
        ("f1", A, 0.3),
        ("f1_weighted", A, 0.533333),
        ("f1_micro", A, 0.5),
        ("f1-macro", B, 0.488889),
        ("fbeta@beta=2", A, 0.292208),
        ("f2", B, 0.515873),
        ("jaccard", A, 0.229167),
        ("iou", A, 0.229167),
        ("specificity", A, 0.833333),
        ("specificity", B, 0.833333),  # of what is neither there nor predicted, nothing is said
        ("specificity", D, NAN),
        ("kappa", A, 0.25),
        ("kappa", B, 0.454545),
        ("kappa", D, NAN),
        ("qwk", A, 0.4),
        ("kappa_quadratic", B, 0.571429),
        ("mcc", A, 0.272727),
        ("mcc", B, 0.533002),
        ("mcc", C, 0.0),
        ("auroc", A, (1 + 0.625 + 0.7) / 3),  # the mean over the classes that are there
        ("auroc", C, NAN),
        ("auroc[b]", A, 0.625),
        ("auroc[d]", A, NAN),
        ("auroc_weighted", A, 0.825),
        ("auroc_weighted", B, 0.929167),
        ("auroc_ovo", A, 0.75),
        ("auroc_ovo", B, 0.847222),
        ("auroc", E, 0.5),
        ("average_precision", A, 0.65),  # scikit-learn counts 0 for the class without images: 0.4875
        ("prauc", B, 0.694444),
        ("average_precision", E, 0.25),
        ("average_precision_micro", A, 0.659524),
        ("ap_micro", B, 0.775595),
        ("nll", A, 0.997249),
        ("log_loss", B, 0.844534),
        ("brier", A, 0.546667),
        ("brier", B, 0.446667),
        ("error", A, 0.5),
        ("hamming", B, 0.333333),
    ],
)
def test_metrics_of_awkward_splits_are_those_of_the_tables(name: str, case: tuple[Any, Any], expected: float) -> None:
    assert of_classes(name, case) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_ties_go_to_the_first_class_so_that_top1_is_the_accuracy() -> None:
    assert [of_classes(f"top{count}", E) for count in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert of_classes("accuracy", E) == 0.25


def test_more_than_there_are_classes_is_clamped_and_labelled_and_monitors_nothing() -> None:
    made = make_named(["top5"], None, CLASSES, {})
    assert list(made) == ["top5 (of 4 classes: top4)"]
    assert made["top5 (of 4 classes: top4)"].higher_is_better is None
    assert of_classes("top5", A) == 1


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (400, 4) float32 and classes, somewhat right."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(4, (400,), generator=generator)
    return torch.randn(400, 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(truth, 4), truth


def _one_of_two(name: str, **options: Any) -> Any:
    return getattr(tm, name)(4, average=None, **options)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("accuracy", tm.MulticlassAccuracy(4, average="micro")),
        ("balanced_accuracy", tm.MulticlassAccuracy(4, average="macro")),
        ("top2", tm.MulticlassAccuracy(4, average="micro", top_k=2)),
        ("precision", tm.MulticlassPrecision(4)),
        ("recall_micro", tm.MulticlassRecall(4, average="micro")),
        ("f1_weighted", tm.MulticlassF1Score(4, average="weighted")),
        ("f0.5", tm.MulticlassFBetaScore(0.5, 4)),
        ("jaccard", tm.MulticlassJaccardIndex(4)),
        ("specificity", tm.MulticlassSpecificity(4)),
        ("kappa_linear", tm.MulticlassCohenKappa(4, weights="linear")),
        ("mcc", tm.MulticlassMatthewsCorrCoef(4)),
        ("auroc", tm.MulticlassAUROC(4)),
        ("auroc_weighted", tm.MulticlassAUROC(4, average="weighted")),
        ("average_precision", tm.MulticlassAveragePrecision(4)),
        ("ece", tm.MulticlassCalibrationError(4, n_bins=15, norm="l1")),
        ("mce", tm.MulticlassCalibrationError(4, n_bins=15, norm="max")),
    ],
)
def test_metrics_are_those_of_torchmetrics(name: str, other: Any, drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, truth = drawn
    wanted = other(logits.double().softmax(1), truth).item()
    assert compute(name, logits, truth, CLASSES) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "function", "soft"),
    [
        ("recall[b]", lambda y, p: sk.recall_score(y == 1, p == 1), False),
        ("precision[d]", lambda y, p: sk.precision_score(y == 3, p == 3), False),
        ("f1[a]", lambda y, p: sk.f1_score(y == 0, p == 0), False),
        ("specificity[a]", lambda y, p: sk.recall_score(y != 0, p != 0), False),
        ("auroc[c]", lambda y, p: sk.roc_auc_score(y == 2, p[:, 2]), True),
        ("average_precision[c]", lambda y, p: sk.average_precision_score(y == 2, p[:, 2]), True),
        ("nll", sk.log_loss, True),
        ("auroc_ovo", lambda y, p: sk.roc_auc_score(y, p, multi_class="ovo"), True),
    ],
)
def test_metrics_of_a_class_are_those_of_scikit_learn(
    name: str, function: Any, soft: Any, drawn: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, truth = drawn
    said = logits.double().softmax(1) if soft else logits.argmax(1)
    assert compute(name, logits, truth, CLASSES) == pytest.approx(function(truth.numpy(), said.numpy()), abs=1e-9)


def test_calibration_errors_of_fixed_logits_are_those_computed_elsewhere() -> None:
    rows = "4 1 0/3 0 1/2 1.5 0/0 3 1/1 4 0/2 0 2.5/0 1 3/.5 0 4/3 2 0/0 2 1.5/5 0 0/1 0 2"
    logits = torch.tensor([[float(number) for number in row.split()] for row in rows.split("/")])
    truth = [0, 0, 1, 1, 1, 2, 2, 0, 0, 2, 0, 2]
    task = Classification(("a", "b", "c"), counts=(5, 3, 4), images=12)
    assert compute(["nll", "brier", "ece"], logits, truth, task) == pytest.approx(
        [0.632709, 0.344842, 0.220942], abs=1e-6
    )


TWO = Classification(("well", "ill"), counts=(6, 4), images=10)
SCORES = [0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 0.35, 0.55, 0.8, 0.9]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("specificity@sensitivity=0.95", 0.666667),
        ("specificity[ill]@sensitivity=0.95", 0.666667),
        ("recall@precision=0.75", 0.75),
        ("recall@precision=0.9", 0.5),
        ("precision@recall=1", 0.666667),
        ("precision@recall=0.75", 0.75),
        ("sensitivity@specificity=0.8", 0.75),
        ("tpr@specificity=0.8", 0.75),
        ("auroc", 0.875),
    ],
)
def test_operating_points_are_the_best_that_a_threshold_reaches(name: str, expected: float) -> None:
    ill = torch.tensor(SCORES, dtype=torch.float64)
    logits = torch.stack([1 - ill, ill], dim=1).log()
    assert compute(name, logits, [0] * 6 + [1] * 4, TWO) == pytest.approx(expected, abs=1e-6)


LABELS = Multilabel(("p", "q", "r", "s"), counts=(2, 2, 0, 4), images=4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1_micro", 0.8),
        ("f1", 0.666667),
        ("f1_weighted", 0.833333),
        ("f1_samples", 0.65),
        ("auroc_micro", 0.90625),
        ("average_precision_micro", 0.900584),
        ("exact_match", 0.25),
        ("subset_accuracy", 0.25),
        ("accuracy", 0.8125),
        ("hamming", 0.1875),
        ("jaccard_samples", 0.583333),
        ("jaccard", 0.625),
        ("lrap", 0.875),
        ("coverage_error", 2.25),
        ("ranking_loss", 0.083333),
        ("ndcg", 0.907732),
        ("mcc", 0.5),
    ],
)
def test_metrics_of_several_labels_are_those_of_the_tables(name: str, expected: float) -> None:
    chances = [[0.9, 0.2, 0.1, 0.8], [0.4, 0.7, 0.6, 0.9], [0.6, 0.6, 0.2, 0.5], [0.3, 0.1, 0.1, 0.2]]
    truth = [[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]]
    logits = torch.tensor(chances, dtype=torch.float64).logit()
    assert compute(name, logits, torch.tensor(truth).float(), LABELS) == pytest.approx(expected, abs=1e-6)


NUMBER = Regression(("age",), mean=(2.0,), std=(1.7,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", 0.5),
        ("rmse", 0.707107),
        ("mae", 0.6),
        ("medae", 0.5),
        ("max_error", 1.0),
        ("mape", 450359962737049.8),
        ("smape", 0.622222),
        ("wmape", 0.3),
        ("msle", 0.077161),
        ("r2", 0.821429),
        ("explained_variance", 0.835714),
        ("pearson", 0.927677),
        ("spearman", 0.921053),
        ("kendall", 0.888889),
        ("ccc", 0.888889),
        ("pinball@q=0.9", 0.38),
    ],
)
def test_metrics_of_numbers_are_those_of_the_tables(name: str, expected: float) -> None:
    said, truth = (torch.tensor(values)[:, None] for values in ([0.5, 1, 1, 2.5, 4], [0.0, 1, 2, 2, 5]))
    assert compute(name, said, truth, NUMBER) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_correlations_of_constant_values_or_of_one_image_have_no_value() -> None:
    flat, rising = torch.ones(4, 1), torch.arange(4.0)[:, None]
    names = ["pearson", "spearman", "kendall"]
    assert np.isnan(compute(names, flat, rising, NUMBER)).all()
    assert np.isnan(compute([*names, "r2"], flat[:1], rising[:1], NUMBER)).all()
    assert compute("spearman", rising.exp(), rising, NUMBER) == stats.spearmanr(range(4), range(4)).statistic


def test_numbers_without_a_unit_are_averaged_over_targets_and_others_need_one_in_brackets() -> None:
    both = Regression(("age", "height"), mean=(0.0, 0.0), std=(1.0, 1.0))
    said, truth = torch.tensor([[1.0, 5], [2, 6], [4, 4]]), torch.tensor([[1.0, 4], [3, 6], [3, 5]])
    assert compute("r2", said, truth, both) == pytest.approx(sk.r2_score(truth, said))
    assert compute("mae[height]", said, truth, both) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match=r"'mae' is not a form of 'mae'; of several targets, name one: mae\[age\]"):
        make_named(["mae"], None, both, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auprcc", "no metric 'auprcc' for classification; nearest: auprc, "),
        ("rmse", "no metric 'rmse' for classification"),
        ("recall[tumour]", "there is no 'tumour'; near: "),
        ("kappa_micro", "'kappa_micro' is not a form of 'kappa'; use kappa, "),
        ("recall@precision=0.5", "is not a form of 'recall'"),  # of four classes, which one?
        ("fbeta", "is not a form of 'fbeta'"),
        ("nll[a]", "is not a form of 'nll'"),
        ("auroc_samples", "is not a form of 'auroc'"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_those_that_do(name: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        make_named([name], None, CLASSES, {})
    assert message in str(refused.value)


def test_what_a_task_has_already_is_not_made_twice_and_what_is_monitored_is_made() -> None:
    there = {"accuracy": tm.MulticlassAccuracy(4)}
    assert list(make_named(["accuracy", "auroc", "auroc"], "recall[b]", CLASSES, there)) == ["auroc", "recall[b]"]
    assert make_named([], "accuracy", CLASSES, there) == make_named([], "somebodys_own", CLASSES, there) == {}


def test_each_says_in_which_direction_it_is_better() -> None:
    down = ["nll", "brier", "ece", "ece_mass", "mce", "hamming", "error"]
    assert [metric.higher_is_better for metric in make_named(down, None, CLASSES, {}).values()] == [False] * 7
    up = ["auroc", "top2", "recall[a]", "f2", "qwk"]
    assert [metric.higher_is_better for metric in make_named(up, None, CLASSES, {}).values()] == [True] * 5
    errors = ["mse", "rmse", "mape", "pinball@q=0.1"]
    assert [metric.higher_is_better for metric in make_named(errors, None, NUMBER, {}).values()] == [False] * 4


def test_which_classes_have_no_value_is_known_from_the_targets_alone() -> None:
    made = make_named(["auroc", "auroc_micro", "mcc"], None, CLASSES, {})
    found = [metric.undefined_for(torch.tensor([0, 1, 1])) for metric in made.values()]  # type: ignore[operator]
    assert found == [[2, 3], [], []]
    assert made["auroc"].undefined_for(torch.tensor([1, 1])) == [0, 1, 2, 3]  # type: ignore[operator]


def test_outputs_that_are_not_finite_give_no_value_and_no_warning() -> None:
    logits = torch.tensor([[0.0, 1], [math.nan, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(math.isnan, compute(["auroc", "nll", "f1"], logits, [0, 1], TWO)))


def test_a_run_measures_and_monitors_what_its_configuration_names(tmp_path: Path) -> None:
    run = tmp_path / "run"
    named = ["auroc", "top2", "recall[7]", "ece"]
    done = invoke(
        *("run", "--out", run, "--epochs", "2", "--json", "--set", f"train.metrics={json.dumps(named)}"),
        *("--set", "train.monitor=nll"),
    )
    report = done.report
    assert {*named, "nll", "accuracy", "f1"} <= {*report["best"]}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert report["best"]["epoch"] == 1 + min((0, 1), key=lambda epoch: lines[epoch]["val"]["nll"])
    measured = json.loads(invoke("evaluate", run, "--json").out)["metrics"]
    assert {name: measured[name] for name in named} == {name: report["best"][name] for name in named}
    assert measured["nll"] == pytest.approx(measured["loss"], rel=1e-5)


def test_an_unknown_name_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    done = invoke("run", "--out", tmp_path / "run", "--set", 'train.metrics=["auprcc"]')
    assert done.code == 2
    assert "metrics: no metric 'auprcc' for classification; nearest: auprc" in done.err
    assert not (tmp_path / "run").exists()
