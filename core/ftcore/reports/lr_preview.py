"""The learning rates of a run before it: its own scheduler steps, and nothing is learnt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from ftcore.plots import Plot, Series
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ftcore.training.state import TrainingParts
    from ftcore.types.training import ParamGroup


MAX_STEPS = 20_000
"""Steps up to which every one is followed."""


@frozen
class LRCurve:
    """Groups that learn at the same rate throughout.

    Attributes:
        groups: their names.
        rates: (S,) float, one for each of `LRPreview.steps`.
    """

    groups: tuple[str, ...]
    rates: tuple[float, ...]


@frozen
class LRPreview:
    """The learning rates of all groups over a run.

    Attributes:
        steps: (S,) int, from 0; those that were looked at.
        curves: one for each rate that differs.
        steps_per_epoch: optimizer steps.
        changes: when they change, and what is not shown.
    """

    steps: tuple[int, ...]
    curves: tuple[LRCurve, ...]
    steps_per_epoch: int
    changes: str


def preview_learning_rates(parts: TrainingParts, groups: Sequence[ParamGroup], most: int = MAX_STEPS) -> LRPreview:
    """Step the scheduler of a run that will not be run, as the loop does, and note the rates.

    Args:
        parts: without gradients, so that the optimizer's step, without which torch warns of the order, does nothing.
        groups: of the optimizer.
        most: steps to follow. Of a longer run that many are looked at, where the rate is a function of the step; else
            the first.
    """
    parts.optimization.optimizer.step()
    total = parts.train_config.epochs * parts.steps_per_epoch
    stride = math.ceil(total / most)
    changes = _change_description(parts)
    if parts.optimization.schedule.interval != "step" and not parts.optimization.schedule.warmup:
        seen = list(_by_epoch(parts))
    elif stride == 1:
        seen = list(_by_step(parts, total))
    elif _is_function_of_step(parts):
        seen, changes = list(_sampled(parts, total, stride)), f"{changes}; one in {stride} of {total:,} steps is shown"
    else:
        seen, changes = list(_by_step(parts, most)), f"{changes}; the first {most:,} of {total:,} steps are shown"
    steps, rates = zip(*seen, strict=True)
    return LRPreview(steps, _merge_equal(groups, list(zip(*rates, strict=True))), parts.steps_per_epoch, changes)


def _change_description(parts: TrainingParts) -> str:
    schedule = parts.optimization.schedule
    if schedule.interval == "metric":
        rising = "after the warm-up, " if schedule.warmup else ""
        return f"{rising}with the monitored metric ({parts.evaluation.monitor}), which is unknown before the run"
    return (
        "each epoch, in addition to a warm-up"
        if schedule.interval == "epoch" and schedule.warmup
        else f"each {schedule.interval}"
    )


def _current_lrs(parts: TrainingParts) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in parts.optimization.optimizer.param_groups)


def _by_step(parts: TrainingParts, number: int) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield steps and their rates, of so many steps, as `ftcore.training.loop.train_epoch` takes them."""
    from ftcore.training.gradients import step_scheduler

    for step in range(number):
        yield step, _current_lrs(parts)
        step_scheduler(parts, "step")
        if (step + 1) % parts.steps_per_epoch == 0:
            step_scheduler(parts, "epoch")


def _by_epoch(parts: TrainingParts) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the first and the last step of each epoch, between which the rates stay."""
    from ftcore.training.gradients import step_scheduler

    for epoch in range(parts.train_config.epochs):
        first = epoch * parts.steps_per_epoch
        for step in sorted({first, first + parts.steps_per_epoch - 1}):
            yield step, _current_lrs(parts)
        step_scheduler(parts, "epoch")


def _is_function_of_step(parts: TrainingParts) -> bool:
    """Whether the scheduler is of torch's classes that take nothing but `last_epoch` into account."""
    from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

    return not parts.optimization.schedule.warmup and type(parts.optimization.schedule.scheduler) in {
        LambdaLR,
        OneCycleLR,
    }


def _sampled(parts: TrainingParts, total: int, stride: int) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield every so many steps, and the last."""
    scheduler = cast("Any", parts.optimization.schedule.scheduler)
    yield 0, _current_lrs(parts)
    for step in sorted({*range(stride, total, stride), total - 1}):
        scheduler.last_epoch = step - 1
        scheduler.step()
        yield step, _current_lrs(parts)


def _merge_equal(groups: Sequence[ParamGroup], rates: list[tuple[float, ...]]) -> tuple[LRCurve, ...]:
    """Put groups with the same rates together; `rates` has those of each group."""
    names: dict[tuple[float, ...], list[str]] = {}
    for group, own in zip(groups, rates, strict=True):
        names.setdefault(own, []).append(group.name)
    return tuple(LRCurve(tuple(same), own) for own, same in names.items())


def table(rates: LRPreview) -> Table:
    """One row for each curve: its first, its highest and its last rate."""
    rows = []
    for curve in rates.curves:
        highest = max(curve.rates)
        epoch = rates.steps[curve.rates.index(highest)] // rates.steps_per_epoch + 1
        ends = (f"{curve.rates[0]:.4g}", f"{highest:.4g}", str(epoch), f"{curve.rates[-1]:.4g}")
        rows.append((", ".join(curve.groups), *ends, rates.changes))
    columns = ("groups", "first", "highest", "in epoch", "last", "changes")
    return Table("learning rates", columns, tuple(rows))


def plot(rates: LRPreview) -> Plot:
    """Draw each curve over the epochs."""
    epochs = [step / rates.steps_per_epoch for step in rates.steps]
    lines = tuple(Series(", ".join(curve.groups), epochs, curve.rates) for curve in rates.curves)
    return Plot("learning rate", "epochs", "rate", lines)
