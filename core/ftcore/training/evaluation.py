"""After an epoch: what the validation split says of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ftcore.data.batch_sharding import gather_batch
from ftcore.model.shape_inference import as_tuple
from ftcore.types.events import BatchEvaluated

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from .state import TrainingParts


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
        predicted, wanted = parts.data.task.measured(outputs, targets)
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
