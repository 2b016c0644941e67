from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from ftcore.testing import invoke
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from ftcore_focal import focal_loss

if TYPE_CHECKING:
    from pathlib import Path


def a_batch(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(64, classes, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(classes, (64,), generator=generator)


def test_with_gamma_0_it_is_cross_entropy() -> None:
    outputs, targets = a_batch(classes=5)

    torch.testing.assert_close(focal_loss(outputs, targets, gamma=0.0), cross_entropy(outputs, targets))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_it_is_equation_5_of_the_paper(gamma: float) -> None:
    outputs, targets = a_batch(classes=3)
    alpha = [0.2, 1.0, 3.0]

    loss = focal_loss(outputs, targets, gamma=gamma, alpha=alpha)

    p_t = outputs.softmax(dim=1)[torch.arange(64), targets]
    alpha_t = torch.tensor(alpha, dtype=torch.float64)[targets]
    torch.testing.assert_close(loss, (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean())


def test_two_classes_give_torchvisions_loss_on_the_difference_of_the_logits() -> None:
    outputs, targets = a_batch(classes=2)

    loss = focal_loss(outputs, targets, gamma=2.0, alpha=[0.75, 0.25])

    difference = outputs[:, 1] - outputs[:, 0]
    theirs = sigmoid_focal_loss(difference, targets.double(), alpha=0.25, gamma=2.0, reduction="mean")
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_certain_answer_has_a_finite_gradient(gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)

    (gradient,) = torch.autograd.grad(focal_loss(outputs, torch.tensor([0, 0]), gamma=gamma), outputs)

    assert gradient.isfinite().all()


def test_it_is_listed_where_it_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").out)

    (row,) = [row for row in rows if row["name"] == "focal"]
    assert (row["distribution"], row["hooks"], row["active"]) == ("ftcore-focal", "make_loss", "no")


def test_it_answers_make_loss_when_named(tmp_path: Path) -> None:
    result = invoke(
        *("run", "--plugin", "focal", "--set", "focal.alpha={9=0.5}", "--json"),
        *("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}"),
    )

    assert result.code == 0, result.err
    assert result.report["hooks"]["make_loss"] == "focal"


def test_a_regression_is_refused_because_nothing_reads_the_loss(tmp_path: Path) -> None:
    result = invoke("run", "--plugin", "focal", "--set", "data.task=regression", "--set", f"run.folder={tmp_path}")

    assert result.code == 2
    assert "focal" in result.err
    assert "answers nothing in this run" in result.err


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("gamma=-1", "focal.gamma"),
        ("gamma=nan", "focal.gamma"),
        ("gamma=inf", "focal.gamma"),
        ("gama=2", "did you mean 'gamma'"),
        ("alpha=[1, 2]", "2 numbers for 5 classes (5, 6, 7, 8, 9)"),
        ("alpha={4=2}", "no class '4'"),
        ("alpha={5=0}", "must be finite and > 0, got 0"),
    ],
)
def test_a_bad_option_is_refused(option: str, reason: str, tmp_path: Path) -> None:
    result = invoke("run", "--plugin", "focal", "--set", f"focal.{option}", "--set", f"run.folder={tmp_path}")

    assert result.code == 2
    assert reason in result.err
    assert not any(tmp_path.iterdir())
