"""Losses by name, with their options; the formulas are torch's or in `weighted_cross_entropy`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

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

        return Loss(cross_entropy)


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
        weights: ``"balanced"`` (images / (classes x images of the class), as in scikit-learn), a list with one
            weight a class in the order of the class names, or a table ``{tumor = 10}`` where unnamed classes have 1;
            every weight > 0.
        divide_by: ``"weights"``, the sum of the targets' weights, as `torch.nn.CrossEntropyLoss(weight=...)` does; or
            ``"samples"``, the plain mean over the batch.
    """

    weights: Literal["balanced"] | tuple[float, ...] | dict[str, float] = "balanced"
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

        weights = class_weights(self.config.weights, task)
        loss = WeightedCrossEntropyLoss(weights, by_samples=self.config.divide_by == "samples")
        counts = task.counts or ("",) * len(weights)
        rows = tuple((n, str(c), f"{w:.4g}") for n, c, w in zip(task.names, counts, weights, strict=True))
        title = f"weighted_ce, divided by the {'number' if loss.by_samples else 'weights'} of the samples"
        return Loss(loss, loss.weight_of, (Table(title, ("class", "images", "weight"), rows),))


def class_weights(given: str | tuple[float, ...] | dict[str, float], task: Task) -> list[float]:
    """Return one weight a class, in the order of `task.names`.

    Raises:
        UserError: wrong length, a class that does not exist, or a weight that is not a positive number.
    """
    if isinstance(given, str):
        return [sum(task.counts) / (task.outputs * count) for count in task.counts]
    if isinstance(given, tuple):
        if len(given) != task.outputs:
            raise UserError(
                f"weighted_ce.weights has {len(given)} weights for {task.outputs} classes ({', '.join(task.names)})"
            )
        given = dict(zip(task.names, given, strict=True))
    for name, weight in given.items():
        if name not in task.names:
            known = ", ".join(task.names)
            raise UserError(f"weighted_ce.weights: no class {name!r}{nearest(name, task.names)}; classes: {known}")
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"weighted_ce.weights: the weight of {name!r} must be a positive number, got {weight}")
    return [given.get(name, 1.0) for name in task.names]
