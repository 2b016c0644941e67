"""Soft F1 and soft Dice: certain answers score what scikit-learn says, others what the formula says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score
from torch.testing import assert_close

from ftcore import Context, RunConfig, Task
from ftcore.testing import invoke
from ftcore_plugins.losses.soft_f1 import OverlapConfig, SoftDice, SoftF1
from ftcore_plugins.tasks import Classification, Multilabel

CLASSES = Classification(("a", "b", "c"), counts=(5, 5, 5), images=15)
LABELS = Multilabel(("a", "b", "c"), counts=(5, 5, 5), images=15)


def made(plugin: type[SoftF1], task: Task, average: Any = "macro", eps: float = 1e-6) -> Any:
    """The function of a plugin's loss."""
    loss = plugin(OverlapConfig(average, eps)).make_loss(task, RunConfig(), Context(Path(), structlog.get_logger()))
    assert loss is not None
    return loss.function


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return logits, torch.randint(3, (20,), generator=generator)


@pytest.mark.parametrize("plugin", [SoftF1, SoftDice])
@pytest.mark.parametrize("average", ["macro", "micro"])
@given(seed=st.integers(0, 1000), images=st.integers(1, 20))
def test_of_certain_classes_it_is_scikit_learns(plugin: type[SoftF1], average: str, seed: int, images: int) -> None:
    logits, targets = (tensor[:images] for tensor in batch(seed))
    predicted = logits.argmax(dim=1)

    found = made(plugin, CLASSES, average)(1e4 * torch.eye(3, dtype=torch.float64)[predicted], targets)

    score = f1_score(targets, predicted, average=average, labels=[0, 1, 2], zero_division=1.0)
    assert float(found) == pytest.approx(1 - score, abs=1e-5)


@pytest.mark.parametrize("plugin", [SoftF1, SoftDice])
@pytest.mark.parametrize("average", ["macro", "micro"])
@given(seed=st.integers(0, 1000))
def test_of_certain_labels_it_is_scikit_learns(plugin: type[SoftF1], average: str, seed: int) -> None:
    logits, _ = batch(seed)
    targets = (batch(seed + 1)[0] > 0.5).double()

    found = made(plugin, LABELS, average)(1e4 * logits.sign(), targets)

    score = f1_score(targets, logits > 0, average=average, zero_division=1.0)
    assert float(found) == pytest.approx(1 - score, abs=1e-5)


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("task", [CLASSES, LABELS], ids=["classes", "labels"])
def test_soft_f1_counts_in_probabilities(task: Task, average: str) -> None:
    logits, targets = batch(0)
    y = torch.eye(3, dtype=torch.float64)[targets] * 0.9 + 0.05
    p = logits.softmax(dim=1) if task is CLASSES else logits.sigmoid()

    found = made(SoftF1, task, average)(logits, y)

    hit, false_alarm, miss = ((p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0))
    if average == "micro":
        hit, false_alarm, miss = hit.sum(), false_alarm.sum(), miss.sum()
    precision, recall = hit / (hit + false_alarm), hit / (hit + miss)
    assert_close(found, 1 - (2 * precision * recall / (precision + recall)).mean(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", [CLASSES, LABELS], ids=["classes", "labels"])
def test_soft_dice_has_squares_below_and_is_0_where_the_probabilities_are_the_targets(task: Task) -> None:
    logits, targets = batch(0)
    p = logits.softmax(dim=1) if task is CLASSES else logits.sigmoid()
    y = torch.eye(3, dtype=torch.float64)[targets]

    found, same = made(SoftDice, task)(logits, y), made(SoftDice, task)(logits, p)

    each = [2 * (p[:, k] @ y[:, k]) / (p[:, k] @ p[:, k] + y[:, k] @ y[:, k]) for k in range(3)]
    assert float(found) == pytest.approx(1 - float(sum(each)) / 3, abs=1e-6)
    assert float(same) == pytest.approx(0, abs=1e-12)
    assert float(made(SoftF1, task)(logits, p)) > 0.1


def test_eps_smooths_numerator_and_denominator() -> None:
    logits, targets = batch(0)
    p, y = logits.softmax(dim=1), torch.eye(3, dtype=torch.float64)[targets]

    found = made(SoftF1, CLASSES, eps=1.5)(logits, targets)

    assert_close(found, 1 - ((2 * (p * y).sum(0) + 1.5) / ((p + y).sum(0) + 1.5)).mean())


@pytest.mark.parametrize("plugin", ["soft_f1", "soft_dice"])
def test_a_run_that_accumulates_is_warned(plugin: str, tmp_path: Path) -> None:
    sets = ["train.epochs=1", "data.source=digits:5-6", "model.name=digits/cnn"]

    def run(name: str, *more: str) -> str:
        words = [word for text in [*sets, f"run.folder={tmp_path / name}", *more] for word in ("--set", text)]
        result = invoke("run", "--plugin", plugin, *words)
        assert result.code == 0, result.err
        return result.err

    assert "micro-batch" not in run("one")
    assert f"which differs from its value over all images of a step (plugin={plugin}, " in run(
        "two", "train.accumulate=2"
    )


@pytest.mark.parametrize("name", ["soft_f1", "soft_dice", "focal", "asymmetric", "bce"])
def test_a_named_loss_learns_labels(name: str, tmp_path: Path) -> None:
    noise, lines = np.random.default_rng(0), ["path,bright,wide"]
    for number in range(80):
        bright, wide = number % 2, number // 2 % 2
        pixels = noise.integers(0, 60, size=(8, 8), dtype=np.uint8)
        pixels += np.uint8(90 * bright)
        pixels[2:6] += np.uint8(90 * wide)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{bright},{wide}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    sets = ['table.target=["bright", "wide"]', "data.task=multilabel", "model.name=digits/cnn", "train.epochs=10"]
    words = [
        word for text in [*sets, f"run.folder={tmp_path / 'run'}", "train.batch_size=16"] for word in ("--set", text)
    ]

    result = invoke(
        "run", "--data", tmp_path / "labels.csv", "--plugin", name, *words, "--set", "adamw.lr=0.01", "--json"
    )

    assert result.code == 0, result.err
    assert result.report["hooks"]["make_loss"] == name
    assert result.report["best"]["average_precision"] > 0.9
