"""What the checks of a plugin try beyond the types of its hooks' answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ftcore.types.training import ForwardPass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts


def _batch(parts: TrainingParts) -> Batch:
    return next(iter(parts.data.train.epoch(0)))


def _outputs(parts: TrainingParts, batch: Batch) -> Tensor:
    """Return numbers as a network might give them for a batch, (N, K) float32."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(batch.targets), parts.data.task.outputs, generator=generator)
    return values.to(parts.placement.device).requires_grad_()


def check_scalar_term(value: object, what: str) -> str:
    """Say what is wrong with a scalar that is to be added to a loss."""
    if not isinstance(value, torch.Tensor):
        return f"{what} is a {type(value).__name__}; return a tensor"
    if value.shape != ():
        return f"{what} has shape {tuple(value.shape)}; return a scalar, such as its mean"
    if not value.isfinite():
        return f"{what} is {float(value)} for outputs around 0; it must be finite"
    return "" if value.requires_grad else f"{what} has no gradient; compute it from the tensors given, without .item()"


def _scalars(values: Mapping[str, object]) -> str:
    return next((wrong for name, value in values.items() if (wrong := check_scalar_term(value, name))), "")


def loss(parts: TrainingParts) -> str:
    """A loss is a finite scalar with a gradient; what its mean was divided by is a number > 0."""
    batch = _batch(parts)
    weight = float(parts.objective.loss.denominator(batch.targets))
    wrong = check_scalar_term(
        parts.objective.loss.function(_outputs(parts, batch), batch.targets), "the loss of a batch"
    )
    return wrong or (
        ""
        if 0 < weight < math.inf
        else f"the loss's denominator returned {weight} for a batch; it must be > 0 and finite"
    )


def transforms(parts: TrainingParts) -> str:
    """An image becomes a tensor (C, H, W); in evaluation the same each time."""
    for name, dataset in (("train", parts.data.train.dataset), ("evaluate", parts.data.val.dataset)):
        image: object = dataset.transform(dataset.samples[0][0])
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            return f"{name} returned {type(image).__name__} of shape {getattr(image, 'shape', None)}; return (C, H, W)"
    first, second = (parts.data.val.dataset.transform(parts.data.val.samples[0][0]) for _ in range(2))
    return (
        ""
        if torch.equal(first, second)
        else "evaluate returns a different tensor each time; draw no random numbers in it"
    )


def batch_transforms(parts: TrainingParts) -> str:
    """Whole batches keep their shapes."""
    from ftcore.training.loop import apply_batch_transforms

    batch = _batch(parts)
    after = apply_batch_transforms(parts, batch)
    if after.images.shape != batch.images.shape:
        return f"images {tuple(batch.images.shape)} became {tuple(after.images.shape)}; keep the shape"
    wanted = (len(batch.targets), parts.data.task.outputs)
    return "" if after.targets.shape == wanted else f"targets became {tuple(after.targets.shape)}; return {wanted}"


def terms(parts: TrainingParts) -> str:
    """Each term of a step is a finite scalar with a gradient."""
    batch = _batch(parts)
    images = batch.images.requires_grad_()
    outputs = parts.placement.model.train()(images).float()
    seen = ForwardPass(images, batch.targets, outputs, lambda others: parts.placement.model(others).float())
    return _scalars({name: term(seen) for name, term in parts.objective.step.terms.items()})


def check_regularizers(parts: TrainingParts) -> str:
    """Each penalty is a finite scalar with a gradient."""
    return _scalars({regularizer.name: regularizer.penalty() for regularizer in parts.objective.regularizers})


ANSWER_CHECKS: dict[str, Callable[[TrainingParts], str]] = {
    "make_transforms": transforms,
    "batch_transforms": batch_transforms,
    "make_loss": loss,
    "make_step": terms,
    "make_regularizers": check_regularizers,
}
"""Hook -> parts of a run -> what is wrong with the answer, or nothing."""
