"""Validation metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore import hookimpl
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftcore import RunConfig, Task


MAX_CONFUSION_CLASSES = 200
"""Most classes of which every epoch writes down a confusion matrix, whose size is their square."""


class ClassMetrics:
    """Accuracy over all images, F1 as the mean over classes, confusion matrix (rows: true, columns: predicted).

    The matrix is recorded for up to 200 classes.
    """

    @hookimpl
    def make_metrics(self, task: Task, config: RunConfig) -> Mapping[str, Any] | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        from .multiclass import F1, Accuracy, ConfusionMatrix

        classes = task.outputs
        metrics: dict[str, Any] = {
            "accuracy": Accuracy(classes, average="micro", validate_args=False),
            "f1": F1(classes),
        }
        metrics |= {"confusion_matrix": ConfusionMatrix(classes)} if classes <= MAX_CONFUSION_CLASSES else {}
        return _with_named(metrics, task, config)


def _unmonitored(metric: type[Any]) -> type[Any]:
    """Make a metric that gives several numbers, so that it cannot be monitored."""
    return type(metric.__name__, (metric,), {"higher_is_better": None})


def _with_named(metrics: Mapping[str, Any], task: Task, config: RunConfig) -> Mapping[str, Any]:
    """Add those that ``train.metrics`` and ``train.monitor`` name."""
    if not (config.train.metrics or config.train.monitor):
        return metrics
    from .named import make_named

    return {**metrics, **make_named(config.train.metrics, config.train.monitor, task, metrics)}


class MultilabelMetrics:
    """Average precision and F1 (at 0.5), each also per label; thresholds with the best F1.

    The first two are means over the labels. `predict` uses the thresholds.
    """

    @hookimpl
    def make_metrics(self, task: Task, config: RunConfig) -> Mapping[str, Any] | None:
        """Answer for several labels."""
        if not isinstance(task, Multilabel):
            return None
        from .multilabel import F1, AveragePrecision, AveragePrecisionOfEach, Thresholds

        labels = task.outputs
        metrics = {
            "average_precision": AveragePrecision(labels),
            "f1": F1(labels, average="macro", validate_args=False),
            "average_precision_of_each": AveragePrecisionOfEach(labels),
            "f1_of_each": _unmonitored(F1)(labels, average="none", validate_args=False),
            "thresholds": Thresholds(labels),
        }
        return _with_named(metrics, task, config)


class RegressionMetrics:
    """RMSE and MAE in the unit of the target, and R2; for several targets, R2 is their mean and comes first."""

    @hookimpl
    def make_metrics(self, task: Task, config: RunConfig) -> Mapping[str, Any] | None:
        """Answer for regression."""
        if not isinstance(task, Regression):
            return None
        from .regression import R2, MeanAbsoluteError, R2OfEach, RootMeanSquaredError

        if task.outputs == 1:
            metrics = {"rmse": RootMeanSquaredError(task), "mae": MeanAbsoluteError(task), "r2": R2(task)}
            return _with_named(metrics, task, config)
        metrics = {
            "r2": R2(task),
            "rmse": _unmonitored(RootMeanSquaredError)(task),
            "mae": _unmonitored(MeanAbsoluteError)(task),
            "r2_of_each": R2OfEach(task),
        }
        return _with_named(metrics, task, config)
