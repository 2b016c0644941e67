"""Schedules that rise and fall: one cycle, and a chain of them for recipes in phases."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from attrs import asdict, field, frozen, validators

from ftcore import Schedule, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer


MOMENTUM = validators.optional((validators.ge(0.0), validators.lt(1.0)))


@frozen
class OneCycleConfig:
    """Options of `onecycle`, as in `torch.optim.lr_scheduler.OneCycleLR`.

    Attributes:
        pct_start: fraction of the steps in which the rate rises, in (0, 1); with `three_phase`, the lengths of
            phases 1 and 2.
        anneal_strategy: shape of the rise and of the fall.
        cycle_momentum: whether momentum (or the first of betas) cycles inversely to the rate; it replaces the
            optimizer's momentum.
        base_momentum: lowest momentum, in [0, 1); by default 0.85; only with `cycle_momentum`.
        max_momentum: highest momentum, in [0, 1); by default 0.95; only with `cycle_momentum`.
        div_factor: ratio of the peak rate (the optimizer's) to the initial rate, >= 1.
        final_div_factor: ratio of the initial rate to the final rate, >= 1.
        three_phase: fall to the initial rate as fast as the rate rose, then to the final rate.
    """

    pct_start: float = field(default=0.3, validator=(validators.gt(0.0), validators.lt(1.0)))
    anneal_strategy: Literal["cos", "linear"] = "cos"
    cycle_momentum: bool = True
    base_momentum: float | None = field(default=None, validator=MOMENTUM)
    max_momentum: float | None = field(default=None, validator=MOMENTUM)
    div_factor: float = field(default=25.0, validator=validators.ge(1.0))
    final_div_factor: float = field(default=1e4, validator=validators.ge(1.0))
    three_phase: bool = False

    def __attrs_post_init__(self) -> None:
        given = [name for name in ("base_momentum", "max_momentum") if getattr(self, name) is not None]
        if given and not self.cycle_momentum:
            raise ValueError(f"{given[0]} needs cycle_momentum = true")
        if self.lowest > self.highest:
            raise ValueError(f"base_momentum = {self.lowest} must be <= max_momentum = {self.highest}")

    @property
    def lowest(self) -> float:
        """Momentum at the highest rate."""
        return 0.85 if self.base_momentum is None else self.base_momentum

    @property
    def highest(self) -> float:
        """Momentum at the first and at the last rate."""
        return 0.95 if self.max_momentum is None else self.max_momentum


class OneCycle:
    """`torch.optim.lr_scheduler.OneCycleLR` up to the learning rate of each group (Smith and Topin 2018)."""

    Config = OneCycleConfig

    def __init__(self, config: OneCycleConfig) -> None:
        self.config = config

    @hookimpl
    def make_schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """Answer always."""
        from torch.optim.lr_scheduler import OneCycleLR

        config, steps = self.config, epochs * steps_per_epoch
        self._check(optimizer, steps)
        options = asdict(config) | {"base_momentum": config.lowest, "max_momentum": config.highest}
        rates = [group["lr"] for group in optimizer.param_groups]
        return Schedule(OneCycleLR(optimizer, rates, steps, **options), interval="step")

    def _check(self, optimizer: Optimizer, steps: int) -> None:
        """Refuse what torch divides by zero for, and an optimizer without momentum."""
        share = self.config.pct_start
        turns = [share * steps - 1, *([2 * share * steps - 2] if self.config.three_phase else []), steps - 1]
        if turns[0] <= 0 or turns[-2] >= turns[-1]:
            raise UserError(
                f"onecycle.pct_start = {share} turns at step {', '.join(f'{turn:g}' for turn in turns[:-1])} of a run "
                f"of {steps} steps, counted from 0; every phase needs at least one step"
            )
        if self.config.cycle_momentum and not all(_has_momentum(group) for group in optimizer.param_groups):
            raise UserError(
                f"onecycle.cycle_momentum = true, but {type(optimizer).__name__} has no momentum here; "
                "set onecycle.cycle_momentum=false"
            )


def _has_momentum(group: dict[str, object]) -> bool:
    return bool(group.get("betas") or group.get("momentum"))


UNIT_INTERVALS = validators.deep_iterable((validators.ge(0.0), validators.le(1.0)))


@frozen
class PhasesConfig:
    """Options of `phases`; the defaults are those of fastai's `fine_tune`: a probe of one epoch, then everything.

    Attributes:
        epochs: lengths of all phases except the last, which takes the rest of the run; each >= 1.
        peak: peak of each phase relative to the optimizer's learning rate, > 0.
        warmup: fraction of each phase in which the rate rises, in [0, 1].
        div: ratio of peak to initial rate of each phase, >= 1.
        final: ratio of final rate to peak of each phase, in [0, 1].
    """

    epochs: tuple[int, ...] = field(
        default=(1,), validator=(validators.min_len(1), validators.deep_iterable(validators.ge(1)))
    )
    peak: tuple[float, ...] = field(default=(1.0, 0.5), validator=validators.deep_iterable(validators.gt(0.0)))
    warmup: tuple[float, ...] = field(default=(0.99, 0.3), validator=UNIT_INTERVALS)
    div: tuple[float, ...] = field(default=(25.0, 5.0), validator=validators.deep_iterable(validators.ge(1.0)))
    final: tuple[float, ...] = field(default=(1e-5, 1e-5), validator=UNIT_INTERVALS)

    def __attrs_post_init__(self) -> None:
        for name in ("peak", "warmup", "div", "final"):
            if len(getattr(self, name)) != len(self.epochs) + 1:
                raise ValueError(
                    f"{name} must have one value for each of {len(self.epochs) + 1} phases (epochs names all but the "
                    f"last), got {list(getattr(self, name))}"
                )


class Phases:
    """One-cycle schedules in sequence, as in fastai's `fine_tune`, without momentum cycling."""

    Config = PhasesConfig

    def __init__(self, config: PhasesConfig) -> None:
        self.config = config

    @hookimpl
    def make_schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """Answer always."""
        from torch.optim.lr_scheduler import LambdaLR

        config = self.config
        left = epochs - sum(config.epochs)
        if left < 1:
            raise UserError(
                f"phases.epochs = {list(config.epochs)} leaves nothing of train.epochs = {epochs} for the last phase"
            )
        lengths = [steps_per_epoch * length for length in (*config.epochs, left)]
        shapes = zip(config.peak, config.warmup, config.div, config.final, strict=True)
        return Schedule(
            LambdaLR(optimizer, sequential([one_cycle_curve(*shape) for shape in shapes], lengths)), interval="step"
        )


def sequential(curves: list[Callable[[float], float]], lengths: list[int]) -> Callable[[int], float]:
    """Put curves of a share in [0, 1] one behind the other; `lengths` are their steps."""
    starts = list(accumulate(lengths, initial=0))

    def factor(step: int) -> float:
        place = min(bisect_right(starts, step), len(curves)) - 1
        return curves[place](min(1.0, (step - starts[place]) / lengths[place]))

    return factor


def one_cycle_curve(peak: float, warmup: float, div: float, final: float) -> Callable[[float], float]:
    """Rise from peak / div to peak, then fall to peak * final; as fastai's `combined_cos`."""

    def factor(share: float) -> float:
        if share < warmup:
            return cosine(peak / div, peak, share / warmup)
        return cosine(peak, peak * final, (share - warmup) / (1 - warmup) if warmup < 1 else 1.0)

    return factor


def cosine(start: float, end: float, share: float) -> float:
    """Go from one value to another along half a cosine; as fastai's `SchedCos`."""
    return start + (end - start) * 0.5 * (1 - math.cos(math.pi * share))
