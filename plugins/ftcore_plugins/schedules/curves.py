"""Learning-rate schedules that are a curve: a factor on each group's rate, perhaps after a linear warm-up."""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from ftcore import Schedule, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer


HALF_OPEN_UNIT_INTERVAL = (validators.ge(0.0), validators.lt(1.0))

UNIT_INTERVAL = (validators.ge(0.0), validators.le(1.0))


@frozen
class ScheduleProgress:
    """How far a run is.

    Attributes:
        epochs: since its start.
        share: of the steps after the warm-up, in [0, 1].
    """

    epochs: Fraction
    share: Fraction


class _CurveSchedule:
    """A schedule that follows its `factor`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @hookimpl
    def make_schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """Answer always."""
        self.check(epochs)
        per: Literal["step", "epoch"] = getattr(self.config, "per", "epoch")
        return lambda_schedule(optimizer, self.factor, epochs, steps_per_epoch, warmup=self.config.warmup, per=per)

    def check(self, epochs: int) -> None:
        """Refuse a run that is too short for the curve."""

    def factor(self, done: ScheduleProgress) -> float:
        """Return the factor on the learning rate, in [0, 1]."""
        raise NotImplementedError


def lambda_schedule(
    optimizer: Optimizer,
    curve: Callable[[ScheduleProgress], float],
    epochs: int,
    steps_per_epoch: int,
    *,
    warmup: float,
    per: Literal["step", "epoch"],
) -> Schedule:
    """Follow a curve, at every step or at every epoch, after a warm-up of a share of all steps."""
    from torch.optim.lr_scheduler import LambdaLR

    steps = epochs * steps_per_epoch
    rising = warmup_steps(steps, warmup)

    def factor(step: int) -> float:
        place = step - step % steps_per_epoch if per == "epoch" else step
        return curve(
            ScheduleProgress(Fraction(place, steps_per_epoch), Fraction(max(0, place - rising), steps - rising))
        )

    if per == "epoch" and not rising:  # counts epochs, so that a step that was left out shifts nothing
        return Schedule(LambdaLR(optimizer, lambda epoch: factor(epoch * steps_per_epoch)), interval="epoch")
    return Schedule(LambdaLR(optimizer, warm_up(factor, rising)), interval="step")


def warmup_steps(steps: int, share: float) -> int:
    """Return how many of a run's steps warm up: a share of them, rounded."""
    rising = round(steps * share)
    if steps <= rising:
        raise UserError(f"a warm-up of {rising} steps (warmup = {share}) takes all of the {steps} steps of the run")
    return rising


def warm_up(factor: Callable[[int], float], rising: int) -> Callable[[int], float]:
    """Rise linearly for some steps to where a factor then is: step k of w has (k + 1) / (w + 1) of it."""
    top = factor(rising)
    return lambda step: top * (step + 1) / (rising + 1) if step < rising else factor(step)


@frozen
class ConstantConfig:
    """Options of `constant`.

    Attributes:
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
    """

    warmup: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)


class Constant(_CurveSchedule):
    """Constant learning rate, optionally after a warm-up."""

    Config = ConstantConfig

    def factor(self, done: ScheduleProgress) -> float:  # noqa: ARG002 (as the others')
        """Return 1."""
        return 1.0


@frozen
class CosineConfig:
    """Options of `cosine`.

    Attributes:
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
        final: final learning rate relative to the initial one, in [0, 1].
        cycles: number of cosine cycles, >= 1; each restarts at the full rate.
        per: whether the rate changes every step or every epoch (the warm-up is always per step).
    """

    warmup: float = field(default=0.05, validator=HALF_OPEN_UNIT_INTERVAL)
    final: float = field(default=0.0, validator=UNIT_INTERVAL)
    cycles: int = field(default=1, validator=validators.ge(1))
    per: Literal["step", "epoch"] = "step"


class Cosine(_CurveSchedule):
    """Cosine annealing from the optimizer's learning rate to `final` times that (Loshchilov and Hutter 2017, eq. 5)."""

    Config = CosineConfig

    def check(self, epochs: int) -> None:
        """Refuse more cycles than epochs, where each takes one at least."""
        if self.config.per == "epoch" and self.config.cycles > epochs:
            raise UserError(f"cosine.cycles = {self.config.cycles} is more than train.epochs = {epochs}")

    def factor(self, done: ScheduleProgress) -> float:
        """Return the factor of eq. 5 with T_cur / T_i = the share of the cycle that is done."""
        final = float(self.config.final)
        share = done.share * self.config.cycles % 1 if done.share < 1 else 1
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))


@frozen
class PolynomialConfig:
    """Options of `polynomial`.

    Attributes:
        power: exponent of the remaining fraction of steps, > 0; 1 is linear.
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
        final: final learning rate relative to the initial one, in [0, 1].
        per: whether the rate changes every step or every epoch (the warm-up is always per step).
    """

    power: float = field(default=1.0, validator=validators.gt(0.0))
    warmup: float = field(default=0.05, validator=HALF_OPEN_UNIT_INTERVAL)
    final: float = field(default=0.0, validator=UNIT_INTERVAL)
    per: Literal["step", "epoch"] = "step"


class Polynomial(_CurveSchedule):
    """Polynomial decay from the optimizer's learning rate to `final` times that."""

    Config = PolynomialConfig

    def factor(self, done: ScheduleProgress) -> float:
        """Return final + (1 - final) * (1 - share) ** power, as in `torch.optim.lr_scheduler.PolynomialLR`."""
        return float(self.config.final + (1 - self.config.final) * float(1 - done.share) ** self.config.power)


@frozen
class ExponentialConfig:
    """Options of `exponential`.

    Attributes:
        gamma: factor on the learning rate per epoch, counted from the start of the run, in (0, 1].
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
        per: whether the rate changes every step or every epoch (the warm-up is always per step).
    """

    gamma: float = field(validator=(validators.gt(0.0), validators.le(1.0)))
    warmup: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)
    per: Literal["step", "epoch"] = "step"


class Exponential(_CurveSchedule):
    """Decay by a factor every epoch, as `torch.optim.lr_scheduler.ExponentialLR`."""

    Config = ExponentialConfig

    def factor(self, done: ScheduleProgress) -> float:
        """Return gamma ** epochs."""
        return float(self.config.gamma ** float(done.epochs))


@frozen
class StepConfig:
    """Options of `step`.

    Attributes:
        size: epochs between two changes of the learning rate, counted from the start of the run, >= 1.
        gamma: factor on the learning rate at each change, in [0, 1].
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
    """

    size: int = field(validator=validators.ge(1))
    gamma: float = field(default=0.1, validator=UNIT_INTERVAL)
    warmup: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)


class Step(_CurveSchedule):
    """Decay by a factor every few epochs, as `torch.optim.lr_scheduler.StepLR`."""

    Config = StepConfig

    def check(self, epochs: int) -> None:
        """Refuse a first change that is not before the end."""
        if self.config.size >= epochs:
            raise UserError(f"step.size = {self.config.size} must be less than train.epochs = {epochs}")

    def factor(self, done: ScheduleProgress) -> float:
        """Return gamma to the number of changes so far."""
        return float(self.config.gamma ** (done.epochs // self.config.size))


@frozen
class MultiStepConfig:
    """Options of `multistep`.

    Attributes:
        milestones: epochs after which the rate changes, counted from the start of the run; >= 1, increasing.
        gamma: factor on the learning rate at each change, in [0, 1].
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
    """

    milestones: tuple[int, ...] = field(validator=(validators.min_len(1), validators.deep_iterable(validators.ge(1))))
    gamma: float = field(default=0.1, validator=UNIT_INTERVAL)
    warmup: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)

    def __attrs_post_init__(self) -> None:
        if sorted(set(self.milestones)) != list(self.milestones):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")


class MultiStep(_CurveSchedule):
    """Decay by a factor at given epochs, as `torch.optim.lr_scheduler.MultiStepLR`."""

    Config = MultiStepConfig

    def check(self, epochs: int) -> None:
        """Refuse a change that is not before the end."""
        late = self.config.milestones[-1]
        if late >= epochs:
            raise UserError(f"multistep.milestones: {late} must be less than train.epochs = {epochs}")

    def factor(self, done: ScheduleProgress) -> float:
        """Return gamma to the number of milestones so far."""
        return float(self.config.gamma ** bisect_right(self.config.milestones, done.epochs))
