"""Between the gradient and the update: clip, check, step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import structlog
import torch

from ftcore.distributed.dtensor import full_tensor
from ftcore.errors import UserError
from ftcore.model import freezing
from ftcore.plugins.discovery import load_defaults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from ftcore.data.loader import Batch

    from .state import Progress, TrainingParts


MIN_LOSS_SCALE = 2.0**-14
"""Of a loss in float16, whose smallest normal number this is: below it, a loss of 1 loses digits."""


class NotFiniteError(UserError):
    """A step was stopped before its update.

    Attributes:
        terms: name -> loss and what was added to it.
        norm: of the gradient.
        indices: places of its samples in the training split.
    """

    def __init__(self, message: str, terms: dict[str, float], norm: float, indices: list[int]) -> None:
        super().__init__(message)
        self.terms, self.norm, self.indices = terms, norm, indices


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """Add up what is differentiated."""
    first, *others = terms.values()
    return sum(others, start=first)


def clip(parts: TrainingParts) -> Tensor:
    """Limit the gradient as `train.clip_norm`, `clip_value` or `clip_adaptive` say; return the norm that it had."""
    settings = parts.train_config
    params = [p for group in parts.optimization.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in params]))
    if settings.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(params, settings.clip_norm, norm)
    elif settings.clip_value:
        torch.nn.utils.clip_grad_value_(params, settings.clip_value)
    elif settings.clip_adaptive:
        names = parts.network.named_parameters()
        inner = [p for name, p in names if p.grad is not None and not freezing.is_submodule_of(name, parts.heads)]
        clip_adaptive_(inner, settings.clip_adaptive)
    return norm


def clip_adaptive_(params: Sequence[Tensor], limit: float) -> None:
    """Limit the norm of each unit's gradient to so much of that of its weights, in place.

    Brock et al. 2021 (arXiv:2102.06171), eq. 3. A unit is what lies behind the first dimension, or a whole vector; one
    whose weights have a norm below 10^-3 counts as if it had that.
    """
    for param in params:
        weight, grad = param.detach(), cast("Tensor", param.grad).detach()
        most = _unit_norms(weight).clamp_(min=1e-3).mul_(limit)
        norms = _unit_norms(grad)
        clipped = grad * (most / norms.clamp(min=1e-6))
        grad.copy_(torch.where(norms < most, grad, clipped))


def _unit_norms(tensor: Tensor) -> Tensor:
    """Tensor (N, ...) -> (N, 1, ...); a vector or a number -> ()."""
    behind = tuple(range(1, tensor.ndim)) or None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=behind, keepdim=tensor.ndim > 1)
    return norms


SCALE_HISTORY = 32
"""Changes of the loss's scale that a run remembers, and its black box tells."""


def all_finite(
    parts: TrainingParts, window: Sequence[Batch], terms: Mapping[str, Tensor], norm: Tensor, progress: Progress
) -> bool:
    """Whether the loss, its terms and a gradient that nobody scales are finite; otherwise stop, or count it.

    The one place in a step where the host waits for the device: an update with such a gradient cannot be undone.

    Raises:
        UserError: one is not, and `train.on_nonfinite` does not allow to skip the update.
    """
    watched = sum_terms(terms) if parts.precision.scaler.is_enabled() else sum_terms(terms) + norm
    if math.isfinite(watched):
        return True
    settings = parts.train_config
    if settings.on_nonfinite == "skip" and progress.skipped < (settings.max_nonfinite or 10):
        progress.skipped += 1
        progress.current.skipped += 1
        return False
    indices = [int(index) for batch in window for index in batch.indices]
    names = [parts.data.train.samples.name(index) for index in indices]
    shown = ", ".join(f"{name} is {float(term)}" for name, term in terms.items())
    message = (
        f"the {shown} and the norm of the gradient {float(norm)} in step {progress.step + 1} "
        f"(epoch {progress.epoch + 1}); the update was skipped"
        f"{f', as were {progress.skipped} before it' if progress.skipped else ''}\n"
        f"precision {parts.precision.name}, learning rates "
        f"{[g['lr'] for g in parts.optimization.optimizer.param_groups]}, "
        f"samples {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}\n"
        f"{_ways_out(parts)} usually helps"
    )
    raise NotFiniteError(message, {name: float(term) for name, term in terms.items()}, float(norm), indices)


def _ways_out(parts: TrainingParts) -> str:
    """Say what keeps a gradient finite and is not in use."""
    clip = [] if parts.train_config.clip_norm else ["train.clip_norm"]
    precision = [load_defaults().ADVICE["float16"]] if parts.precision.scaler.is_enabled() else []
    return " or ".join(["a lower learning rate", *clip, *precision])


def optimizer_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, progress: Progress) -> bool:
    """Let the optimizer step; return False, and count it, if the scaler skipped it: the scaled gradient overflowed.

    A scaler lowers its scale after a step that it skipped, and only then; it does not say so otherwise.

    Raises:
        UserError: it overflows at every scale, so no step would ever be made.
    """
    if not scaler.is_enabled():
        optimizer.step()
        return True
    # So that it is not called to skip: torch's fused SGD would take its momentum from memory that nobody has written.
    vars(optimizer)["_step_supports_amp_scaling"] = False
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    after = scaler.get_scale()
    made = after >= before
    if after != before:
        progress.scale_history = [*progress.scale_history, (progress.step + 1, after)][-SCALE_HISTORY:]
    if not made:
        progress.overflows += 1
        progress.current.skipped += 1
    if not made and before < MIN_LOSS_SCALE:
        raise UserError(
            f"the gradient is not finite in float16, even with the loss scale reduced to {before}, so no more updates "
            f"are "
            f"possible; {load_defaults().ADVICE['float16']} usually helps"
        )
    return made


def step_scheduler(parts: TrainingParts, per: str, *metric: float) -> None:
    """Let the schedule step if it does so after an update, after an epoch, or with the metric of an epoch."""
    schedule, scheduler = parts.optimization.schedule, cast("Any", parts.optimization.schedule.scheduler)
    if per == "step" and schedule.warmup:
        schedule.warmup.step()
    if per == schedule.interval:
        scheduler.step(*metric)


SKIPPED_SHARE = 0.1
"""Share of the optimizer steps without an update that is worth a warning; a few while a scale is found are none."""


def warn_of_skipped(progress: Progress) -> None:
    """Warn at the end of an epoch when, with it, more than a tenth of all steps made no update."""
    current, skipped = progress.current, progress.skipped + progress.overflows
    was_notable = skipped - current.skipped > SKIPPED_SHARE * (progress.step - current.step)
    if skipped > SKIPPED_SHARE * progress.step and not was_notable:
        structlog.get_logger().warning(
            f"{skipped} of {progress.step} optimizer steps so far were skipped, as were their learning-rate "
            f"steps: {_why_skipped(progress)}"
        )


def check_updates(progress: Progress) -> None:
    """Refuse the result of a run in which no step changed the network.

    Raises:
        UserError: none did.
    """
    if progress.step and not progress.updates:
        raise UserError(
            f"all {progress.step} optimizer steps of this run were skipped, so the network is "
            f"unchanged: {_why_skipped(progress)}"
        )


def _why_skipped(progress: Progress) -> str:
    """Say why updates were skipped, and what helps."""
    reasons = (
        (progress.overflows, f"in {progress.overflows} the gradient, with the loss scaled up for float16, overflowed"),
        (progress.skipped, f"in {progress.skipped} the loss or gradient was not finite (train.on_nonfinite)"),
    )
    scales = f"; the scale was last {progress.scale_history[-1][1]:g}" if progress.scale_history else ""
    said = ", ".join(text for number, text in reasons if number)
    return f"{said}{scales}; try more steps, a lower learning rate, or {load_defaults().ADVICE['float16']}"
