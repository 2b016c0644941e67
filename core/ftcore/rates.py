"""The learning rates of a run before it: its own scheduler steps, and nothing is learnt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from .parts import Table
from .plots import Line, Plot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .parts import ParamGroup
    from .state import Parts

LIMIT = 20_000
"""Steps up to which every one is followed."""


@frozen
class Curve:
    """Groups that learn at the same rate throughout.

    Attributes:
        groups: their names.
        rates: (S,) float, one for each of `Rates.steps`.
    """

    groups: tuple[str, ...]
    rates: tuple[float, ...]


@frozen
class Rates:
    """The learning rates of all groups over a run.

    Attributes:
        steps: (S,) int, from 0; those that were looked at.
        curves: one for each rate that differs.
        steps_per_epoch: optimizer steps.
        changes: when they change, and what is not shown.
    """

    steps: tuple[int, ...]
    curves: tuple[Curve, ...]
    steps_per_epoch: int
    changes: str


def follow(parts: Parts, groups: Sequence[ParamGroup], most: int = LIMIT) -> Rates:
    """Step the scheduler of a run that will not be run, as the loop does, and note the rates.

    Args:
        parts: without gradients, so that the optimizer's step, without which torch warns of the order, does nothing.
        groups: of the optimizer.
        most: steps to follow. Of a longer run that many are looked at, where the rate is a function of the step; else
            the first.
    """
    parts.optimizer.step()
    total = parts.settings.epochs * parts.steps_per_epoch
    stride = math.ceil(total / most)
    changes = _when(parts)
    if parts.schedule.per != "step" and not parts.schedule.warmup:
        seen = list(_by_epoch(parts))
    elif stride == 1:
        seen = list(_by_step(parts, total))
    elif _is_function_of_step(parts):
        seen, changes = list(_sampled(parts, total, stride)), f"{changes}; one in {stride} of {total:,} steps is shown"
    else:
        seen, changes = list(_by_step(parts, most)), f"{changes}; the first {most:,} of {total:,} steps are shown"
    steps, rates = zip(*seen, strict=True)
    return Rates(steps, _merged(groups, list(zip(*rates, strict=True))), parts.steps_per_epoch, changes)


def _when(parts: Parts) -> str:
    schedule = parts.schedule
    if schedule.per == "metric":
        rising = "after the warm-up, " if schedule.warmup else ""
        return f"{rising}with the monitored metric ({parts.monitor}), which nobody knows before the run"
    return "each epoch, beside a warm-up" if schedule.per == "epoch" and schedule.warmup else f"each {schedule.per}"


def _now(parts: Parts) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in parts.optimizer.param_groups)


def _by_step(parts: Parts, number: int) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield steps and their rates, of so many steps, as `ftcore.loop.train_epoch` takes them."""
    from .loop import advance

    for step in range(number):
        yield step, _now(parts)
        advance(parts, "step")
        if (step + 1) % parts.steps_per_epoch == 0:
            advance(parts, "epoch")


def _by_epoch(parts: Parts) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the first and the last step of each epoch, between which the rates stay."""
    from .loop import advance

    for epoch in range(parts.settings.epochs):
        first = epoch * parts.steps_per_epoch
        for step in sorted({first, first + parts.steps_per_epoch - 1}):
            yield step, _now(parts)
        advance(parts, "epoch")


def _is_function_of_step(parts: Parts) -> bool:
    """Whether the scheduler is of torch's classes that take nothing but `last_epoch` into account."""
    from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

    return not parts.schedule.warmup and type(parts.schedule.scheduler) in {LambdaLR, OneCycleLR}


def _sampled(parts: Parts, total: int, stride: int) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield every so many steps, and the last."""
    scheduler = cast("Any", parts.schedule.scheduler)
    yield 0, _now(parts)
    for step in sorted({*range(stride, total, stride), total - 1}):
        scheduler.last_epoch = step - 1
        scheduler.step()
        yield step, _now(parts)


def _merged(groups: Sequence[ParamGroup], rates: list[tuple[float, ...]]) -> tuple[Curve, ...]:
    """Put groups with the same rates together; `rates` has those of each group."""
    names: dict[tuple[float, ...], list[str]] = {}
    for group, own in zip(groups, rates, strict=True):
        names.setdefault(own, []).append(group.name)
    return tuple(Curve(tuple(same), own) for own, same in names.items())


def table(rates: Rates) -> Table:
    """One row for each curve: its first, its highest and its last rate."""
    rows = []
    for curve in rates.curves:
        highest = max(curve.rates)
        epoch = rates.steps[curve.rates.index(highest)] // rates.steps_per_epoch + 1
        ends = (f"{curve.rates[0]:.4g}", f"{highest:.4g}", str(epoch), f"{curve.rates[-1]:.4g}")
        rows.append((", ".join(curve.groups), *ends, rates.changes))
    columns = ("groups", "first", "highest", "in epoch", "last", "changes")
    return Table("learning rates", columns, tuple(rows))


def plot(rates: Rates) -> Plot:
    """Draw each curve over the epochs."""
    epochs = [step / rates.steps_per_epoch for step in rates.steps]
    lines = tuple(Line(", ".join(curve.groups), epochs, curve.rates) for curve in rates.curves)
    return Plot("learning rate", "epochs", "rate", lines)
