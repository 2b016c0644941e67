"""After an epoch: what the validation split says of the network, and whether that is the best so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ftcore.data.batch_sharding import gather_batch
from ftcore.data.targets import decode_targets
from ftcore.errors import UserError
from ftcore.model.shape_inference import as_tuple
from ftcore.types.events import BatchEvaluated

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from .state import Progress, TrainingParts


def forward(parts: TrainingParts, model: nn.Module, images: Tensor) -> Tensor:
    """Return the first output (N, K) of a network, in float32."""
    with parts.precision.autocast():
        outputs = as_tuple(model(images))
    first: Tensor = outputs[0].float()
    return first


@torch.inference_mode()
def evaluate(
    parts: TrainingParts, network: nn.Module | None = None, on_boundary: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Measure a network, by default the one that learns, on the validation split: ``loss``, and every metric.

    Every process sees the outputs of all, so each image counts once, and any metric is what it is in one process.
    """
    model, placement = (network or parts.placement.model).eval(), parts.placement
    placement.broadcast_buffers(model)
    total: Any = 0.0
    weights: Any = 0.0
    for metric in parts.evaluation.metrics.values():
        metric.reset()
    for batch in parts.data.val.epoch(0):
        on_boundary()
        outputs = forward(parts, model, batch.images)
        outputs, targets = (gather_batch(rows, len(batch.indices), placement) for rows in (outputs, batch.targets))
        divisor = parts.objective.loss.denominator(targets)
        total = total + parts.objective.loss.function(outputs, targets) * divisor
        weights = weights + divisor
        predicted, wanted = decode_targets(outputs, parts.data.task), decode_targets(targets, parts.data.task)
        update_metrics(parts, predicted, wanted)
        parts.notify(BatchEvaluated(batch.indices, predicted, wanted))
    return {"loss": float(total / weights), **computed_metrics(parts)}


def update_metrics(parts: TrainingParts, predicted: Tensor, wanted: Tensor) -> None:
    """Show every metric the outputs and targets of a batch, in the target's own unit."""
    for metric in parts.evaluation.metrics.values():
        metric.update(predicted, wanted)


def computed_metrics(parts: TrainingParts) -> dict[str, Any]:
    """Return what every metric says: a float, or nested lists of numbers."""
    return {name: metric.compute().tolist() for name, metric in parts.evaluation.metrics.items()}


def update_best(parts: TrainingParts, progress: Progress, metrics: dict[str, Any]) -> bool:
    """Remember the metrics of an epoch, and return whether it is the best so far."""
    progress.last, value = metrics, metrics[parts.evaluation.monitor]
    if not isinstance(value, float):
        raise UserError(f"train.monitor = {parts.evaluation.monitor!r} is no single number: {value!r:.80}")
    sign = 1 if parts.higher_is_better else -1
    better = not progress.best or sign * value > sign * progress.best[parts.evaluation.monitor]
    if better:
        progress.best = metrics
    progress.epochs_since_best += 1
    if progress.best_value is None or sign * (value - progress.best_value) > (parts.train_config.min_delta or 0.0):
        progress.best_value, progress.epochs_since_best = value, 0
    return better


def should_stop_early(parts: TrainingParts, progress: Progress) -> bool:
    """Whether the monitored metric has not been better for `train.patience` epochs."""
    return 0 < parts.train_config.patience <= progress.epochs_since_best
