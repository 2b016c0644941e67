from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from ftcore.testing import invoke
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from ftcore_poly import poly_loss

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.testing import Conforms

pytest_plugins = ["ftcore.testing"]


def a_batch(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(64, classes, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(classes, (64,), generator=generator)


def test_with_epsilon_0_it_is_cross_entropy() -> None:
    outputs, targets = a_batch(classes=5)

    assert_close(poly_loss(outputs, targets, epsilon=0.0), cross_entropy(outputs, targets))


@pytest.mark.parametrize("epsilon", [-1.0, 0.5, 2.0])
def test_it_is_the_series_of_the_paper_with_another_first_factor(epsilon: float) -> None:
    outputs, targets = a_batch(classes=3)
    outputs = outputs / 6  # where the series converges in a few hundred terms

    loss = poly_loss(outputs, targets, epsilon=epsilon)

    miss = 1 - outputs.softmax(dim=1)[torch.arange(64), targets]
    series = sum((miss**j / j for j in range(2, 500)), start=(1 + epsilon) * miss)
    assert_close(loss, series.mean())


@pytest.mark.parametrize("epsilon", [-1.0, 2.0])
def test_soft_targets_mix_the_losses_of_the_classes(epsilon: float) -> None:
    outputs, targets = a_batch(classes=4)
    first, second = torch.eye(4, dtype=torch.float64)[targets], torch.eye(4, dtype=torch.float64)[targets.roll(1)]

    mixed = poly_loss(outputs, 0.3 * first + 0.7 * second, epsilon=epsilon)

    hard = [poly_loss(outputs, labels, epsilon=epsilon) for labels in (targets, targets.roll(1))]
    assert_close(mixed, 0.3 * hard[0] + 0.7 * hard[1])
    assert_close(poly_loss(outputs, first, epsilon=epsilon), hard[0])


def test_the_gradient_is_that_of_the_value() -> None:
    outputs, targets = a_batch(classes=3)

    assert torch.autograd.gradcheck(lambda x: poly_loss(x, targets, epsilon=2.0), outputs.requires_grad_())


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_a_certain_answer_has_a_finite_gradient(size: float) -> None:
    outputs = torch.tensor([[size, 0.0], [0.0, size], [size, size]], requires_grad=True)

    (gradient,) = torch.autograd.grad(poly_loss(outputs, torch.tensor([0, 0, 0]), epsilon=2.0), outputs)

    assert gradient.isfinite().all()


def test_it_is_listed_where_it_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").out)

    (row,) = [row for row in rows if row["name"] == "poly"]
    assert (row["distribution"], row["hooks"], row["active"]) == ("ftcore-poly", "make_loss", "no")


@pytest.mark.parametrize("more", [(), ("--plugin", "mixup")], ids=["hard", "soft"])
def test_it_answers_make_loss_when_named(more: tuple[str, ...], tmp_path: Path) -> None:
    result = invoke(
        *("run", "--plugin", "poly", *more, "--set", "poly.epsilon=2", "--json"),
        *("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}"),
    )

    assert result.code == 0, result.err
    assert result.report["hooks"]["make_loss"] == "poly"


def test_it_passes_every_check(conforms: Conforms) -> None:
    conforms("poly", sets=("poly.epsilon=2",))


def test_a_regression_is_refused_because_nothing_reads_the_loss(tmp_path: Path) -> None:
    result = invoke("run", "--plugin", "poly", "--set", "data.task=regression", "--set", f"run.folder={tmp_path}")

    assert result.code == 2
    assert "poly" in result.err
    assert "supplies nothing in this run" in result.err


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("epsilon=-1.1", "'epsilon' must be >= -1"),
        ("epsilon=nan", "poly.epsilon"),
        ("epsilon=inf", "poly.epsilon"),
        ("epsilom=2", "did you mean 'epsilon'"),
    ],
)
def test_a_bad_option_is_refused(option: str, reason: str, tmp_path: Path) -> None:
    result = invoke("run", "--plugin", "poly", "--set", f"poly.{option}", "--set", f"run.folder={tmp_path}")

    assert result.code == 2
    assert reason in result.err
    assert not any(tmp_path.iterdir())
