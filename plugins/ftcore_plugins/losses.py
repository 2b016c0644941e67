"""Losses by name, with their options; the formulas are torch's or in `weighted_cross_entropy`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Loss, Table, UserError, hookimpl, nearest

if TYPE_CHECKING:
    from ftcore import Task


class CrossEntropy:
    """`torch.nn.CrossEntropyLoss`."""

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if task.kind != "classification":
            return None
        from torch.nn.functional import cross_entropy

        return Loss(cross_entropy, soft_targets=True)


@frozen
class BinaryCrossEntropyConfig:
    """Options of `bce`.

    Attributes:
        positive: factor on the loss of a label that is there: ``"equal"`` (1), ``"balanced"`` (images without the label
            / images with it, so that both sides weigh the same), or a table ``{rare = 10}`` where unnamed labels have
            1; every factor > 0.
    """

    positive: Literal["equal", "balanced"] | dict[str, float] = "equal"


class BinaryCrossEntropy:
    """`torch.nn.BCEWithLogitsLoss`, the mean over images and labels."""

    Config = BinaryCrossEntropyConfig

    def __init__(self, config: BinaryCrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for several labels."""
        if task.kind != "multilabel":
            return None
        import torch

        factors = self._factors(task)
        rows = tuple((n, str(c), f"{f:.4g}") for n, c, f in zip(task.names, task.counts, factors, strict=True))
        tables = () if self.config.positive == "equal" else (Table("bce", ("label", "images", "factor"), rows),)
        return Loss(torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(factors)), tables=tables)

    def _factors(self, task: Task) -> list[float]:
        given = self.config.positive
        if given == "equal":
            return [1.0] * task.outputs
        if given == "balanced":
            return [(task.images - count) / count or 1.0 for count in task.counts]
        return checked_table("bce.positive", given, task)


class MeanSquaredError:
    """`torch.nn.MSELoss` on standardised targets."""

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for regression."""
        if task.kind != "regression":
            return None
        from torch.nn.functional import mse_loss

        return Loss(mse_loss)


@frozen
class WeightedCrossEntropyConfig:
    """Options of `weighted_ce`.

    Attributes:
        weights: ``"balanced"`` (images / (classes x images of the class), as in scikit-learn), ``"effective"`` (see
            `beta`), a list with one weight a class in the order of the class names, or a table ``{tumor = 10}`` where
            unnamed classes have 1; every weight > 0.
        beta: for ``"effective"``: a class of n images weighs (1 - beta) / (1 - beta ** n), scaled so that the weights
            add up to the number of classes; in [0, 1), 0 is no weighting (Cui et al. 2019, arXiv:1901.05555, eq. 4).
        divide_by: ``"weights"``, the sum of the targets' weights, as `torch.nn.CrossEntropyLoss(weight=...)` does; or
            ``"samples"``, the plain mean over the batch.
    """

    weights: Literal["balanced", "effective"] | tuple[float, ...] | dict[str, float] = "balanced"
    beta: float = field(default=0.999, validator=[validators.ge(0), validators.lt(1)])
    divide_by: Literal["weights", "samples"] = field(default="weights")


class WeightedCrossEntropy:
    """Cross-entropy that counts some classes more than others."""

    Config = WeightedCrossEntropyConfig

    def __init__(self, config: WeightedCrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if task.kind != "classification":
            return None
        from .weighted_cross_entropy import WeightedCrossEntropyLoss

        weights = class_weights(self.config.weights, task, self.config.beta)
        loss = WeightedCrossEntropyLoss(weights, by_samples=self.config.divide_by == "samples")
        counts = task.counts or ("",) * len(weights)
        rows = tuple((n, str(c), f"{w:.4g}") for n, c, w in zip(task.names, counts, weights, strict=True))
        title = f"weighted_ce, divided by the {'number' if loss.by_samples else 'weights'} of the samples"
        return Loss(loss, loss.weight_of, (Table(title, ("class", "images", "weight"), rows),), soft_targets=True)


def class_weights(given: str | tuple[float, ...] | dict[str, float], task: Task, beta: float = 0.999) -> list[float]:
    """Return one weight a class, in the order of `task.names`.

    Raises:
        UserError: wrong length, a class that does not exist, or a weight that is not a positive number.
    """
    if given == "effective":
        raw = [(1 - beta) / (1 - beta**count) for count in task.counts]
        return [weight * task.outputs / sum(raw) for weight in raw]
    if isinstance(given, str):
        return [sum(task.counts) / (task.outputs * count) for count in task.counts]
    if isinstance(given, tuple):
        if len(given) != task.outputs:
            raise UserError(
                f"weighted_ce.weights has {len(given)} weights for {task.outputs} classes ({', '.join(task.names)})"
            )
        given = dict(zip(task.names, given, strict=True))
    return checked_table("weighted_ce.weights", given, task)


def checked_table(option: str, given: dict[str, float], task: Task) -> list[float]:
    """Return one number a class or label, in the order of `task.names`; unnamed ones have 1."""
    what = "label" if task.kind == "multilabel" else "class"
    for name, weight in given.items():
        if name not in task.names:
            known = ", ".join(task.names)
            raise UserError(f"{option}: no {what} {name!r}{nearest(name, task.names)}; there are: {known}")
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"{option}: the weight of {name!r} must be a positive number, got {weight}")
    return [given.get(name, 1.0) for name in task.names]
