"""Validation metrics, all from torchmetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftcore import Task


class ClassMetrics:
    """Accuracy over all images, F1 as the mean over classes, confusion matrix (rows: true, columns: predicted)."""

    @hookimpl
    def make_metrics(self, task: Task) -> Mapping[str, Any] | None:
        """Answer for classification."""
        if task.kind != "classification":
            return None
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassConfusionMatrix,
            MulticlassF1Score,
        )

        classes = task.outputs
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
            "confusion_matrix": MulticlassConfusionMatrix(classes, validate_args=False),
        }


class RegressionMetrics:
    """RMSE and MAE in the target's own unit, and R2."""

    @hookimpl
    def make_metrics(self, task: Task) -> Mapping[str, Any] | None:
        """Answer for regression."""
        if task.kind != "regression":
            return None
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

        return {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": R2Score()}
