"""Laws of every loss: hard and soft targets agree, micro-batches add up, the gradient is right and finite."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import torch
from torch.testing import assert_close
from torchvision.transforms import v2

from ftcore import Context, Loss, RunConfig, Task
from ftcore_plugins.losses.bce import BinaryCrossEntropy, BinaryCrossEntropyConfig
from ftcore_plugins.losses.cross_entropy import (
    CrossEntropy,
    CrossEntropyConfig,
    LogitAdjustment,
    LogitAdjustmentConfig,
    WeightedCrossEntropy,
    WeightedCrossEntropyConfig,
)
from ftcore_plugins.losses.focal import Asymmetric, AsymmetricConfig, Focal, FocalConfig
from ftcore_plugins.losses.ordinal import Ordinal, OrdinalConfig
from ftcore_plugins.losses.regression import Huber, HuberConfig, MeanAbsoluteError, MeanSquaredError
from ftcore_plugins.losses.soft_f1 import OverlapConfig, SoftDice, SoftF1
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = Classification(("a", "b", "c", "d"), counts=(70, 20, 7, 3), images=100)
LABELS = Multilabel(CLASSES.names, counts=CLASSES.counts, images=100)
NUMBERS = Regression(CLASSES.names, images=100, mean=(0.0,) * 4, std=(1.0,) * 4)

LINEAR: dict[str, Any] = {
    "cross_entropy": CrossEntropy(CrossEntropyConfig()),
    "cross_entropy, smoothed": CrossEntropy(CrossEntropyConfig(0.1)),
    "weighted_ce by samples": WeightedCrossEntropy(WeightedCrossEntropyConfig(divide_by="samples")),
    "weighted_ce by samples, smoothed": WeightedCrossEntropy(
        WeightedCrossEntropyConfig(divide_by="samples", label_smoothing=0.2)
    ),
    "weighted_ce by samples, smoothed as torch": WeightedCrossEntropy(
        WeightedCrossEntropyConfig(divide_by="samples", label_smoothing=0.2, smoothing_weights="torch")
    ),
    "logit_adjustment": LogitAdjustment(LogitAdjustmentConfig()),
    "focal": Focal(FocalConfig(2.0, (0.5, 1.0, 2.0, 4.0))),
    "focal, gamma 0.5": Focal(FocalConfig(0.5)),
    "focal, gamma 0": Focal(FocalConfig(0.0)),
    "asymmetric": Asymmetric(AsymmetricConfig()),
    "asymmetric, small gammas": Asymmetric(AsymmetricConfig(0.5, 0.5)),
    "bce": BinaryCrossEntropy(BinaryCrossEntropyConfig()),
    "bce, balanced and smoothed": BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced", 0.1)),
    "bce, balanced and smoothed as torch": BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced", 0.1, "torch")),
}
"""Losses of classes that are linear in the probabilities."""

MEANS: dict[str, Any] = LINEAR | {
    "weighted_ce by weights": WeightedCrossEntropy(WeightedCrossEntropyConfig()),
    "weighted_ce by weights, smoothed": WeightedCrossEntropy(WeightedCrossEntropyConfig(label_smoothing=0.2)),
    "ordinal": Ordinal(OrdinalConfig(("d", "b", "a", "c"))),
}
"""Losses of classes that are means over images."""

OVERLAPS: dict[str, Any] = {
    "soft_f1": SoftF1(OverlapConfig()),
    "soft_f1, micro": SoftF1(OverlapConfig("micro")),
    "soft_dice": SoftDice(OverlapConfig()),
    "soft_dice, micro": SoftDice(OverlapConfig("micro")),
}

ANY = MEANS | OVERLAPS

OF_LABELS: dict[str, Any] = {
    "bce": BinaryCrossEntropy(BinaryCrossEntropyConfig()),
    "bce, balanced and smoothed": BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced", 0.1)),
    "bce, balanced and smoothed as torch": BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced", 0.1, "torch")),
    "focal": Focal(FocalConfig(2.0, 0.25)),
    "focal, gamma 0.5": Focal(FocalConfig(0.5, {"d": 10.0})),
    "asymmetric": Asymmetric(AsymmetricConfig()),
    "asymmetric, small gammas": Asymmetric(AsymmetricConfig(0.5, 0.5, 0.0)),
}
OF_NUMBERS: dict[str, Any] = {
    "mse": MeanSquaredError(),
    "mae": MeanAbsoluteError(),
    "huber": Huber(HuberConfig(0.7)),
}


def answer(plugin: Any, task: Task, dtype: torch.dtype = torch.float64) -> Loss:
    """The plugin's loss, in a dtype."""
    given = {
        "task": task,
        "config": RunConfig(),
        "ctx": Context(Path(), structlog.get_logger(), named=True),  # for classification bce answers only then
    }
    loss = plugin.make_loss(**{name: given[name] for name in signature(plugin.make_loss).parameters})
    assert isinstance(loss, Loss)
    if isinstance(loss.function, torch.nn.Module):
        loss.function.to(dtype)
    return loss


def batch(kind: str, images: int = 32) -> tuple[Tensor, Tensor]:
    """Logits (N, 4) float64 and targets: ``hard`` indices, ``soft`` probabilities, ``labels`` or ``numbers``."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, 4, generator=generator, dtype=torch.float64)
    uniform = torch.rand(images, 4, generator=generator, dtype=torch.float64)
    targets = {
        "hard": uniform.argmax(dim=1),
        "soft": uniform / uniform.sum(dim=1, keepdim=True),
        "labels": (uniform > 0.6).double(),
        "numbers": 4 * uniform - 2,
    }
    return logits, targets[kind]


def value_and_gradient(loss: Loss, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss.function(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def one_hot(targets: Tensor) -> Tensor:
    return torch.eye(4, dtype=torch.float64)[targets]


@pytest.mark.parametrize("name", ANY)
def test_one_hot_targets_equal_hard_ones(name: str) -> None:
    loss = answer(ANY[name], CLASSES)
    logits, targets = batch("hard")

    soft, hard = (value_and_gradient(loss, logits, t) for t in (one_hot(targets), targets))

    assert loss.soft_targets
    assert_close(soft, hard, rtol=0, atol=1e-12)
    assert float(loss.denominator(one_hot(targets))) == pytest.approx(float(loss.denominator(targets)), rel=1e-6)


def mixed_with_ratio_one(targets: Tensor) -> Tensor:
    """Targets (N, 4) of torchvision's mixup where its ratio is 1, or as near to it as it draws: 1 - 6e-8."""
    images = torch.arange(len(targets), dtype=torch.float64).reshape(-1, 1, 1, 1)
    mix = v2.MixUp(alpha=0.02, num_classes=4)
    torch.manual_seed(0)
    draws = (mix(images, targets) for _ in range(50))
    kept: Tensor = next(mixed for changed, mixed in draws if torch.allclose(changed, images, rtol=0, atol=1e-5))
    return kept.double()


@pytest.mark.parametrize("name", ANY)
def test_mixup_that_keeps_all_of_an_image_equals_hard_labels(name: str) -> None:
    loss = answer(ANY[name], CLASSES)
    logits, targets = batch("hard")

    found = value_and_gradient(loss, logits, mixed_with_ratio_one(targets))

    assert_close(found, value_and_gradient(loss, logits, targets), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(name: str) -> None:
    loss = answer(LINEAR[name], CLASSES)
    logits, targets = batch("hard")
    other = targets.roll(1)

    found = loss.function(logits, 0.3 * one_hot(targets) + 0.7 * one_hot(other))

    assert_close(found, 0.3 * loss.function(logits, targets) + 0.7 * loss.function(logits, other))


CASES = [
    *[(name, plugin, CLASSES, kind) for name, plugin in MEANS.items() for kind in ("hard", "soft")],
    *[(name, plugin, LABELS, "labels") for name, plugin in OF_LABELS.items()],
    *[(name, plugin, NUMBERS, "numbers") for name, plugin in OF_NUMBERS.items()],
]
ALL_CASES = [
    *CASES,
    *[(name, plugin, CLASSES, kind) for name, plugin in OVERLAPS.items() for kind in ("hard", "soft")],
    *[(name, plugin, LABELS, "labels") for name, plugin in OVERLAPS.items()],
]


def title(case: Any) -> str | None:
    return case if isinstance(case, str) else getattr(case, "kind", "")


@pytest.mark.parametrize(("name", "plugin", "task", "kind"), CASES, ids=title)
def test_micro_batches_combine_to_the_loss_and_gradient_of_the_batch(
    name: str, plugin: Any, task: Task, kind: str
) -> None:
    loss = answer(plugin, task)
    logits, targets = batch(kind)
    whole = value_and_gradient(loss, logits, targets)

    divisor = float(loss.denominator(targets))
    parts = []
    for x, y in zip(logits.chunk(4), targets.chunk(4), strict=True):
        value, gradient = value_and_gradient(loss, x, y)
        share = float(loss.denominator(y)) / divisor
        parts.append((value * share, gradient * share))
    values, gradients = zip(*parts, strict=True)

    assert_close((torch.stack(values).sum(), torch.cat(gradients)), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "plugin", "task", "kind"), ALL_CASES, ids=title)
def test_the_gradient_is_that_of_the_value(name: str, plugin: Any, task: Task, kind: str) -> None:
    loss = answer(plugin, task)
    logits, targets = batch(kind, images=6)

    assert torch.autograd.gradcheck(lambda x: loss.function(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("size", [0.0, 20.0, 95.0, 200.0, 1e4])
@pytest.mark.parametrize(("name", "plugin", "task", "kind"), ALL_CASES, ids=title)
def test_extreme_outputs_have_a_finite_loss_and_gradient(
    name: str, plugin: Any, task: Task, kind: str, size: float
) -> None:
    loss = answer(plugin, task, torch.float32)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    _, targets = batch(kind, images=4 * len(signs))
    targets = targets if kind == "hard" else targets.float()

    value, gradient = value_and_gradient(loss, size * signs.repeat(4, 1), targets)

    assert value.isfinite()
    assert gradient.isfinite().all()


def test_a_mean_over_micro_batches_of_an_overlap_is_another_value() -> None:
    loss = answer(SoftF1(OverlapConfig()), CLASSES)
    logits, targets = batch("hard")

    parts = [loss.function(x, y) for x, y in zip(logits.chunk(4), targets.chunk(4), strict=True)]

    assert abs(float(torch.stack(parts).mean() - loss.function(logits, targets))) > 1e-3


@pytest.mark.parametrize(("name", "plugin", "task", "kind"), ALL_CASES, ids=title)
def test_a_loss_moves_to_a_device_as_a_whole(name: str, plugin: Any, task: Task, kind: str) -> None:
    loss = answer(plugin, task)
    if isinstance(loss.function, torch.nn.Module):
        loss.function.to("meta")
    logits, targets = (tensor.to("meta") for tensor in batch(kind))

    assert loss.function(logits, targets).device.type == "meta"
    assert torch.as_tensor(loss.denominator(targets)).device.type in {"cpu", "meta"}
