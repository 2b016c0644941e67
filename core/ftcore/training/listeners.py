"""Who is told where a run is: see `ftcore.Moment`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore.types.data import BatchImageTransform
from ftcore.types.training import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .state import Objective, Progress, TrainingParts


def find_listeners(objective: Objective, transforms: Iterable[Any]) -> tuple[Callable[[Moment], None], ...]:
    """Return the method ``at`` of each part that has one, or that is a method of what has one."""
    changes = [change.function if isinstance(change, BatchImageTransform) else change for change in transforms]
    step, penalties = objective.step, [penalty.penalty for penalty in objective.regularizers]
    parts = [objective.loss.function, *changes, *step.terms.values(), step.wrap_backward, *penalties]
    return tuple({id(owner): owner.at for part in parts for owner in _owners(part)}.values())


def _owners(part: Any) -> list[Any]:
    return [one for one in (part, getattr(part, "__self__", None)) if callable(getattr(one, "at", None))]


def moment(parts: TrainingParts, progress: Progress) -> Moment:
    """Return where a run is."""
    return Moment(progress.epoch, progress.step, parts.train_config.epochs, parts.steps_per_epoch)


def tell(parts: TrainingParts, progress: Progress) -> None:
    """Tell all that listen where the run is."""
    if parts.listeners:
        now = moment(parts, progress)
        for at in parts.listeners:
            at(now)


def tell_loss(loss: Any, now: Moment | None) -> None:
    """Tell a loss that was made anew where its run was when the model was measured."""
    for owner in _owners(loss) if now else ():
        owner.at(now)
