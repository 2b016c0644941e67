"""Which epoch is best: every comparison of a monitored value, and what is said where it is no number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import structlog
import torch

from ftcore.data.dataset import ImageSplit
from ftcore.distributed.dtensor import local_tensor
from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore.types.data import SampleDataset
    from ftcore.types.task import Task

    from .state import Progress, TrainingParts


def comparable(value: float | None, *, higher_is_better: bool) -> float:
    """Return a value of a metric so that higher is better.

    What is not finite, and what is not there, is -inf: no better than anything. An infinite value counts as little as
    NaN, for it could never be beaten.
    """
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if higher_is_better else -value


def update_best(parts: TrainingParts, progress: Progress, metrics: dict[str, Any]) -> bool:
    """Remember the metrics of an epoch, and return whether it is the best so far; say once that it cannot be.

    Raises:
        UserError: the monitored metric is not a single number.
    """
    monitor, up = parts.evaluation.monitor, parts.higher_is_better
    progress.last, value = metrics, metrics[monitor]
    if not isinstance(value, float):
        raise UserError(f"train.monitor = {monitor!r} is not a single number: {value!r:.80}")
    signed, best, mark = (
        comparable(one, higher_is_better=up) for one in (value, progress.best.get(monitor), progress.best_value)
    )
    if signed > best:
        progress.best = metrics
    progress.epochs_since_best += 1
    if signed - mark > (parts.train_config.min_delta or 0.0):  # of two that are no numbers, that is NaN, and not so
        progress.best_value, progress.epochs_since_best = value, 0
    if not math.isfinite(value):
        progress.unmeasured_epochs += 1
        if progress.unmeasured_epochs == 1:
            structlog.get_logger().warning(
                f"{monitor} is {value} after epoch {progress.epoch}, so this epoch cannot be the best: "
                f"{_cause(parts, progress, metrics)}"
            )
    return signed > best


def _cause(parts: TrainingParts, progress: Progress, metrics: Mapping[str, Any]) -> str:
    """Say why a monitored value is no number."""
    if "loss" in metrics and not math.isfinite(metrics["loss"]):
        network = parts.model_at(progress.epoch - 1)
        wrong = [
            name for name, tensor in network.state_dict().items() if not torch.isfinite(local_tensor(tensor)).all()
        ]
        where = f", and so is {', '.join(wrong[:3])} of the network" if wrong else "; its weights are finite"
        return f"the loss of the validation split is {metrics['loss']}{where}"
    metric = type(parts.evaluation.metrics[parts.evaluation.monitor]).__name__
    return (
        f"the loss is finite, but {metric} has no value for the {len(parts.data.val.samples)} "
        "images of the validation split; set another metric with train.monitor"
    )


def should_stop_early(parts: TrainingParts, progress: Progress) -> bool:
    """Whether the monitored metric has not been better for `train.patience` epochs."""
    return 0 < parts.train_config.patience <= progress.epochs_since_best


def warn_without_best(parts: TrainingParts, progress: Progress) -> None:
    """Say it where a run ends without a best epoch."""
    if progress.epoch and not progress.best:
        structlog.get_logger().warning(
            f"no epoch is the best, because {parts.evaluation.monitor} was not finite in any of {progress.epoch} "
            f"epochs; model/ "
            "has the network of the last epoch"
        )


def check_metrics_are_defined(metrics: Mapping[str, Any], monitor: str, val: SampleDataset, task: Task) -> None:
    """Find metrics that the validation split cannot have, before anything is trained; see `ftcore.hooks.make_metrics`.

    A metric without a value for some labels or targets is a warning.

    Raises:
        UserError: the monitored one has none for any.
    """
    if not isinstance(val, ImageSplit):  # whose targets alone are known without decoding
        return
    targets = torch.as_tensor(val.targets)
    found: dict[tuple[int, ...], list[str]] = {}
    for name, metric in metrics.items():
        if hasattr(metric, "undefined_for"):
            found.setdefault(tuple(metric.undefined_for(targets)), []).append(name)
    for places, names in found.items():
        without = _some([task.names[place] for place in places])
        where = f"for {without} on the {len(val)} images of the validation split"
        if len(places) == task.outputs and monitor in names:
            others = [n for n, metric in metrics.items() if n not in names and metric.higher_is_better is not None]
            raise UserError(
                f"{monitor}, which selects the best epoch, cannot be computed {where}; hold out other images "
                f"(data.val_fraction, data.split_seed), or monitor {' or '.join(['loss', *others])}: "
                "--set train.monitor=loss"
            )
        if places:
            structlog.get_logger().warning(f"{', '.join(names)} cannot be computed {where}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
